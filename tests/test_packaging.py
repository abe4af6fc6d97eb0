"""What is installed: three packages, their data files, one command, and nobody else's names."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import distributions, entry_points, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

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


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_dependency_is_bounded_below_and_what_is_installed_is_within_the_bounds() -> None:
    extras = itertools.chain.from_iterable(PROJECT["optional-dependencies"].values())
    wanted = [Requirement(line) for line in (*PROJECT["dependencies"], *extras)]
    ours = [requirement for requirement in wanted if requirement.name != "featherweight"]
    assert [str(one) for one in ours if not any(bound.operator == ">=" for bound in one.specifier)] == []
    assert [str(one) for one in ours if not one.specifier.contains(version(one.name), prereleases=True)] == []


def test_the_python_that_runs_this_is_one_that_the_package_says_it_was_tried_with() -> None:
    name = "Programming Language :: Python :: "
    tried = [entry.removeprefix(name) for entry in PROJECT["classifiers"] if entry.startswith(f"{name}3.")]
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in tried
    assert SpecifierSet(PROJECT["requires-python"]) == SpecifierSet(f">={tried[0]}")
