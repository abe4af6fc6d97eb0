"""A search that is stopped in every way there is goes on as if nobody had touched it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from desk import COMMAND, PATIENCE_SECONDS, STEADY, Answer, Desk, Running, as_in_a_terminal
from optuna.trial import FrozenTrial, TrialState

from trainer.checkpoint import load_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LAUNCH = ("launch", "steady.toml", "--gpus", "cpu", "--trials", "7")
EPOCHS = 4
SOON_SECONDS = 20
FINISHING = "finishing the epoch; Ctrl-C again to stop now"


@dataclass(frozen=True)
class Stop:
    """One way to stop a search, and what it left."""

    answer: Answer
    trials: list[FrozenTrial]
    workers_alive: list[psutil.Process]
    checkpoints: dict[int, list[float]]
    """Trial -> validation accuracies in the checkpoint that it left."""

    @property
    def running(self) -> list[FrozenTrial]:
        return [trial for trial in self.trials if trial.state == TrialState.RUNNING]


@dataclass
class Interrupted:
    """A search that was stopped six times, at its trials 0 to 5, and lost a worker in trial 6."""

    desk: Desk
    stops: dict[str, Stop] = field(default_factory=dict)
    sessions: set[int] = field(default_factory=set)
    stop: Answer | None = None
    """Of ``search stop``."""
    stop_again: Answer | None = None
    held_after_kill: str | None = None
    last: Answer | None = None

    def stopped(self, how: str, running: Running, timeout: float = PATIENCE_SECONDS) -> None:
        answer = running.wait(timeout)
        _, alive = psutil.wait_procs(running.workers_seen, timeout=SOON_SECONDS)
        trials = self.desk.trials("steady")
        checkpoints = {}
        for trial in trials:
            saved = load_checkpoint(self.desk.checkpoint("steady", trial.number))
            if saved is not None:
                checkpoints[trial.number] = [result.val_accuracy for result in saved.history]
        self.stops[how] = Stop(answer, trials, alive, checkpoints)

    def launch_up_to(self, trial: int) -> Running:
        """Launch, and return when the trial has its first checkpoint: in the middle of its second epoch."""
        running = self.desk.start(*LAUNCH)
        running.until(self.desk.checkpoint("steady", trial).exists)
        running.workers()
        return running


@pytest.fixture(scope="module")
def interrupted(fresh_desk: Callable[[str], Desk]) -> Iterator[Interrupted]:
    desk = fresh_desk("interrupted")
    desk.write("steady.toml", STEADY)
    search = Interrupted(desk)
    try:
        _interrupt(search)
        yield search
    finally:
        desk.clear()


def _interrupt(search: Interrupted) -> None:
    """Each launch gets one trial further than the one before, and is stopped in the middle of it."""
    running = search.launch_up_to(0)
    search.sessions = {os.getsid(process.pid) for process in (running.process, *running.workers())}
    os.killpg(running.process.pid, signal.SIGINT)  # as a terminal does
    search.stopped("Ctrl-C", running)

    running = search.launch_up_to(1)
    running.send(signal.SIGTERM)
    search.stopped("SIGTERM", running)

    running = _in_a_terminal_that_closes(search, 2)
    search.stopped("closed terminal", running)

    running = search.launch_up_to(3)
    (worker,) = running.workers()
    worker.suspend()  # an epoch that takes for ever
    running.send(signal.SIGINT)
    running.until(lambda: FINISHING in running.out.read_text())
    running.send(signal.SIGINT)
    search.stopped("Ctrl-C twice", running, SOON_SECONDS)

    running = search.launch_up_to(4)
    running.process.kill()
    search.stopped("kill -9", running)
    search.held_after_kill = search.desk.inside("status", "--json").json()["held_by"]

    running = search.launch_up_to(5)
    (worker,) = running.workers()
    worker.suspend()  # so that the trial has not ended when it comes
    stop = search.desk.start("stop")
    running.until(lambda: FINISHING in running.out.read_text())
    worker.resume()
    search.stopped("search stop", running)
    search.stop, search.stop_again = stop.wait(), search.desk.inside("stop")

    running = search.launch_up_to(6)
    (worker,) = running.workers()
    worker.kill()
    search.last = running.wait()


def _in_a_terminal_that_closes(search: Interrupted, trial: int) -> Running:
    """The launch has a terminal, whose window is closed in the middle of the trial; the shell says so as well."""
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, *LAUNCH],
        cwd=search.desk.folder,
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
        preexec_fn=lambda: (fcntl.ioctl(0, termios.TIOCSCTTY, 0), as_in_a_terminal()),
    )
    os.close(inside)
    os.set_blocking(terminal, False)
    shown = search.desk.folder / ".terminal"
    running = Running(process, shown, shown)
    search.desk.commands.append(running)
    with shown.open("wb") as log:

        def checkpointed() -> bool:
            with contextlib.suppress(BlockingIOError):
                log.write(os.read(terminal, 1 << 16))
            return search.desk.checkpoint("steady", trial).exists()

        running.until(checkpointed)
    running.workers()
    os.close(terminal)
    process.send_signal(signal.SIGHUP)
    return running


POLITE = {"Ctrl-C": 0, "SIGTERM": 1, "closed terminal": 2, "search stop": 5}
"""-> the trial that it came in."""
STOPS = [*POLITE, "Ctrl-C twice", "kill -9"]


@pytest.mark.parametrize("how", POLITE)
def test_a_polite_stop_is_resumable_and_says_so(interrupted: Interrupted, how: str) -> None:
    answer = interrupted.stops[how].answer
    assert answer.code == 75, answer
    assert "Traceback" not in answer.err
    if how != "closed terminal":  # nobody could read it there
        assert "nothing is lost, the same command goes on from there" in answer.err
        assert FINISHING in answer.out


@pytest.mark.parametrize(("how", "trial"), POLITE.items())
def test_a_polite_stop_leaves_the_trial_running_after_a_whole_epoch(
    interrupted: Interrupted, how: str, trial: int
) -> None:
    stop = interrupted.stops[how]
    (running,) = stop.running
    assert running.number == trial
    assert 1 <= len(running.intermediate_values) < EPOCHS
    assert stop.checkpoints == {trial: list(running.intermediate_values.values())}


@pytest.mark.parametrize("how", STOPS)
def test_no_worker_outlives_its_coordinator(interrupted: Interrupted, how: str) -> None:
    assert interrupted.stops[how].workers_alive == []


def test_search_stop_says_when_the_search_has_stopped(interrupted: Interrupted) -> None:
    stop, again = interrupted.stop, interrupted.stop_again
    assert stop is not None
    assert again is not None
    assert stop.code == 0, stop.err
    assert stop.out.endswith("study 'steady' has stopped; nothing is lost, the same command goes on from there\n")
    assert again.out == "no process is searching or exporting study 'steady'\n"


def test_a_terminals_signals_do_not_reach_the_workers(interrupted: Interrupted) -> None:
    assert len(interrupted.sessions) == 2, "the worker has a session of its own"


def test_a_second_signal_ends_the_search_at_once(interrupted: Interrupted) -> None:
    stop = interrupted.stops["Ctrl-C twice"]
    assert stop.answer.code == 130
    assert [trial.number for trial in stop.running] == [3]


def test_a_killed_coordinator_leaves_the_study_free(interrupted: Interrupted) -> None:
    stop = interrupted.stops["kill -9"]
    assert stop.answer.code == -signal.SIGKILL
    assert [trial.number for trial in stop.running] == [4]
    assert interrupted.held_after_kill is None


def test_the_next_launch_says_which_trial_it_goes_on_with(interrupted: Interrupted) -> None:
    assert "going on with trial 0, left unfinished" in interrupted.stops["SIGTERM"].answer.out
    assert interrupted.last is not None
    assert "going on with trial 5, left unfinished" in interrupted.last.out


def test_a_killed_workers_trial_goes_on_under_its_own_number(interrupted: Interrupted) -> None:
    assert interrupted.last is not None
    assert interrupted.last.code == 0, interrupted.last.err
    assert "worker cpu ended with signal 9; trial 6 goes on from its last epoch" in interrupted.last.out
    assert [trial.number for trial in interrupted.desk.trials("steady")] == list(range(7))


def test_after_all_that_every_trial_is_what_it_would_have_been_bit_for_bit(
    interrupted: Interrupted, uninterrupted: list[FrozenTrial]
) -> None:
    found = interrupted.desk.trials("steady")
    assert [trial.params for trial in found] == [trial.params for trial in uninterrupted]
    assert [trial.intermediate_values for trial in found] == [trial.intermediate_values for trial in uninterrupted]
    assert [trial.value for trial in found] == [trial.value for trial in uninterrupted]
    assert len({str(trial.params) for trial in found}) == 7, "the same seed gives the same search, not the same trial"
    assert {trial.state for trial in found} == {TrialState.COMPLETE}


def test_a_stop_before_the_first_trial_leaves_nothing_behind(desk: Desk) -> None:
    running = desk.start("launch", desk.write("steady.toml", STEADY), "--gpus", "cpu")
    running.until(running.workers)
    running.send(signal.SIGINT)
    answer = running.wait(SOON_SECONDS)
    assert answer.code == 75
    assert "0 of 6 trials finished" in answer.err
    assert desk.trials("steady") == []
    _, alive = psutil.wait_procs(running.workers_seen, timeout=SOON_SECONDS)
    assert alive == []


def test_a_stop_while_pictures_are_read_is_resumable_too(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    running = desk.start("launch", desk.write("steady.toml", STEADY), "--gpus", "cpu")
    running.until((desk.runs / "search.db").exists)
    running.send(signal.SIGTERM)
    answer = running.wait(SOON_SECONDS)
    assert answer.code == 75
    assert answer.err == "search: interrupted; nothing is lost, the same command goes on from there\n"
