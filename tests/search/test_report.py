"""A search's story on one page: what it says, what it draws, and that it asks nobody for anything."""

from __future__ import annotations

import html
import json
import math
import random
import re
import shutil
import subprocess
import tomllib
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState
from plotly.offline import get_plotlyjs
from sqlalchemy import URL
from typer.testing import CliRunner

from search.charts import (
    accuracy_against_size,
    learning_curves,
    optimization_history,
    parallel_coordinates,
    timeline,
)
from search.cli import app
from search.errors import StorageError, UsageError
from search.figures import study_pictures
from search.findings import as_toml, findings, ranked, setting_importances, story
from search.journal import Journal
from search.paths import Runs
from search.report import render, write_report
from search.status import view_of
from search.stints import stints_of_journal, stints_of_trials
from search.storage import open_storage, parse_url
from search.study import open_study
from studies import StudySpec, load

BEGAN = datetime(2026, 3, 7, 9, 30)

SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-3, 2e-2, log=True),
    "weight_decay": FloatDistribution(1e-3, 0.3, log=True),
    "label_smoothing": FloatDistribution(0.0, 0.1),
    "dropout": FloatDistribution(0.0, 0.5),
    "batch_size": CategoricalDistribution([32, 64, 128]),
    "width_mult": FloatDistribution(0.1, 0.232),
}


@pytest.fixture
def spec() -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": "digits",
            "data": {"source": "digits", "image_size": 32},
            "limit": {"params": 300_000},
            "train": {"model": "resnet10t", "epochs": 9},
            "space": {
                "lr": {"low": 1e-3, "high": 2e-2, "log": True},
                "weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
                "label_smoothing": {"low": 0.0, "high": 0.1},
                "dropout": {"low": 0.0, "high": 0.5},
                "batch_size": [32, 64, 128],
                "width_mult": {"low": 0.1},
            },
            "search": {"trials": 60, "min_epochs": 1},
        }
    )


def trial(number: int, state: TrialState, accuracies: list[float], **more: Any) -> FrozenTrial:
    """A trial as the coordinator leaves it; ``more`` may hold params, device, reason, size and its beginning."""
    begun = more.get("begun", BEGAN + timedelta(minutes=number))
    seconds = 40.0 * len(accuracies)
    params = {"lr": 5e-3, "weight_decay": 0.02, "label_smoothing": 0.05, "dropout": 0.2, "batch_size": 64}
    params |= {"width_mult": 0.17} | more.get("params", {})
    attributes = {"num_params": more.get("size", 200_000), "macs": 9_000_000, "seconds": seconds}
    attributes |= {"device": more.get("device", "cpu"), "images_per_second": 900.0}
    if "reason" in more:
        attributes["reason"] = more["reason"]
    finished = state.is_finished()
    return FrozenTrial(
        number=number,
        state=state,
        value=accuracies[-1] if state in (TrialState.COMPLETE, TrialState.PRUNED) else None,
        datetime_start=begun,
        datetime_complete=begun + timedelta(seconds=seconds) if finished else None,
        params=params,
        distributions=SPACE,
        user_attrs=attributes,
        system_attrs={},
        intermediate_values=dict(enumerate(accuracies, start=1)),
        trial_id=number,
    )


def complete(number: int, accuracy: float, **more: Any) -> FrozenTrial:
    curve = [accuracy * (1 - 0.6 * math.exp(-epoch / 2)) for epoch in range(1, 9)]
    return trial(number, TrialState.COMPLETE, [*curve, accuracy], **more)


def pruned(number: int, *accuracies: float, reason: str = "successive_halving after epoch 1") -> FrozenTrial:
    return trial(number, TrialState.PRUNED, list(accuracies), reason=reason)


