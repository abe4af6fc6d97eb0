"""The results file of replays: a line of JSON for each search."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from quality.curves import Kind
from quality.replay import Look

LOOKED = ("budget", "candidates", "complete", "raw", "raced", "race")


@dataclass(frozen=True)
class Key:
    """Identity of a replayed search."""

    policy: str
    task: str
    run: int
    workers: int


@dataclass(frozen=True)
class Run:
    """Result of a replayed search."""

    key: Key
    scale: float
    """Points of accuracy between median random settings and the best settings; they are a regret of 100."""
    cpu: float
    """CPU seconds."""
    kind: Kind
    judges: str
    """The parts of a policy that the task can judge."""
    looks: tuple[Look, ...]

    def line(self) -> str:
        """The run as a line of JSON."""
        columns = {name: [round(getattr(look, name), 3) for look in self.looks] for name in LOOKED}
        values = asdict(self.key) | {
            "scale": round(self.scale, 3),
            "cpu": round(self.cpu, 2),
            "kind": self.kind,
            "judges": self.judges,
        }
        return json.dumps(values | columns, separators=(",", ":"))


def run_of(line: str) -> Run:
    """The inverse of ``Run.line``."""
    values = json.loads(line)
    looks = tuple(Look(*row) for row in zip(*(values[name] for name in LOOKED), strict=True))
    key = Key(values["policy"], values["task"], values["run"], values["workers"])
    return Run(key, values["scale"], values["cpu"], values["kind"], values["judges"], looks)


def read(files: Iterable[Path]) -> list[Run]:
    """The runs in some files. If a run occurs twice, the last one counts."""
    lines = (line for file in files for line in file.read_text().splitlines() if '"policy"' in line)
    return list({run.key: run for run in map(run_of, lines)}.values())
