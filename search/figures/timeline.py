"""The times at which each worker trained each trial, and crashes: from the journal, or from the trials' own times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from optuna.trial import FrozenTrial

from search.policy.ladder import PAUSED_AT
from search.study.events import Assign, Crash, Epoch, Event, Launch, Pause, Stop, Tell

CRASHED, STOPPED, PAUSED, WENT_ON = "crashed", "stopped", "paused", "went on"
"""Outcomes of segments after which the trial is unfinished. CRASHED: the training crashed. STOPPED: the search was
stopped. PAUSED: the trial is paused. WENT_ON: the trial goes on with another training or in another process."""


@dataclass(frozen=True)
class Segment:
    """An uninterrupted training of a trial by a worker."""

    worker: str
    """Label of the worker, after the name of its machine if the workers were on several machines."""
    trial: int
    begun: datetime
    """Local time, as in Optuna."""
    ended: datetime
    outcome: str
    """The trial's final state in lower case, CRASHED, STOPPED, PAUSED or WENT_ON."""
    reason: str = ""
    """Reason of the crash."""

    @property
    def seconds(self) -> float:
        """Duration of the segment."""
        return (self.ended - self.begun).total_seconds()


def segments_of_journal(events: Iterable[Event]) -> list[Segment]:
    """The segments in a journal, in the order of their ends, without those still in progress."""
    found: list[Segment] = []
    open_by_trial: dict[int, Segment] = {}
    last_of: dict[int, float] = {}
    last, events = 0.0, list(events)
    several = len({event.node for event in events if isinstance(event, Assign)} - {""}) > 1

    def end(trial: int, at: float, outcome: str, reason: str = "") -> None:
        if (segment := open_by_trial.pop(trial, None)) is not None:
            found.append(replace(segment, ended=datetime.fromtimestamp(at), outcome=outcome, reason=reason))

    for event in events:
        match event:
            case Pause():
                end(event.trial, event.at, PAUSED)
            case Assign():
                end(event.trial, last_of.get(event.trial, event.at), WENT_ON)
                begun = datetime.fromtimestamp(event.at)
                worker = f"{event.node} {event.worker}" if several and event.node else event.worker
                open_by_trial[event.trial] = Segment(worker, event.trial, begun, begun, STOPPED)
            case Epoch():
                last_of[event.trial] = event.at
            case Tell():
                end(event.trial, event.at, event.state.lower())
            case Crash(kind="preempted"):
                end(event.trial, event.at, WENT_ON, event.reason)
            case Crash():
                end(event.trial, event.at, CRASHED, event.reason)
            case Stop() | Launch():
                # A coordinator that was killed writes no last line; all open segments end at the line before.
                for trial in list(open_by_trial):
                    end(trial, event.at if isinstance(event, Stop) else last, STOPPED)
        last = event.at
    return found


def segments_of_trials(trials: Sequence[FrozenTrial]) -> list[Segment]:
    """A segment for each finished trial, from its beginning to its end, interruptions included.

    A trial that was paused has no segment, because its own times do not show when it was trained.
    """
    found = []
    # Equal GPUs share a name, and no attribute tells them apart; but trials that overlap ran on different GPUs.
    ends: dict[str, list[datetime]] = {}
    for trial in sorted(
        (trial for trial in trials if trial.state.is_finished() and PAUSED_AT not in trial.user_attrs),
        key=lambda one: one.number,
    ):
        begun, ended = trial.datetime_start, trial.datetime_complete
        if begun is None or ended is None:
            continue
        device = str(trial.user_attrs.get("device", "unknown device"))
        lanes = ends.setdefault(device, [])
        lane = next((lane for lane, end in enumerate(lanes) if end <= begun), len(lanes))
        lanes[lane : lane + 1] = [ended]  # replaces the end of a lane, or adds a lane
        found.append(Segment(f"{device}\n{lane + 1}", trial.number, begun, ended, trial.state.name.lower()))
    # Until here, ``worker`` is the device and the lane, with a line break between.
    alone = {device for device, lanes in ends.items() if len(lanes) == 1}
    return [
        replace(segment, worker=device if device in alone else f"{device} {lane}")
        for segment in found
        for device, _, lane in [segment.worker.rpartition("\n")]
    ]
