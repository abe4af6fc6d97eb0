"""Runs the installed command, and ends a process with kill -9 at a named point, where a test asks for it.

    python killed.py POINT search-arguments...

POINT, of the coordinator:

    ask:N        in its Nth asking, with some settings of the new trial stored and some not
    report:N     after its Nth report, before the worker is answered
    tell:N       after its Nth tell, before the journal has it

KILL_WORKERS names points of its workers, one for each process that is started, in turn, and KILL_LOG a file that gets a
line for each kill:

    open:TEXT:N       when it opens its Nth file whose path has TEXT in it
    os.rename:TEXT:N  when it renames its Nth such file

They are Python's audit events, so the product needs no hooks for this.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SITECUSTOMIZE = """
import os, signal, sys

def arm():
    log = os.environ["KILL_LOG"]
    points = os.environ["KILL_WORKERS"].split("|")
    done = len(open(log).readlines()) if os.path.exists(log) else 0
    if done >= len(points):
        return
    event, text, number = points[done].split(":")
    left = [int(number)]

    def hook(name, arguments):
        if name == event and any(text in str(argument) for argument in arguments[:2]):
            left[0] -= 1
            if left[0] == 0:
                with open(log, "a") as file:
                    file.write(points[done] + "\\n")
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)

if "search.workers.worker" in sys.orig_argv:
    arm()
"""


def kill_after(owner: Any, name: str, times: int) -> None:
    """Let a method end this process once it has done its work for so many times."""
    original: Callable[..., Any] = getattr(owner, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal times
        answer = original(*arguments, **options)
        times -= 1
        if times == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(owner, name, wrapped)


def main() -> None:
    point = sys.argv[1]
    sys.argv = ["search", *sys.argv[2:]]
    folder = Path(os.environ["KILL_LOG"]).parent / "sitecustomize"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])

    import optuna

    import search.cli
    import search.running.trials
    from search.running.results import Results

    kind, _, number = point.partition(":")
    owner, name = {
        "ask": (optuna.Trial, "_suggest"),
        "report": (Results, "report"),
        "tell": (search.running.trials, "end_trial"),
    }[kind]
    # Three settings are sampled in the study at hand: two of the last trial's are stored.
    kill_after(owner, name, 3 * int(number) - 1 if kind == "ask" else int(number))

    search.cli.main()


if __name__ == "__main__":
    main()
