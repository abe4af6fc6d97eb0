"""The study's space as Optuna distributions. The upper bound of the width is the widest width that fits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from search.paths import Runs
from search.plan.survey import expand
from search.plan.width import Fitter, Width
from studies import Range, StudySpec
from studies.axes import WIDTH_SHARE, Value, annotation_of, numbers_of
from studies.final import exported_size
from studies.limit import describe_limit, fits
from trainer.cache import Progress
from trainer.config import SIZE_SETTINGS, ModelSize, TrainConfig
from trainer.errors import ConfigError, LimitError
from trainer.results import macs_in_words


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """A study's space with exact bounds."""

    width: Width | None
    """The widest width that fits; None if the study does not sample the width, or if this width depends on the
    trial."""
    most_params: int
    """Parameters of the largest candidate. If the size depends on the trial: the limit, or an approximation."""
    space: dict[str, BaseDistribution]
    known: list[dict[str, Value]]
    """The known recipes, given by their sampled settings."""
    left_out: dict[str, str]
    """Model, pattern ("timm:*") or known recipe ("known.0") that does not fit or cannot be used -> reason."""


def find_bounds(spec: StudySpec, num_classes: int, runs: Runs, progress: Progress | None = None) -> Bounds:
    """Find the exact bounds of the space for ``num_classes`` classes.

    The first count of all models of timm takes minutes; ``progress`` is called in between.

    Raises:
        LimitError: no candidate fits, or none fits with the members and views of [final].
        ConfigError: the model or a recipe is impossible.
    """
    fitter = Fitter(spec.data.shape_for(num_classes), spec.limit, runs.widths)
    if spec.sizes_vary:
        models, left_out = feasible_models(spec, fitter, progress)
        _check_exported(spec, models, fitter)
        return Bounds(
            width=None,
            most_params=spec.limit.params or _most_params(spec, models, fitter),
            space=distributions(spec, None, models if "model" in spec.space else None),
            known=[as_sampled(spec, recipe, fitter) for recipe in known_recipes(spec, left_out)],
            left_out=left_out,
        )
    known = known_recipes(spec, {})
    if "width_mult" not in spec.space:
        params = fitter.check(spec.train).params
        _check_exported(spec, [spec.train.model], fitter)
        return Bounds(width=None, most_params=params, space=distributions(spec, None), known=known, left_out={})
    low, _ = spec.width_range
    width = fitter.widest(spec.train, low)
    _check_exported(spec, [spec.train.model], fitter)
    space = distributions(spec, width)
    return Bounds(width=width, most_params=width.widest.params, space=space, known=known, left_out={})


def _check_exported(spec: StudySpec, models: Sequence[str], fitter: Fitter) -> None:
    """Check that the smallest candidate of one of the models fits with the members and views of [final].

    Raises:
        LimitError: no model's smallest candidate fits, so no candidate could be exported.
    """
    if spec.num_members == 1 and not spec.final.tta:
        return
    problems = []
    for model in models:
        smallest = smallest_candidate(spec, model)
        try:
            check_exported(
                spec, [fitter.size(smallest)] * spec.num_members, f"{model} at width_mult {smallest.width_mult:g}"
            )
        except LimitError as error:
            problems.append(str(error))
        else:
            return
    raise LimitError("\n".join(["no candidate of the space fits with the members and views of [final]:", *problems]))


def smallest_candidate(spec: StudySpec, model: str) -> TrainConfig:
    """The candidate of a model with the smallest value of every size setting."""
    narrowest, _ = spec.width_range
    sizes: dict[str, Value] = {key: min(values) for key, values in _other_sizes(spec).items()}
    config = spec.config_for(sizes | {"model": model}, spec.seed)
    if not spec.sizes_vary:
        return config.model_copy(update={"width_mult": narrowest})
    from trainer.models import size_settings

    own = size_settings(model)
    given: dict[str, object] = {**sizes, "width_mult": narrowest}
    unknown = {str(name): TrainConfig.model_fields[name].default for name in SIZE_SETTINGS if name not in own}
    return config.model_copy(update={name: value for name, value in given.items() if name in own} | unknown)


