"""Reads a picture: upright, square, of the model's size, RGB or gray. All of the program reads pictures here."""

from __future__ import annotations

import threading
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from types import EllipsisType
from typing import Literal, assert_never

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

from trainer.config import DataConfig
from trainer.errors import DataError
from trainer.formats import DEVELOP, instead, is_raw

__all__ = [
    "BYTES",
    "COLOURS",
    "DEEP",
    "DEPTH",
    "NOT_FINITE",
    "SPREAD",
    "TURNED",
    "UNIT",
    "Reading",
    "centre_of",
    "crop_mode_of",
    "mode_of",
    "read",
    "read_picture",
    "read_right",
]

TURNED = "upright only by EXIF"
DEPTH = "of more than 8 bits"
UNIT = "of float values from 0 to 1"
BYTES = "of more than 8 bits with values from 0 to 255"
SPREAD = "of more than 8 bits with values below 0 or above 65,535"
"""Reasons why a plain ``Image.open(file).convert("RGB")`` reads a picture differently from ``read_picture``."""

COLOURS = "of more than 8 bits in each colour"
"""Scale of pictures in colour of 16 bits: Pillow reads the upper 8 bits, whoever asks."""

NOT_FINITE = "has values that are not finite, such as NaN for no-data; write a finite value there"

_SCALED = 'Image.fromarray(np.rint({}).astype("uint8")).convert("MODE")'
_UPRIGHT = "np.asarray(ImageOps.exif_transpose(Image.open(file)), float)"
DEEP = {
    DEPTH: _SCALED.format(f"{_UPRIGHT} * (255 / 65535)"),
    UNIT: _SCALED.format(f"{_UPRIGHT} * 255"),
    BYTES: _SCALED.format(_UPRIGHT),
    SPREAD: _SCALED.format(f"((a := {_UPRIGHT}) - a.min()) * (255 / (np.ptp(a) or 1))"),
}
"""Each reason above except TURNED -> a line of code that scales the values to 8 bits, as _upright does."""

READ_RIGHT = {TURNED: 'ImageOps.exif_transpose(Image.open(file)).convert("MODE")', **DEEP}

ONE_LARGE_AT_A_TIME = threading.Lock()
"""Lock for very large pictures, about which Pillow would warn: one takes up to 2 GB when decoded."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the operation that undoes it. ImageOps.exif_transpose also rewrites the EXIF, which may fail."""


def read_picture(source: bytes | Image.Image, config: DataConfig) -> NDArray[np.uint8]:
    """One picture as [S, S, 3] RGB or [S, S, 1] gray, upright, resized and cropped, as a model is evaluated with it.

    For a plain RGB picture, the pixels are bit for bit those of timm's ``create_transform`` before normalisation, with
    ``config.evaluated_crop_pct`` and with crop_mode "center" (resize = "crop") or "squash". The only exception is a
    strip of more than 64:1, which is cropped before it is resized. With background = "grabcut", this is true of the
    picture that ``without_background`` gives.

    Alpha is dropped, as in timm's loader. The first frame of an animation is read. Pictures of up to twice Pillow's
    limit of pixels are read. Gray of more than 8 bits is scaled to 8 bits, not clipped. The scaled range is the first
    of 0..1 (floats only), 0..255 and 0..65535 that contains all values, or else from minimum to maximum. Of 16 bits in
    each colour, the upper 8 are read, as Pillow does.

    Not for several threads at once: it silences Pillow's warnings, and warning filters belong to the whole process.

    Raises:
        DataError: the picture is damaged, has an unknown format or values that are not finite, is a TIFF whose gray
            levels Pillow misreads, or has so many pixels that Pillow takes it for a decompression bomb. The message is
            a clause to follow the file's name.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read(source, config).pixels[centre_of(config.cached_side, config.image_size)]


def centre_of(cached: int, size: int) -> tuple[EllipsisType, slice, slice, slice]:
    """Index of the centre of cached pictures [..., cached, cached, C], which evaluation uses: [..., size, size, C]."""
    first = _margin(cached, size)
    return ..., slice(first, first + size), slice(first, first + size), slice(None)


def _margin(side: int, size: int) -> int:
    return round((side - size) / 2)  # torchvision's CenterCrop


def read_right(why: str, channels: int) -> str:
    """A line of Pillow code that reads pictures correctly where a plain one misreads them for this reason."""
    return READ_RIGHT[why].replace("MODE", "RGB" if channels == 3 else "L")


@dataclass(frozen=True, eq=False)
class Reading:
    """The result of reading a picture."""

    pixels: NDArray[np.uint8]
    """[S, S, 3] RGB or [S, S, 1] gray, where S is the side of the cached pictures."""
    misread: str
    """Reason why a plain convert("RGB") reads other pixels: a key of READ_RIGHT; "" if it reads the same pixels."""
    scale: str
    """Key of DEEP by which values of more than 8 bits were scaled, or COLOURS; "" if there are none, or if all pixels
    of a gray picture are black, which every scale reads in the same way."""


def read(source: bytes | Image.Image, config: DataConfig) -> Reading:
    """Read a picture as the cache has it: like ``read_picture``, but with the margin of cache_size. Several threads may
    do so at once, because the caller silences Pillow's warnings."""
    try:
        image = Image.open(BytesIO(source)) if isinstance(source, bytes) else source
        if isinstance(image, TiffImageFile) and isinstance(source, bytes) and is_raw(image, source):
            raise DataError(f"is not a picture, but {DEVELOP}; only its small preview could be read")
        most = Image.MAX_IMAGE_PIXELS
        with ONE_LARGE_AT_A_TIME if most is not None and image.width * image.height > most else nullcontext():
            has_deep_colours = _has_deep_colours(image)
            image.load()  # so that a truncated file raises its error here
            _refuse_unread_depth(image)
            upright, why = _upright(image)
            pixels = _pixels(upright, config)
            differs = upright is not image and not np.array_equal(_pixels(image, config), pixels)
        scale = COLOURS if has_deep_colours else why if _is_deep(image) and pixels.any() else ""
        return Reading(pixels, why if differs else "", scale)
    except UnidentifiedImageError:
        what = instead(source) if isinstance(source, bytes) else ""
        raise DataError(f"is not a picture in a format that Pillow knows{what}") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"has too many pixels ({error})") from None
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds of exceptions for damaged files
        raise DataError(f"cannot be decoded ({error or type(error).__name__})") from None


