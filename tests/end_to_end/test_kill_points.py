"""kill -9 at named points of a worker and of the coordinator: the search ends as if nobody had touched it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from desk import STEADY, Answer, Desk
from optuna.trial import FrozenTrial, TrialState

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

# All in trial 0, whose epochs are four: each process of the worker gets one further.
WORKER_POINTS = (
    "open:/cache/:1",  # before the first epoch
    "os.rename:checkpoint.partial:2",  # while the second epoch's checkpoint is written, the first set aside
    "os.rename:checkpoint.partial:3",  # while the last epoch's is
)
# Of three launches in turn: at the end of trial 0, while trial 1 is asked for, and in it.
COORDINATOR_POINTS = ("tell:1", "ask:1", "report:2")


@dataclass(frozen=True)
class Killed:
    """A search of three trials that was killed six times."""

    workers_killed_at: list[str]
    answers: dict[str, Answer]
    last: Answer
    trials: list[FrozenTrial]
    replay: Answer


@pytest.fixture(scope="module")
def killed(fresh_desk: Callable[[str], Desk]) -> Iterator[Killed]:
    desk = fresh_desk("killed")
    command = ("launch", desk.write("steady.toml", STEADY), "--gpus", "cpu", "--trials", 3)
    log: Path = desk.folder / "kills"
    try:
        kills = {"KILL_WORKERS": "|".join(WORKER_POINTS), "KILL_LOG": str(log)}
        answers = {point: desk.start(*command, killed_at=point, **kills).wait() for point in COORDINATOR_POINTS}
        last = desk.search(*command)
        replay = desk.inside("replay", "--json")
        yield Killed(log.read_text().splitlines(), answers, last, desk.trials("steady"), replay)
    finally:
        desk.clear()


def test_each_kill_came_at_its_point(killed: Killed) -> None:
    assert killed.workers_killed_at == list(WORKER_POINTS)
    assert {point: answer.code for point, answer in killed.answers.items()} == dict.fromkeys(COORDINATOR_POINTS, -9)


def test_a_killed_workers_trial_goes_on_in_a_new_process(killed: Killed) -> None:
    first = killed.answers[COORDINATOR_POINTS[0]]
    assert len(re.findall("ended with signal 9; trial 0 goes on from its last epoch", first.out)) == 3


def test_every_trial_is_finished_once_under_its_own_number(killed: Killed) -> None:
    assert killed.last.code == 0, killed.last.err
    assert [trial.number for trial in killed.trials] == list(range(3))
    assert {trial.state for trial in killed.trials} == {TrialState.COMPLETE}


def test_every_trial_is_bit_for_bit_what_it_would_have_been(killed: Killed, uninterrupted: list[FrozenTrial]) -> None:
    assert [trial.params for trial in killed.trials] == [trial.params for trial in uninterrupted[:3]]
    assert [trial.intermediate_values for trial in killed.trials] == [t.intermediate_values for t in uninterrupted[:3]]


def test_the_search_can_be_replayed_all_the_same(killed: Killed) -> None:
    answer = killed.replay.json()
    assert killed.replay.code == 0, killed.replay.err
    assert (answer["same_asks"], answer["asks"]) == (3, 3)
    assert answer["identical"]
