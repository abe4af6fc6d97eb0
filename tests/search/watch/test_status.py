"""A search in numbers and in a terminal: when it will be done, what is wrong with it, and that it fits 80 columns."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from invented import at_rungs
from moments import moment, spec_of
from optuna.trial import TrialState, create_trial
from rich.cells import cell_len
from rich.console import Console, Group
from rich.text import Text

from search.paths import DEFAULT_RUNS, Runs
from search.study.budget import Budget, Spent
from search.study.ended import Ended
from search.study.exported import Exported, store_export
from search.study.progress import Snapshot, WorkerView, eta_seconds, nodes_in_words, problems
from search.study.sampling import build_ladder
from search.study.storage import open_storage, parse_url
from search.study.study import open_study
from search.study.trial import TrialView
from search.watch import live as terminal
from search.watch.heard import heard
from search.watch.live import (
    Display,
    epochs_done,
    headline,
    last_words,
    later,
    log_line,
    text_of_snapshot,
)
from search.watch.shown import owner_or_next_command, show_watched
from search.watch.status import as_json, read_snapshot, read_state, snapshot_of, write_state
from search.watch.table import Cell, Entry, Table, cut
from studies import Faults, StudySpec
from trainer.kept import read_checked, write_checked


def eta(
    finished: list[TrialView], workers: list[WorkerView], seconds_left: float | None = None, **search: float
) -> float | None:
    """Of a search that has these trials, with a budget of six trials unless another one is named."""
    spec = spec_of(**(search or {"trials": 6}))
    ended, steps = Ended.of(finished), [worker.epoch for worker in workers if worker.trial is not None]
    spent = Spent.so_far(ended, len(steps), sum(steps), spec, {})
    return eta_seconds(Budget.of(spec), spent, build_ladder(spec), ended, workers, {}, seconds_left)


def trial(number: int, epochs: int = 3, state: str = "COMPLETE", **more: Any) -> TrialView:
    """Ten seconds an epoch."""
    values = {"value": 0.9, "params": {"lr": 0.01}, "num_params": 4_994_245, "macs": 400_000_000, "reason": ""}
    return TrialView(number=number, state=state, epochs=epochs, seconds=10.0 * epochs, **(values | more))


def training(number: int, epoch: int, **more: Any) -> WorkerView:
    return WorkerView(label="cpu:0", device="cpu", trial=number, epoch=epoch, epochs=3, **more)


IDLE = WorkerView(label="cpu:1", device="cpu", epochs=3)


class TestEta:
    def test_is_unknown_before_an_epoch_was_measured(self) -> None:
        assert eta([], [training(0, 0)]) is None
        assert eta([trial(0)], []) is None

    def test_shares_what_is_left_among_the_workers(self) -> None:
        assert eta([trial(0), trial(1)], [IDLE, IDLE]) == pytest.approx(4 * 30 / 2)

    def test_a_worker_that_waits_for_its_device_does_not_count(self) -> None:
        waits = replace(IDLE, waiting=True)
        assert eta([trial(0), trial(1)], [IDLE, waits]) == pytest.approx(4 * 30)
        assert eta([trial(0), trial(1)], [waits]) is None

    def test_before_the_first_trial_has_ended_expects_none_to_be_pruned(self) -> None:
        assert eta([], [training(0, 1, epoch_seconds=10.0)]) == pytest.approx(2 * 10 + 5 * 30)

    def test_counts_trials_that_run_as_having_come_so_far(self) -> None:
        """Two of four were pruned after epoch 1; the mean of those that have ended would promise one epoch a trial."""
        finished = [trial(0, 1, "PRUNED"), trial(1, 1, "PRUNED")]
        running = [training(2, 2), training(3, 2)]
        # Each of those that run has one epoch to go; of the two to come, half end after one epoch, half after three.
        assert eta(finished, running) == pytest.approx((2 * 10 + 2 * 20) / 2)

    def test_takes_off_the_part_of_the_epoch_that_has_passed_but_never_more_than_it(self) -> None:
        for passed, left in ((4.0, 6.0), (99.0, 0.0)):
            running = [training(1, 2, epoch_seconds=10.0, seconds_since_progress=passed)]
            assert eta([trial(0)], running, trials=2) == pytest.approx(left)

    def test_a_budget_in_hours_ends_it_with_the_trial_that_is_last_begun(self) -> None:
        assert eta([trial(0)], [IDLE], 100.0, trials=1000) == pytest.approx(130.0)

    def test_a_budget_of_compute_is_divided_by_the_speed(self) -> None:
        """Five trainings are 15 epochs of 10 s. Whether trials are pruned does not matter."""
        finished = [trial(0), trial(1, 1, "PRUNED"), trial(2, 1, "PRUNED")]
        assert eta(finished, [IDLE, IDLE], trainings=5) == pytest.approx(10 * 10 / 2)
        assert eta(finished, [training(3, 2), IDLE], trainings=5) == pytest.approx(8 * 10 / 2)
        assert eta(finished, [training(3, 1)], trainings=2) == pytest.approx(20.0), "what runs goes on to its end"

    def test_the_budget_that_is_spent_first_ends_it(self) -> None:
        assert eta([trial(0)], [IDLE], trainings=5, trials=2) == pytest.approx(30.0)
        assert eta([trial(0)], [IDLE], trainings=2, trials=9) == pytest.approx(30.0)

    def test_paused_trials_count_as_ended_and_a_series_has_its_whole_length(self, series: StudySpec) -> None:
        """Of four candidates of 2, 6 and 18 epochs, two wait at the first rung: half of those to come will."""
        spec = series.model_copy(update={"search": series.search.model_copy(update={"trainings": None, "trials": 6})})
        spent, ladder = Spent(begun=4, paused=2), build_ladder(spec)
        running = [training(2, 5, epoch_seconds=10.0), training(3, 18, epoch_seconds=10.0)]
        running = [replace(running[0], epochs=6), replace(running[1], epochs=18)]
        # One is at step 7 of 26, the other at its end; each to come has 2 epochs, and 24 more with a chance of half.
        found = eta_seconds(Budget.of(spec), spent, ladder, Ended(), running, {2: 2})
        assert found == pytest.approx((19 * 10 + 2 * (2 + 12) * 10) / 2)

    def test_is_not_shorter_than_the_longest_trial_that_runs(self) -> None:
        workers = [training(1, 1), IDLE, IDLE]
        assert eta([trial(0)], workers, trials=2) == pytest.approx(20.0)


class TestProblems:
    def test_each_says_what_to_do(self) -> None:
        reason = "the worker ended with signal 9: log\nmore"
        killed = trial(3, 0, "FAIL", reason=reason, failure="killed", value=None)
        silent = training(4, 1, epoch_seconds=30.0, seconds_since_progress=700.0)
        assert problems(moment("birds", 6, (killed,), (silent,), None)) == [
            "trial 3 failed: the worker ended with signal 9: log; if memory ran out: fewer workers, a smaller "
            "batch_size or image_size",
            "worker cpu:0 has sent nothing for 12 min, its last epoch took 30 s; see its log in "
            "RUNS/studies/birds/logs",
        ]

    def test_commands_name_the_runs_folder(self) -> None:
        failed = [trial(number, 0, "FAIL", reason="no such layer", value=None) for number in range(9)]
        seen, here = moment("birds", 9, failed, (), None), Runs(Path("here"))
        assert problems(seen, here)[0] == (
            "trial 0 failed: no such layer; full reason: search report birds --runs here"
        )
        assert "more: search report birds --runs here" in shown(text_of_snapshot(seen, here))
        assert as_json(seen, here, held_by=None)["problems"] == problems(seen, here)
        spent = moment("birds", 1, (trial(0, 1, "PRUNED", value=None),), (), None)
        assert "search report birds --runs here shows the reasons" in owner_or_next_command(spent, None, here)

    def test_long_epochs_are_none(self) -> None:
        slow = training(4, 1, epoch_seconds=600.0, seconds_since_progress=700.0)
        assert problems(moment("birds", 6, (trial(0, 1, "PRUNED"),), (slow,), None)) == []


OWNER = "process 7 on here since today"


class TestSeenFromOutside:
    @pytest.fixture
    def study(self) -> optuna.Study:
        study = optuna.create_study(direction="maximize")
        study.add_trial(create_trial(state=TrialState.COMPLETE, value=0.9, intermediate_values={1: 0.5, 2: 0.9}))
        asked = study.ask()
        asked.report(0.4, 1)
        return study

    def test_the_state_file_knows_what_the_database_does_not(self, study: optuna.Study, tmp_path: Path) -> None:
        busy = training(1, 1, attempt=2, memory_bytes=10, seconds_since_progress=5.0)
        file = tmp_path / "state.json"
        write_state(file, moment("birds", 6, (), (busy, IDLE), 77.0, stopping=True), OWNER)
        write_checked(file, read_checked(file) | {"at": time.time() - 60})
        seen = snapshot_of(spec_of(trials=6), study.get_trials(), read_state(file, OWNER))
        assert [replace(worker, seconds_since_progress=None) for worker in seen.workers] == [
            replace(busy, seconds_since_progress=None),
            IDLE,
        ]
        assert seen.workers[0].seconds_since_progress == pytest.approx(65, abs=1), "the file is a minute old"
        assert (seen.eta_seconds, seen.stopping, len(seen.finished)) == (77.0, True, 1)

    @pytest.mark.parametrize("text", ["", "{", '{"version": 1, "workers": []}'])
    def test_without_one_that_can_be_read_the_running_trials_are_shown(
        self, study: optuna.Study, tmp_path: Path, text: str
    ) -> None:
        (tmp_path / "state.json").write_text(text)
        with pytest.warns(UserWarning, match=r"state\.json is damaged.*; the workers are not shown"):
            damaged = read_state(tmp_path / "state.json", OWNER)
        for state in (damaged, read_state(tmp_path / "nothing.json", OWNER)):
            (worker,) = snapshot_of(spec_of(trials=6), study.get_trials(), state).workers
            assert (worker.trial, worker.epoch, worker.val_accuracy) == (1, 1, 0.4)

    def test_a_state_file_of_another_form_counts_as_none(self, tmp_path: Path) -> None:
        file = tmp_path / "state.json"
        write_state(file, moment("birds", 6, (), (training(1, 1),), 77.0), OWNER)
        said = read_checked(file)
        for foreign in ({"workers": [{"epoch": "first"}]}, {"at": None}, {"version": 1}):
            write_checked(file, said | foreign)
            assert read_state(file, OWNER) is None, foreign

    def test_what_a_killed_search_left_is_not_taken_for_that_of_the_owner_now(self, tmp_path: Path) -> None:
        file = tmp_path / "state.json"
        write_state(file, moment("birds", 6, (), (training(1, 1),), 77.0), OWNER)
        assert read_state(file, OWNER) is not None
        for owner in (None, "another process", OWNER.replace("7", "8"), OWNER.replace("today", "yesterday")):
            assert read_state(file, owner) is None, "a restarted container may have the same process number and name"

    def test_it_says_what_checkpoints_take_of_how_much(self, tmp_path: Path) -> None:
        runs, url = Runs(tmp_path), parse_url(f"sqlite:///{tmp_path}/search.db")
        storage = open_storage(url, create=True)
        spec = spec_of(trials=6).model_copy(update={"faults": Faults(checkpoint_gb=2)})
        open_study(spec, storage, "content")
        for file, size in (
            (runs.checkpoint("birds", 0), 1000),
            (runs.final_training("birds", "3-abc") / "checkpoint", 500),
        ):
            file.parent.mkdir(parents=True)
            file.write_bytes(bytes(size))
        snapshot, held_by = read_snapshot("birds", url, runs)
        storage.remove_session()
        storage.engine.dispose()
        assert as_json(snapshot, held_by=held_by)["checkpoints"] == {"bytes": 1500, "quota_bytes": 2e9}

    @pytest.mark.parametrize("split", ["test", "val"])
    def test_its_folder_is_named_once_a_model_is_exported(self, tmp_path: Path, split: str) -> None:
        runs, url = Runs(tmp_path), parse_url(f"sqlite:///{tmp_path}/search.db")
        storage = open_storage(url, create=True)
        study = open_study(spec_of(trials=6), storage, "content")
        measured = {"n": 60, "accuracy": 0.9, "interval": (0.8, 0.95), "fit_on": "train", "num_params": 9}
        store_export(study, Exported(trial=0, folder="exports/birds-0", split=split, **measured))
        snapshot, _ = read_snapshot("birds", url, runs)
        storage.remove_session()
        storage.engine.dispose()
        assert snapshot.exported_to == "exports/birds-0"
        assert (snapshot.exported is None) == (split == "val"), "only a test split gives a number to show"

    def test_its_json_can_be_written(self) -> None:
        shape = as_json(moment("birds", 6, (trial(0),), (training(1, 1),), None), held_by=None)
        assert json.loads(json.dumps(shape))["workers"][0].keys() >= {
            *("device", "trial", "attempt", "epoch", "seconds_since_progress", "memory_bytes")
        }


def shown(what: Any, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def crowded() -> Snapshot:
    """The widest of everything."""
    gpu = WorkerView(
        label="cuda:11",
        device="NVIDIA H100 80GB HBM3",
        trial=1999,
        attempt=2,
        epoch=100,
        epochs=300,
        val_accuracy=1.0,
        value=1.0,
        images_per_second=123456.0,
        epoch_seconds=3600.0,
        seconds_since_progress=1800.0,
        memory_bytes=142_300_000_000,
    )
    params = {"label_smoothing": 0.0512345, "optimizer": "rmsprop", "width_mult": 1.12451, "weight_decay": 1.234e-5}
    reason = "ConfigError: a reason " + "that goes on " * 20
    finished = [trial(number, 300, num_params=4_997_523, params=params) for number in range(1900, 1990)]
    finished += [trial(number, 0, "FAIL", reason=reason, value=None) for number in range(1990, 1995)]
    return moment("a-study-with-a-long-name", 2000, tuple(finished), (gpu,) * 4, 360_000.0)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def drawn_on(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the live view draws on a terminal from now on."""
    drawn = io.StringIO()
    monkeypatch.setattr(terminal, "Terminal", lambda **_: Console(file=drawn, force_terminal=True, width=80))
    return drawn


