"""The formats of files that Pillow cannot read, recognised by their first bytes, and the cure for each."""

from __future__ import annotations

import re

__all__ = ["instead"]

INSTEAD = (
    (rb"version https://git-lfs", "a pointer of Git LFS: git lfs pull fetches the picture"),
    (rb"\s*(<!doctype html|<html)", "a web page, as a failed download leaves it: download the picture again"),
    (rb"\s*(<\?xml[^>]*>\s*)?(<!--((?!-->).)*-->\s*)*(<!DOCTYPE svg[^>]*>\s*)?<svg", "SVG: convert it to PNG"),
    (rb"%PDF", "PDF: convert its pages to PNG"),
    (rb".{4}ftyp(hei|hev|mif|msf)", "HEIC: convert it to JPEG, for example with heif-convert"),
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
