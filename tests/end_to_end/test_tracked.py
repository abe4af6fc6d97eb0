"""The script of the documents with a tracker of one's own, TensorBoard and apprise, in one real search."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import psutil
import pytest
from needed import required
from tiny import tiny_study

WATCHING = Path(__file__).parents[2] / "docs" / "watching.md"
SECRET = "9b74c9897bac770ffc029102a200c5de"


class Answers(BaseHTTPRequestHandler):
    told: list[bytes] = []  # noqa: RUF012  # of the class, for one test

    def do_POST(self) -> None:
        self.told.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.slow
def test_the_script_of_the_documents_tensorboard_and_apprise_see_a_search_and_keep_its_secrets(
    tmp_path: Path, port: int
) -> None:
    required("apprise")
    reader = required("tensorboard.backend.event_processing.event_accumulator")
    (script,) = re.findall(
        r"```python\n(.*?cli\.main\(Tracker\(\)\)\n)```", WATCHING.read_text(encoding="utf-8"), re.DOTALL
    )
    assert len([line for line in script.splitlines() if line.strip()]) <= 20
    (tmp_path / "tracked.py").write_text(script)
    (tmp_path / "tiny.toml").write_text(tiny_study("tiny", trials=1, epochs=2) + "[track]\ntensorboard = true\n")
    url = f'notify.urls=["json://127.0.0.1:{port}/{SECRET}"]'
    command = [sys.executable, "tracked.py", "launch", "tiny.toml", "--gpus", "cpu:1", "--set", url]
    path = os.pathsep.join([str(WATCHING.parents[1]), os.environ.get("PYTHONPATH", "")])
    seen: set[str] = set()
    with (tmp_path / "out").open("w") as out:
        launched = psutil.Popen(
            command, cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": path}
        )
        while launched.poll() is None:
            if (tmp_path / "runs").exists():  # it has started long ago
                for process in (launched, *launched.children(recursive=True)):
                    try:
                        seen.add(" ".join(process.cmdline()))
                    except psutil.Error:
                        continue
            time.sleep(0.05)
    said = (tmp_path / "out").read_text()
    assert launched.returncode == 0, said
    with (tmp_path / "tracked.csv").open() as file:
        rows = list(csv.reader(file))
    assert [row[:2] for row in rows] == [["0", "1"], ["0", "2"]]
    assert f"tracked 2 epochs; best: {rows[-1][2]}" in said
    curve = reader.EventAccumulator(str(tmp_path / "runs/studies/tiny/tensorboard/trial-0"))
    curve.Reload()
    assert [event.step for event in curve.Scalars("accuracy/val")] == [1, 2]
    assert "finished, best" in json.loads(Answers.told[-1])["message"]
    assert any("launch" in line for line in seen)
    assert [line for line in seen if SECRET in line] == []
    assert SECRET not in said
    for made in (tmp_path / "runs").rglob("*"):
        assert not made.is_file() or SECRET.encode() not in made.read_bytes(), made
