"""Where an export is put, and what it never deletes."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from exports import write_whole_export

import search.export.place
from search.errors import UsageError
from search.export.place import UNFINISHED, Place, altered
from trainer.sums import write_sums


def made(place: Place, identity: str = "new") -> Path:
    """An export that was made beside its place."""
    partial = place.begin()
    write_whole_export(partial.with_name("made"), identity=identity)
    shutil.copytree(partial.with_name("made"), partial, dirs_exist_ok=True)
    shutil.rmtree(partial.with_name("made"))
    return partial


def there(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FOREIGN: dict[str, Callable[[Path], object]] = {
    "somebody's folder with a metrics.json": lambda folder: (
        (folder / "raw").mkdir(parents=True),
        (folder / "metrics.json").write_text('{"loss": 0.1}'),
        (folder / "raw/data.csv").write_text("1"),
    ),
    "an export with notes in it": lambda folder: (
        write_whole_export(folder),
        (folder / "notes.txt").write_text("mine"),
    ),
    "an export with a picture among its plots": lambda folder: (
        write_whole_export(folder),
        (folder / "plots/mine.png").write_text("mine"),
    ),
    "an export with an empty folder": lambda folder: (write_whole_export(folder), (folder / "mine").mkdir()),
    "an export whose card was edited": lambda folder: (
        write_whole_export(folder),
        (folder / "README.md").write_text("mine"),
    ),
    "an export without sums": lambda folder: (write_whole_export(folder), (folder / "SHA256SUMS").unlink()),
    "an export without its weights, and sums that say so": lambda folder: (
        write_whole_export(folder),
        (folder / "model.safetensors").unlink(),
        write_sums(folder),
    ),
    "a file": lambda folder: folder.write_text("mine"),
    "a link to a folder": lambda folder: ((folder.parent / "far").mkdir(), folder.symlink_to("far")),
}


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "two moves"])
@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_whole_export_of_ours_is_never_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(search.export.place, "_exchange", lambda *_: False)
    target = tmp_path / "birds"
    FOREIGN[name](target)
    before = there(target) if target.is_dir() else target.read_text()
    chosen = Place(target, is_default=False)
    with pytest.raises(UsageError, match=r"^--out .*/birds exists and is not a complete export \(.*\); it stays"):
        chosen.check()
    with pytest.raises(UsageError, match="it stays as it is, the new one is "):
        chosen.finish(made(chosen))
    assert (there(target) if target.is_dir() else target.read_text()) == before

    default = Place(target, is_default=True)
    default.check()
    note = default.finish(made(default))
    assert note is not None
    assert altered(target) is None
    (aside,) = tmp_path.glob("birds.aside-*")
    assert str(aside) in note
    assert (there(aside) if aside.is_dir() else aside.read_text()) == before


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "two moves"])
def test_a_whole_export_is_replaced_and_at_each_instant_one_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(search.export.place, "_exchange", lambda *_: False)
    target = tmp_path / "birds"
    place = Place(target, is_default=False)
    place.finish(made(place, "old"))
    old = there(target)
    seen = []

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event in ("os.rename", "os.remove", "os.rmdir") and str(tmp_path) in str(arguments[0]):
            seen.append(altered(target) is None)

    watching = True
    sys.addaudithook(look)
    assert place.finish(made(place, "new")) is None
    watching = False
    assert len(seen) > 8
    # Where a file system cannot exchange, both lie beside the place between the two moves; see the next test.
    assert all(seen) if exchanges else seen.count(False) == 1
    assert altered(target) is None
    assert there(target) != old
    assert [path.name for path in tmp_path.iterdir()] == ["birds"]


@pytest.mark.parametrize("is_export", [True, False], ids=["an export", "an altered export"])
def test_a_kill_between_two_moves_is_mended_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_export: bool
) -> None:
    monkeypatch.setattr(search.export.place, "_exchange", lambda *_: False)
    place = Place(tmp_path / "birds", is_default=True)
    place.finish(made(place, "old"))
    if not is_export:
        (place.target / "config.json").write_text("altered")
    old = there(place.target)
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name == ".birds.partial":
            raise KeyboardInterrupt
        return rename(path, target)

    partial = made(place, "new")
    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        place.finish(partial)
    monkeypatch.setattr(Path, "rename", rename)
    assert not place.target.exists()
    place.check()
    assert there(place.target) == old
    assert (place.finish(made(place, "new")) is None) == is_export
    assert [path.name for path in tmp_path.glob(".*")] == []
    assert len(list(tmp_path.iterdir())) == (1 if is_export else 2)


@pytest.mark.parametrize("is_export", [True, False], ids=["an export", "other content"])
def test_what_a_kill_left_of_two_moves_prevents_no_later_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_export: bool
) -> None:
    monkeypatch.setattr(search.export.place, "_exchange", lambda *_: False)
    place, left = Place(tmp_path / "birds", is_default=True), tmp_path / ".birds.old"
    place.finish(made(place, "second"))
    if is_export:  # killed while the files of the first export were removed
        write_whole_export(left)
        (left / UNFINISHED).touch()
        (left / "README.md").unlink()
    else:  # killed between the two moves, when the place had the content of somebody else
        left.mkdir()
        (left / "thesis.txt").write_text("mine")
    place.check()
    note = place.finish(made(place, "third"))
    asides = [path for path in tmp_path.iterdir() if path.name != "birds"]
    assert note == (
        None
        if is_export
        else f"an earlier export was killed; the content that it replaced in {place.target} is now in {asides[0]}"
    )
    assert [there(path) for path in asides] == ([] if is_export else [{"thesis.txt": b"mine"}])
    assert all(path.name.startswith("birds.aside-") for path in asides)


def test_what_a_killed_export_left_is_removed_and_what_only_has_its_name_stays(tmp_path: Path) -> None:
    place = Place(tmp_path / "birds", is_default=False)
    first = place.begin()
    (first / "plots").mkdir()
    (first / "plots/half.png").touch()
    assert place.begin() == first
    assert [path.name for path in first.iterdir()] == [UNFINISHED]
    (first / UNFINISHED).rename(first / "thesis.txt")
    second = place.begin()
    assert second.name == ".birds.partial-1"
    assert (first / "thesis.txt").exists()


def test_a_link_in_what_a_killed_export_left_is_not_followed(tmp_path: Path) -> None:
    place = Place(tmp_path / "birds", is_default=False)
    (tmp_path / "far").mkdir()
    (tmp_path / "far/data.csv").touch()
    (place.begin() / "link").symlink_to(tmp_path / "far")
    assert [path.name for path in place.begin().iterdir()] == [UNFINISHED]
    assert (tmp_path / "far/data.csv").exists()


def test_a_disk_at_the_place_is_told_before_anything_is_trained() -> None:
    with pytest.raises(UsageError, match=r"^/proc is a mount point, .* name a folder in it: --out /proc/export$"):
        Place(Path("/proc"), is_default=False).check()


def test_a_folder_that_is_mounted_at_the_place_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    outer, place = tmp_path / "outer", tmp_path / "a \\ volume"
    outer.mkdir()
    place.mkdir()
    Place(place, is_default=False).check()
    code = "import sys; from search.export.place import Place, Path; Place(Path(sys.argv[2]), is_default=False).check()"
    script = f'mount --bind "$1" "$2" && exec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$1" "$2"'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(outer), str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no folder can be mounted here: {done.stderr.strip()}")
    assert f"UsageError: {place} is a mount point" in done.stderr


CURRENT: dict[str, tuple[str, bool]] = {
    "an empty folder": ("model", False),
    "an export": ("model", True),
    "a folder in an export": ("model/plots", True),
    "a link to an export": ("link", True),
}


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize(("current", "is_export"), CURRENT.values(), ids=CURRENT)
def test_the_current_folder_is_the_new_one_after_its_replacement_and_the_user_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, current: str, is_export: bool, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(search.export.place, "_exchange", lambda *_: False)
    target = tmp_path / "model"
    place = Place(target, is_default=False)
    target.mkdir()
    (tmp_path / "link").symlink_to("model")
    if is_export:
        place.finish(made(place, "old"))
    monkeypatch.chdir(tmp_path / current)
    here = Path.cwd()
    new = made(place)
    content = there(new)
    with pytest.warns(UserWarning, match=f"has replaced the current folder {here}; .*: cd"):
        assert place.finish(new) is None
    assert Path.cwd() == here
    assert Path().stat().st_ino == here.stat().st_ino
    assert there(target) == {name: data for name, data in content.items() if name != UNFINISHED}


@pytest.mark.parametrize("current", [".", "beside"])
def test_another_current_folder_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, current: str
) -> None:
    place = Place(tmp_path / "model", is_default=False)
    place.finish(made(place, "old"))
    (tmp_path / "beside").mkdir()
    new = made(place)
    (tmp_path / current).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / current)
    place.finish(new)
    assert (Path.cwd(), list(recwarn)) == (tmp_path / current, [])


def test_an_export_is_put_in_its_place_although_the_current_folder_was_deleted_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path / "model", is_default=False)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    place.check()
    place.finish(made(place))
    assert altered(tmp_path / "model") is None


def test_an_export_is_put_in_its_place_although_this_user_may_not_enter_the_current_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    user = os.geteuid()
    if user != 0:
        pytest.skip("only root can become somebody else")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)  # above pytest's own folders there are closed ones
        folder.chmod(0o777)
        (folder / "closed").mkdir(mode=0o700)
        monkeypatch.chdir(folder / "closed")
        os.seteuid(65534)
        try:
            place = Place(folder / "model", is_default=False)
            place.check()
            place.finish(made(place))
        finally:
            os.seteuid(user)
            monkeypatch.chdir("/")
        assert altered(folder / "model") is None
