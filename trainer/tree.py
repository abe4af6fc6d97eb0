"""The tree of folders and files in a data folder, without files of operating systems. Opens no file."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import DataError

__all__ = ["ARCHIVE", "NOW", "PICTURE_ENDINGS", "File", "Folder", "Reading", "read_tree"]

LITTER = frozenset(
    (
        *("@__thumb", "@eadir", "@recently-snapshot", "@recycle", "@sharebin", "@tmp", "#recycle"),  # NAS
        *("#snapshot", "~snapshot", "@synoresource", "@transcode"),
        *("$recycle.bin", "desktop.ini", "ehthumbs.db", "ehthumbs_vista.db", "folder.htt"),  # Windows
        *("picasa.ini", "recycler", "system volume information", "thumbs.db", "zbthumbnail.info"),
        *("_vti_cnf", "lost.dir"),  # web servers, Android
        *("__macosx", "icon\r", "network trash folder", "temporary items", "thevolumesettingsfolder"),  # macOS
        *("lost+found", "__pycache__", "sync.ffs_db", "dropbox.attr", "_gsdata_"),
        *("__results___files", "wandb", "mlruns", "lightning_logs"),  # notebooks and trackers
        *(
            "node_modules",
            "bower_components",
            "site-packages",
            "dist-packages",
            "__pypackages__",
            "htmlcov",
        ),  # programs
    )
)
"""Names of files and folders that systems and other programs create, in lower case. They are ignored without a message,
and so are all hidden ones, such as .ipynb_checkpoints."""

_LATER = frozenset(
    (
        *("@synoresource", "@transcode", "recycler", "_vti_cnf", "lost.dir", "_gsdata_"),
        *("__results___files", "wandb", "mlruns", "lightning_logs"),
    )
)
"""Those of LITTER that were ignored only since 2026-11-30."""


_PACKAGES = frozenset(
    ("node_modules", "bower_components", "site-packages", "dist-packages", "__pypackages__", "htmlcov")
)
"""Those of LITTER that were not ignored before virtual environments were."""

ENVIRONMENT_NAMES = {"pyvenv.cfg", "conda-meta"}
"""Names of which each virtual environment has one: of Python, or of conda."""


HIDDEN = (".", ":2e")
"""Beginnings of hidden names, in lower case; old file servers for macOS write ":2e" for the dot."""


@dataclass(frozen=True)
class Reading:
    """What is ignored in a data folder, and what is refused."""

    litter: frozenset[str] = LITTER
    hidden: tuple[str, ...] = HIDDEN
    texts: bool = True
    """Whether pictures with the ending of a text are ignored, as texts are."""
    environments: bool = True
    """Whether virtual environments are ignored."""
    groups: bool = True
    """Whether a group that is in several splits, because it is written in several ways, is refused."""


NOW = Reading()

BEFORE = (
    Reading(hidden=(".",)),
    *(
        Reading(litter, (".",), texts, environments=False, groups=False)
        for litter, texts in (
            (LITTER - _PACKAGES, True),
            (LITTER - _PACKAGES, False),
            (LITTER - _PACKAGES - _LATER, False),
            (LITTER - _PACKAGES - _LATER | {"recycled", "recycler"}, False),
            (frozenset({"thumbs.db", "desktop.ini", "__macosx"}), False),
        )
    ),
)
"""What earlier versions ignored and refused, the latest first; studies that they have begun keep their pictures."""

FOUND = re.compile(r"found\.\d{3}")
"""Folders in which Windows puts files rescued from a damaged disk."""

LITTER_ENDINGS = (":zone.identifier", ":encryptable", "_zone.identifier")
"""Endings of Windows' alternate data streams, which become files in a copy to Linux."""

RUNS_FILES = {"search.db", "last-study"}
RUNS_NAMES = RUNS_FILES | {"artifacts", "cache", "dashboard.log", "devices", "exports", "studies"}
"""Names in a runs folder. A folder is taken for one if it has one of RUNS_FILES; or if it has only names of this list,
and one of them is ``studies`` or a ``cache`` of decoded pictures."""

CACHE_NAME = re.compile(r"(\.|\.partial-)?.*-\d+px-[0-9a-f]{12}(\.lock)?")
"""Names of caches of decoded pictures, of unfinished ones, and of their locks."""

EXPORT_FILES = {"SHA256SUMS", "config.json", "metrics.json"}

PICTURE_ENDINGS = (
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".jxl", ".pbm", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp"),
)
"""Endings that only pictures have. In a class folder, a file with another ending is a picture if Pillow reads it."""

TEXT_ENDINGS = (
    *(".txt", ".csv", ".tsv", ".xml", ".json", ".jsonl", ".md", ".htm", ".html", ".yaml", ".yml", ".log"),
    *(".mat", ".pts"),
    *(".ipynb", ".py", ".pyc", ".pyi", ".sh", ".bat", ".cmd", ".ps1", ".r", ".rmd", ".jl", ".css"),  # code
    *(".toml", ".cfg", ".ini", ".lock", ".rst", ".tex", ".bib"),
    *(".aae", ".dop", ".pp3", ".thm", ".xmp"),  # side cars: cameras and photo programs write them beside pictures
)
"""Endings of texts, code and annotations, as people have them beside pictures. In a class folder, they are not used."""

ARCHIVE = re.compile(r"(.+?)\.(tar(\.\w+)?|tgz|tbz2?|txz|(zip|7z|rar)(\.\d+)?)", re.IGNORECASE)
"""Names of archives: the first group is the name without its ending."""