def many_trials(count: int = 60) -> list[FrozenTrial]:
    """A search that looks like a real one: two devices, a good learning rate, a third pruned, a few accidents."""
    dice = random.Random(7)
    free = {"NVIDIA L4": BEGAN, "NVIDIA T4 <b>old</b>": BEGAN}
    trials = []
    for number in range(count):
        params = {
            "lr": 10 ** dice.uniform(-3, math.log10(2e-2)),
            "weight_decay": 10 ** dice.uniform(-3, math.log10(0.3)),
            "label_smoothing": dice.uniform(0, 0.1),
            "dropout": dice.uniform(0, 0.5),
            "batch_size": dice.choice([32, 64, 128]),
            "width_mult": dice.uniform(0.1, 0.232),
        }
        quality = 0.975 - 0.05 * (math.log10(params["lr"] / 0.018)) ** 2 - 0.3 * (0.232 - params["width_mult"])
        quality += dice.gauss(0, 0.004) - 0.03 * params["dropout"]
        curve = [quality * (1 - 0.55 * math.exp(-epoch / 1.8)) + dice.gauss(0, 0.006) for epoch in range(1, 10)]
        state, epochs, reason = TrialState.COMPLETE, 9, None
        if number in (17, 41):
            state, epochs, reason = TrialState.FAIL, 2, "the worker ended with signal 9: <Killed> & gone\nlast words"
        elif number == 23:
            state, epochs, reason = TrialState.PRUNED, 3, "DivergedError: epoch 4 has a training loss of nan"
        elif number > 8 and quality < 0.935:
            epochs = 1 if quality < 0.925 else 3
            state, reason = TrialState.PRUNED, f"successive_halving after epoch {epochs}"
        device = min(free, key=lambda name: free[name])
        more: dict[str, Any] = {"reason": reason} if reason else {}
        size = round(300_000 * (params["width_mult"] / 0.232) ** 2)
        made = trial(number, state, curve[:epochs], params=params, device=device, begun=free[device], size=size, **more)
        trials.append(made)
        assert made.datetime_complete is not None
        free[device] = made.datetime_complete + timedelta(seconds=2)
    return trials


def page_of(spec: StudySpec, trials: list[FrozenTrial], importances: dict[str, float] | None = None) -> str:
    """The page without plotly.js, which is 4.8 MB of somebody else's text."""
    return render(spec, trials, importances or {}, datetime(2026, 3, 8)).replace(get_plotlyjs(), "")


@pytest.fixture
def url(tmp_path: Path) -> URL:
    return parse_url(f"sqlite:///{tmp_path}/search.db")


@pytest.fixture
def study(spec: StudySpec, url: URL) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return open_study(spec, open_storage(url, create=True), "0" * 64)


class TestStory:
    def test_tells_counts_best_and_what_pruning_saved(self, spec: StudySpec) -> None:
        told = story(spec, [complete(0, 0.9), complete(1, 0.95), pruned(2, 0.3), trial(3, TrialState.FAIL, [0.2])])
        assert "4 of 60 trials finished from 7 March 2026, 09:30 to 7 March 2026, 09:37" in told
        assert "2 completed, 1 pruned, 1 failed" in told
        assert "trial 1, reached 95.00% on the validation split" in told
        # 18 + 1 + 1 epochs of 40 s; the pruned trial had 8 epochs to go.
        assert "Training took 13 min" in told
        assert "90% on trials that completed, 5% on trials that were pruned, 5% on trials that failed" in told
        assert "Pruning saved about 5 min" in told

    def test_says_when_the_best_was_a_known_recipe(self, spec: StudySpec) -> None:
        best = complete(0, 0.9)
        best.user_attrs["known"] = 0
        assert "trial 0, one of the known recipes that were tried first, reached" in story(spec, [best])

    def test_names_only_the_last_folder_of_the_data(self, spec: StudySpec) -> None:
        data = spec.data.model_copy(update={"source": "folder", "path": "/home/ada/birds"})
        page = page_of(spec.model_copy(update={"data": data}), [complete(0, 0.9)])
        assert "folder (birds)" in page
        assert "/home" not in page


