"""A search from its launch to its end, as whoever launches it sees it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
from desk import BROKEN, COMMAND, LIMIT, SHAPES, STEADY, Desk, Watched, open_database
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

import studies
from search.plan.width import WIDTH_STEP
from trainer.config import Shape
from trainer.models import count

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

NUM_CLASSES, IMAGE_SIZE = 10, 16


def test_the_search_ends_with_success_and_says_so_in_plain_lines(finished: Watched) -> None:
    out = finished.answer.out
    assert finished.answer.code == 0, finished.answer.err
    assert finished.answer.err == ""
    assert "\x1b" not in out
    assert len([line for line in out.splitlines() if re.match(r"trial \d+ (complete|pruned), ", line)]) == 9
    assert "study 'small' has spent its budget of 9 trials" in out
    assert "search export-best small --gpus cpu:2\n" in out


def test_the_budget_is_spent_exactly_and_nothing_is_left_running(finished: Watched) -> None:
    trials = finished.desk.trials("small")
    assert [trial.number for trial in trials] == list(range(9))
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)


def test_a_copy_of_the_database_file_alone_has_every_trial(finished: Watched) -> None:
    with open_database(f"sqlite:///{finished.desk.folder}/alone/search.db") as storage:
        trials = optuna.load_study(study_name="small", storage=storage).get_trials()
    assert [trial.number for trial in trials if trial.state.is_finished()] == list(range(9))


def test_every_worker_is_gone_afterwards(finished: Watched) -> None:
    assert finished.num_workers == 2
    assert finished.workers_alive == []


def test_no_checkpoint_of_a_finished_trial_is_left(finished: Watched) -> None:
    assert list((finished.desk.runs / "studies" / "small" / "trials").iterdir()) == []


def test_the_known_recipes_are_the_first_trials(finished: Watched) -> None:
    first = finished.desk.trials("small")[:4]
    assert [trial.params["lr"] for trial in first] == [0.01, 0.005, 1e-9, 1e30]
    assert first[0].params == {"lr": 0.01, "dropout": 0.0, "width_mult": 0.07}


def test_every_trial_carries_its_true_size_and_its_constraint_within_the_limit(finished: Watched) -> None:
    spec = studies.load(str(finished.desk.folder / "small.toml"))
    for trial in finished.desk.trials("small"):
        size = count(spec.config_for(trial.params, 0), Shape(NUM_CLASSES, IMAGE_SIZE))
        assert trial.user_attrs["num_params"] == size.params <= LIMIT
        assert trial.user_attrs["macs"] == size.macs
        assert trial.constraints == {"params": size.params - LIMIT}


def test_the_widest_width_of_the_space_fits_and_the_next_one_does_not(finished: Watched) -> None:
    spec = studies.load(str(finished.desk.folder / "small.toml"))
    axis = finished.desk.trials("small")[0].distributions["width_mult"]
    assert isinstance(axis, FloatDistribution)

    def params(width_mult: float) -> int:
        return count(spec.config_for({"width_mult": width_mult}, 0), Shape(NUM_CLASSES, IMAGE_SIZE)).params

    assert params(axis.high) <= LIMIT < params(axis.high + WIDTH_STEP)
    assert axis.low == 0.05


def test_a_trial_that_cannot_learn_is_pruned_after_its_first_epoch(finished: Watched) -> None:
    hopeless = finished.desk.trials("small")[2]
    assert hopeless.state == TrialState.PRUNED
    assert list(hopeless.intermediate_values) == [1]
    assert hopeless.user_attrs["reason"] == "successive_halving after epoch 1"


def test_a_trial_that_diverges_is_pruned_with_the_reason(finished: Watched) -> None:
    diverged = finished.desk.trials("small")[3]
    assert diverged.state == TrialState.PRUNED
    assert "epoch 1 has" in diverged.user_attrs["reason"]
    assert diverged.user_attrs["failure"] == "diverged"
    assert "try a lower lr" in diverged.user_attrs["reason"]
    assert f"trial 3 pruned, no epoch finished at epoch 0 of 3 ({diverged.user_attrs['reason']})" in finished.answer.out


def test_a_completed_trials_value_is_that_of_its_last_epoch(finished: Watched) -> None:
    complete = [trial for trial in finished.desk.trials("small") if trial.state == TrialState.COMPLETE]
    assert complete
    for trial in complete:
        assert trial.value == trial.intermediate_values[3]
        assert list(trial.intermediate_values) == [1, 2, 3]


def test_what_the_best_mistakes_for_what_is_kept_for_the_studys_page(finished: Watched) -> None:
    complete = [trial for trial in finished.desk.trials("small") if trial.state == TrialState.COMPLETE]
    best = max(complete, key=lambda trial: trial.value or 0)
    with np.load(finished.desk.runs / "studies/small/confusion.npz") as kept:
        assert next(trial for trial in complete if trial.number == int(kept["trial"])).value == best.value
        table = kept["table"]
        right = table[table[:, 0] == table[:, 1], 2].sum()
        assert right / kept["table"][:, 2].sum() == pytest.approx(best.value)
        assert kept["names"].tolist() == [str(digit) for digit in range(10)]


def test_a_second_launch_of_a_running_study_is_refused_and_names_the_holder(finished: Watched) -> None:
    assert finished.second.code == 7
    assert re.search(r"study 'small' is in use by process \d+ on \S+ since \d{4}-\d\d-\d\d", finished.second.err)
    assert finished.second.out == ""


def test_status_shows_a_search_while_it_runs(finished: Watched) -> None:
    status = finished.status.json()
    assert finished.status.code == 0, finished.status.err
    assert (status["version"], status["study"], status["budget"]["trials"]) == (3, "small", 9)
    assert status["held_by"].startswith("process ")
    assert [worker["label"] for worker in status["workers"]] == ["cpu:0", "cpu:1"]
    busy = next(worker for worker in status["workers"] if worker["trial"] is not None and worker["memory_bytes"])
    assert (busy["device"], busy["attempt"], busy["epochs"]) == ("CPU, 1 thread", 1, 3)
    assert busy["memory_bytes"] > 1e8, "torch alone is as large"
    assert busy.keys() == {
        *("label", "device", "trial", "attempt", "epoch", "epochs", "val_accuracy", "images_per_second"),
        *("value", "epoch_seconds", "seconds_since_progress", "memory_bytes", "node", "waiting"),
    }


def test_status_shows_a_search_that_has_ended(finished: Watched) -> None:
    status = finished.desk.inside("status", "small", "--json").json()
    trials = finished.desk.trials("small")
    assert status["held_by"] is None
    assert status["workers"] == []
    assert status["checkpoints"] == {"bytes": 0, "quota_bytes": 20e9}
    assert sum(status["counts"].values()) == len(status["finished"]) == 9
    assert status["counts"]["PRUNED"] >= 2
    assert status["best"]["value"] == max(trial.value for trial in trials if trial.value is not None)
    assert status["finished"][0].keys() == {
        *(
            "number",
            "state",
            "value",
            "epochs",
            "params",
            "num_params",
            "macs",
            "seconds",
            "reason",
            "failure",
            "failed_under",
            "repeats",
            "feasible",
        )
    }
    assert status["finished"][0]["params"] == trials[0].params


def test_status_is_readable_too(finished: Watched) -> None:
    answer = finished.desk.search("status")
    shown = answer.out
    assert answer.err == ""
    assert "small: 9 of 9 trials finished" in shown
    assert "checkpoints: 0.00 of 20 GB" in shown
    assert "no process searches it" in shown


def test_whoever_asked_is_told_of_each_new_best_and_of_the_end(finished: Watched) -> None:
    *bests, end = finished.told
    assert bests
    assert {told["event"] for told in bests} == {"new_best"}
    assert [told["best"]["value"] for told in bests] == sorted(told["best"]["value"] for told in bests)
    assert (end["event"], end["spent"]["finished"], end["budget"]["trials"]) == ("finished", 9, 9)
    assert end["best"] == finished.desk.inside("status", "--json").json()["best"]


def test_the_address_that_is_told_is_kept_nowhere(finished: Watched) -> None:
    secret = finished.webhook.rpartition("/")[2].encode()
    for file in finished.desk.folder.rglob("*"):
        if file.is_file():
            assert secret not in file.read_bytes(), file
    assert secret.decode() not in finished.answer.out + finished.answer.err


def test_every_finished_trial_says_what_it_was_and_what_it_cost(finished: Watched) -> None:
    for trial in finished.desk.trials("small"):
        assert trial.user_attrs["device"] == "CPU, 1 thread"
        assert trial.user_attrs["num_params"] <= LIMIT
        assert trial.user_attrs["macs"] > 0
        if trial.intermediate_values:
            assert trial.user_attrs["seconds_per_epoch"] == pytest.approx(
                trial.user_attrs["seconds"] / len(trial.intermediate_values), abs=0.001
            )
            assert trial.user_attrs["images_per_second"] > 0
        if trial.state != TrialState.COMPLETE:
            assert trial.user_attrs["reason"]


def test_watching_a_search_tells_of_each_trial_and_ends_with_it(finished: Watched) -> None:
    first, *trials, last, advice = finished.watching.out.splitlines()
    assert finished.watching.code == 0, finished.watching.err
    assert re.match(r"small: \d of 9 trials", first)
    begun = int(first.removeprefix("small: ")[0])
    assert len(trials) == 9 - begun
    assert all(line in finished.answer.out for line in trials)
    assert last.startswith("small: 9 of 9 trials finished")
    assert "no process searches it" in advice
    (line,) = finished.desk.inside("status", "--watch", "--json").out.splitlines()
    assert json.loads(line)["counts"]["COMPLETE"] >= 1


def test_a_finished_study_launched_again_says_so_and_goes_on_with_more_trials(used: Desk) -> None:
    again = used.inside("launch", "small.toml", "--gpus", "cpu:2")
    assert again.code == 0
    assert "has spent its budget of 9 trials" in again.out
    assert "--trials 18" in again.out
    in_json = used.inside("launch", "small.toml", "--gpus", "cpu:2", "--json").json()
    status = used.inside("status", "--json").json()
    assert status["checkpoints"]["quota_bytes"] == 20e9
    assert in_json.keys() == status.keys()
    assert [in_json[key] for key in ("checkpoints", "best", "counts")] == [
        status[key] for key in ("checkpoints", "best", "counts")
    ]
    before = used.trials("small")
    assert len(before) == 9

    more = used.search("launch", "small.toml", "--gpus", "cpu", "--trials", 11)
    assert more.code == 0, more.err
    after = used.trials("small")
    assert [trial.number for trial in after] == list(range(11))
    assert [trial.params for trial in after[:9]] == [trial.params for trial in before]
    assert all(trial.state.is_finished() for trial in after)


def test_two_studies_launched_at_once_on_one_new_database_both_get_to_their_end(desk: Desk) -> None:
    study = desk.write("steady.toml", STEADY)
    command = ("launch", study, "--gpus", "cpu", "--trials", 1, "--set")
    both = [desk.start(*command, f"name={name}") for name in ("one", "two")]
    for running in both:
        answer = running.wait()
        assert answer.code == 0, answer.err
    assert [len(desk.trials(name)) for name in ("one", "two")] == [1, 1]


def test_the_same_error_twice_in_a_row_ends_the_search(desk: Desk) -> None:
    study = desk.write("broken.toml", BROKEN)
    answer = desk.search("launch", study, "--gpus", "cpu")
    assert answer.code == 10
    assert "search: two trials in a row ended in the same error, correct it and launch again: " in answer.err
    assert "Traceback" not in answer.err
    trials = desk.trials("broken")
    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.FAIL]
    assert "crop size" in trials[0].user_attrs["reason"].lower()
    assert answer.out.count("trying again from its last epoch") == 4, "each is tried three times"
    assert "crop size" in (desk.runs / "studies/broken/logs/worker-0.log").read_text().lower()


def test_a_terminal_sees_a_live_table(used: Desk) -> None:
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, "launch", "small.toml", "--gpus", "cpu"], cwd=used.folder, stdout=inside, stderr=inside
    )
    os.close(inside)
    shown = b""
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # Linux's way to say that nobody holds the other end any more
            break
        shown += chunk
    os.close(terminal)
    assert process.wait() == 0
    assert b"\x1b[" in shown
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"worker\s+device\s+trial\s+epoch\s+accuracy", text)
    assert re.search(r"best\s+trial \d", text)


def test_a_reader_that_stops_reading_does_not_stop_the_search(used: Desk) -> None:
    process = subprocess.Popen(
        [COMMAND, "launch", "small.toml", "--gpus", "cpu"],
        cwd=used.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate()
    assert process.returncode == 0
    assert err == b""


def test_data_is_remembered_and_the_same_pictures_elsewhere_are_the_same_study(
    desk: Desk, pictures: Callable[[Path], Path]
) -> None:
    study = desk.write("shapes.toml", SHAPES)
    here = pictures(desk.folder / "here")
    first = desk.search("launch", study, "--gpus", "cpu", "--trials", 1, "--data", here)
    assert first.code == 0, first.err

    here.rename(desk.folder / "there")
    gone = desk.inside("launch", study, "--gpus", "cpu", "--trials", 1)
    assert gone.code == 4
    assert f"{here} does not exist" in gone.err
    moved = desk.inside("launch", study, "--gpus", "cpu", "--trials", 1, "--data", "there")
    assert moved.code == 0, moved.err
    assert len(desk.trials("shapes")) == 1

    (desk.folder / "there/train/bars/0.png").unlink()
    fewer = desk.inside("launch", study, "--gpus", "cpu", "--trials", 1)
    assert fewer.code == 8
    assert re.search(r'^  data\.content: ".+" -> ".+"$', fewer.err, re.MULTILINE)


@pytest.mark.parametrize("change", ["search.sampler=random", "search.pruner=median", "search.trials=8"])
def test_another_sampler_pruner_or_budget_is_no_other_study(used: Desk, change: str) -> None:
    answer = used.inside("launch", "small.toml", "--gpus", "cpu", "--set", change)
    assert answer.code == 0, answer.err


def test_a_changed_study_is_refused_with_every_difference_until_it_is_accepted(used: Desk) -> None:
    before = used.trials("small")
    changed = [
        "space.dropout.high=0.4",
        "limit.params=59_000",
        "data.val_fraction=0.3",
        "train.batch_size=128",
        "seed=1",
    ]
    assignments = [part for change in changed for part in ("--set", change)]
    refused = used.inside("launch", "small.toml", "--gpus", "cpu", *assignments)
    assert refused.code == 8
    for line in (
        "space.dropout.high: 0.3 -> 0.4",
        "limit.params: 60000 -> 59000",
        "data.val_fraction: 0.4 -> 0.3",
        "train.batch_size: 64 -> 128",
        "seed: 0 -> 1",
    ):
        assert f"\n  {line}\n" in refused.err
    assert "data.content" not in refused.err
    assert "--accept-changes" in refused.err
    assert used.trials("small") == before

    accepted = used.inside("launch", "small.toml", "--gpus", "cpu", "--accept-changes", *assignments)
    assert accepted.code == 0, accepted.err
    journal = [json.loads(line) for line in (used.runs / "studies/small/journal.jsonl").read_text().splitlines()]
    (noted,) = [event["differences"] for event in journal if event["event"] == "accept"]
    assert noted == re.findall(r"^  (\S+: .+)$", refused.err, re.MULTILINE)
    assert used.inside("launch", "small.toml", "--gpus", "cpu", *assignments).code == 0, "it is the study's own now"