@dataclass(frozen=True)
class File:
    """A file, or a broken link."""

    name: str
    """Path relative to the data folder, with slashes."""
    path: Path
    info: os.stat_result | None
    """Result of stat through links; None for a broken link."""

    @property
    def base(self) -> str:
        """The last part of the name."""
        return self.name.rpartition("/")[2]

    @property
    def is_picture(self) -> bool:
        """Whether the name has the ending of a picture."""
        return self.name.lower().endswith(PICTURE_ENDINGS)

    @property
    def is_text(self) -> bool:
        """Whether the name has the ending of a text, of code or of annotations."""
        return self.name.lower().endswith(TEXT_ENDINGS)


@dataclass(frozen=True)
class Folder:
    """A folder, with everything below it."""

    name: str
    """Path relative to the data folder, with slashes; "" for the data folder itself."""
    files: tuple[File, ...]
    folders: tuple[Folder, ...]
    links_back: tuple[str, ...] = ()
    """Names of links in it, at any depth, to a folder that contains them; they are not followed."""

    @property
    def base(self) -> str:
        """The last part of the name."""
        return self.name.rpartition("/")[2]

    def walk(self) -> Iterator[File]:
        """Every file below the folder, at any depth."""
        yield from self.files
        for folder in self.folders:
            yield from folder.walk()

    def tree(self) -> Iterator[Folder]:
        """The folder and every folder below it."""
        yield self
        for folder in self.folders:
            yield from folder.tree()

    @property
    def pictures(self) -> list[File]:
        """Files directly in the folder whose names have the ending of a picture."""
        return [file for file in self.files if file.is_picture]

    @property
    def holds_pictures(self) -> bool:
        """Whether the name of a file at any depth has the ending of a picture."""
        return any(file.is_picture for file in self.walk())

    @property
    def holding(self) -> list[Folder]:
        """The folders directly inside that hold pictures."""
        return [folder for folder in self.folders if folder.holds_pictures]


def read_tree(root: Path, reading: Reading = NOW) -> Folder:
    """Read the tree below ``root``, through symbolic links, without files of operating systems and of this program.

    A link to a folder that contains it is not followed, because that would read the folder's pictures a second time.

    Raises:
        DataError: the folder is missing, or a folder below it cannot be listed.
    """
    try:
        is_folder = root.is_dir()
    except OSError as error:  # a folder above it is closed to this user
        raise DataError(f"the data folder {root} cannot be opened: {error.strerror}; check --data DIR") from None
    if not is_folder:
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"the data folder {root} {what}; check --data DIR")
    around = [folder.stat() for folder in (root, *root.resolve().parents)]
    return _read(str(root), "", tuple((info.st_dev, info.st_ino) for info in around), reading)


def _read(path: str, name: str, above: tuple[tuple[int, int], ...], reading: Reading) -> Folder:
    """Read a folder. ``above`` has the folder and those above it: a link back to one of them is not followed."""
    files: list[File] = []
    folders: list[Folder] = []
    links_back: list[str] = []
    for entry in _entries(path):
        if _is_litter(entry.name, reading):
            continue
        below = f"{name}/{entry.name}" if name else entry.name
        try:
            info = entry.stat()
        except OSError:
            info = None
        if info is None or not stat.S_ISDIR(info.st_mode):
            files.append(File(below, Path(entry.path), info))
        elif (info.st_dev, info.st_ino) in above:
            links_back.append(below)
        elif not _is_passed_over(entry.path, reading):
            folders.append(_read(entry.path, below, (*above, (info.st_dev, info.st_ino)), reading))
    if not name and RUNS_FILES & {file.name for file in files}:  # --runs and --data name the same folder
        folders = [folder for folder in folders if folder.name not in RUNS_NAMES]
    links_back += [link for folder in folders for link in folder.links_back]
    return Folder(name, tuple(files), tuple(folders), tuple(links_back))


def _entries(path: str) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"the folder {path} cannot be listed: {error.strerror}") from None


def _is_litter(name: str, reading: Reading) -> bool:
    lower = name.lower()
    is_hidden = lower.startswith(reading.hidden) or lower.endswith(LITTER_ENDINGS)
    return is_hidden or lower in reading.litter or bool(FOUND.fullmatch(lower))


def _is_passed_over(path: str, reading: Reading) -> bool:
    """Whether a folder is ignored because of the names in it."""
    names = {entry.name for entry in _entries(path)}
    is_environment = reading.environments and not names.isdisjoint(ENVIRONMENT_NAMES)
    # Somebody may have made an environment in a folder of pictures.
    return _is_ours(path, names) or (
        is_environment and not any(name.lower().endswith(PICTURE_ENDINGS) for name in names)
    )


def _is_ours(path: str, names: Set[str]) -> bool:
    """Whether a folder seems to be of this program, by the names in it: a runs folder, caches, or an export."""
    if names & RUNS_FILES or names >= EXPORT_FILES or any(map(CACHE_NAME.fullmatch, names)):
        return True
    visible = {name for name in names if not name.lower().startswith(HIDDEN)}
    if "studies" in visible and visible <= RUNS_NAMES:
        return True
    cache = f"{path}/cache"
    return "cache" in visible and visible <= RUNS_NAMES and _is_ours(cache, {entry.name for entry in _entries(cache)})