class TestFindings:
    def test_the_edge_of_a_logarithmic_range_is_measured_in_the_logarithm(self, spec: StudySpec) -> None:
        # 0.0018 lies in the lowest twentieth of 0.001 to 0.02, but a fifth up its logarithm.
        inside = findings(spec, [complete(0, 0.9, params={"lr": 0.0018})], {})
        at_edge = findings(spec, [complete(0, 0.9, params={"lr": 0.0011})], {})
        assert not [line for line in inside if "edge" in line]
        assert [line for line in at_edge if "edge" in line] == [
            "The best lr, 0.0011, sits at the lower edge of its range, 0.001 to 0.02; 1 of the top 1 lie in the "
            "outermost fifth on that side. Lower values may be better: widen the range."
        ]

    @pytest.mark.parametrize(
        ("params", "cure"),
        [
            ({"lr": 0.0199}, "Higher values may be better: widen the range."),
            ({"dropout": 0.01}, "Perhaps it is not needed at all."),
            ({"width_mult": 0.232}, "The limit ends there; wider models may be better."),
        ],
    )
    def test_what_to_do_about_an_edge_depends_on_the_edge(
        self, spec: StudySpec, params: dict[str, float], cure: str
    ) -> None:
        (line,) = [line for line in findings(spec, [complete(0, 0.9, params=params)], {}) if "edge" in line]
        assert line.endswith(cure)

    def test_says_how_many_were_pruned_at_the_first_rung(self, spec: StudySpec) -> None:
        trials = [complete(0, 0.9), pruned(1, 0.2), pruned(2, 0.2), pruned(3, 0.2, 0.3, 0.4)]
        assert "2 of 3 pruned trials ended at the first rung, after 1 epoch of 9." in findings(spec, trials, {})

    def test_says_when_the_first_rung_is_a_bad_judge(self, spec: StudySpec) -> None:
        # The earlier the better, the worse at the end.
        crossing = [trial(number, TrialState.COMPLETE, [0.5 + number / 50, 0.9 - number / 50]) for number in range(9)]
        parallel = [trial(number, TrialState.COMPLETE, [0.5 + number / 50, 0.7 + number / 50]) for number in range(9)]
        (bad,) = [line for line in findings(spec, [*crossing, pruned(9, 0.2)], {}) if "rung" in line]
        (good,) = [line for line in findings(spec, [*parallel, pruned(9, 0.2)], {}) if "rung" in line]
        assert "correlate by -1.00: so early an accuracy says little here; raise search.min_epochs." in bad
        assert good.endswith("correlate by 1.00.")

    def test_diverged_trials_are_not_the_pruners(self, spec: StudySpec) -> None:
        diverged = pruned(1, 0.2, reason="DivergedError: epoch 2 has a training loss of nan; try a lower lr than 0.005")
        lines = findings(spec, [complete(0, 0.9), diverged], {})
        assert "1 trial diverged (lr 0.005)." in lines
        assert not [line for line in lines if "rung" in line]

    def test_trials_out_of_memory_are_neither_diverged_nor_the_pruners(self, spec: StudySpec) -> None:
        too_large = pruned(1, 0.2, reason="out of memory with 4 micro-batches")
        lines = findings(spec, [complete(0, 0.9), too_large], {})
        assert any(line.startswith("1 trial ran out of memory, with each batch in 4 parts too:") for line in lines)
        assert not [line for line in lines if "rung" in line or "diverged" in line]
        page = page_of(spec, [complete(0, 0.9), too_large])
        assert "<td>out of memory</td><td>1</td>" in page
        assert "<td>diverged</td>" not in page

    def test_a_fold_after_which_the_pruner_ended_a_trial_is_no_divergence(self, spec: StudySpec) -> None:
        lines = findings(spec, [complete(0, 0.9), pruned(1, 0.2, reason="median after fold 1")], {})
        assert not [line for line in lines if "diverged" in line]

    def test_few_completed_trials_make_the_importance_a_guess(self, spec: StudySpec) -> None:
        few = [complete(number, 0.9) for number in range(12)]
        many = [complete(number, 0.9) for number in range(30)]
        assert "Only 12 trials completed: the importance of the settings is a guess." in findings(
            spec, few, {"lr": 1.0}
        )
        assert not [line for line in findings(spec, many, {"lr": 1.0}) if "guess" in line]

    def test_a_search_that_goes_on_says_so(self, spec: StudySpec) -> None:
        lines = findings(spec, [complete(0, 0.9), trial(1, TrialState.RUNNING, [0.2])], {})
        assert (
            "The budget is not spent: 1 of 60 trials finished, 1 more begun. The same launch command goes on." in lines
        )

    def test_folds_are_counted_as_folds(self, spec: StudySpec) -> None:
        folded = StudySpec.model_validate(spec.model_dump() | {"data": {"source": "digits", "folds": 3}})
        done = trial(0, TrialState.COMPLETE, [0.9, 0.9, 0.9])
        told = story(folded, [done, pruned(1, 0.3)])
        assert "with 3 folds of 9 epochs for each trial" in told
        assert "Pruning saved about 80 s." in told, "two folds of 40 s"
        lines = findings(folded, [done, pruned(1, 0.3)], {})
        assert "The only pruned trial ended at the first rung, after 1 fold of 3." in lines
        assert learning_curves([done], folded).layout.xaxis.title.text == "fold"


