"""A picture without its background, by OpenCV's GrabCut. Model cards contain the source of ``without_background``,
so it uses no other code of this program."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image


def without_background(image: Image.Image) -> Image.Image:
    """The picture in RGB with a black background. GrabCut (Rother et al., 2004) finds it in a copy of at most 128 px.

    The outer twentieth of each side counts as background. If GrabCut finds no foreground, or a side of the copy has
    less than 8 px, the background stays.
    """
    pixels = np.asarray(image.convert("RGB"))
    height, width = pixels.shape[:2]
    shrink = max(1.0, max(height, width) / 128)
    columns, rows = round(width / shrink), round(height / shrink)
    if min(columns, rows) < 8:
        return Image.fromarray(pixels)
    x, y = max(1, columns // 20), max(1, rows // 20)
    mask = np.zeros((rows, columns), np.uint8)
    cv2.setRNGSeed(0)  # GrabCut begins with k-means, which draws random numbers
    small = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
    inside = (x, y, columns - 2 * x, rows - 2 * y)
    cv2.grabCut(small, mask, inside, np.zeros((1, 65)), np.zeros((1, 65)), 5, cv2.GC_INIT_WITH_RECT)
    kept = cv2.resize(mask & 1, (width, height), interpolation=cv2.INTER_NEAREST)  # odd values are the foreground
    return Image.fromarray(pixels * kept[..., None] if kept.any() else pixels)
