"""The one way a picture is read: upright, square, of the model's size, RGB or gray."""

from __future__ import annotations

import math
import threading
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, assert_never

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from trainer.config import DataConfig
from trainer.errors import DataError

__all__ = ["DEPTH", "TURNED", "Reading", "crop_mode_of", "mode_of", "read", "read_picture", "read_right"]

TURNED = "upright only by EXIF"
DEPTH = "of more than 8 bits"
"""Why a plain ``Image.open(file).convert("RGB")`` reads a picture otherwise than ``read_picture``."""

READ_RIGHT = {
    TURNED: 'ImageOps.exif_transpose(Image.open(file)).convert("MODE")',
    DEPTH: 'Image.fromarray((np.asarray(Image.open(file)) / 257).round().astype("uint8")).convert("MODE")',
}

ONE_LARGE_AT_A_TIME = threading.Lock()
"""Held for a picture that Pillow would warn of: decoded, each takes up to 2 GB."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what undoes it. ImageOps.exif_transpose would rewrite the EXIF too and trip on some."""


def read_picture(source: bytes | Image.Image, config: DataConfig) -> NDArray[np.uint8]:
    """One picture as [S, S, 3] RGB or [S, S, 1] gray, upright, resized and cropped.

    For a plain RGB picture these are, bit for bit, the pixels that timm's ``create_transform`` makes before
    it normalises, with the same crop_pct and crop_mode "center" (resize = "crop") or "squash"; only strips of
    more than 64:1 are cropped before they are resized. Alpha is dropped, as timm's own loader does. The first
    frame stands for an animation. Up to twice Pillow's limit of pixels is read. Gray of more than 8 bits is
    scaled, not clipped: from 0..1 (floats only), 0..255 or 0..65535, the first that holds the picture, and else
    from its own minimum and maximum.

    From one thread at a time: it silences Pillow's warnings, whose filters belong to the whole process.

    Raises DataError, a clause to follow the file's name, where the picture is damaged, in no known format, or
    has so many pixels that Pillow takes it for a decompression bomb.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read(source, config).pixels


def read_right(why: str, channels: int) -> str:
    """The line of Pillow that reads pictures which are TURNED, or of DEPTH with 16 bits, as ``read_picture`` does."""
    return READ_RIGHT[why].replace("MODE", "RGB" if channels == 3 else "L")


@dataclass(frozen=True, eq=False)
class Reading:
    """A picture as it was read."""

    pixels: NDArray[np.uint8]
    """[S, S, 3] RGB or [S, S, 1] gray."""
    misread: str
    """Why a plain convert("RGB") reads other pixels: TURNED or DEPTH; "" where it reads the same."""


def read(source: bytes | Image.Image, config: DataConfig) -> Reading:
    """``read_picture`` in many threads at once, whose caller has silenced Pillow's warnings."""
    try:
        image = Image.open(BytesIO(source)) if isinstance(source, bytes) else source
        most = Image.MAX_IMAGE_PIXELS
        with ONE_LARGE_AT_A_TIME if most is not None and image.width * image.height > most else nullcontext():
            image.load()  # here, so that a truncated file is an error before anything else looks at it
            upright = _upright(image)
            pixels = _pixels(upright, config)
            differs = upright is not image and not np.array_equal(_pixels(image, config), pixels)
        why = DEPTH if _is_deep(image) else TURNED
        return Reading(pixels, why if differs else "")
    except UnidentifiedImageError:
        raise DataError("is not a picture in a format that Pillow knows") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"has too many pixels ({error})") from None
    except DataError:
        raise
    except Exception as error:  # damaged files make Pillow's readers raise nearly anything
        raise DataError(f"cannot be decoded ({error or type(error).__name__})") from None


def _pixels(image: Image.Image, config: DataConfig) -> NDArray[np.uint8]:
    square = _square(image.convert(mode_of(config)), config)
    return np.asarray(square).reshape(config.image_size, config.image_size, config.channels)


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says, and scaled to 8 bits; the image itself where neither is needed."""
    try:
        turn = UPRIGHT.get(image.getexif().get(0x0112, 1))
    except Exception:  # an EXIF block that cannot be parsed turns nothing; the picture itself is whole
        turn = None
    if turn is not None:
        image = image.transpose(turn)
    if _is_deep(image):
        values = np.asarray(image, dtype=np.float64)
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(high - low):
            raise DataError("holds values that are not finite")
        full_scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        for full_scale in full_scales:
            if low >= 0 and high <= full_scale:
                low, high = 0.0, full_scale
                break
        values = (values - low) * (255 / ((high - low) or 1.0))
        image = Image.fromarray(np.rint(values).astype(np.uint8))
    return image


def mode_of(config: DataConfig) -> Literal["RGB", "L"]:
    """Pillow's name for images of this many channels."""
    match config.channels:
        case 3:
            return "RGB"
        case 1:
            return "L"
        case _:
            assert_never(config.channels)


def crop_mode_of(config: DataConfig) -> Literal["center", "squash"]:
    """timm's name for the way an image becomes square."""
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
    size, filter = config.image_size, _filter_of(config)
    scaled = math.floor(size / config.crop_pct)
    match config.resize:
        case "squash":
            width = height = scaled
        case "crop":  # torchvision's Resize(scaled): the longer side is cut, not rounded, to whole pixels
            long = int(scaled * max(image.size) / min(image.size))
            width, height = (scaled, long) if image.width <= image.height else (long, scaled)
        case _:
            assert_never(config.resize)
    left, top = round((width - size) / 2), round((height - size) / 2)  # torchvision's CenterCrop(size)
    if max(width, height) <= 64 * scaled:
        return image.resize((width, height), filter).crop((left, top, left + size, top + size))
    # A strip of 1 x 2000 would become 1024 x 2,048,000 only to be cropped, so here the crop comes first. The
    # filter still sees beyond the box, and the result is the same but for rounding and for where bicubic
    # overshoots: Pillow takes rows or columns first, whichever is cheaper, and clips in between.
    x, y = image.width / width, image.height / height
    box = (left * x, top * y, (left + size) * x, (top + size) * y)
    return image.resize((size, size), filter, box)