class TestNumbers:
    def test_the_smaller_then_the_older_model_wins_a_tie(self) -> None:
        trials = [complete(0, 0.9, size=200), complete(1, 0.9, size=100), complete(2, 0.9, size=100), pruned(3, 0.99)]
        assert [trial.number for trial in ranked(trials)] == [1, 2, 0]

    def test_a_trial_over_the_limit_is_never_the_best(self, study: optuna.Study) -> None:
        for accuracy, excess in ((0.9, -1), (0.99, 1)):
            asked = study.ask(SPACE)
            asked.set_constraint("params", excess)
            study.tell(asked, accuracy)
        assert [trial.number for trial in ranked(study.get_trials())] == [0]

    def test_importance_finds_the_settings_that_mattered(self, spec: StudySpec) -> None:
        found = setting_importances(many_trials(), spec)
        assert set(list(found)[:2]) == {"lr", "width_mult"}  # many_trials is made so
        assert sum(found.values()) == pytest.approx(1)

    def test_importance_needs_trials_that_differ(self, spec: StudySpec) -> None:
        assert setting_importances([complete(number, 0.9) for number in range(9)], spec) == {}
        assert setting_importances([complete(number, 0.9) for number in range(20)], spec) == {}

    def test_the_toml_can_be_pasted_into_the_study_file(self, spec: StudySpec) -> None:
        best = ranked(many_trials())[:2]
        recipes = tomllib.loads(as_toml(spec, best))["known"]
        assert recipes == [trial.params for trial in best]
        assert StudySpec.model_validate(spec.model_dump() | {"known": recipes}).known == tuple(recipes)

    def test_a_setting_of_a_table_can_be_pasted_too(self) -> None:
        spec = load("contest/resnet_sam")
        best = complete(0, 0.9, params={"sam.rho": 0.1, "width_mult": 0.9, "weight_decay": 1e-4})
        recipes = tomllib.loads(as_toml(spec, [best]))["known"]
        assert recipes[0].keys() == {"lr", "weight_decay", "label_smoothing", "sam.rho", "width_mult"}
        assert StudySpec.model_validate(spec.model_dump() | {"known": recipes}).known == tuple(recipes)


