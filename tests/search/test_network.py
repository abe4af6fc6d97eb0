"""Nothing goes to the network but what the study names, and a check goes there never."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from inside import run_inside
from needed import program
from tiny import tiny_study

TEACHER = '\n[train.distill]\nteacher = "{}"\n'


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was looked up or connected to in this process; every attempt fails."""
    found: list[Any] = []

    def refuse(*arguments: Any, **named: Any) -> None:
        found.append(arguments)
        raise OSError("the network is forbidden here")

    for name in ("connect", "connect_ex", "sendto", "sendmsg"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        monkeypatch.setattr(socket, name, refuse)
    return found


def check(folder: Path, end: str = "", source: str = "digits") -> tuple[int, str, str]:
    text = tiny_study("tiny", trials=1).replace('source = "digits"', f'source = "{source}"')
    augmented = text.replace("[train]", '[train]\naugment = ["AutoAugment", "GaussianBlur"]')
    (folder / "tiny.toml").write_text(augmented + end)
    return run_inside(folder, "check", "tiny.toml", "--gpus", "cpu", "--json")


def test_a_check_does_not_use_the_network(tmp_path: Path, asked: list[Any]) -> None:
    code, out, _ = check(tmp_path, '[notify]\nwebhook = "http://example.org/told"\n')
    assert (code, json.loads(out)["study"], asked) == (0, "tiny", [])


@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
def test_a_check_does_not_download_pictures(tmp_path: Path, asked: list[Any], source: str) -> None:
    code, _, err = check(tmp_path, source=source)
    assert (code, asked) == (4, [])
    assert f"{source} is not in runs/cache/downloads yet, and a check never uses the network; search launch" in err


@pytest.mark.parametrize("teacher", ["hf-hub:somebody/birds", "resnet18.a1_in1k", "resnet10t"])
def test_a_check_does_not_download_a_teacher_and_says_so(tmp_path: Path, asked: list[Any], teacher: str) -> None:
    code, out, _ = check(tmp_path, TEACHER.format(teacher))
    assert (code, asked) == (0, [])
    (warning,) = [line for line in json.loads(out)["pictures"]["warnings"] if "teacher" in line]
    assert warning.startswith(f"distill.teacher {teacher} was not loaded, as a check never uses the network")


def test_a_check_still_names_a_teacher_that_is_none(tmp_path: Path, asked: list[Any]) -> None:
    code, _, err = check(tmp_path, TEACHER.format("resnet18x"))
    assert (code, asked) == (2, [])
    assert "is neither an export nor a timm model" in err


@pytest.fixture
def watched(tmp_path: Path) -> dict[str, str]:
    """An environment in which processes note in tmp_path / "notes" what they look up and connect to, also from C, and
    have a home of their own."""
    library = tmp_path / "network.so"
    source = Path(__file__).with_name("network.c")
    subprocess.run([program("gcc"), "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    (tmp_path / "home").mkdir()
    own = {"LD_PRELOAD": library, "NETWORK_NOTES": tmp_path / "notes", "HOME": tmp_path / "home", "OMP_NUM_THREADS": 1}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    return kept | {name: str(value) for name, value in own.items()}


LOOK_UP = "import socket; socket.getaddrinfo('localhost', 7)"
CONNECT = "import socket; socket.socket().connect_ex(('127.0.0.1', 7))"
IN_C = "import ctypes; ctypes.CDLL(None).gethostbyname(b'localhost')"


@pytest.mark.parametrize(
    ("code", "noted"), [(LOOK_UP, "localhost 7\n"), (CONNECT, "127.0.0.1 7\n"), (IN_C, "localhost -\n"), ("", None)]
)
def test_what_a_process_asks_of_the_network_is_noted(
    tmp_path: Path, watched: dict[str, str], code: str, noted: str | None
) -> None:
    subprocess.run([sys.executable, "-c", code], env=watched, check=True)
    notes = tmp_path / "notes"
    assert (notes.read_text() if notes.exists() else None) == noted


OPENS = """
import onnx, sys
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
ends = [make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("pictures", "logits")]
graph = make_graph([make_node("Relu", ["pictures"], ["logits"])], "graph", ends[:1], ends[1:])
model = make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)
onnx.save(model, sys.argv[1])

import MODULE
from search.export.formats.table import format_of
format_of("onnx").open(sys.argv[1])
"""


@pytest.mark.parametrize("module", ["search.export.proof", "search.export.predict", "search.export.compare"])
def test_who_opens_a_model_keeps_no_record_of_its_use(tmp_path: Path, watched: dict[str, str], module: str) -> None:
    """ONNX Runtime sends its record ten seconds later, and begins it in the user's home as soon as it is imported."""
    code = OPENS.replace("MODULE", module)
    subprocess.run([sys.executable, "-c", code, tmp_path / "model.onnx"], env=watched, check=True)
    assert [path for path in (tmp_path / "home").rglob("*") if "onnxruntime" in path.name] == []
    assert not (tmp_path / "notes").exists()


class Told(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def webhook() -> Iterator[int]:
    """The port of something that wants to be told."""
    with HTTPServer(("127.0.0.1", 0), Told) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.slow
@pytest.mark.timeout(600)  # seven commands, an export among them
def test_from_launch_to_report_only_the_webhook_of_the_study_is_connected_to(
    tmp_path: Path, watched: dict[str, str], webhook: int
) -> None:
    notes = tmp_path / "notes"
    (tmp_path / "tiny.toml").write_text(
        tiny_study("tiny", trials=1)
        + '[confirm]\ntop = 0\n[final]\nformats = ["onnx", "pt2"]\n'
        + f'[notify]\nwebhook = "http://127.0.0.1:{webhook}/told"\n'
    )

    def search(*arguments: str) -> None:
        command = [Path(sys.executable).with_name("search"), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=watched, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    search("launch", "tiny.toml", "--gpus", "cpu:1")
    assert set(notes.read_text().splitlines()) == {f"127.0.0.1 {webhook}"}
    notes.unlink()
    search("check", "tiny.toml", "--gpus", "cpu:1")
    search("export-best", "tiny", "--gpus", "cpu:1")
    (picture,) = list((tmp_path / "runs").rglob("confusion.png"))[:1]
    search("predict", str(picture.parents[1]), str(picture))
    search("status", "tiny")
    search("report", "tiny")
    search("replay", "tiny")
    assert not notes.exists(), notes.read_text()
