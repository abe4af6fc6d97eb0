"""``model = ["timm:*"]``: finds the timm models of a pattern that fit the limit. Counts are kept in a file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from search.plan.width import Fitter
from search.process import version_of
from studies import StudySpec
from studies.axes import TIMM, values_of
from studies.limit import fits
from trainer.cache import Progress
from trainer.config import ModelSize, TrainConfig
from trainer.kept import recall, write_checked
from trainer.values import Json

SAVED_EVERY = 20
"""The counts are written after each of this many models, so that an interruption loses few of them."""


@dataclass(frozen=True)
class Counted:
    """The counts of a timm model for given classes and pictures."""

    params: int
    """Parameters; 0 if the model cannot be built."""
    macs: int | None = None
    """Multiply-adds; None if they were not counted, because the parameters alone are over the limit."""
    problem: str | None = None
    """Reason why the model cannot be built, counted or trained; None if it can."""


_COUNTED = TypeAdapter(dict[str, Counted])


def expand(spec: StudySpec, fitter: Fitter, progress: Progress | None) -> tuple[list[str], set[str], dict[str, str]]:
    """The models of a study, with each pattern "timm:..." replaced by the models of timm that fit the limit.

    Each model of a pattern is counted at its own size, and tried in training mode, on the meta device.

    Returns:
        The models, each once; the models among them that fit and have no size setting; and the reasons for what is left
        out: pattern -> number of its models over the limit, model -> why it cannot be counted or trained.
    """
    choices = list(map(str, values_of("model", spec.train, spec.space)))
    if not any(choice.startswith(TIMM) for choice in choices):
        return choices, set(), {}

    import timm  # 5 s, and few studies need it here

    from trainer.models import size_settings

    fixed: set[str] = set()
    models: list[str] = []
    left_out: dict[str, str] = {}
    for choice in choices:
        if not choice.startswith(TIMM):
            models.append(choice)
            continue
        names = timm.list_models(choice.removeprefix(TIMM))
        counted = _count_all(names, spec.train, fitter, progress)
        found = [name for name in names if _fits(counted[name], fitter)]
        unusable = {name: problem for name in names if (problem := counted[name].problem) is not None}
        over = len(names) - len(found) - len(unusable)
        if not names:
            left_out[choice] = f'no such model in timm: "{choice}"; "{TIMM}*" stands for all of them'
        elif over:
            left_out[choice] = f"{over:,} of its {len(names):,} models are over the limit"
        left_out |= unusable
        models += found
        fixed |= {name for name in found if not size_settings(name)}
    return list(dict.fromkeys(models)), fixed, left_out


def own_sizes(train: TrainConfig, fitter: Fitter) -> dict[str, ModelSize]:
    """The sizes of the models that ``expand`` counted and that have no size setting."""
    from trainer.models import size_settings

    return {
        name: ModelSize(params=one.params, macs=one.macs)
        for name, one in _recall(*_kept(train, fitter)).items()
        if one.macs is not None and not size_settings(name)
    }


def _kept(train: TrainConfig, fitter: Fitter) -> tuple[Path | None, str]:
    """The file of earlier counts; and the key under which it has the counts for these ``model_args`` and ``stem``, this
    number of classes, and this size of pictures."""
    shape, memory = fitter.shape, fitter.memory
    settings = train.model_dump(mode="json", include={"model_args", "stem"})
    question = json.dumps([settings, [shape.num_classes, shape.image_size, shape.channels], version_of("timm")])
    return None if memory is None else memory.with_name("timm-models.json"), question


def _fits(one: Counted, fitter: Fitter) -> bool:
    size = None if one.macs is None else ModelSize(params=one.params, macs=one.macs)
    return one.problem is None and size is not None and fits(size, fitter.limit)


def _count_all(
    names: list[str], train: TrainConfig, fitter: Fitter, progress: Progress | None
) -> Mapping[str, Counted]:
    """Count the models, or recall their counts. The first count takes 0.3 s for each model up to 5 million parameters
    (2 CPU cores)."""
    most = fitter.limit.params
    memory, question = _kept(train, fitter)
    known = _recall(memory, question)
    for number, name in enumerate(names):
        if progress is not None:
            progress("counting models", number, len(names))
        one = known.get(name)
        # Without multiply-adds: the parameters were over the limit when the model was counted.
        if one is None or (one.problem is None and one.macs is None and (most is None or one.params <= most)):
            known[name] = _count(train.model_copy(update={"model": name}), fitter)
            if number % SAVED_EVERY == 0:
                _remember(memory, question, known)
    _remember(memory, question, known)
    return known


def _count(config: TrainConfig, fitter: Fitter) -> Counted:
    """Count one model. timm's models raise errors of many kinds if they do not take pictures of this size."""
    from trainer.models import count, count_params, try_training

    params = 0
    try:
        params = count_params(config, fitter.shape)
        if fitter.limit.params is not None and params > fitter.limit.params:
            return Counted(params)
        size = count(config, fitter.shape)
        try_training(config, fitter.shape)
    except Exception as error:
        return Counted(params, problem=" ".join(str(error).split())[:200] or type(error).__name__)
    return Counted(size.params, size.macs)


def _recall(memory: Path | None, question: str) -> dict[str, Counted]:
    kept = recall(memory, "the models are counted again") if memory is not None else None
    return _COUNTED.validate_python((kept or {}).get(question, {}))


def _remember(memory: Path | None, question: str, known: Mapping[str, Counted]) -> None:
    if memory is None:
        return
    others = recall(memory, "the models are counted again") or {}
    counted: dict[str, Json] = {name: asdict(one) for name, one in known.items()}
    with contextlib.suppress(OSError):  # if the folder is read-only, the next call counts again
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_checked(memory, {**others, question: counted}, durable=False)