def check_exported(spec: StudySpec, members: Sequence[ModelSize], name: str = "") -> ModelSize:
    """Check that a whole export fits the limit. Returns its size: of all members and, for multiply-adds, of all views.

    Args:
        spec: the study, for its limit and its [final].
        members: the size of each member for one view of a picture.
        name: name of the model for the message, such as "resnet10t at width_mult 0.1".

    Raises:
        LimitError: the export is over the limit.
    """
    final = spec.final
    whole, counted = exported_size(members, final)
    if not fits(counted, spec.limit):
        who = name or "the model"
        if len(members) > 1:
            who = f"{len(members)} members{f' of {name}' if name else ''}"
        views = f" with {1 + len(final.tta)} views of a picture" if final.tta else ""
        each = "final.limit_each = true counts each member alone; "
        cure = each if not final.limit_each and len(members) > 1 else ""
        raise LimitError(
            f"{who}{views} have {whole.params:,} parameters and "
            f"{macs_in_words(whole.macs)} together; the limit is {describe_limit(spec.limit)}; "
            f"{cure}fewer members or views fit"
        )
    return whole


def _most_params(spec: StudySpec, models: list[str], fitter: Fitter) -> int:
    """Approximate parameters of the largest candidate: the other size settings have their largest values, and the
    width is the widest that fits."""
    from trainer.models import count_params  # imports torch and timm, 5 s, and is rarely needed

    others = {key: max(values) for key, values in _other_sizes(spec).items()}
    most = 0
    for model in models:
        config = spec.config_for(others | {"model": model}, 0)
        largest = fitter.resolve(config, 1.0, *spec.width_range)
        most = max(most, count_params(largest, fitter.shape))
    return most


def distributions(
    spec: StudySpec, width: Width | None, models: Sequence[str] | None = None
) -> dict[str, BaseDistribution]:
    """The space of a study, in the file's order.

    Args:
        spec: the study.
        width: the widest width that fits, if the study samples the width.
        models: the models that fit the limit, if the study samples the model. Default: all of its models.

    Raises:
        LimitError: no width of the space fits.
        ConfigError: a known recipe is wider than the widest that fits.
    """
    space: dict[str, BaseDistribution] = {}
    for key, axis in spec.space.items():
        if key == "model" and models is not None:
            space[key] = CategoricalDistribution(models)
        elif not isinstance(axis, Range):
            space[key] = CategoricalDistribution(axis)
        elif key == "width_mult" and spec.shares_width:
            space[WIDTH_SHARE] = FloatDistribution(0.0, 1.0)
        elif key == "width_mult":
            assert width is not None
            space[key] = _width_axis(axis, width)
        else:
            assert axis.high is not None  # StudySpec requires it for all settings but width_mult
            high = _last_step(axis, axis.high)
            if annotation_of(key) is int:
                space[key] = IntDistribution(int(axis.low), int(high), log=axis.log, step=int(axis.step or 1))
            else:
                space[key] = FloatDistribution(axis.low, high, log=axis.log, step=axis.step)
    _check_known(spec, width)
    return space


def feasible_models(
    spec: StudySpec, fitter: Fitter, progress: Progress | None = None
) -> tuple[list[str], dict[str, str]]:
    """Find the models of a study that fit the limit at the narrowest width, with all other sizes at their largest.

    Returns:
        The models that fit; and for each other model, and each known recipe ("known.0") with such a model, the reason.

    Raises:
        LimitError: no model fits. If the study has one model, the message has the largest value of each size setting
            with which it would fit.
    """
    fitting: list[str] = []
    models, fits_already, left_out = expand(spec, fitter, progress)
    for model in models:
        try:
            if model not in fits_already:
                _check_corner(spec, model, fitter, {})
        except (LimitError, ConfigError) as error:
            left_out[model] = str(error)
        else:
            fitting.append(model)
    if not fitting:
        cures = _largest_values(spec, models[0], fitter) if len(models) == 1 else []
        reasons = [why if model in why else f"{model}: {why}" for model, why in left_out.items()]
        raise LimitError("\n".join(["no model of the space fits the limit:", *reasons, *cures]))
    for number, recipe in enumerate(spec.known):  # Optuna cannot sample a recipe whose model is not a choice
        if recipe.get("model", fitting[0]) not in fitting:
            left_out[f"known.{number}"] = f"its model, {recipe['model']}, does not fit"
    return fitting, left_out


def known_recipes(spec: StudySpec, left_out: Mapping[str, str]) -> list[dict[str, Value]]:
    """The known recipes of the study file, without those that ``feasible_models`` left out."""
    return [dict(recipe) for number, recipe in enumerate(spec.known) if f"known.{number}" not in left_out]


