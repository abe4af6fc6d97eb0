"""The model card: metrics.json in words, as the README.md of an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TIMM = """```python
import timm

model = timm.create_model("local-dir:PATH/TO/THIS/FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```"""

NOT_TIMM = """Stock timm cannot build this net by name, so `model.onnx` is the way to load it anywhere:

```python
import onnxruntime

session = onnxruntime.InferenceSession("PATH/TO/THIS/FOLDER/model.onnx")
logits = session.run(["logits"], {"pictures": pictures})[0]
```

`pretrained_cfg` in `config.json` has what `timm.data.create_transform` needs to read pictures."""


def write_card(path: Path, metrics: dict[str, Any]) -> None:
    """Write the card; every number in it is in metrics.json."""
    path.write_text(card(metrics), encoding="utf-8")


def card(metrics: dict[str, Any]) -> str:
    """The card's Markdown, with the front matter that model hubs read."""
    model, evaluation, data, search = (metrics[key] for key in ("model", "evaluation", "data", "search"))
    low, high = evaluation["interval"]
    states = search["states"]
    proof = metrics["proof"]
    rows = [
        (
            "accuracy",
            f"**{evaluation['accuracy']:.2%}** top-1 on the {evaluation['split']} split, n = {evaluation['n']:,}",
        ),
        ("95 % interval", f"{low:.2%} to {high:.2%} (Wilson; the pictures' chance alone, one seed)"),
        ("validation", f"{metrics['validation']['accuracy']:.2%}, n = {metrics['validation']['n']:,}"),
        ("parameters", f"{model['num_params']:,}{_of(metrics['limit']['params'])}"),
        ("multiply-adds", f"{model['macs']:,}{_of(metrics['limit']['macs'])} for one picture"),
        ("input", f"{data['image_size']} x {data['image_size']} pixels, RGB"),
        ("classes", f"{len(data['class_names'])}"),
    ]
    if proof["stranger_accuracy"] is not None:
        text = f"{proof['stranger_accuracy']:.2%}, from the files with timm's own transform"
        rows.append(("read as a stranger", text))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    recipe = "\n".join(f"| {name} | {value} |" for name, value in metrics["config"].items())
    seen = evaluation["test_openings"]
    honesty = {
        0: "There is no test split: the accuracy is on the split that chose the model, so it is optimistic.",
        1: "The test split was opened once, for this model, after everything was chosen.",
    }.get(seen, f"The test split was opened for {seen} final models of this study; this is the latest.")
    load = TIMM if model["stock_timm"] else NOT_TIMM
    return f"""---
library_name: {"timm" if model["stock_timm"] else "onnx"}
pipeline_tag: image-classification
---

# {metrics["study"]}: {model["architecture"]}, {model["num_params"]:,} parameters

| | |
| --- | --- |
{table}

{honesty}

## Load it

{load}

`model.onnx` takes `pictures`, float32 [batch, {data["channels"]}, {data["image_size"]}, {data["image_size"]}], made by
the same transform, and gives `logits`. Class names are `label_names` in `config.json`.

## How it was chosen

Trial {metrics["trial"]} of {search["trials"]} ({states["COMPLETE"]} completed, {states["PRUNED"]} pruned,
{states["FAIL"]} failed; {search["seconds"] / 3600:.2f} hours of training in all), with {search["val_accuracy"]:.2%} on
validation in the search. It was then retrained from scratch with a fresh seed: weights, confusion matrix and learning
curve are of that training.

## Recipe

| setting | value |
| --- | --- |
{recipe}

## Provenance

Made {metrics["created"]} with {", ".join(f"{name} {number}" for name, number in metrics["versions"].items())}.
Pictures: {", ".join(f"{count:,} {split}" for split, count in data["pictures"].items())};
content hash `{data["content_hash"]}`.
Proof: loaded again by {"timm" if model["stock_timm"] else "the product"} and by ONNX Runtime in a clean process, logits
within {proof["max_logit_difference"]:.1e}, the same accuracy, {proof["num_params"]:,} parameters recounted.
"""


def _of(limit: int | None) -> str:
    return f" of at most {limit:,}" if limit is not None else ""
