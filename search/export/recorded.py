"""Types of the parts of metrics.json, as frozen values. Most of their values are known before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from studies.objective import Objective, words_of
from trainer.values import Json
from trainer.views import Views


class Recorded(BaseModel):
    """A part of metrics.json. Keys of later versions are ignored; infinite losses are kept."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    def to_json(self) -> dict[str, Json]:
        """The values as metrics.json has them."""
        return self.model_dump(mode="json")


class RecordedFancyPca(Recorded):
    """The colour shift of the view fancy_pca, see ``trainer.fancy_pca``. Channels have values from 0 to 1."""

    axes: tuple[tuple[float, ...], ...]
    variances: tuple[float, ...]
    draws: tuple[float, ...]
    shift: tuple[float, ...]
    """Value that is added to each channel."""


class RecordedModel(Recorded):
    """The exported model."""

    architecture: str
    """Name of a model in timm, or of a family of this program."""
    model_args: Mapping[str, Json]
    stock_timm: bool
    """Whether stock timm builds the model by name."""
    members: int
    """Number of members of the ensemble; 1: no ensemble."""
    views: tuple[str, ...]
    """Views that are averaged with the picture itself."""
    num_params: int
    """Parameters of all members together."""
    macs: int
    """Multiply-adds for one picture, of all members and views together."""
    fancy_pca: RecordedFancyPca | None = Field(None, exclude_if=lambda found: found is None)
    """The colour shift; None without the view fancy_pca."""

    def views_of(self, mean: Sequence[float], std: Sequence[float]) -> Views:
        """The views, for pictures that are normalised with this mean and standard deviation."""
        shift = () if self.fancy_pca is None else self.fancy_pca.shift
        return Views(self.views, tuple(mean), tuple(std), shift)


class RecordedLimit(Recorded):
    """The limit of the study."""

    params: int | None
    macs: int | None
    each: bool
    """Whether the limit applies to each member alone."""


class RecordedSearch(Recorded):
    """The search that found the trial."""

    val_accuracy: float | None
    """Validation accuracy of the trial in the search; None if the study has another objective."""
    trials: int
    states: Mapping[str, int]
    """Optuna's state, or PAUSED -> number of trials."""
    seconds: float
    """Seconds of training, summed over all workers."""
    objective: Objective = Field("accuracy", exclude_if=lambda objective: objective == "accuracy")
    value: float | None = Field(None, exclude_if=lambda value: value is None)
    """Value of an objective other than the accuracy; a loss is negated."""

    @property
    def in_words(self) -> str:
        """The value of the trial in the search: "97.12%", "macro F1 91.30%"."""
        value = self.val_accuracy if self.objective == "accuracy" else self.value
        return "-" if value is None else words_of(value, self.objective)


class RecordedData(Recorded):
    """The pictures."""

    source: str
    config: Mapping[str, Json]
    """The [data] of the study, without the path."""
    content_hash: str
    fingerprint: str
    """Hash of the pictures' contents and their splits."""
    image_size: int
    resize: str
    channels: int
    class_names: tuple[str, ...]
    """Class names, in the order of the logits."""
    pictures: Mapping[str, int]
    """Split -> number of pictures."""


class RecordedMember(Recorded):
    """A member of an ensemble of several trials. Each trial has its own recipe."""

    trial: int
    value: float
    """Value of the trial in the search; a loss is negated."""
    seed: int
    architecture: str
    model_args: Mapping[str, Json]
    num_params: int
    macs: int
    """Multiply-adds for one picture, of all views together."""
    config: Mapping[str, Json]
    """The [train] table of the member."""
    sampled: Mapping[str, Json]


class RecordedSelection(Recorded):
    """The choice of the exported members among all trained models, on the validation split."""

    of: int
    """Number of models that were trained."""
    members: tuple[int, ...]
    """Numbers of the exported models, in the order in which they were chosen. Number 1 is the first of ``seeds``."""
    values: tuple[float, ...]
    """Value of the study's objective on the validation split after each choice; a loss is negated."""


class RecordedRerank(Recorded):
    """The second training, after filters were drawn again. Its model is compared, on the validation split, with that of
    a plain second training."""

    layer: str
    """Name of the convolution."""
    filters: int
    """Number of its filters."""
    drawn_again: tuple[int, ...]
    """The filters that were drawn again, from 0: those of the lowest mean rank."""
    mean_ranks: tuple[float, ...]
    """Mean rank of each filter's feature maps."""
    most: int
    """The largest possible rank."""
    pictures: int
    """Number of training pictures over which the ranks were taken."""
    n: int
    """Number of validation pictures."""
    accuracy: float
    """Accuracy of the reranked model, without views."""
    plain_accuracy: float
    """Accuracy of the model whose training went on for the same number of epochs, without new filters."""
    only_reranked: int
    """Pictures that only the reranked model classified correctly."""
    only_plain: int
    interval: tuple[float, float]
    """95 % interval of the difference (Newcombe's for paired proportions)."""
    p: float
    """The p-value of McNemar's test, exact and two-sided."""

    @property
    def in_words(self) -> str:
        """The gain over plain retraining, with its interval."""
        low, high = (f"{100 * end:+.2f}" for end in self.interval)
        return (
            f"{100 * (self.accuracy - self.plain_accuracy):+.2f} points over plain retraining of the same length "
            f"({self.accuracy:.2%} and {self.plain_accuracy:.2%} on validation, n = {self.n:,}; "
            f"95 % interval {low} to {high}, McNemar's p = {self.p:.2g})"
        )


class RecordedOutOfFold(Recorded):
    """Results of the fold models on the training and validation splits. The model that was not trained on a picture
    classifies it."""

    n: int
    """Number of pictures."""
    accuracy: float
    interval: tuple[float, float]
    """95 % interval of the accuracy (Wilson)."""
    loss: float