class TestSharedWidth:
    """Where other sampled settings change the size, trials sample a share of the widths; people see widths."""

    @pytest.fixture
    def survey(self, spec: StudySpec) -> StudySpec:
        space = {"model": ["resnet10t", "resnet18"], "width_mult": {"low": 0.1}, "lr": spec.space["lr"]}
        return StudySpec.model_validate(spec.model_dump() | {"space": space})

    @staticmethod
    def trials(survey: StudySpec) -> list[FrozenTrial]:
        assert survey.shares_width
        axes = {"model": CategoricalDistribution(["resnet10t", "resnet18"]), "width_share": FloatDistribution(0, 1)}
        found = []
        for made in many_trials(24):
            share = (made.params["width_mult"] - 0.1) / 0.132
            model = ("resnet10t", "resnet18")[made.number % 2]
            made.params = {"model": model, "width_share": share, "lr": made.params["lr"]}
            made.distributions = axes | {"lr": SPACE["lr"]}
            made.user_attrs["sizes"] = {"width_mult": 0.1 + share * (0.2 if model == "resnet10t" else 0.1)}
            found.append(made)
        return found

    def test_a_pasted_recipe_is_the_same_model(self, survey: StudySpec) -> None:
        best = ranked(self.trials(survey))[0]
        (recipe,) = tomllib.loads(as_toml(survey, [best]))["known"]
        width = best.user_attrs["sizes"]["width_mult"]
        assert recipe == {"model": best.params["model"], "width_mult": width, "lr": best.params["lr"]}
        assert StudySpec.model_validate(survey.model_dump() | {"known": [recipe]}).known == (recipe,)

    def test_importance_is_found(self, survey: StudySpec) -> None:
        assert setting_importances(self.trials(survey), survey).keys() == {"model", "width_mult", "lr"}

    def test_no_page_and_no_figure_tells_of_shares(self, survey: StudySpec) -> None:
        page = page_of(survey, self.trials(survey), {"width_mult": 0.5, "lr": 0.5})
        assert "width_share" not in page
        assert "for one of 2 models on digits" in page
        axes = [
            picture for picture in study_pictures(self.trials(survey), survey) if picture.id in ("parallel", "slices")
        ]
        assert all("width_mult" in picture.figure.to_json() for picture in axes)

    def test_the_terminal_and_the_webhook_see_widths(self, survey: StudySpec) -> None:
        view = view_of(self.trials(survey)[0])
        assert list(view.params) == ["model", "lr", "width_mult"]
        never_counted = trial(0, TrialState.FAIL, [], params={"width_share": 0.5})
        del never_counted.params["width_mult"]
        assert "width_share" not in view_of(never_counted).params


class TestFigures:
    def test_every_figure_has_its_place_on_the_page(self, spec: StudySpec) -> None:
        ids = [picture.id for picture in study_pictures(many_trials(), spec, {"lr": 1.0})]
        assert ids == ["history", "curves", "parallel", "slices", "importance", "size", "time", "timeline"]

    def test_no_figure_without_something_to_draw(self, spec: StudySpec) -> None:
        assert study_pictures([], spec) == []
        assert study_pictures([trial(0, TrialState.RUNNING, [0.2])], spec) == []
        assert [picture.id for picture in study_pictures([pruned(0, 0.2)], spec)] == ["curves", "time", "timeline"]

    def test_an_older_plotly_in_a_browser_can_read_them(self, spec: StudySpec) -> None:
        # Encoded arrays ("bdata") came with plotly.js 2.35; the dashboard brings its own version.
        assert not [p.id for p in study_pictures(many_trials(), spec) if "bdata" in p.figure.to_json()]

    def test_the_frontier_is_the_best_of_each_size(self, spec: StudySpec) -> None:
        trials = [complete(0, 0.90, size=100), complete(1, 0.89, size=200), complete(2, 0.92, size=300)]
        *_, frontier = accuracy_against_size(trials, spec).data
        assert (frontier.x, frontier.y) == ((100, 300), (0.90, 0.92))

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
        figure = timeline(stints_of_trials(trials))
        assert figure.data[0].y == ("L4 1", "L4 2", "L4 1")
        assert timeline(stints_of_trials(trials[:1])).data[0].y == ("L4",)

    def test_the_timeline_of_a_journal_shows_stops_and_crashes(self) -> None:
        def event(at: float, kind: str, **values: Any) -> dict[str, Any]:
            return {"at": BEGAN.timestamp() + at, "event": kind} | values

        stints = stints_of_journal(
            [
                event(0, "launch"),
                event(1, "assign", trial=0, worker="gpu 0", attempt=1),
                event(2, "assign", trial=1, worker="gpu 1", attempt=1),
                event(11, "crash", trial=0, worker="gpu 0", reason="signal 9 <b>"),
                event(12, "assign", trial=0, worker="gpu 0", attempt=2),
                event(22, "tell", trial=1, state="PRUNED"),
                event(30, "epoch", trial=0, step=1, value=0.1, pruned=False),  # the last before kill -9
                event(90, "launch"),
                event(91, "assign", trial=0, worker="gpu 1", attempt=1),
                event(99, "tell", trial=0, state="COMPLETE"),
                event(100, "assign", trial=2, worker="gpu 1", attempt=1),
            ]
        )
        assert [(stint.worker, stint.trial, stint.seconds, stint.outcome) for stint in stints] == [
            ("gpu 0", 0, 10, "crashed"),
            ("gpu 1", 1, 20, "pruned"),
            ("gpu 0", 0, 18, "stopped"),
            ("gpu 1", 0, 8, "complete"),
        ]
        bars, crosses = timeline(stints).data
        assert bars.text[0] == "trial 0 crashed, 10 s: signal 9 &lt;b&gt;"
        assert (crosses.y, crosses.x) == (("gpu 0",), ((BEGAN + timedelta(seconds=11)).isoformat(),))

    def test_trials_from_before_a_change_of_the_space_are_left_out(self, spec: StudySpec) -> None:
        old = complete(0, 0.9)
        del old.params["dropout"]
        trials = [old, complete(1, 0.8, params={"dropout": 0.1}), complete(2, 0.7, params={"dropout": 0.3})]
        _, _, best = parallel_coordinates(trials, spec).data
        assert best.text[0] == "trial 1, lr 0.005"
        assert study_pictures(trials, spec)


