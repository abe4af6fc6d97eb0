"""Recipes of earlier studies in the space of a new study; values outside of the space are dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optuna.distributions import BaseDistribution

from search.plan.space import as_sampled
from search.plan.width import Fitter
from search.study.sampling import admits
from search.study.transfer import Transferred
from studies import StudySpec
from studies.axes import Value, recipe_problems
from trainer.errors import ConfigError, LimitError


def recipes_within(
    spec: StudySpec, space: Mapping[str, BaseDistribution], chosen: Sequence[Transferred], fitter: Fitter
) -> list[Transferred]:
    """The recipes as the new study can queue them: the values of its sampled settings. A recipe without any such value
    is left out.

    Args:
        spec: the new study.
        space: the axes of the new study, with exact bounds.
        chosen: recipes of earlier studies.
        fitter: finds the widths that fit the new study's limit.
    """
    found = []
    for one in chosen:
        named = {
            key: value
            for key, value in one.recipe.items()
            if not any(recipe_problems(key, value, spec.space, spec.train))
        }
        recipe = {key: value for key, value in _sampled(spec, named, fitter).items() if admits(space.get(key), value)}
        if recipe:
            found.append(one.model_copy(update={"recipe": recipe}))
    return found


def _sampled(spec: StudySpec, recipe: Mapping[str, Value], fitter: Fitter) -> dict[str, Value]:
    """As ``as_sampled``, without a width that does not fit."""
    try:
        return as_sampled(spec, recipe, fitter)
    except (ConfigError, LimitError):
        return {key: value for key, value in recipe.items() if key != "width_mult"}
