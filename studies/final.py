"""[final] of a study file: how the chosen candidate is trained for its export, and what the export holds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, Self, TypeAlias, assert_never, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from trainer.config import DataConfig, Distill, ModelSize, Optimizer
from trainer.values import FrozenModel, describe_problem
from trainer.views import OF_COLOUR, View


class Finetune(FrozenModel):
    """A last training on the validation split alone. It begins with the retrained weights; the weights after its last
    epoch are exported.

    Batch size, weight decay, momentum and loss are those of the candidate. The candidate's schedule and augmentation do
    not apply; the only augmentation is hflip. The defaults are those of the team that won the contest (study birds400).
    """

    optimizer: Optimizer = "adam"
    """Optimizer, by the names of [train]. The candidate's own does not apply."""
    lr: float = Field(1e-3, gt=0)
    """Constant learning rate."""
    epochs: int = Field(4, ge=1)
    """Passes over the validation split."""
    dropout: float = Field(0.16, ge=0, lt=1)
    """Drop rate before the classifier."""
    hflip: float = Field(0.5, ge=0, le=1)
    """Probability of a left-right flip."""


class Selection(FrozenModel):
    """An ensemble of the trained models that are best together on the validation split.

    The models are chosen by greedy forward selection without replacement (Caruana et al., 2004): first the best model,
    then each time the model with which the ensemble is best.
    """

    of: int = Field(ge=2)
    """Number of models that are trained, each with its own seed."""
    keep: int = Field(ge=1)
    """Number of them that are exported. The limit counts only these."""

    @model_validator(mode="after")
    def _leaves_some_out(self) -> Self:
        if self.keep >= self.of:
            cure = f"for all, write ensemble = {self.of}"
            raise ValueError(f"keep = {self.keep} must be less than of = {self.of}; {cure}")
        return self


class Rerank(FrozenModel):
    """A second training, before which some filters of a convolution get new random weights.

    These are the filters whose feature maps have the lowest mean rank over at most 500 training pictures (HRank, Lin et
    al., 2020). The model of the second training is exported, even if it is not better. For comparison, another model is
    trained with the same seed, for as many epochs, from the same weights without new filters. The card has the gain.
    """

    layer: str
    """Name of a convolution whose maps have more than one pixel, for example "layer3.0.conv1". If the model has none of
    this name, `search check` proposes a similar name, or lists names. The maps are taken after the normalisation and
    activation that follow the convolution directly."""
    share: float = Field(0.125, ge=0.125, le=0.625)
    """Share of the convolution's filters that get new weights."""


def num_drawn_again(filters: int, share: float) -> int:
    """Number of filters of a convolution that get new weights, at least one."""
    return max(1, round(share * filters))


FormatName: TypeAlias = Literal["onnx", "pt2"]
"""Name of a format. Each format has a module in search/export/formats."""


