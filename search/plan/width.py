"""Finds the widest width that fits the limit, exactly, by bisection. Answers are kept in a file."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter

from search.process import version_of
from studies import Limit
from studies.limit import describe_limit, fits
from trainer.config import SIZE_SETTINGS, ModelSize, Shape, TrainConfig
from trainer.errors import LimitError
from trainer.kept import recall, write_checked
from trainer.results import macs_in_words
from trainer.values import Json

WIDTH_STEP = 1e-5
"""Resolution of widths. The number of parameters is a step function of the width, with far wider steps than this. It
never falls, except at one width of a ResNet."""

WIDEST = 10.0
"""Largest width that TrainConfig accepts."""


@dataclass(frozen=True, kw_only=True)
class SizedWidth(ModelSize):
    """A width of a model, and the model's size at that width."""

    width_mult: float

    @classmethod
    def of(cls, width_mult: float, size: ModelSize) -> Self:
        """The width with its size."""
        return cls(width_mult=width_mult, params=size.params, macs=size.macs)


@dataclass(frozen=True)
class Width:
    """The widest width that fits a limit and, as proof, the next width, which does not fit."""

    widest: SizedWidth
    """The widest width that fits."""
    next: SizedWidth | None
    """The width one step wider, which is over the limit; None if even the widest possible width fits."""


@dataclass(frozen=True)
class Fitter:
    """Counts candidates for given classes and pictures, and finds those that fit a limit."""

    shape: Shape
    """The classes and pictures that a candidate is built for."""
    limit: Limit
    """The limit on parameters and multiply-adds."""
    memory: Path | None = None
    """File of earlier answers; None: no answers are kept."""

    def size(self, config: TrainConfig) -> ModelSize:
        """Count a candidate, whether it fits or not.

        Raises:
            ConfigError: the candidate cannot be built.
        """
        key = self._question(config, SIZE_SETTINGS)
        known = _recall(self.memory)
        if key in known:
            return _SIZE.validate_python(known[key])

        from trainer.models import count  # imports torch and timm, 5 s, only without an earlier answer

        size = count(config, self.shape)
        _remember(self.memory, known | {key: asdict(size)})
        return size

    def check(self, config: TrainConfig) -> ModelSize:
        """Count a candidate, and check that it fits.

        Raises:
            LimitError: the size is over the limit.
            ConfigError: the candidate cannot be built.
        """
        size = self.size(config)
        if not fits(size, self.limit):
            raise LimitError(
                f"{config.model} at width_mult {config.width_mult:g} has {self._in_words(size)}; the limit is "
                f"{describe_limit(self.limit)}; raise it or choose a smaller model"
            )
        return size

    def widest(self, config: TrainConfig, low: float = WIDTH_STEP) -> Width:
        """Find the widest width_mult up to which every width fits, exact to WIDTH_STEP. Takes about 20 counts.

        Args:
            config: the model and all other settings that change its size; its own width_mult is ignored.
            low: the narrowest allowed width.

        Raises:
            LimitError: not even ``low`` fits.
            ConfigError: there is no such model, or it has no width.
        """
        others = [name for name in SIZE_SETTINGS if name != "width_mult"]
        key = self._question(config, others, self.limit.params, self.limit.macs, low)
        known = _recall(self.memory)
        if key in known:
            return _WIDTH.validate_python(known[key])
        found = self._bisect(config, low)
        _remember(self.memory, known | {key: asdict(found)})
        return found

    def resolve(self, config: TrainConfig, share: float, low: float, high: float | None) -> TrainConfig:
        """The candidate for a sampled share of the feasible widths.

        Size settings that the model's family does not have are set to their defaults: a trial samples every size
        setting of the space, whichever its model is.

        Args:
            config: the candidate without its width.
            share: from 0 for the narrowest width to 1 for the widest that fits.
            low: the narrowest allowed width.
            high: the widest allowed width; None if only the limit bounds it.

        Raises:
            LimitError: not even ``low`` fits.
            ConfigError: the candidate cannot be built.
        """
        from trainer.models import size_settings

        own = size_settings(config.model)
        config = config.model_copy(
            update={name: TrainConfig.model_fields[name].default for name in SIZE_SETTINGS if name not in own}
        )
        if "width_mult" not in own:
            self.check(config)
            return config
        top = self.widest(config, low).widest.width_mult
        top = top if high is None else min(top, high)
        return config.model_copy(update={"width_mult": low + share * (top - low)})

    def _bisect(self, config: TrainConfig, low: float) -> Width:
        from trainer.models import count, count_params, dip

        def width_of(steps: int) -> float:
            return max(low, round(steps * WIDTH_STEP, 5))

        def at(steps: int) -> TrainConfig:
            return config.model_copy(update={"width_mult": width_of(steps)})

        def sized(steps: int) -> SizedWidth:
            return SizedWidth.of(width_of(steps), count(at(steps), self.shape))

        def is_over(steps: int) -> bool:
            if self.limit.macs is None:  # parameters alone need no forward pass
                return self.limit.params is not None and count_params(at(steps), self.shape) > self.limit.params
            return not fits(sized(steps), self.limit)

        fitting, end = math.floor(low / WIDTH_STEP), round(WIDEST / WIDTH_STEP)
        narrowest = sized(fitting)
        if not fits(narrowest, self.limit):
            raise LimitError(
                f"no width of {config.model} fits: at {low:g}, the narrowest, it has {self._in_words(narrowest)}; the "
                f"limit is {describe_limit(self.limit)}; raise it, or choose a smaller width or model"
            )
        # Sizes rise with the width, except for one dip. If the size just before the dip and the size at the widest
        # width are within the limit, all sizes are.
        fall = dip(config)
        before_dip = [] if fall is None else [math.ceil(fall / WIDTH_STEP) - 1]
        over = [steps for steps in (*before_dip, end) if steps > fitting and is_over(steps)]
        if not over:
            return Width(sized(end), None)
        failing = over[0]
        while failing - fitting > 1:
            middle = (fitting + failing) // 2
            if is_over(middle):
                failing = middle
            else:
                fitting = middle
        return Width(sized(fitting), sized(failing))

    def _question(self, config: TrainConfig, sizes: Iterable[str], *others: float | None) -> str:
        """Key of an answer in the file: everything that the answer depends on."""
        settings = {name: getattr(config, name) for name in ("model", "model_args", "stem", *sizes)}
        shape = (self.shape.num_classes, self.shape.image_size, self.shape.channels)
        return json.dumps([settings, [*shape, *others], version_of("timm"), version_of("torch")])

    def _in_words(self, size: ModelSize) -> str:
        return (
            f"{size.params:,} parameters and {macs_in_words(size.macs)} with {self.shape.num_classes} classes at "
            f"{self.shape.image_size} px"
        )


_SIZE, _WIDTH = TypeAdapter(ModelSize), TypeAdapter(Width)


def _recall(memory: Path | None) -> dict[str, Json]:
    known = recall(memory, "sizes are counted again") if memory is not None else None
    answers = known.get("answers") if known is not None else None
    return answers if isinstance(answers, dict) else {}


def _remember(memory: Path | None, answers: dict[str, Json]) -> None:
    if memory is None:
        return
    with contextlib.suppress(OSError):  # if the folder is read-only, the next call counts again
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_checked(memory, {"answers": answers}, durable=False)