def as_sampled(spec: StudySpec, recipe: Mapping[str, Value], fitter: Fitter) -> dict[str, Value]:
    """A known recipe, given by the sampled settings: its width_mult becomes a share of the widths that fit.

    Raises:
        ConfigError: the width is out of range, or the recipe lacks a setting that the size depends on.
    """
    if not spec.shares_width or "width_mult" not in recipe:
        return dict(recipe)
    if missing := [key for key in ("model", *SIZE_SETTINGS) if key in spec.space and key not in recipe]:
        names = ", ".join(missing)
        raise ConfigError(f"known: a recipe with width_mult needs {names} too; the range of widths depends on it")
    low, high = spec.width_range
    others = {key: value for key, value in recipe.items() if key != "width_mult"}
    top = fitter.resolve(spec.config_for(others, 0), 1.0, low, high).width_mult
    width = float(recipe["width_mult"])
    if not low <= width <= top:
        raise ConfigError(f"known: width_mult = {width:g} does not fit with its recipe, {low:g} to {top:g} do")
    return others | {WIDTH_SHARE: (width - low) / (top - low) if top > low else 0.0}


def _check_corner(spec: StudySpec, model: str, fitter: Fitter, changed: Mapping[str, Value]) -> None:
    """Check the narrowest width with the largest values of the other size settings, except for those in ``changed``."""
    sampled = {key: max(values) for key, values in _other_sizes(spec).items()}
    narrowest, _ = spec.width_range
    config = spec.config_for({**sampled, **changed, "model": model}, 0)
    fitter.resolve(config, 0.0, narrowest, narrowest)


def _largest_values(spec: StudySpec, model: str, fitter: Fitter) -> list[str]:
    """For each size setting except the width, the largest value with which a model fits, with the others at their
    smallest."""
    sizes = _other_sizes(spec)
    smallest = {key: min(values) for key, values in sizes.items()}
    lines = []
    for key, values in sizes.items():
        choices = sorted(values)
        if isinstance(spec.space[key], Range):
            choices = [choices[0] + (choices[-1] - choices[0]) * part / 100 for part in range(101)]
        if annotation_of(key) is int:
            choices = sorted({math.floor(value) for value in choices})
        largest = None
        for value in choices:
            try:
                _check_corner(spec, model, fitter, smallest | {key: value})
            except LimitError:
                break
            largest = value
        shown = "no value fits" if largest is None else f"at most {largest:g} fits"
        lines.append(f"space.{key}: {shown} with the others at their smallest")
    return lines


def _other_sizes(spec: StudySpec) -> dict[str, list[float]]:
    """The sampled size settings except the width, each with its choices or with both ends of its range."""
    return {
        key: numbers_of(key, spec.train, spec.space)
        for key in SIZE_SETTINGS
        if key in spec.space and key != "width_mult"
    }


def _width_axis(axis: Range, width: Width) -> FloatDistribution:
    widest = width.widest.width_mult
    if axis.low > widest:
        raise LimitError(
            f"space.width_mult: low = {axis.low:g} is over the limit; the widest that fits is {widest:g}, with "
            f"{width.widest.params:,} parameters"
        )
    high = widest if axis.high is None else min(axis.high, widest)
    return FloatDistribution(axis.low, _last_step(axis, high), log=axis.log, step=axis.step)


def _last_step(axis: Range, high: float) -> float:
    """The highest of low, low + step, ... that is at most ``high``. Optuna would find it too, but warn in every
    trial."""
    if axis.step is None:
        return high
    # Decimal, as in Optuna: with floats, 0.8 + 3 x 0.1 is not on a step.
    low, step = Decimal(str(axis.low)), Decimal(str(axis.step))
    return float(low + (Decimal(str(high)) - low) // step * step)


def _check_known(spec: StudySpec, width: Width | None) -> None:
    """Check the widths of known recipes, because Optuna accepts values out of range. ``as_sampled`` checks shares."""
    if width is None:
        return
    widest = width.widest.width_mult
    recipes = [
        (number, float(recipe["width_mult"])) for number, recipe in enumerate(spec.known) if "width_mult" in recipe
    ]
    problems = [
        f"known.{number}.width_mult = {value:g} is over the limit; the widest that fits is {widest:g}"
        for number, value in recipes
        if value > widest
    ]
    if problems:
        raise ConfigError("\n".join(problems))
