"""The transforms named in ``augment``: from albumentations or torchvision, applied on the CPU before all others."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.values import nearest

Pictures = NDArray[np.uint8]
"""[batch, size, size, channels]."""

FROM_TORCHVISION = ("AutoAugment", "RandAugment", "TrivialAugmentWide", "AugMix")
"""Policies that albumentations does not have. torchvision draws one set of parameters per call, so they are applied to
one picture at a time."""


class Step(NamedTuple):
    """One transform of ``augment``."""

    name: str
    apply: Callable[[Pictures, int], Sequence[Pictures]]
    """Transforms pictures with a seed; the results may have other sizes."""


class HostAugmentation:
    """The transforms that a study names in ``augment``, in order; picklable, for loader processes.

    Raises:
        ConfigError: a transform does not exist (the message has the nearest name), or refuses its arguments.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            self.steps = [_build_step(entry) for entry in config.augment]
        self.said = _notes(said)

    def __call__(self, pictures: Pictures, *seed: int) -> Pictures:
        """Transform [batch, size, size, channels] uint8. The same seed gives the same result.

        A picture whose size a transform has changed is resized to its old size.

        Raises:
            ConfigError: a transform refuses the pictures, or changes their type or channels.
        """
        for number, step in enumerate(self.steps):
            pictures = _at_old_size(step.name, _apply(step, number, pictures, seed), pictures.shape[1:])
        return pictures

    def notes(self, pictures: Pictures, *seed: int) -> list[str]:
        """Try the transforms on some pictures. Returns sentences: warnings of their library, and changed sizes.

        Raises:
            ConfigError: as in ``__call__``.
        """
        notes = list(self.said)
        for number, step in enumerate(self.steps):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                changed = _apply(step, number, pictures, seed)
            notes += _notes(said)
            size = pictures.shape[1]
            if any(picture.shape[:2] != (size, size) for picture in changed):
                notes.append(f"augment: {step.name} changes the size of pictures; each is then resized to {size} px")
            pictures = _at_old_size(step.name, changed, pictures.shape[1:])
        return list(dict.fromkeys(notes))

    def __reduce__(self) -> tuple[object, ...]:
        return HostAugmentation, (self.config,)


def _apply(step: Step, number: int, pictures: Pictures, seed: tuple[int, ...]) -> Sequence[Pictures]:
    return step.apply(pictures, int(np.random.SeedSequence((*seed, number)).generate_state(1)[0]))


def _at_old_size(name: str, changed: Sequence[Pictures], shape: tuple[int, ...]) -> Pictures:
    """One array of pictures, each resized to ``shape`` (height, width, channels) if it has another size.

    Raises:
        ConfigError: a picture has another type, or other channels.
    """
    result = np.empty((len(changed), *shape), np.uint8)
    for target, picture in zip(result, changed, strict=True):
        if picture.shape[2:] != shape[2:] or picture.dtype != np.uint8:
            raise ConfigError(
                f"augment: with {name}, a picture of {shape} uint8 became {tuple(picture.shape)} {picture.dtype}; use "
                "transforms that keep the type and the channels"
            )
        if picture.shape != shape:
            smaller = picture.shape[0] > shape[0] or picture.shape[1] > shape[1]
            how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
            target[:] = cv2.resize(picture, (shape[1], shape[0]), interpolation=how).reshape(shape)
        else:
            target[:] = picture
    return result


def _notes(said: Sequence[warnings.WarningMessage]) -> list[str]:
    """The warnings of a library as notes, each once."""
    return [f"augment: {text}" for text in dict.fromkeys(" ".join(str(one.message).split()) for one in said)]


def _build_step(entry: str | dict[str, object]) -> Step:
    name = entry if isinstance(entry, str) else str(entry["name"])
    arguments = {} if isinstance(entry, str) else {key: value for key, value in entry.items() if key != "name"}
    if name in FROM_TORCHVISION:
        return _torchvision_step(name, arguments)
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise its import looks for updates on the network
    import albumentations  # imported here: it takes 3 s, and few studies need it

    kinds = {
        key: kind
        for key, kind in vars(albumentations).items()
        if isinstance(kind, type) and issubclass(kind, albumentations.BasicTransform)
    }
    if name not in kinds:
        raise ConfigError(f"augment: no transform {name!r}; {nearest(name, [*kinds, *FROM_TORCHVISION])}")
    known = inspect.signature(kinds[name]).parameters.keys()
    if unknown := sorted(arguments.keys() - known):  # albumentations ignores them, with a warning
        raise ConfigError(f"augment: {name} refuses {arguments}: it has no {unknown[0]}; {nearest(unknown[0], known)}")
    try:
        compose = albumentations.Compose([kinds[name](**arguments)])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"augment: {name} refuses {arguments}: {error}") from error

    def apply(pictures: Pictures, seed: int) -> Sequence[Pictures]:
        compose.set_random_seed(seed)
        try:
            return [compose(image=picture)["image"] for picture in pictures]
        except (TypeError, ValueError) as error:  # for example a transform of colours, on gray pictures
            raise ConfigError(f"augment: {name} refuses these pictures: {error}") from error

    return Step(name, apply)


def _torchvision_step(name: str, arguments: dict[str, object]) -> Step:
    from torchvision import transforms

    try:
        transform = getattr(transforms, name)(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"augment: {name} refuses {arguments}: {error}") from error

    def apply(pictures: Pictures, seed: int) -> Sequence[Pictures]:
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)  # the CPU's generator only, so that dropout on a GPU is not affected
        try:
            images = torch.from_numpy(pictures).permute(0, 3, 1, 2)
            return [transform(image).permute(1, 2, 0).numpy() for image in images]
        finally:
            torch.set_rng_state(before)

    return Step(name, apply)