def _pixels(image: Image.Image, config: DataConfig) -> NDArray[np.uint8]:
    match config.background:
        case "keep":
            pass
        case "grabcut":
            from trainer.background import without_background  # imported here, because few studies need OpenCV for it

            image = without_background(image)
        case _:
            assert_never(config.background)
    square = _square(image.convert(mode_of(config)), config)
    return np.asarray(square).reshape(config.cached_side, config.cached_side, config.channels)


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _has_deep_colours(image: Image.Image) -> bool:
    """Whether the file of an image that is not loaded yet has more than 8 bits in each colour. Pillow says so in the
    arguments of its decoder: as a raw mode (RGB;16B), or as the largest value of a PPM."""
    for *_, arguments in getattr(image, "tile", ()):
        if ";16" in str(arguments) or (image.format == "PPM" and str(arguments).endswith(", 65535)")):
            return not _is_deep(image)
    return False


def _refuse_unread_depth(image: Image.Image) -> None:
    """Raise for a gray TIFF that Pillow would read too dark, inverted, or with white for values below 0."""
    if not isinstance(image, TiffImageFile):
        return
    if image.mode == "L" and 2 in image.tag_v2.get(SAMPLEFORMAT, ()) and np.asarray(image).max() > 127:
        raise DataError("is a TIFF of signed 8 bits with values below 0; save it with values from 0 to 255")
    if not _is_deep(image):
        return
    if image.tag_v2.get(BITSPERSAMPLE) == (12,):
        raise DataError("is a TIFF of 12 bits; save it with 8 or with 16 bits")
    if image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:
        raise DataError("is a TIFF of more than 8 bits in which 0 is white; save it with black as 0")


def _upright(image: Image.Image) -> tuple[Image.Image, str]:
    """The image turned by its EXIF orientation and scaled to 8 bits; the same object if it needs neither. Also the
    reason why a plain convert("RGB") misreads the image; it has no meaning if the image needs neither."""
    try:
        turn = UPRIGHT.get(image.getexif().get(0x0112, 1))
    except Exception:  # the EXIF cannot be parsed; the picture is used as it is
        turn = None
    if turn is not None:
        image = image.transpose(turn)
    if not _is_deep(image):
        return image, TURNED
    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):
        raise DataError(NOT_FINITE)
    why = SPREAD
    for reason, full_scale in (*([(UNIT, 1.0)] if image.mode == "F" else []), (BYTES, 255.0), (DEPTH, 65535.0)):
        if low >= 0 and high <= full_scale:
            why, low, high = reason, 0.0, full_scale
            break
    values = (values - low) * (255 / ((high - low) or 1.0))
    return Image.fromarray(np.rint(values).astype(np.uint8)), why


def mode_of(config: DataConfig) -> Literal["RGB", "L"]:
    """Pillow's name of the mode with this number of channels."""
    match config.channels:
        case 3:
            return "RGB"
        case 1:
            return "L"
        case _:
            assert_never(config.channels)


def crop_mode_of(config: DataConfig) -> Literal["center", "squash"]:
    """timm's name of the way in which an image is made square."""
    match config.resize:
        case "crop":
            return "center"
        case "squash":
            return "squash"
        case _:
            assert_never(config.resize)


def _filter_of(config: DataConfig) -> Image.Resampling:
    match config.interpolation:
        case "bilinear":
            return Image.Resampling.BILINEAR
        case "bicubic":
            return Image.Resampling.BICUBIC
        case _:
            assert_never(config.interpolation)


def _square(image: Image.Image, config: DataConfig) -> Image.Image:
    size, filter, scaled = config.cached_side, _filter_of(config), config.scaled_side
    match config.resize:
        case "squash":
            width = height = scaled
        case "crop":  # as torchvision's Resize(scaled): the longer side is rounded down
            long = int(scaled * max(image.size) / min(image.size))
            width, height = (scaled, long) if image.width <= image.height else (long, scaled)
        case _:
            assert_never(config.resize)
    # The centre of the cached picture must be that of the whole one, however their margins are rounded.
    inner = _margin(size, config.image_size)
    left, top = (_margin(side, config.image_size) - inner for side in (width, height))
    if max(width, height) <= 64 * scaled:
        return image.resize((width, height), filter).crop((left, top, left + size, top + size))
    # A strip is cropped first. Otherwise 1 x 2000 pixels would become 1024 x 2,048,000. The filter still uses pixels
    # beyond the box. The result differs only by rounding, and where bicubic overshoots: Pillow clips between its passes
    # over rows and columns, and the size decides which one is first.
    x, y = image.width / width, image.height / height
    box = (left * x, top * y, (left + size) * x, (top + size) * y)
    return image.resize((size, size), filter, box)
