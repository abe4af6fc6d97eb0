"""What is installed: three packages, their data files, one command, and nobody else's names."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distributions, entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("search", "studies", "trainer")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)], cwd=ROOT, check=True
    )
    return next(out.glob("*.whl"))


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_the_wheel_holds_studies_and_type_markers(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"studies/digits.toml", "studies/birds400.toml", "studies/template.toml"} <= names
    assert {f"{package}/py.typed" for package in PACKAGES} <= names


def test_the_source_archive_holds_the_documents(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {page.relative_to(ROOT).as_posix() for page in ROOT.glob("docs/*.md")} | {"README.md"} <= names


def test_no_other_distribution_provides_our_import_names() -> None:
    owners = {
        distribution.metadata["Name"]
        for distribution in distributions()
        for file in distribution.files or []
        if file.parts and file.parts[0] in PACKAGES
    }
    assert owners <= {"featherweight"}


def test_the_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="search")
    assert command.value == "search.cli:main"


def test_imports_go_one_way() -> None:
    run = subprocess.run([Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
