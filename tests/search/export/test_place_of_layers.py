"""Exports in the place of one that cannot be moved (an overlay's lower layer), or that may not be removed."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from exports import write_whole_export

import search.export.place
from search.errors import UsageError
from search.export.place import UNFINISHED, Place, altered
from search.export.record import ExportRecord

steps_left: list[int] = []
"""Number of steps until the process is killed; empty if it is not."""


def kill(event: str, arguments: tuple[object, ...]) -> None:
    is_step = event in ("os.rename", "os.remove", "os.rmdir") or (event == "open" and UNFINISHED in str(arguments[0]))
    if steps_left and is_step:
        steps_left[0] -= 1
        if steps_left[0] < 0:
            raise KeyboardInterrupt


sys.addaudithook(kill)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder that others may enter; pytest's own may only its owner."""
    with tempfile.TemporaryDirectory(prefix="featherweight-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture(autouse=True)
def never_killed_later() -> Iterator[None]:
    yield
    steps_left.clear()


def made(place: Place, identity: str = "new") -> Path:
    """An export that was made beside its place."""
    partial = place.begin()
    write_whole_export(partial.with_name("made"), identity=identity)
    shutil.copytree(partial.with_name("made"), partial, dirs_exist_ok=True)
    shutil.rmtree(partial.with_name("made"))
    return partial


def identities(folder: Path) -> dict[str, str]:
    """The complete exports in a folder, by name, and which they are."""
    whole = (path for path in folder.iterdir() if path.is_dir() and altered(path) is None)
    return {path.name: ExportRecord.load(path).identity for path in whole}


@pytest.fixture
def layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A complete export that the system refuses to move, as overlayfs does; other folders can be moved."""
    folder = write_whole_export(tmp_path / "birds", identity="old")
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path == folder:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(path), None, str(target))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    monkeypatch.setattr(search.export.place, "_exchange", lambda *_: False)
    return folder


def test_an_export_that_cannot_be_moved_is_replaced(layer: Path) -> None:
    place = Place(layer, is_default=True)
    place.check()
    place.check_replaceable()
    assert place.finish(made(place)) is None
    assert identities(layer.parent) == {"birds": "new"}
    assert [path.name for path in layer.parent.iterdir()] == ["birds"]


def test_a_kill_at_any_step_leaves_the_old_or_the_new_export_and_the_next_command_completes_it(layer: Path) -> None:
    backup = shutil.copytree(layer, layer.with_name("backup"))
    place, at, seen = Place(layer, is_default=False), 0, set()
    while True:
        partial = made(place)
        steps_left[:] = [at]
        try:
            place.finish(partial)
            break
        except KeyboardInterrupt:
            steps_left.clear()
        names = identities(layer.parent)
        assert names.get("birds") == "old" or "new" in (names.get("birds"), names.get(".birds.new")), at
        place.check()
        kept = identities(layer.parent)["birds"]
        seen.add(kept)
        if kept == "new":  # the old one again, in the same folder as far as the system is concerned
            assert not (layer.parent / ".birds.new").exists()
            shutil.rmtree(layer)
            shutil.copytree(backup, layer)
        at += 1
    steps_left.clear()
    assert at > 8
    assert seen == {"old", "new"}


def test_a_file_system_that_renames_onto_full_folders_loses_no_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole_export(tmp_path / "birds", identity="old")
    rename = Path.rename

    def accepted(path: Path, target: Path) -> Path:
        if target.is_dir():
            shutil.rmtree(target)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", accepted)
    Place(tmp_path / "birds", is_default=True).check_replaceable()
    assert identities(tmp_path) == {"birds": "old"}


def test_what_cannot_be_moved_and_is_no_complete_export_is_told_before_the_final_training(layer: Path) -> None:
    (layer / "notes.txt").write_text("mine")
    place = Place(layer, is_default=True)
    place.check()
    with pytest.raises(UsageError, match=r"birds cannot be replaced: .*layer.*notes.txt.* another folder with --out$"):
        place.check_replaceable()
    partial = made(place)
    with pytest.raises(UsageError, match=r"it stays as it is, the new one is .*/\.birds\.partial: move it by hand"):
        place.finish(partial)
    assert (layer / "notes.txt").exists()
    assert altered(layer) is None
    assert altered(partial) is None


def test_a_file_that_comes_while_the_old_export_is_removed_stays(layer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, unlink = Place(layer, is_default=True), Path.unlink

    def with_a_guest(path: Path, missing_ok: bool = False) -> None:
        if path == layer / "README.md":
            (layer / "thesis.txt").write_text("mine")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", with_a_guest)
    with pytest.raises(UsageError, match=r"did not write; they stay, and the new export is .*/\.birds\.new: move"):
        place.finish(made(place))
    assert (layer / "thesis.txt").read_text() == "mine"
    with pytest.raises(UsageError, match=r"the new export is .*/\.birds\.new: move"):
        place.check()
    assert (layer / "thesis.txt").read_text() == "mine"
    (layer / "thesis.txt").unlink()
    place.check()
    assert identities(layer.parent) == {"birds": "new"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (",userxattr", ["replaced", "{'birds': 'new', 'mine': 'old'}", "refused: notes.txt"]),
        ("", ["refused: Invalid cross-device link"]),  # it cannot note in the upper layer that a folder was moved
    ],
)
def test_on_a_real_overlay_an_export_of_a_lower_layer_is_replaced_or_refused_early(
    tmp_path: Path, options: str, expected: list[str]
) -> None:
    for name in ("lower", "upper", "work", "runs"):
        (tmp_path / name).mkdir()
    write_whole_export(tmp_path / "lower/birds", identity="old")
    write_whole_export(tmp_path / "lower/mine", identity="old")
    (tmp_path / "lower/mine/notes.txt").write_text("mine")
    code = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}; "
        "from test_place_of_layers import on_an_overlay, Path; on_an_overlay(Path('runs'))"
    )
    mounted = f"mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work{options} runs"
    script = f"{mounted} && exec {shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script]
    here = os.environ | {"PYTHONPATH": str(Path(search.__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=here)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no overlay can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected


def on_an_overlay(runs: Path) -> None:
    """Part of the test above, in its name space."""
    try:
        for name in ("birds", "mine"):
            place = Place(runs.resolve() / name, is_default=True)
            place.check()
            place.check_replaceable()
            assert place.finish(made(place)) is None
            print("replaced")
            print(dict(sorted(identities(runs).items())))
    except UsageError as error:
        print("refused:", *(words for words in ("notes.txt", "Invalid cross-device link") if words in str(error)))


@pytest.fixture
def other_user(tmp_path: Path) -> Iterator[None]:
    """A user whom permissions stop, in a test that root runs."""
    user = os.geteuid()
    if user == 0:
        tmp_path.chmod(0o777)
        os.seteuid(65534)
    yield
    os.seteuid(user)
    for path in tmp_path.rglob("*"):
        path.chmod(0o755)


@pytest.mark.usefixtures("other_user")
@pytest.mark.parametrize("closed", ["birds", "birds/plots"])
@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "two moves"])
def test_an_old_export_that_may_not_be_removed_fails_neither_this_export_nor_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(search.export.place, "_exchange", lambda *_: False)
    place = Place(tmp_path / "birds", is_default=True)
    place.finish(made(place, "first"))
    (tmp_path / closed).chmod(0o555)
    note = place.finish(made(place, "second"))
    (left,) = tmp_path.glob(".birds.*")
    assert note is not None
    assert note.startswith(f"the new export is in {place.target}; the old one could not be removed ({left}/")
    assert note.endswith(f": Permission denied) and is now in {left}: remove that by hand")
    for identity in ("third", "fourth"):
        place.check()
        place.check_replaceable()
        note = place.finish(made(place, identity))
        assert note is None or "which could not be removed" in note
        assert identities(tmp_path)["birds"] == identity


@pytest.mark.usefixtures("other_user")
def test_a_closed_export_in_a_layer_is_told_before_the_final_training(layer: Path) -> None:
    (layer / "plots").chmod(0o555)
    with pytest.raises(UsageError, match=r"birds cannot be replaced: .* may not write to .*another folder with --out$"):
        Place(layer, is_default=True).check_replaceable()
    assert altered(layer) is None


@pytest.mark.usefixtures("other_user")
def test_an_export_of_somebody_else_in_a_sticky_folder_is_told_before_the_final_training(tmp_path: Path) -> None:
    user = os.geteuid()
    if user != 65534:
        pytest.skip("only root can make a folder of somebody else")
    os.seteuid(0)
    write_whole_export(tmp_path / "birds")
    tmp_path.chmod(0o1777)
    os.seteuid(user)
    with pytest.raises(UsageError, match=r"cannot be replaced: this user may not move it \(Operation not permitted\);"):
        Place(tmp_path / "birds", is_default=True).check_replaceable()