class Final(FrozenModel):
    """How the chosen candidate is trained for its export, and what the export holds. May be changed at any time."""

    fit_on: Literal["train", "train+val"] = "train"
    """Splits to train on. With train+val there is no validation accuracy, so patience does not apply."""
    epochs: int | None = Field(None, ge=1)
    """Passes over the pictures. Default: as in the search."""
    ema: float | None = Field(None, ge=0, lt=1)
    """Decay per step of an average of the weights, 0: none. Default: as in the search."""
    ensemble: int | Selection | Literal["folds"] = 1
    """Number of models that are trained, each with its own seed, and exported together; their probabilities are
    averaged. { of = 10, keep = 6 }: ten are trained, and the six that are best together on the validation split are
    exported. The ensemble's accuracy on that split is too high; the test split measures it. "folds": one model for each
    fold of data.folds is exported, and a CSV with a prediction for each picture of the training and validation split,
    by the model that was not trained on it."""
    limit_each: bool = False
    """true: the limit applies to each model of an ensemble alone. false: to all of them together."""
    tta: tuple[str, ...] = ()
    """Views of a picture whose probabilities are averaged with those of the picture itself: flip (left-right), vflip
    (top-bottom), rotate=10 (degrees, counter-clockwise), shift=4,-4 (whole pixels, to the right and down), gray, and
    fancy_pca (a colour shift along the axes of the training pictures' colours, drawn once from the study's seed). Each
    view costs the model's multiply-adds once more, and the limit counts them."""
    formats: tuple[FormatName, ...] = ("onnx", "pt2")
    """Formats beside config.json and model.safetensors: model.onnx, and model.pt2 (torch.export)."""
    gallery: bool = False
    """true: the export and its card show the most confident mistakes, and so pictures of the data. The report always
    shows them."""
    license: str | None = None
    """Licence of the exported model, as model hubs name it: mit, apache-2.0, cc-by-4.0, other. Default: none."""
    finetune: Finetune | None = None
    """A last training on the validation split. Default: none."""
    rerank: Rerank | None = None
    """A second training, with new weights for filters whose feature maps have a low rank. Default: none."""
    distill: Distill | None = None
    """A teacher for the export's training. Default: as in [train]."""

    @field_validator("ensemble", mode="before")
    @classmethod
    def _number_or_selection(cls, value: object) -> object:
        if isinstance(value, Mapping):
            try:
                return Selection.model_validate(value)
            except ValidationError as error:
                raise ValueError(
                    "; ".join(describe_problem(Selection, one).strip() for one in error.errors())
                ) from None
        if value != "folds" and not isinstance(value, Selection) and (type(value) is not int or value < 1):
            raise ValueError(
                f'{value!r} is not a number of models; write 1 or more, {{ of = 10, keep = 6 }} or "folds"'
            )
        return value

    @field_validator("tta")
    @classmethod
    def _are_views(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(View.parse(name).name for name in names)

    @field_validator("tta", "formats")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError(f"{list(names)} names one twice; name each once")
        return names

    @field_validator("license")
    @classmethod
    def _as_hubs_name_it(cls, name: str | None) -> str | None:
        if name is not None and re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name) is None:
            raise ValueError(
                f"{name!r} is not a licence as model hubs name it; use for example mit, apache-2.0 or other"
            )
        return name

    @model_validator(mode="after")
    def _something_holds_all_of_it(self) -> Self:
        if not self.formats and (self.ensemble != 1 or self.tta):
            names = ", ".join(f'"{name}"' for name in get_args(FormatName))
            raise ValueError(f"formats = []: no file would hold an ensemble or its views; name at least one of {names}")
        return self

    @model_validator(mode="after")
    def _members_are_chosen_on_pictures_they_do_not_know(self) -> Self:
        if self.ensemble == "folds" and (self.fits_on_validation or self.finetune is not None):
            by = "finetune" if self.finetune is not None else f'fit_on = "{self.fit_on}"'
            raise ValueError(f'ensemble = "folds" trains each model on all folds but one; leave {by} out')
        if isinstance(self.ensemble, Selection) and self.sees_validation:
            by = "finetune" if self.finetune is not None else f'fit_on = "{self.fit_on}"'
            raise ValueError(
                f"ensemble = {{ of, keep }} chooses members on the validation split, and {by} trains on it; "
                f"leave {by} out, or give ensemble as a number"
            )
        return self

    @model_validator(mode="after")
    def _rerank_is_measured_on_pictures_that_it_does_not_know(self) -> Self:
        if self.rerank is None:
            return self
        if self.ensemble != 1:
            raise ValueError(f"rerank is for a single model, and ensemble = {self.ensemble}; leave one of them out")
        if self.sees_validation:
            by = "finetune" if self.finetune is not None else f'fit_on = "{self.fit_on}"'
            raise ValueError(
                f"rerank is measured on the validation split, and {by} trains on it; leave one of them out"
            )
        return self

    @property
    def last_stage(self) -> Literal["finetuning", "reranking"]:
        """Name of the stage after the final training, if there is one."""
        return "finetuning" if self.rerank is None else "reranking"

    @property
    def sees_validation(self) -> bool:
        """Whether the exported weights were trained on the validation split, so that it cannot judge them."""
        return self.fits_on_validation or self.finetune is not None or self.ensemble == "folds"

    @property
    def fits_on_validation(self) -> bool:
        """Whether the final training has the validation pictures too. If so, no split is left to choose models by."""
        match self.fit_on:
            case "train":
                return False
            case "train+val":
                return True
            case _:
                assert_never(self.fit_on)


def view_problem(final: Final, data: DataConfig) -> str | None:
    """The reason why these pictures cannot have the views of [final]; None if they can."""
    for view in map(View.parse, final.tta):
        if view.kind in OF_COLOUR and data.channels == 1:
            return f"{view.name} changes colours, and data.channels = 1 has none; leave it out"
        if view.kind == "shift" and max(map(abs, view.numbers)) >= data.image_size:
            return f"{view.name} moves the whole picture away: data.image_size = {data.image_size}; shift it by less"
    return None


def exported_size(members: Sequence[ModelSize], final: Final) -> tuple[ModelSize, ModelSize]:
    """The size of a whole export, and the size to which the limit applies.

    Args:
        members: size of each member for one view of a picture.
        final: gives the number of views, and whether the limit counts each member alone.
    """
    views = 1 + len(final.tta)
    params, macs = [one.params for one in members], [one.macs * views for one in members]
    whole = ModelSize(params=sum(params), macs=sum(macs))
    return whole, ModelSize(params=max(params), macs=max(macs)) if final.limit_each else whole
