"""Views of a picture for test-time augmentation: their names, and what they need to be computed. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self, TypeAlias, get_args

from trainer.values import nearest

PlainView: TypeAlias = Literal["flip", "vflip", "gray", "fancy_pca"]
"""Views without a number."""
PLAIN_VIEWS: tuple[PlainView, ...] = get_args(PlainView)

OF_COLOUR = ("gray", "fancy_pca")
"""Views that change a picture's colours, so they need pictures of three channels."""


@dataclass(frozen=True)
class View:
    """A view of a picture."""

    kind: PlainView | Literal["rotate", "shift"]
    numbers: tuple[float, ...] = ()
    """rotate: degrees, counter-clockwise. shift: pixels to the right, and pixels down. Else empty."""

    @classmethod
    def parse(cls, name: str) -> Self:
        """The view of this name: a plain view, "rotate=10" or "shift=4,-4".

        Raises:
            ValueError: there is no such view; the message has the name and the cure.
        """
        for kind in PLAIN_VIEWS:
            if name == kind:
                return cls(kind)
        kind_name, equals, numbers = name.partition("=")
        if not equals and kind_name not in ("rotate", "shift"):
            known = (*PLAIN_VIEWS, "rotate=10", "shift=4,-4")
            raise ValueError(f"{name!r} is no view; {nearest(name, known)}")
        if kind_name == "rotate":
            return cls("rotate", _degrees(name, numbers))
        if kind_name == "shift":
            return cls("shift", _pixels(name, numbers))
        raise ValueError(f"{name!r} is no view; only rotate and shift take numbers: rotate=10, shift=4,-4")

    @property
    def name(self) -> str:
        """Its name: "flip", "rotate=10", "shift=4,-4"."""
        return f"{self.kind}={','.join(f'{number:g}' for number in self.numbers)}" if self.numbers else self.kind

    @property
    def words(self) -> str:
        """Its name, with the units of its numbers."""
        units = {"rotate": " (degrees, counter-clockwise)", "shift": " (pixels, to the right and down)"}
        return self.name + units.get(self.kind, "")


@dataclass(frozen=True)
class Views:
    """The views whose probabilities are averaged with those of the picture, and the values that they need."""

    names: tuple[str, ...] = ()
    """Names of the views, for ``View.parse``."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    """Mean and standard deviation of each channel, 0 to 1, by which the pictures are normalised."""
    colour_shift: tuple[float, ...] = ()
    """The value that fancy_pca adds to each channel, for channels from 0 to 1; empty without fancy_pca."""


NO_VIEWS = Views()
"""The picture alone."""


def _degrees(name: str, text: str) -> tuple[float]:
    try:
        degrees = float(text)
    except ValueError:
        degrees = 0.0
    if not (-180 < degrees <= 180 and degrees):
        raise ValueError(f"{name!r} is no rotation; write degrees above -180, at most 180, and not 0, as in rotate=10")
    return (degrees,)


def _pixels(name: str, text: str) -> tuple[float, float]:
    try:
        right, down = (int(part) for part in text.split(","))
    except ValueError:
        right = down = 0
    if not (right or down):
        raise ValueError(f"{name!r} is no shift; write whole pixels to the right and down, not both 0: shift=4,-4")
    return right, down
