"""The formats of files that Pillow cannot read or of which it reads only a preview, and the cure for each."""

from __future__ import annotations

import re

from PIL.TiffImagePlugin import TiffImageFile

__all__ = ["DEVELOP", "RAW_ENDINGS", "about_raw", "instead", "is_raw"]

RAW_ENDINGS = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".nef", ".nrw", ".orf"),
    *(".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw"),
)
"""Endings of the files in which cameras write what their sensor saw; most of them begin as a TIFF does."""

TIFF = (b"II*\0", b"MM\0*")
CR2 = b"CR\2\0"
"""The mark in the header of Canon's RAW; in another TIFF, pixels may be at its place."""

NEW_SUBFILE_TYPE, SUB_IFDS, DNG_VERSION = 254, 330, 50706
"""Tags of a TIFF: whether a picture is a small copy of another one, where other pictures are, the version of DNG."""

DEVELOP = "RAW of a camera: develop it to JPEG or PNG, for example with rawpy or darktable-cli"

INSTEAD = (
    (rb"version https://git-lfs", "a pointer of Git LFS: git lfs pull fetches the picture"),
    (rb"\s*(<!doctype html|<html)", "a web page, as a failed download leaves it: download the picture again"),
    (rb"\s*(<\?xml[^>]*>\s*)?(<!--((?!-->).)*-->\s*)*(<!DOCTYPE svg[^>]*>\s*)?<svg", "SVG: convert it to PNG"),
    (rb"%PDF", "PDF: convert its pages to PNG"),
    (rb".{4}ftyp(hei|hev|mif|msf)", "HEIC: convert it to JPEG, for example with heif-convert"),
    (rb".{4}ftypcrx|FUJIFILMCCD-RAW|II(RO|RS|U\0)|MMOR", DEVELOP),
    (rb".{4}ftyp", "a video: take pictures out of it, for example with ffmpeg"),
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "JPEG XL: convert it to PNG, for example with djxl"),
    (rb".{128}DICM", "DICOM: convert it to PNG, for example with dcm2img"),
    (rb"\x93NUMPY", "an array of NumPy: save it as PNG"),
    (rb"\x89HDF\r\n", "HDF5: write its pictures to files"),
    (rb"PK\x03\x04|Rar!|7z\xbc\xaf\x27\x1c|.{257}ustar", "an archive or an office document: extract the pictures"),
)
"""Pairs: a pattern at the beginning of a file, and a clause that says what the file is, with the cure."""


def instead(content: bytes) -> str:
    """A clause about the format of a file that is no picture, to follow "is not a picture"; "" if it is not known."""
    start = content[:2000]
    return next(
        (f", but {what}" for pattern, what in INSTEAD if re.match(pattern, start, re.DOTALL | re.IGNORECASE)), ""
    )


def about_raw(name: str, content: bytes) -> str | None:
    """A clause about a file that by its name is RAW, and begins as a TIFF; Pillow would read its small preview."""
    if name.lower().endswith(RAW_ENDINGS) and content.startswith(TIFF):
        return f"is not a picture, but {DEVELOP}"
    return None


def is_raw(image: TiffImageFile, content: bytes) -> bool:
    """Whether a TIFF has a camera's RAW in it, or its first picture is a small copy of another one in it."""
    tags = image.tag_v2
    if DNG_VERSION in tags or content[8:12] == CR2:
        return True
    return bool(int(tags.get(NEW_SUBFILE_TYPE, 0)) & 1) and (SUB_IFDS in tags or image.n_frames > 1)
