"""``search gpus``: lists and changes the GPUs of a running search. This module has both the command and its counterpart
in the search.

Requests and answers are files in the runs folder, so they reach a process on any machine that shares the folder.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from sqlalchemy import URL

from search.devices import UUIDS, WorkerDevice, share_gpus
from search.errors import SearchError, UsageError
from search.gpu_locks import HeldDevices
from search.paths import Runs
from search.plan.prepare import room_needed
from search.plan.space import Bounds
from search.running.coordinator import Coordinator
from search.running.pace import pace_of_turns
from search.running.stop import owner_here
from search.study.lock import owner_of
from search.workers.crew import Worker
from search.workers.places import parse_places, place_of
from trainer.errors import TrainerError
from trainer.kept import recall, write_checked
from trainer.values import FrozenModel, validate

POLL_SECONDS = 0.2
"""Seconds between two checks for the answer."""

ANSWER_SECONDS = 60.0
"""Longest time for a search to take a request. It takes all in each turn, unless its database hangs."""


class Request(FrozenModel):
    """A change of the GPUs of a search."""

    add: str | None = None
    """GPUs to add, in the form of ``--gpus``."""
    drain: str | None = None
    """GPUs to take away, by the labels that the command lists, or as ``--gpus`` names them."""


class Reply(FrozenModel):
    """The answer of the search."""

    gpus: tuple[str, ...] = ()
    """The GPUs in use from now on."""
    added: tuple[str, ...] = ()
    drained: tuple[str, ...] = ()
    error: str | None = None
    """The reason why nothing was changed; None if there was no error."""


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """The answer of ``search gpus``."""

    study: str
    gpus: tuple[str, ...]
    """The GPUs that the search uses from now on."""
    added: tuple[str, ...]
    drained: tuple[str, ...]
    """The GPUs that are taken away; each is free once its workers have finished their epochs."""


def change_gpus(name: str, url: URL, runs: Runs, request: Request, *, tell: Callable[[str], None]) -> Gpus:
    """Change the GPUs of a running search; the next launch does not keep the change. An empty request lists them.

    Args:
        name: name of the study.
        url: URL of the storage.
        runs: the runs folder.
        request: the change.
        tell: called with a line that names the process to wait for.

    Raises:
        StorageError: there is no such database.
        UsageError: there is no such study; the study is not searched, or not in this runs folder; the study is
            exported; or the change is impossible, for the reason in the message.
    """
    owner = owner_here(name, url, runs)
    if owner is None:
        raise UsageError(f"no process searches study {name!r}; search launch --gpus names its GPUs")
    folder, number = runs.gpu_requests(name), uuid.uuid4().hex
    folder.mkdir(exist_ok=True)
    asked, answered = folder / f"{number}.request", folder / f"{number}.answer"
    write_checked(asked, request.model_dump(), durable=False)
    tell(f"asked {owner}, which holds {name!r}")
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        has_ended = owner_of(name, url, runs) != owner
        if (values := recall(answered, "ask again")) is not None:
            break
        if has_ended or time.monotonic() > deadline:
            try:
                asked.unlink()
            except FileNotFoundError:  # the search has taken the request, and may be about to answer
                if has_ended or time.monotonic() > deadline + ANSWER_SECONDS:
                    again = runs.command("gpus", name)
                    raise UsageError(f"{owner} took the request and did not answer; {again} lists its GPUs") from None
            else:
                raise UsageError(f"{owner} does not answer; an export keeps its GPUs")
        time.sleep(POLL_SECONDS)
    answered.unlink(missing_ok=True)
    reply = Reply.model_validate(values)
    if reply.error is not None:
        raise UsageError(reply.error)
    return Gpus(study=name, gpus=reply.gpus, added=reply.added, drained=reply.drained)


def text_of_gpus(answer: Gpus) -> str:
    """The output of ``search gpus``."""
    parts = [f"study {answer.study!r} is searched on {', '.join(answer.gpus)}"]
    parts += [f"added: {', '.join(answer.added)}"] if answer.added else []
    parts += [f"drained: {', '.join(answer.drained)}, free after the epoch in progress"] if answer.drained else []
    return "\n".join([*parts, *(["until this launch ends"] if answer.added or answer.drained else [])])


class Elastic:
    """Changes the GPUs of a running search when ``search gpus`` asks for it.

    Args:
        coordinator: the search.
        devices: the devices of the search, one for each GPU.
        held: the locks of these devices.
        bounds: the study's search space, for the room that checkpoints need.
    """

    def __init__(
        self, coordinator: Coordinator, devices: Sequence[WorkerDevice], held: HeldDevices, bounds: Bounds
    ) -> None:
        self._search, self._held, self._bounds = coordinator, held, bounds
        self.devices = list(devices)
        """The devices in use, one for each GPU."""
        self._leaving: list[WorkerDevice] = []
        """The drained devices, whose workers still finish their epochs."""

    def turn(self) -> None:
        """Answer requests, and release the GPUs whose workers have ended. To be called in each turn of the search."""
        for device in [one for one in self._leaving if all(it.process == "none" for it in self._workers(one, True))]:
            self._leaving.remove(device)
            self._held.release(device)
            self._search.say(f"{device.label} is free")
        folder = self._search.runs.gpu_requests(self._search.spec.name)
        with contextlib.suppress(OSError):  # the disk does not answer
            for file in sorted(folder.glob("*.request")):
                self._answer(file)

    def _answer(self, file: Path) -> None:
        values = recall(file, "it changes nothing")
        file.unlink()
        try:
            if values is None:
                raise UsageError("the search cannot read the request; ask again")
            reply = self._change(validate(Request, values, "the search cannot read the request"))
        except (SearchError, TrainerError) as error:
            reply = Reply(error=str(error))
        write_checked(file.with_suffix(".answer"), reply.model_dump(), durable=False)

    def _change(self, request: Request) -> Reply:
        """Change the GPUs.

        Raises:
            UsageError: a GPU cannot be added or drained, none would be left, or the search is stopping.
            DeviceHeld: another search uses one of the GPUs.
        """
        search = self._search
        leaving = [] if request.drain is None else self._named(request.drain)
        joining = [] if request.add is None else self._new(request.add)
        staying = [device for device in self.devices if device not in leaving]
        if (
            leaving
            and not joining
            and not any(one.usable for device in staying for one in self._workers(device, False))
        ):
            but = " but those that are put aside" if staying else ""
            raise UsageError(
                f"--drain {request.drain} would leave no GPU{but}; "
                f"{search.runs.command('stop', search.spec.name)} ends a search"
            )
        if search.stopping and (leaving or joining):
            raise UsageError("the search is stopping, and keeps its GPUs until it has")
        self._held.hold(joining)
        for device in leaving:
            for worker in self._workers(device, False):
                search.crew.drain(worker)
            search.say(f"{device.label} is drained: it finishes its epoch, and its trial goes on elsewhere")
        self.devices, self._leaving = staying + joining, self._leaving + leaving
        for device in share_gpus(joining, search.spec.search.workers_per_gpu):
            log = search.runs.worker_log(search.spec.name, len(search.pool.devices))
            search.crew.add(device, log)
        if joining:
            search.say(f"added {', '.join(device.label for device in joining)}")
            workers = sum(not worker.drained for worker in search.crew.workers)
            search.room_needed = room_needed(search.spec, self._bounds, workers)
            search.looking = pace_of_turns(workers)
        return Reply(
            gpus=tuple(device.label for device in self.devices),
            added=tuple(device.label for device in joining),
            drained=tuple(device.label for device in leaving),
        )

    def _named(self, text: str) -> list[WorkerDevice]:
        """The devices in use that a text names."""
        found = []
        for part in map(str.strip, text.split(",")):
            device = next((one for one in self.devices if _is_named(one, part)), None)
            if device is None or device in found:
                why = "is named twice" if device else "is not in use"
                here = ", ".join(one.label for one in self.devices)
                raise UsageError(f"--drain {text}: {part!r} {why}; the search uses {here}")
            found.append(device)
        return found

    def _new(self, text: str) -> list[WorkerDevice]:
        """The devices to add. Each has as many threads as the present ones of its kind, and a label of its own."""
        joining, spec = list[WorkerDevice](), self._search.spec
        if place_of(text) != self.devices[0].place:  # before Ray is connected, which takes long
            raise UsageError(f"--add {text}: the search uses {self.devices[0].label}, and a search is in one place")
        for device in parse_places(text, spec.cluster, spec.search.workers_per_gpu):
            threads = next((one.num_threads for one in self.devices if one.kind == device.kind), device.num_threads)
            fresh = replace(device, num_threads=threads)
            if device.uuid is None:
                taken = {one.label for one in (*self._search.pool.devices, *joining)}
                labels = (f"{device.label.partition(':')[0]}:{number}" for number in count())
                fresh = replace(fresh, label=next(label for label in labels if label not in taken))
            elif any(one.uuid == device.uuid for one in self._leaving):
                raise UsageError(f"--add {text}: {device.label} still finishes its epoch; add it again when it is free")
            elif any(one.uuid == device.uuid for one in self.devices):
                raise UsageError(f"--add {text}: the search uses {device.label} already")
            joining.append(fresh)
        return joining

    def _workers(self, device: WorkerDevice, drained: bool) -> list[Worker]:
        """The workers of a device: those that are drained, or those that are not."""
        crew, devices = self._search.crew, self._search.pool.devices
        return [
            worker
            for worker, its in zip(crew.workers, devices, strict=True)
            if worker.drained == drained
            and (its.label == device.label if device.uuid is None else its.uuid == device.uuid)
        ]


def _is_named(device: WorkerDevice, name: str) -> bool:
    """Whether ``name`` is the label of a device, its number, or its UUID or the beginning of its UUID."""
    by_uuid = device.uuid is not None and name.startswith(UUIDS) and device.uuid.startswith(name)
    return bool(name) and (device.label in (name, f"gpu {name}") or by_uuid)