class TestPage:
    def test_asks_nobody_for_anything(self, spec: StudySpec) -> None:
        page = page_of(spec, many_trials(), {"lr": 0.7, "dropout": 0.3})
        assert not re.findall(r"https?:|src=|href=|@import|url\(", page)
        assert "default-src 'none'" in page

    def test_is_not_larger_than_it_says(self, spec: StudySpec) -> None:
        assert len(render(spec, many_trials(), {}, BEGAN).encode()) < 5.2e6

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
        study.add_trials(many_trials(14))
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
        study.add_trials(trials)
        journal = Journal(Runs(tmp_path).journal("digits"))
        journal.append("assign", trial=3, worker="cpu:1", attempt=1)
        journal.append("crash", trial=3, worker="cpu:1", reason="the worker ended with signal 9")
        page = tmp_path / "story.html"
        places = ["--storage", str(url), "--runs", str(tmp_path), "--out", str(page)]
        answer = CliRunner().invoke(app, ["report", "digits", *places, "--json"])
        facts = json.loads(answer.output)
        text = html.unescape(page.read_text())
        assert (facts["version"], facts["page"], facts["bytes"]) == (1, str(page), page.stat().st_size)
        assert facts["story"] in text
        assert facts["findings"]
        assert all(line in text for line in facts["findings"])
        assert facts["best"][0]["trial"] == ranked(trials)[0].number
        assert tomllib.loads(facts["toml"])["known"][0] == facts["best"][0]["params"]
        assert sum(facts["counts"].values()) == 15
        assert [(one["worker"], one["trial"], one["reason"]) for one in facts["crashes"]] == [
            ("cpu:1", 3, "the worker ended with signal 9")
        ]
        assert "a cross: the worker crashed" in text
        assert facts["failures"][-1] == {
            **{"trial": 14, "state": "FAIL", "value": 0.2, "num_params": 200_000, "macs": 9_000_000, "seconds": 40.0},
            "params": trials[14].params,
            "reason": "out of memory",
        }

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


@pytest.mark.slow
def test_a_browser_draws_every_figure(spec: StudySpec, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    page = tmp_path / "story.html"
    page.write_text(render(spec, many_trials(), {"lr": 0.7, "dropout": 0.3}, BEGAN))
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path}/profile"]
    command = [chromium, *quiet, "--virtual-time-budget=10000", "--dump-dom", page.as_uri()]
    drawn = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    figures = drawn.split("<figure>")[1:]
    assert len(figures) == 8
    assert all('class="main-svg"' in figure for figure in figures)