class TestTerminal:
    @pytest.mark.parametrize("width", [24, 40, 80, 200])
    def test_an_entry_keeps_its_label_and_all_words_and_reads_no_markup(self, width: int) -> None:
        words = "trial 7 failed: ValueError: [bold]cat[/] and :dog: and 猫猫猫猫猫猫猫猫猫猫猫猫 " + "x" * 90
        lines = shown(Entry("problem", words, "red"), width).splitlines()
        assert lines[0].startswith("problem trial 7")
        assert all(line.startswith(" " * 8) and line[8] != " " for line in lines[1:])
        assert max(cell_len(line) for line in lines) <= min(80, width)
        assert "".join(line[8:].replace(" ", "") for line in lines) == words.replace(" ", "")

    def test_an_entry_shows_no_control_characters_and_is_drawn_on_any_terminal(self) -> None:
        assert shown(Entry("best", "a\r\x1b[2Jb\x08\tc\nd", "")).replace(" ", "") == "besta\\r\\x1b[2Jb\\x08c\nd\n"
        tabs = shown(Entry("best", "\t".join("abcdefghij"), "")).splitlines()
        assert max(map(len, tabs)) <= 80
        assert "\t" not in "".join(tabs)
        assert shown(Entry("best", "abc", ""), width=4).startswith("best")

    def test_a_table_aligns_its_cells_and_a_cell_keeps_its_style_in_that_of_its_row(self) -> None:
        columns: dict[str, list[Cell]] = {"name": ["a", None], "": [(("==", "cyan"), ("--", "bar.back")), ""]}
        told = Table(columns | {"n": ["猫", "12,345"]}, left=("name", ""), gap=1, styles=["", "bold red"])
        assert shown(told).splitlines() == ["name           n", "a    ==--     猫", "-         12,345"]
        head, first, second, _ = Console(width=80).render_lines(Group(told, Text("end")), pad=False)
        colour = {
            piece.text.strip(): str(piece.style and piece.style.color and piece.style.color.name) for piece in first
        }
        assert (colour["=="], colour["--"], colour["猫"]) == ("cyan", "grey23", "none")
        assert all(piece.style and piece.style.dim for piece in head if piece.text.strip())
        assert all(piece.style and piece.style.bold for piece in second)
        assert not any(piece.style and piece.style.bold for piece in first)
        assert cut("gpu\x1b[2J", 40) == "gpu\\x1b[2J"

    def test_everything_fits_80_columns_and_nothing_but_a_devices_name_is_cut(self) -> None:
        text = shown(text_of_snapshot(crowded()))
        assert max(map(len, text.splitlines())) <= 80
        lines = [line for line in text.splitlines() if "…" in line]
        assert len(lines) == 4
        assert all("NVIDIA H100 8…" in line for line in lines)
        for words in ("1999 (2)", "100/300", "100.00%", "123,456", "142.3 GB", "about 100 h 0 min left", "4,997,523"):
            assert words in text, words
        assert "and 2 more: search report a-study-with-a-long-name" in text

    def test_workers_on_several_machines_are_shown_with_their_machines(self) -> None:
        workers = [training(number, 1, node=f"gpu-node-{number}.cluster") for number in range(2)]
        workers += [WorkerView(label="slurm:2", device="waiting", epochs=3, node="gpu-node-0.cluster", waiting=True)]
        lines = shown(text_of_snapshot(moment("birds", 3, (), tuple(workers), None))).splitlines()
        assert [line.split()[:2] for line in lines[-4:]] == [
            ["worker", "node"],
            ["cpu:0", "gpu-node-0.cl…"],
            ["cpu:0", "gpu-node-1.cl…"],
            ["slurm:2", "waiting"],
        ]
        assert nodes_in_words(workers) == "1 on gpu-node-0.cluster, 1 on gpu-node-1.cluster, 1 waiting"
        alone = shown(text_of_snapshot(moment("birds", 3, (), (workers[0], workers[2]), None)))
        assert "gpu-node" not in alone

    def test_what_nobody_knows_of_the_workers_has_no_column(self) -> None:
        seen = WorkerView(trial=1, epoch=1, epochs=3, value=0.4)
        lines = shown(text_of_snapshot(moment("birds", 3, (), (seen,), None))).splitlines()
        assert lines[-2].split() == ["trial", "epoch", "accuracy"]
        assert lines[-1].split()[:2] == ["1", "1/3"]
        assert "-" not in lines[-1]

    def test_a_low_terminal_keeps_the_best_and_the_workers(self) -> None:
        snapshot = replace(crowded(), finished=crowded().finished[:90])
        low = shown(text_of_snapshot(snapshot, rows=16))
        assert len(low.splitlines()) <= 16
        assert "best" in low
        assert low.count("NVIDIA") == 4

    def test_the_bar_of_an_epoch_moves_with_its_time_and_never_ends_it(self) -> None:
        busy = training(0, 1, epoch_seconds=10.0, seconds_since_progress=5.0)
        assert epochs_done(busy, None) == pytest.approx(1.5)
        assert 1.9 < epochs_done(replace(busy, seconds_since_progress=1e6), None) < 2
        first = training(0, 0, seconds_since_progress=5.0)
        assert (epochs_done(first, None), epochs_done(first, 20.0)) == (0, pytest.approx(0.25))

    def test_what_to_do_next_is_said_at_the_end(self) -> None:
        spent = moment("birds", 1, (trial(0),), (), None)
        assert owner_or_next_command(spent, None, DEFAULT_RUNS).endswith("export the best: search export-best birds")
        assert owner_or_next_command(spent, None, Runs(Path("a b"))).endswith("search export-best birds --runs 'a b'")
        assert owner_or_next_command(moment("birds", 9, (trial(0),), (training(1, 1),), None), None, DEFAULT_RUNS) == (
            "no process searches it, 1 unfinished; to go on, repeat its search launch"
        )
        assert owner_or_next_command(spent, "process 7", DEFAULT_RUNS) == "in use by process 7"
        exported = replace(spent, exported_to="exports/birds-0")
        assert owner_or_next_command(exported, None, DEFAULT_RUNS).endswith(
            "the budget is spent; exported to exports/birds-0"
        )

    def test_a_budget_below_what_is_finished_is_told_one_that_goes_on(self) -> None:
        lowered = moment("birds", 1, tuple(trial(number, 1, "PRUNED") for number in range(3)), (), None)
        assert owner_or_next_command(lowered, None, DEFAULT_RUNS).endswith("with --trials 6")

    def test_a_budget_of_compute_is_told_in_trainings(self) -> None:
        finished = [trial(0), *(trial(number, 1, "PRUNED") for number in range(1, 7))]
        going = moment("birds", {"trainings": 5}, finished, (training(7, 1),), 40.0)
        assert headline(going) == (
            "birds: 3.3 of 5 full trainings spent, 8 candidates, 1 complete, 6 pruned, about 40 s left"
        )
        spent = moment("birds", {"trainings": 3}, finished, (), None)
        assert "about" not in headline(spent)
        words = last_words(spec_of(trainings=3), spent, DEFAULT_RUNS)
        assert words.startswith(
            "study 'birds' has spent its budget of 3 full trainings (7 candidates, 6 pruned, 0 failed); to go on, "
            "repeat the command with --trainings 5\nbest: trial 0, "
        )
        late = moment("birds", {"trainings": 9}, finished, (), None)
        words = last_words(spec_of(trainings=9, hours=2), late, DEFAULT_RUNS)
        assert words.startswith(
            "study 'birds' has spent its 2 hours with 3.0 of 9 full trainings spent, 7 candidates, 1 complete, 6 "
            "pruned, 0 failed; to go on, repeat the command"
        )

    def test_the_json_has_the_budget_and_what_is_spent_of_it(self) -> None:
        shape = as_json(moment("birds", {"trainings": 5}, [trial(0)], [training(1, 1)], None), held_by=None)
        assert shape["version"] == 3
        assert shape["budget"] == {"trainings": 5, "trials": None, "hours": None, "steps": 3}
        assert shape["spent"] == {
            **{"epochs": 4, "trainings": 4 / 3},
            **{"begun": 2, "finished": 1, "complete": 1, "paused": 0, "excused": 0},
        }

    def test_a_paused_trial_has_no_worker(self) -> None:
        study = optuna.create_study()
        for attributes in ({}, {"paused_at": 1}):
            asked = study.ask()
            asked.report(0.4, 1)
            for key, value in attributes.items():
                asked.set_user_attr(key, value)
        seen = snapshot_of(spec_of(trainings=1), study.get_trials())
        assert [worker.trial for worker in seen.workers] == [0]
        assert (seen.spent.begun, seen.spent.paused) == (2, 1)

    def test_a_workers_epoch_is_that_of_its_present_training(self, series: StudySpec) -> None:
        fresh, between, promoted = (at_rungs(series, number, 0.3) for number in range(3))
        del fresh.user_attrs["paused_at"], between.user_attrs["paused_at"]
        fresh.intermediate_values = {1: 0.2}
        between.user_attrs["promoted_at"] = 2
        promoted.user_attrs["promoted_at"] = 2
        promoted.intermediate_values |= {3: 0.1, 4: 0.2}
        seen = snapshot_of(series, [fresh, between, promoted, at_rungs(series, 3, 0.3)])
        assert [(worker.trial, worker.epoch, worker.epochs, worker.val_accuracy) for worker in seen.workers] == [
            (0, 1, 2, 0.2),
            (1, 0, 6, None),
            (2, 2, 6, 0.2),
        ]
        assert "2/6" in shown(text_of_snapshot(seen))
        assert log_line(seen) == (
            "digits: 0.5 of 6 full trainings spent, 4 candidates, 0 complete, 1 paused; trial 0 at epoch 1 of 2; "
            "trial 1 at epoch 0 of 6; trial 2 at epoch 2 of 6"
        )

    def test_paused_trials_are_listed_with_what_can_become_of_them(self, series: StudySpec) -> None:
        trials = [at_rungs(series, 0, 0.3), at_rungs(series, 1, 0.5, 0.6, 0.9), at_rungs(series, 2, 0.2)]
        going = snapshot_of(series, trials)
        assert "3 candidates, 1 complete, 2 paused" in shown(text_of_snapshot(going))
        assert "2+6+18" in shown(text_of_snapshot(going))
        assert owner_or_next_command(going, None, DEFAULT_RUNS) == (
            "no process searches it, 2 paused; to go on, repeat its search launch"
        )
        spent = replace(going, budget=replace(going.budget, trainings=1.5))
        assert owner_or_next_command(spent, None, DEFAULT_RUNS).splitlines()[1] == (
            "2 paused; a larger budget (--trainings 3) continues them, search stop digits --finish ends them"
        )
        words = last_words(series, spent, DEFAULT_RUNS, "--gpus slurm:16")
        assert "(3 candidates, 2 paused, 0 pruned, 0 failed)" in words
        assert words.endswith("; export it with: search export-best digits --gpus slurm:16")

    def test_a_log_file_gets_a_line_for_each_trial_and_one_at_the_end(self, capsys: pytest.CaptureFixture[str]) -> None:
        def at(*finished: TrialView) -> Snapshot:
            workers = () if len(finished) == 3 else (training(2, 1),)
            return moment("birds", 3, finished, workers, 40.0)

        moments = [(at(trial(0)), "process 7"), (at(trial(0), trial(1, 1, "PRUNED")), "process 7")]
        moments += [(at(trial(0), trial(1, 1, "PRUNED"), trial(2)), None)]
        show_watched(moments, DEFAULT_RUNS)
        assert capsys.readouterr().out.splitlines() == [
            "birds: 1 of 3 trials finished, 1 complete, about 40 s left; trial 2 at epoch 1 of 3",
            "trial 1 pruned, 90.00% at epoch 1 of 3",
            "trial 2 complete, 90.00% at epoch 3 of 3",
            "birds: 3 of 3 trials finished, 2 complete, 1 pruned",
            "no process searches it, the budget is spent; export the best: search export-best birds",
        ]

    def test_a_log_file_that_was_told_nothing_for_long_is_told_how_it_goes(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        snapshot = moment("birds", 3, (trial(0),), (training(2, 1),), 40.0)
        with Display() as display:
            display.watch(snapshot)
            monkeypatch.setattr(terminal, "LOG_SECONDS", 0)
            display.watch(snapshot)
        assert capsys.readouterr().out.splitlines() == [log_line(snapshot)]

    def test_a_terminal_shows_the_last_state_of_a_search_although_drawings_are_seconds_apart(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn = drawn_on(monkeypatch)
        with Display() as display:
            display.watch(moment("birds", 3, (trial(0),), (training(2, 1),), 40.0))
            display.watch(moment("birds", 3, (trial(0), trial(1), trial(2)), (), None))
            assert "3 of 3 trials finished" not in drawn.getvalue()
        assert "3 of 3 trials finished" in drawn.getvalue()

    def test_a_new_line_brings_the_next_drawing_forward(self, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn = drawn_on(monkeypatch)
        monkeypatch.setattr(terminal, "DRAWN_SECONDS", 0)
        monkeypatch.setattr(terminal, "DRAWN_APART", 0)
        with Display() as display:
            display.watch(moment("birds", 3, (trial(0),), (training(2, 1),), 40.0))
            later = moment("birds", 3, (trial(0), trial(1)), (training(2, 2),), 20.0)
            display.watch(later)
            assert "2 of 3 trials finished" not in drawn.getvalue()
            display.say("trial 1 complete")
            display.watch(later)
            assert drawn.getvalue().count("2 of 3 trials finished") == 1, "it is drawn once, together with the line"
            assert drawn.getvalue().count("1 of 3 trials finished") == 1

    def test_no_line_is_lost_that_is_said_in_another_thread_while_lines_are_shown(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn_on(monkeypatch)
        before, shown_lines = sys.getswitchinterval(), list[str]()
        display = Display()
        monkeypatch.setattr(display.console, "print", lambda text, **_: shown_lines.extend(text.split("\n")))
        said = [str(number) for number in range(20_000)]
        thread = threading.Thread(target=lambda: [display.say(line) for line in said])
        sys.setswitchinterval(1e-6)
        try:
            thread.start()
            while thread.is_alive():
                display._print_lines()
        finally:
            sys.setswitchinterval(before)
        display._print_lines()
        assert shown_lines == said

    def test_what_is_due_is_drawn_although_the_main_thread_waits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn = drawn_on(monkeypatch)
        monkeypatch.setattr(terminal, "REDRAWN_SECONDS", 3600.0)
        with Display() as display, heard(display, is_stopping=lambda: stopping, announce=lambda: said.append(1)):
            said, stopping = list[int](), False
            display.watch(moment("birds", 3, (trial(0),), (training(2, 1),), 40.0))
            display.say("the database cannot be reached")
            wait_until(lambda: "the database cannot be reached" in drawn.getvalue())
            monkeypatch.setattr(terminal, "REDRAWN_SECONDS", 0.1)
            before = drawn.getvalue().count("1 of 3 trials finished")
            wait_until(lambda: drawn.getvalue().count("1 of 3 trials finished") > before + 1)
            monkeypatch.setattr(terminal, "DRAWN_SECONDS", 3600.0)
            monkeypatch.setattr(terminal, "REDRAWN_SECONDS", 3600.0)
            assert not said
            display.say("finishing the epoch")
            stopping = True
            wait_until(lambda: "finishing the epoch" in drawn.getvalue())
            assert said
        after = drawn.getvalue()
        display.go_on(at_once=True)
        assert drawn.getvalue() == after, "the live view has ended"

    def test_a_signal_before_the_first_snapshot_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn = drawn_on(monkeypatch)
        with Display() as display:
            told = heard(display, is_stopping=lambda: True, announce=lambda: display.say("finishing the epoch"))
            with told:
                wait_until(lambda: "finishing the epoch" in drawn.getvalue())

    def test_the_bar_of_an_epoch_goes_on_without_news(self) -> None:
        (worker,) = moment("birds", 3, (trial(0),), (training(2, 1),), 40.0).workers
        waiting = replace(worker, seconds_since_progress=1.0, epoch_seconds=10.0)
        assert epochs_done(later(waiting, 4.0), None) == epochs_done(waiting, None) + 0.4
        assert later(replace(worker, seconds_since_progress=None), 4.0).seconds_since_progress is None

    def test_drawings_that_take_long_are_further_apart(self, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn = drawn_on(monkeypatch)
        monkeypatch.setattr(terminal, "DRAWN_SECONDS", 0)
        monkeypatch.setattr(terminal, "DRAWN_APART", 1e9)
        with Display() as display:
            display.watch(moment("birds", 3, (trial(0),), (training(2, 1),), 40.0))
            display.say("trial 1 complete")
            display.watch(moment("birds", 3, (trial(0), trial(1)), (training(2, 2),), 20.0))
            assert "2 of 3 trials finished" not in drawn.getvalue()
            later = time.monotonic() + terminal.REDRAWN_SECONDS
            monkeypatch.setattr(time, "monotonic", lambda: later)
            display.watch(moment("birds", 3, (trial(0), trial(1)), (training(2, 2),), 20.0))
            assert "2 of 3 trials finished" in drawn.getvalue()

    def test_a_log_file_on_a_full_disk_gets_its_lines_when_there_is_room(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Path("/dev/full").open("w") as log:
            monkeypatch.setattr(sys, "stdout", log)
            with Display() as display:
                display.say("paused: no room for a checkpoint")
                display.say("trial 1 complete")
                with (tmp_path / "log").open("w") as room:
                    os.dup2(room.fileno(), log.fileno())
                display.say("there is room on the disk; going on")
        assert (tmp_path / "log").read_text().splitlines() == [
            "paused: no room for a checkpoint",
            "trial 1 complete",
            "there is room on the disk; going on",
        ]

    def test_what_a_log_file_that_stays_full_does_not_take_is_kept_for_the_commands_end_to_tell(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Path("/dev/full").open("w") as log:
            monkeypatch.setattr(sys, "stdout", log)
            with Display() as display:
                display.say("paused: no room for a checkpoint")
            with pytest.raises(OSError, match="No space left"):
                log.flush()  # which is exit code 11, see tests/search/test_full_disk.py
            with (tmp_path / "log").open("w") as room:
                os.dup2(room.fileno(), log.fileno())


def test_where_no_trial_has_completed_no_export_is_offered() -> None:
    pruned = trial(0, 1, "PRUNED", value=None)
    words = owner_or_next_command(moment("birds", 1, (pruned,), (), None), None, Runs(Path("runs")))
    assert "no trial has completed" in words
    assert "--trials 2" in words
    assert "export-best" not in words
