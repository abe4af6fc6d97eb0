"""An export that went through git: pointers of Git LFS, and line ends as on Windows."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from exports import write_whole_export

from search.errors import ProofFailed, SearchError, UsageError
from search.export.files import check_sums, open_model, read_config
from search.export.place import altered
from search.export.record import ExportRecord
from trainer.errors import ConfigError
from trainer.sums import check_teacher, read_sums

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22\nsize 12345\n"


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return write_whole_export(tmp_path / "birds")


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "config.json", "metrics.json", "SHA256SUMS"])
def test_a_pointer_of_git_lfs_is_named_with_its_cure(export: Path, name: str) -> None:
    check_sums(export)
    (export / name).write_bytes(POINTER)
    reads: list[Callable[[], object]] = [lambda: check_sums(export)]
    if name == "model.onnx":
        reads += [lambda: open_model(export)]
    else:
        reads += [lambda: check_teacher(str(export))]
    if name == "config.json":
        reads += [lambda: read_config(export)]
    if name == "metrics.json":
        reads += [lambda: ExportRecord.load(export)]
    for read in reads:
        with pytest.raises((SearchError, ConfigError), match="git lfs pull") as raised:
            read()
        assert name in str(raised.value)
        assert "export again" not in str(raised.value)
    assert altered(export) is not None


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs the program git")
def test_line_ends_that_git_has_changed_are_named_with_their_cure(export: Path, tmp_path: Path) -> None:
    git(export, "init", "-q")
    git(export, "add", ".")
    git(export, "commit", "-qm", "an export")
    windows = tmp_path / "windows"
    git(tmp_path, "clone", "-q", "-c", "core.autocrlf=true", str(export), str(windows))
    assert b"\r\n" in (windows / "SHA256SUMS").read_bytes()
    assert read_sums(windows) == read_sums(export)
    check_sums(windows, ["model.onnx", "model.safetensors"])
    with pytest.raises(
        ProofFailed, match=r"README.md is not the file .*\(its line ends are CRLF, .*\); clone"
    ) as raised:
        check_sums(windows)
    (cure,) = re.findall(r"with git (clone .*)$", str(raised.value))
    git(tmp_path, *cure.split(), str(export), str(tmp_path / "mended"))
    check_sums(tmp_path / "mended")


def test_a_file_that_is_missing_is_said_to_be(export: Path) -> None:
    (export / "model.safetensors").unlink()
    with pytest.raises(
        ProofFailed, match=r"model.safetensors is not the file that was proven \(it is missing\); export"
    ):
        check_sums(export)
    (export / "new.txt").write_text("new")
    with pytest.raises(ProofFailed, match=r"new.txt is not .* \(it is not in SHA256SUMS\); export again"):
        check_sums(export, ["new.txt"])
    (export / "SHA256SUMS").write_text("nothing")
    with pytest.raises(UsageError, match="has no usable SHA256SUMS; give a folder that export-best wrote"):
        check_sums(export)
