"""The front matter of the model card, which model hubs read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from search.export.formats import weights
from search.export.how_to_load import whole_formats
from search.export.record import ExportRecord

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TASK = "image-classification"


def front_matter(record: ExportRecord) -> str:
    """The front matter in YAML, between two lines of dashes. Results are in it only if there is a test split."""
    from huggingface_hub import ModelCardData  # imported here: it takes half a second

    library = next((one.hub_library for one in whole_formats(record)), "pytorch")
    results = _results(record) if record.evaluation.split == "test" else None
    models = dict.fromkeys(one.architecture for one in record.members) or [record.model.architecture]
    data = ModelCardData(
        library_name=weights.LIBRARY if record.model.stock_timm else library,
        pipeline_tag=TASK,
        license=record.license,
        tags=[TASK, *models, "featherweight"],
        metrics=["accuracy"] if record.evaluation.scores is None else ["accuracy", "f1"],
        model_name="-".join([record.study, *map(str, record.trials)])
        if results
        else None,  # with a name, the hub requires results
        eval_results=results,
    )
    return f"---\n{data.to_yaml()}\n---"


def _results(record: ExportRecord) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    scores = record.evaluation.scores
    values = {("accuracy", "top-1 accuracy"): record.evaluation.accuracy}
    if scores is not None:
        values["f1", "macro F1"] = scores.macro_f1.value
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=record.study,
            dataset_name=record.study,
            dataset_split="test",
            metric_type=kind,
            metric_name=name,
            metric_value=value,
        )
        for (kind, name), value in values.items()
    ]
