"""A search's story on one page: what it says, what it draws, and that it asks nobody for anything."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from invented import BEGAN, at_rungs, complete, many_trials, page_of, pruned, trial
from lines import events_of, launch
from marked import add_own
from optuna.trial import TrialState
from sqlalchemy import URL
from typer.testing import CliRunner

from search.cli import app
from search.errors import StorageError, UsageError
from search.figures.catalogue import study_figures
from search.figures.charts import (
    learning_curves,
    optimization_history,
    parallel_coordinates,
    timeline,
)
from search.figures.sizes import value_against_size
from search.figures.timeline import segments_of_journal, segments_of_trials
from search.paths import Runs
from search.study.events import Assign, Crash, Tell
from search.study.journal import Journal
from search.study.storage import open_storage
from search.study.study import open_study
from search.study.trial import ranked, states_of
from search.watch.report import html_of_report, write_report
from studies import StudySpec


class TestFigures:
    def test_every_figure_has_its_place_on_the_page(self, spec: StudySpec) -> None:
        ids = [figure.id for figure in study_figures(many_trials(), spec, {"lr": 1.0})]
        assert ids == ["history", "curves", "parallel", "slices", "importance", "size", "time", "timeline"]

    def test_no_figure_without_something_to_draw(self, spec: StudySpec) -> None:
        assert study_figures([], spec) == []
        assert study_figures([trial(0, TrialState.RUNNING, [0.2])], spec) == []
        assert [figure.id for figure in study_figures([pruned(0, 0.2)], spec)] == ["curves", "time", "timeline"]

    def test_an_older_plotly_in_a_browser_can_read_them(self, spec: StudySpec) -> None:
        # Encoded arrays ("bdata") came with plotly.js 2.35; the dashboard brings its own version.
        assert not [p.id for p in study_figures(many_trials(), spec) if "bdata" in p.chart.to_json()]

    def test_the_frontier_is_the_best_of_each_size(self, spec: StudySpec) -> None:
        trials = [complete(0, 0.90, size=100), complete(1, 0.89, size=200), complete(2, 0.92, size=300)]
        *_, frontier = value_against_size(trials, spec).data
        assert (frontier.x, frontier.y) == ((100, 300), (0.90, 0.92))

    def test_where_models_are_compared_both_sizes_are_drawn(self, spec: StudySpec) -> None:
        survey = spec.model_copy(update={"space": {**spec.space, "model": ("rexnet_100", "resnet18")}})
        trials = [complete(0, 0.90, size=100), complete(1, 0.92, size=300)]
        for number, macs in enumerate((9_000_000, 4_000_000)):
            trials[number].set_user_attr("macs", macs)
        figures = {figure.id: figure for figure in study_figures(trials, survey)}
        assert figures["size"].title == "Accuracy against parameters"
        assert figures["size-macs"].title == "Accuracy against GFLOPs"
        points = figures["size-macs"].chart.data[0]
        assert points.x == pytest.approx((0.008, 0.018)), "two operations for each multiply-add"
        assert points.mode == "markers+text"
        assert "size-macs" not in {figure.id for figure in study_figures(trials, spec)}

    def test_a_hopeless_trial_does_not_press_the_others_flat(self, spec: StudySpec) -> None:
        good = [complete(number, 0.9 + number / 1000) for number in range(8)]
        low, high = optimization_history([*good, complete(8, 0.1)], spec).layout.yaxis.range
        assert (low, high) == pytest.approx((0.9, 0.907), abs=0.001)

    def test_learning_curves_keep_what_was_pruned_in_one_trace(self, spec: StudySpec) -> None:
        pruned_trials = [pruned(number, 0.2, 0.3) for number in range(1, 50)]
        faint, best = learning_curves([complete(0, 0.9), *pruned_trials], spec).data
        assert faint.x[:4] == (1, 2, None, 1)
        assert best.name == "best: trial 0"

    def test_trials_that_overlap_on_equal_gpus_get_a_row_each(self) -> None:
        at = [BEGAN, BEGAN + timedelta(seconds=10), BEGAN + timedelta(hours=1)]
        trials = [complete(number, 0.9, begun=begun, device="L4") for number, begun in enumerate(at)]
        figure = timeline(segments_of_trials(trials))
        assert figure.data[0].y == ("L4 1", "L4 2", "L4 1")
        assert timeline(segments_of_trials(trials[:1])).data[0].y == ("L4",)

    def test_the_timeline_of_a_journal_shows_stops_and_crashes(self) -> None:
        def event(at: float, kind: str, **values: Any) -> dict[str, Any]:
            return {"at": BEGAN.timestamp() + at, "event": kind} | values

        def launch_at(at: float) -> dict[str, Any]:
            return launch().model_dump() | {"at": BEGAN.timestamp() + at}

        told = events_of(
            [
                launch_at(0),
                event(1, "assign", trial=0, worker="gpu 0", attempt=1),
                event(2, "assign", trial=1, worker="gpu 1", attempt=1),
                event(11, "crash", trial=0, worker="gpu 0", reason="signal 9 <b>"),
                event(12, "assign", trial=0, worker="gpu 0", attempt=2),
                event(22, "tell", trial=1, state="PRUNED", value=0.1, reason=""),
                event(30, "epoch", trial=0, step=1, value=0.1, pruned=False),  # the last before kill -9
                launch_at(90),
                event(91, "assign", trial=0, worker="gpu 1", attempt=1),
                event(99, "tell", trial=0, state="COMPLETE", value=0.1, reason=""),
                event(100, "assign", trial=2, worker="gpu 1", attempt=1),
            ]
        )
        segments = segments_of_journal(told)
        assert [(segment.worker, segment.trial, segment.seconds, segment.outcome) for segment in segments] == [
            ("gpu 0", 0, 10, "crashed"),
            ("gpu 1", 1, 20, "pruned"),
            ("gpu 0", 0, 18, "stopped"),
            ("gpu 1", 0, 8, "complete"),
        ]
        bars, crosses = timeline(segments).data
        assert bars.text[0] == "trial 0 crashed, 10 s: signal 9 &lt;b&gt;"
        assert (crosses.y, crosses.x) == (("gpu 0",), ((BEGAN + timedelta(seconds=11)).isoformat(),))

    @pytest.mark.parametrize(
        ("nodes", "rows"),
        [
            (["n2", "n1", "n2"], ["n1 slurm:1", "n2 slurm:0", "n2 slurm:2"]),
            (["n1", "n1", "n1"], ["slurm:0", "slurm:1", "slurm:2"]),
            (["", "n1", "n1"], ["slurm:0", "slurm:1", "slurm:2"]),  # an earlier version wrote no nodes
        ],
        ids=["several", "one", "one and unknown"],
    )
    def test_the_rows_of_the_timeline_are_grouped_by_machine_if_there_are_several(
        self, nodes: list[str], rows: list[str]
    ) -> None:
        assigned = [Assign(trial=i, worker=f"slurm:{i}", attempt=1, node=node) for i, node in enumerate(nodes)]
        told = [Tell(trial=i, state="COMPLETE", value=0.1, reason="") for i in range(3)]
        figure = timeline(segments_of_journal([*assigned, *told]))
        assert list(figure.layout.yaxis.categoryarray)[::-1] == rows

    def test_the_curves_of_a_series_of_trainings_begin_anew_after_each_rung(self, series: StudySpec) -> None:
        trials = [at_rungs(series, 0, 0.5, 0.6, 0.9), at_rungs(series, 1, 0.3), at_rungs(series, 2, 0.4, 0.5)]
        figure = learning_curves(trials, series)
        _, faint, best = figure.data
        assert (faint.name, faint.x) == ("paused", (1, 2, None, 1, 2, None, *range(3, 9), None))
        assert best.x == (1, 2, None, *range(3, 9), None, *range(9, 27), None)
        assert (best.text[0], best.text[3], best.text[-2]) == (
            "trial 0, epoch 1 of 2",
            "trial 0, epoch 1 of 6",
            "trial 0, epoch 18 of 18",
        )
        assert [line.x0 for line in figure.layout.shapes] == [2.5, 8.5]
        axis = figure.layout.xaxis
        ends = dict(zip(axis.tickvals, axis.ticktext, strict=True))
        assert (ends[2], ends[8], ends[26], max(axis.range)) == ("2", "6", "18", 26.2)
        hover = {trace.name: trace.text for trace in optimization_history(trials, series).data}
        assert hover["completed"] == ("trial 0 complete, 90.00% at epoch 18 of 18 of training 3 of 3",)
        assert hover["paused"][1] == "trial 2 paused, 50.00% at epoch 6 of 6 of training 2 of 3"

    def test_a_training_that_goes_through_its_rungs_stays_one_curve(self, series: StudySpec) -> None:
        train = series.train.model_copy(update={"schedule": "constant"})
        parts = series.model_copy(update={"train": train})
        figure = learning_curves([at_rungs(parts, 0, 0.5, 0.6, 0.9)], parts)
        assert figure.data[1].x == (*range(1, 19), None)
        assert [line.x0 for line in figure.layout.shapes] == [2, 6]
        assert figure.data[1].text[5] == "trial 0, epoch 6 of 18"

    def test_the_timeline_has_every_stretch_of_a_candidate_that_was_paused(self, series: StudySpec) -> None:
        def event(at: float, kind: str, **values: Any) -> dict[str, Any]:
            return {"at": BEGAN.timestamp() + at, "event": kind} | values

        told = events_of(
            [
                launch().model_dump() | {"at": BEGAN.timestamp()},
                event(1, "assign", trial=0, worker="cpu:0", attempt=1),
                event(9, "epoch", trial=0, step=2, value=0.1, pruned=True),
                event(10, "pause", trial=0, step=2),
                event(50, "promote", trial=0, step=2, at_least=0),
                event(51, "assign", trial=0, worker="cpu:1", attempt=2),
                event(60, "epoch", trial=0, step=8, value=0.1, pruned=False),
                event(61, "assign", trial=0, worker="cpu:1", attempt=3),
                event(99, "tell", trial=0, state="COMPLETE", value=0.1, reason=""),
            ]
        )
        segments = segments_of_journal(told)
        assert [(one.worker, one.seconds, one.outcome) for one in segments] == [
            ("cpu:0", 9, "paused"),
            ("cpu:1", 9, "went on"),
            ("cpu:1", 38, "complete"),
        ]
        assert timeline(segments).data[0].text[0] == "trial 0 paused, 9 s"
        # Without a journal nobody knows when a candidate that has waited was trained.
        trials = [at_rungs(series, 0, 0.5, 0.6, 0.9), at_rungs(series, 1, 0.5, 0.6, 0.9), at_rungs(series, 2, 0.3)]
        trials[1].user_attrs["paused_at"] = 2
        assert [one.trial for one in segments_of_trials(trials)] == [0]
        (shown,) = [one for one in study_figures(trials, series) if one.id == "timeline"]
        assert "have waited at a rung are left out" in shown.caption
        assert not [one for one in study_figures(trials[1:], series) if one.id == "timeline"]

    def test_the_time_of_paused_trials_has_its_own_bar(self, series: StudySpec) -> None:
        (figure,) = [one for one in study_figures([at_rungs(series, 0, 0.3)], series) if one.id == "time"]
        assert [(bar.y, bar.text) for bar in figure.chart.data][1] == (("paused",), ("80 s, 1 trial",))

    def test_trials_from_before_a_change_of_the_space_are_left_out(self, spec: StudySpec) -> None:
        old = complete(0, 0.9)
        del old.params["dropout"]
        trials = [old, complete(1, 0.8, params={"dropout": 0.1}), complete(2, 0.7, params={"dropout": 0.3})]
        _, _, best = parallel_coordinates(trials, spec).data
        assert best.text[0] == "trial 1, lr 0.005"
        assert study_figures(trials, spec)


class TestPage:
    def test_asks_nobody_for_anything(self, spec: StudySpec) -> None:
        page = page_of(spec, many_trials(), {"lr": 0.7, "dropout": 0.3})
        assert not re.findall(r"https?:|src=|href=|@import|url\(", page)
        assert "default-src 'none'" in page

    def test_is_not_larger_than_it_says(self, spec: StudySpec) -> None:
        assert len(html_of_report(spec, many_trials(), {}, BEGAN).encode()) < 5.2e6

    def test_shows_outsiders_words_as_words(self, spec: StudySpec) -> None:
        evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
        trials = [complete(0, 0.9, device=evil), trial(1, TrialState.FAIL, [0.2], reason=evil, device=evil)]
        page = page_of(spec, trials)
        assert "alert(1)" in page
        assert "<script>alert" not in page
        assert "<img" not in page

    def test_lists_failed_and_diverged_trials_with_their_reasons(self, spec: StudySpec) -> None:
        page = page_of(spec, many_trials())
        assert page.count(html.escape("the worker ended with signal 9: <Killed> & gone\nlast words")) == 2
        assert "epoch 4 has a training loss of nan" in page

    def test_lists_the_paused_trials_apart_from_the_finished_ones(self, series: StudySpec) -> None:
        paused = [at_rungs(series, number, 0.3 + number / 1000) for number in range(21)]
        page = page_of(series, [*paused, at_rungs(series, 21, 0.4, 0.5), at_rungs(series, 22, 0.5, 0.6, 0.9)])
        rows = re.findall(r"<tr><td>(\d+)</td><td>([\d.]+%)</td><td>(paused[^<]*)</td></tr>", page)
        assert rows[0] == ("21", "50.00%", "paused at rung 2 of 2 (epoch 6)")
        assert rows[1] == ("20", "32.00%", "paused at rung 1 of 2 (epoch 2)")
        assert len(rows) == 20
        assert "And 2 more." in page
        assert "unning" not in page

    def test_without_a_trial_says_what_will_be_searched(self, spec: StudySpec) -> None:
        page = page_of(spec, [])
        assert "No trial has finished yet" in page
        assert "resnet10t on digits at 32 px" in page
        assert "<figure>" not in page

    def test_without_a_completed_trial_says_so_and_draws_the_rest(self, spec: StudySpec) -> None:
        page = page_of(spec, [pruned(0, 0.2), trial(1, TrialState.FAIL, [], reason="out of memory")])
        assert "No trial has completed, so there is no best recipe yet." in page
        assert "[[known]]" not in page
        assert "out of memory" in page
        assert "Learning curves" in page


class TestCommand:
    def test_writes_the_page_and_says_where(self, study: optuna.Study, url: URL, tmp_path: Path) -> None:
        add_own(study, many_trials(14))
        page = tmp_path / "story.html"
        answer = CliRunner().invoke(app, ["report", "digits", "--storage", str(url), "--out", str(page)])
        assert answer.exit_code == 0
        assert answer.output == f"wrote {page}, 4.9 MB; open it in a browser\n"
        text = page.read_text()
        assert text.startswith("<!doctype html>")
        assert "Which settings mattered" in text
        assert not list(tmp_path.glob("*.partial"))

    def test_says_the_same_as_json(self, study: optuna.Study, url: URL, tmp_path: Path) -> None:
        trials = [*many_trials(14), trial(14, TrialState.FAIL, [0.2], reason="out of memory")]
        add_own(study, trials)
        journal = Journal(Runs(tmp_path).journal("digits"))
        journal.append(Assign(trial=3, worker="cpu:1", attempt=1))
        journal.append(Crash(trial=3, worker="cpu:1", reason="the worker ended with signal 9"))
        page = tmp_path / "story.html"
        places = ["--storage", str(url), "--runs", str(tmp_path), "--out", str(page)]
        answer = CliRunner().invoke(app, ["report", "digits", *places, "--json"])
        facts = json.loads(answer.output)
        text = html.unescape(page.read_text())
        assert (facts["version"], facts["page"], facts["bytes"]) == (2, str(page), page.stat().st_size)
        assert facts["story"] in text
        assert facts["findings"]
        assert (facts["budget"]["trials"], facts["spent"]["begun"], facts["spent"]["finished"]) == (60, 15, 15)
        assert facts["spent"]["epochs"] == sum(one.last_step or 0 for one in trials)
        assert all(line in text for line in facts["findings"])
        assert facts["best"][0]["trial"] == ranked(trials)[0].number
        assert tomllib.loads(facts["toml"])["known"][0] == facts["best"][0]["params"]
        assert sum(facts["counts"].values()) == 15
        assert [(one["worker"], one["trial"], one["reason"]) for one in facts["crashes"]] == [
            ("cpu:1", 3, "the worker ended with signal 9")
        ]
        assert "a cross: the training crashed" in text
        assert facts["failures"][-1] == {
            **{"trial": 14, "state": "FAIL", "value": 0.2, "num_params": 200_000, "macs": 9_000_000, "seconds": 40.0},
            "params": trials[14].params,
            "reason": "out of memory",
        }

    def test_a_paused_trial_is_not_running_in_the_json(self, series: StudySpec, url: URL, tmp_path: Path) -> None:
        study = open_study(series, open_storage(url, create=True), "0" * 64)
        add_own(study, [at_rungs(series, 0, 0.3), at_rungs(series, 1, 0.5, 0.6, 0.9)])
        facts = write_report("digits", url, Runs(tmp_path), tmp_path / "story.html").to_json()
        assert "PAUSED" not in states_of([complete(0, 0.9)])
        assert facts["counts"] == {
            **{"RUNNING": 0, "COMPLETE": 1, "PRUNED": 0, "FAIL": 0, "WAITING": 0, "PAUSED": 1},
        }
        assert facts["seconds"] == {"COMPLETE": 1040.0, "PRUNED": 0, "FAIL": 0, "PAUSED": 80.0}
        assert facts["spent"]["paused"] == 1

    def test_takes_the_study_last_launched_and_names_the_page_after_it(
        self, study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "last-study").write_text("digits")
        monkeypatch.chdir(tmp_path)
        CliRunner().invoke(app, ["report", "--runs", str(tmp_path)], catch_exceptions=False)
        assert (tmp_path / "digits-report.html").exists()

    def test_an_unknown_study_is_named_with_the_nearest(self, study: optuna.Study, url: URL, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"no study 'digit' in this database; .*digits"):
            write_report("digit", url, Runs(tmp_path))

    def test_without_a_database_says_how_to_begin(self, url: URL, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="start a search first: search launch"):
            write_report("digits", url, Runs(tmp_path))

    def test_a_page_that_cannot_be_written_is_one_sentence(self, study: optuna.Study, url: URL, tmp_path: Path) -> None:
        page = tmp_path / "nowhere" / "story.html"
        with pytest.raises(
            UsageError, match=r"story.html cannot be written: No such file or directory; choose another"
        ):
            write_report("digits", url, Runs(tmp_path), page)


def test_other_recipes_are_offered_only_if_there_are_some(spec: StudySpec) -> None:
    trials = many_trials()
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    assert "The others" in html_of_report(spec, trials, {}, BEGAN)
    assert "The others" not in html_of_report(spec, complete[:1], {}, BEGAN)


@pytest.mark.slow
def test_a_browser_draws_every_figure(spec: StudySpec, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    page = tmp_path / "story.html"
    page.write_text(html_of_report(spec, many_trials(), {"lr": 0.7, "dropout": 0.3}, BEGAN))
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path}/profile"]
    command = [chromium, *quiet, "--virtual-time-budget=10000", "--dump-dom", page.as_uri()]
    drawn = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    figures = drawn.split("<figure>")[1:]
    assert len(figures) == 8
    assert all('class="main-svg"' in figure for figure in figures)
