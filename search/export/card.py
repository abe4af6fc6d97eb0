"""The model card: metrics.json in words, as the README.md of an export."""

from __future__ import annotations

import json
import re
from pathlib import Path

from search.export.front_matter import front_matter
from search.export.how_to_load import loading_paragraphs, reading_paragraph
from search.export.machine_load import QUIET, Load
from search.export.members import models_in_words, selection_in_words, size_in_words
from search.export.record import ExportRecord, Score
from search.export.scores import (
    CLASS_COLUMNS,
    class_rows,
    never_predicted,
    score_rows,
    which_classes,
    without_pictures,
)
from search.figures.mistakes import caption
from search.figures.png import numbered
from search.words import count, duration, judged_on, trials_in_words
from studies.objective import number_of, words_of
from trainer.config import TrainConfig
from trainer.errors import printable
from trainer.results import gflops, macs_in_words
from trainer.values import Json
from trainer.views import View

PAIRS = 8
"""Number of confused pairs that the card lists; metrics.json has more."""


def write_card(path: Path, record: ExportRecord) -> None:
    """Write the card; every number in it is in metrics.json."""
    path.write_text(card(record), encoding="utf-8")


def card(record: ExportRecord) -> str:
    """The card's Markdown, with the front matter that model hubs read."""
    sections = [
        front_matter(record),
        f"# {record.study}: {_name(record)}",
        _table(_facts(record)),
        _caveats(record),
        "## Load it",
        *loading_paragraphs(record),
        reading_paragraph(record),
        "## What it confuses",
        "![Confusion matrix](plots/confusion.png)",
        _confused(record),
        _gallery(record),
        _classes(record),
        "## How it was chosen",
        _choice(record),
        "## How it was trained",
        _training(record),
        "" if record.rerank is None else f"![Ranks of the feature maps of {record.rerank.layer}](plots/ranks.png)",
        "![Learning curves](plots/curves.png)",
        _curves(record),
        _recipe(record),
        "## How fast it is",
        _latency(record),
        "## Provenance",
        _provenance(record),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _name(record: ExportRecord) -> str:
    return f"{models_in_words(record)}, {record.model.num_params:,} parameters"


def _facts(record: ExportRecord) -> dict[str, str]:
    model, evaluation, data = record.model, record.evaluation, record.data
    low, high = evaluation.interval
    rows = {
        "accuracy": f"**{evaluation.accuracy:.2%}** top-1 {record.measured_on}, n = {evaluation.n:,}",
        "95 % interval": f"{low:.2%} to {high:.2%} (Wilson; for the choice of the pictures, not of the seeds)",
    }
    rows |= score_rows(evaluation.scores) | {"loss": f"{evaluation.loss:.4f}: the mean cross-entropy"}
    if model.views:
        rows["views averaged"] = f"the picture and {', '.join(View.parse(name).words for name in model.views)}"
    if model.fancy_pca is not None:
        levels = ", ".join(f"{255 * part:+.2f}" for part in model.fancy_pca.shift)
        rows["colour shift of fancy_pca"] = f"{levels} of 255 levels (red, green, blue), the same for each picture"
    if evaluation.member_accuracies:
        alone = ", ".join(f"{value:.2%}" for value in evaluation.member_accuracies)
        rows["each member alone"] = f"{alone} on the same pictures"
    elif model.views:
        rows["without the views"] = f"{evaluation.plain_accuracy:.2%}, the accuracy of model.safetensors by itself"
    if (best := record.confirmed) is not None and best.best_mean is not None:
        part = " that had no part in the choice" if best.reported else ""
        error = "" if best.standard_error is None else " (standard error)"
        pictures = "" if record.folds else ", trained on train"
        rows["over seeds"] = (
            f"{best.mean_in_words(record.search.objective)}{error} {judged_on(record.folds)}, "
            f"{count(best.seeds, 'seed')}{part}, with the recipe of the search{pictures}"
        )
    if record.gain is not None:
        rows["gain of the search"] = record.gain
    if record.noise is not None:
        rows["noise of one training"] = record.noise
    if record.rerank is not None:
        rows["gain of the new filters"] = record.rerank.in_words
    seen = ", which it was trained on" if record.sees_validation else ""
    seen = ", which chose its members" if record.selection is not None else seen
    rows["validation"] = f"{record.validation.accuracy:.2%}, n = {record.validation.n:,}{seen}"
    if (found := record.out_of_fold) is not None:
        rows["out of fold"] = (
            f"{Score(value=found.accuracy, interval=found.interval).in_words}, n = {found.n:,}: "
            "the model that was not trained on a picture classifies it; `out-of-fold.csv` has the predictions"
        )
    limit, members = record.limit, model.members
    params = [one.num_params for one in record.members] or [model.num_params // members] * members
    macs = [one.macs for one in record.members] or [model.macs // members] * members
    rows["parameters"] = size_in_words(model.num_params, params, limit.params, limit_each=limit.each)
    rows["multiply-adds"] = f"{size_in_words(model.macs, macs, limit.macs, limit_each=limit.each)} for one picture"
    rows["GFLOPs"] = f"{gflops(model.macs).removesuffix(' GFLOPs')} for one picture: two for each multiply-add"
    rows["input"] = f"{data.image_size} x {data.image_size} pixels, {'RGB' if data.channels == 3 else 'gray'}"
    rows["classes"] = f"{len(data.class_names)}"
    if record.proof.stranger_accuracy is not None:
        rows["read with timm alone"] = (
            f"{record.proof.stranger_accuracy:.2%}, from the files with timm's own transform (the proof allows "
            f"a difference of {record.proof.stranger_tolerance:.1%}"
            f"{', and the share of pictures that timm reads differently' if record.proof.misread else ''})"
        )
    return rows


def _caveats(record: ExportRecord) -> str:
    """What a reader must know about the accuracy: uses of the test split, classes without pictures, near-duplicates."""
    evaluation = record.evaluation
    uses = evaluation.test_openings
    lines = []
    if uses == 0 and record.sees_validation:
        measured = " For new pictures, expect the mean over seeds, which was measured before."
        lines.append(
            "There is no test split, and the model was trained on the validation pictures, so the accuracy above is of "
            f"pictures that it was trained on.{measured if record.confirmed else ''}"
        )
    elif uses == 0:
        lines.append("There is no test split: the accuracy is on the split that chose the model, so it is optimistic.")
    elif uses == 1:
        lines.append("The test split was used once, for this model, after everything was chosen.")
    else:
        lines.append(
            f"The test split was used {uses} times, for final models or for comparisons; this is the latest use."
        )
    if evaluation.scores and (
        missing := without_pictures(evaluation.scores, f"in the {evaluation.split} split", _cell)
    ):
        lines.append(missing)
    if near := evaluation.near_duplicates:
        lines.append(
            f"{near:,} of the {evaluation.n:,} test pictures {'looks' if near == 1 else 'look'} like a training "
            "picture (near-duplicates by a perceptual hash), so the accuracy on new pictures may be lower; `search "
            "check --duplicates` lists them."
        )
    if record.fit_on == "train+val":
        lines.append(
            "It was trained on the training and the validation pictures, so no validation result decided when its "
            "training ended."
        )
    return " ".join(lines)


def _confused(record: ExportRecord) -> str:
    pairs = record.evaluation.confused[:PAIRS]
    if not pairs:
        return "No picture was mistaken for another class."
    lines = ["| true class | taken for | pictures |", "| --- | --- | --- |"]
    numbers = numbered(record.data.class_names)
    legend = ["", "In the figure classes are numbered:", "", *(f"{n}. {_cell(name)}" for n, name in numbers.items())]
    return "\n".join(
        [
            *lines,
            *(f"| {_cell(one.true)} | {_cell(one.predicted)} | {one.count} of {one.of} |" for one in pairs),
            *(legend if numbers else []),
        ]
    )


def _gallery(record: ExportRecord) -> str:
    right = all(row == column for row, column, _ in record.evaluation.table)
    if not record.gallery or right:
        return ""
    return f"![The most confident mistakes](plots/mistakes.png)\n\n{caption(record.data.class_names)}"


def _classes(record: ExportRecord) -> str:
    scores = record.evaluation.scores
    if scores is None:
        return ""
    head = [f"| {' | '.join(CLASS_COLUMNS)} |", "| --- |" + " ---: |" * (len(CLASS_COLUMNS) - 1)]
    table = "\n".join([*head, *(f"| {' | '.join(row)} |" for row in class_rows(scores, _cell))])
    return "\n\n".join(filter(None, [which_classes(scores), table, never_predicted(scores, _cell)]))


def _choice(record: ExportRecord) -> str:
    search, found = record.search, record.confirmation
    states, which = search.states, trials_in_words(record.trials)
    paused = f", {states['PAUSED']} paused" if states.get("PAUSED") else ""
    text = (
        f"{which[0].upper()}{which[1:]} of {search.trials} ({states['COMPLETE']} completed, {states['PRUNED']} pruned, "
        f"{states['FAIL']} failed{paused}; {duration(search.seconds)} of training in all). "
        f"The search claimed {record.claim} {judged_on(record.folds)} for {'them' if record.members else 'it'}."
    )
    if record.members:
        return (
            f"{text} They were chosen by number, to be averaged. These values are likely too high: each is one of the "
            "best of many."
        )
    if not found:
        high = f", so that value is likely too good: it is the best of {search.trials}" if search.trials > 1 else ""
        why = record.why_unconfirmed.removeprefix("; ") or "it was not confirmed with fresh seeds"
        return f"{text} {why[0].upper()}{why[1:]}{high}."
    if found.winner != record.trial:
        return f"{text} It was chosen by number, not by its result."
    table = [
        "| trial | parameters | in the search | with fresh seeds | reported mean | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    objective = search.objective
    for one in found.candidates:
        alone = ", ".join(number_of(value, objective) for value in one.accuracies) or "-"
        further = ", ".join(number_of(value, objective) for value in one.reported)
        alone += f"; to report: {further}" if further else ""
        verdict = (
            "**chosen**" if one.trial == found.winner else "diverged" if one.diverged else "tied" if one.tied else ""
        )
        claim = f"{number_of(one.search_accuracy, objective)}{'' if one.complete else ' (unfinished)'}"
        facts = f"{one.trial} | {one.num_params:,} | {claim} | {alone} | {one.mean_in_words(objective)}"
        table.append(f"| {facts} | {verdict} |")
    seconds = record.measured_on_this_machine.confirming_seconds
    number, best = len(found.candidates), found.candidates[0]
    trainings = sum(len(one.accuracies) + len(one.reported) + one.diverged for one in found.candidates)
    measured = (
        f"The chosen one was then trained with {count(len(best.reported), 'further seed')}, which had no part in the "
        "choice; the mean over these seeds alone is reported as its value"
        if best.reported
        else "The mean of the chosen one is reported, over the seeds that had a part in the choice"
    )
    how = (
        f"{f'The best {number} trials were' if number > 1 else 'The best trial was'} then trained again with "
        f"{'a fresh seed' if trainings == 1 else 'fresh seeds'}: {count(trainings, 'training')} in all "
        f"({duration(seconds or 0.0)}). {measured}: "
        f"**{words_of(found.estimate or 0.0, objective)}** {judged_on(record.folds)}. The search's best had claimed "
        f"{number_of(found.raw_best, objective)}."
    )
    tied = sorted((one.num_params, one.trial != found.winner) for one in found.candidates if one.tied)
    why = "" if len(tied) < 2 else " The chosen one has the best mean, with its value in the search included."
    if len(tied) > 1 and not tied[0][1]:
        why = " Of the tied ones, the chosen one has the fewest parameters."
    ties = (
        f"Tied candidates cannot be told apart from the best mean ({found.test}; the test covers the choice of the "
        f"seeds, not that of the validation pictures).{why}"
        if found.test
        else "With one seed each there is no test of the differences."
    )
    return "\n\n".join([text, how, "\n".join(table), *([ties] if number > 1 else [])])


def _training(record: ExportRecord) -> str:
    seeds = record.seeds
    which = "seeds" if len(seeds) > 1 else "seed"
    splits = "the training and the validation split"
    on = {"train": "the training split", "folds": f"{record.folds} folds of {splits}, each model on all folds but one"}
    pictures = on.get(record.fit_on, splits)
    parts = [f"From random weights, on {pictures}, with {which} {', '.join(map(str, seeds))}, not used in the search."]
    if record.selection is not None:
        parts.append(selection_in_words(record.selection, record.search.objective))
    if record.finetune:
        settings = ", ".join(f"{name} {_value_in_words(value)}" for name, value in record.finetune.items())
        parts.append(f"Then a last stage on the validation split alone ({settings}); its last weights are exported.")
    if (rerank := record.rerank) is not None:
        parts.append(
            f"Then {count(len(rerank.drawn_again), 'filter')} of the {rerank.filters} of `{rerank.layer}` were drawn "
            f"again, those whose feature maps had the lowest mean rank over {rerank.pictures:,} training pictures "
            "(HRank, Lin et al., 2020), and the whole model was trained once more with the same settings. It is "
            "exported, whether it gained or not. So the comparison with plain retraining chose nothing, and the "
            "interval of the gain is valid. It is about these two trainings only; other seeds give other gains."
        )
    if (distill := TrainConfig.model_validate(record.config).distill) is not None:
        parts.append(f"It also learned from a teacher, `{distill.teacher}`.")
    return " ".join(parts)


def _curves(record: ExportRecord) -> str:
    """A sentence about the curves; empty for an export of an earlier version, which has no training accuracy."""
    if all(one.train_accuracy is None for one in record.histories[0]):
        return ""
    mixed = {"mixup", "cutmix"} & {name for name, share in record.config.items() if share}
    mixed_too = " A mixture of two pictures counts with the share of the predicted class in it." if mixed else ""
    return (
        "Training loss and accuracy are measured during training, on augmented pictures and with the weights of each "
        f"step, so the accuracy may be lower than on validation.{mixed_too} The numbers are in `plots/curves.csv`."
    )


def _recipe(record: ExportRecord) -> str:
    """A table of the main settings, the sampled ones, and all others that differ from their defaults."""
    recipes = {one.trial: (one.config, one.sampled) for one in record.members}
    own = list(recipes.values()) or [(record.config, record.sampled)]
    defaults = TrainConfig().model_dump(mode="json")
    always = {"model", "epochs", "batch_size", "optimizer", "lr", "weight_decay", "schedule"}
    always |= {name for _, sampled in own for name in sampled}
    names = dict.fromkeys(name for config, _ in own for name in config if name != "seed")
    shown = [
        name for name in names if name in always or any(config.get(name) != defaults.get(name) for config, _ in own)
    ]
    rows = {name: " | ".join(_value_in_words(config.get(name, defaults[name])) for config, _ in own) for name in shown}
    head = " | ".join(f"trial {number}" for number in recipes) or "value"
    lines = [
        f"| setting | {head} |",
        f"| --- |{' --- |' * len(own)}",
        *(f"| {name} | {row} |" for name, row in rows.items()),
    ]
    table = "\n".join(lines)
    return f"{table}\n\nAll other settings have their defaults."


def _latency(record: ExportRecord) -> str:
    measured = record.measured_on_this_machine
    batches = sorted({batch for times in measured.latency_ms.values() for batch in times}, key=int)
    lines = [
        f"| library | {' | '.join(f'batch {batch}' for batch in batches)} |",
        "| --- |" + " --- |" * len(batches),
    ]
    for name, times in measured.latency_ms.items():
        lines.append(f"| {name} | {' | '.join(f'{times[batch]:,.1f} ms' for batch in batches)} |")
    spent = ", ".join(duration(seconds) for seconds in measured.training_seconds)
    return "\n".join(
        [
            *lines,
            "",
            f"Medians of a forward pass, fp32, on {measured.hardware}. {_load_in_words(measured.load)}",
            "",
            f"The epochs of the training took {spent}.",
        ]
    )


def _load_in_words(load: Load | None) -> str:
    """A sentence about whether the machine was quiet."""
    if load is None:
        return "It was not measured whether the machine was quiet."
    average = (
        f"the load average for each core was {load.before:.2f} before and {load.after:.2f} after, including this "
        "export's own work"
    )
    if load.others is None:
        return f"The system does not report what other processes took; {average}."
    others = f"other processes took {load.others:.0%} of the cores meanwhile"
    if load.others <= QUIET:
        return f"The machine was quiet: {others} ({QUIET:.0%} at most count as quiet); {average}."
    return (
        f"**The machine was not quiet**: {others} (more than {QUIET:.0%}), so the model may be faster than this; "
        f"{average}."
    )


def _provenance(record: ExportRecord) -> str:
    data, proof = record.data, record.proof
    versions = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    commit = f" at commit `{record.commit}`" if record.commit else ""
    pictures = ", ".join(f"{count:,} {split}" for split, count in data.pictures.items())
    if (fraction := data.config.get("fraction")) is not None:
        pictures += f" (of the training pictures of each class, a share of {fraction} is used: `data.fraction`)"
    libraries = ", ".join(one.library for one in proof.formats.values())
    log = record.event_log
    return (
        f"Made {record.created} with {versions}{commit}.\n"
        f"Search: study `{record.study}`"
        + (f", journal `{log}` (SHA-256; `search replay` checks it).\n" if log else ".\n")
        + f"Seeds: {', '.join(map(str, record.seeds))}{' (of the first training)' if record.rerank else ''}.\n"
        f"Pictures: {pictures}; content `{data.content_hash}`, with its splits `{data.fingerprint}`.\n"
        f"Proof: loaded again in a clean process by {libraries}: the same accuracy, logits within "
        f"{proof.max_logit_difference:.1e}, {proof.num_params:,} parameters and {macs_in_words(proof.macs)} "
        "recounted.\nEvery number here is in `metrics.json`."
    )


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["|  |  |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())])


def _cell(name: str) -> str:
    """A class name for a table; characters with a meaning in Markdown, HTML or formulas are escaped."""
    special = r"[\\`*{}\[\]|$~#<>&]|(?<!\w)_|_(?!\w)"
    return " ".join(re.sub(special, lambda found: f"&#{ord(found[0])};", printable(name)).split())


def _value_in_words(value: Json) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)
