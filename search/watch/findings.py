"""Conclusions from a study's trials, in words and numbers, for the report and for other views of a study."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from search.paths import DEFAULT_RUNS, Runs
from search.policy.ladder import PAUSED_AT, reached
from search.study.budget import Budget, Spent
from search.study.result import NO_RESULT, StudyResult
from search.study.sampling import build_ladder
from search.study.transfer import TRANSFERRED
from search.study.trial import (
    DIVERGED,
    OUT_OF_MEMORY,
    best_of,
    latest_axes,
    outcome_of,
    paused_trials,
    position,
    ranked,
    recipe_of,
    sampled_axes,
    step_word,
    view_of,
    words_of_pause,
)
from search.words import count, duration, judged_on, show
from search.workers.failures import MOST_MICRO_BATCHES
from studies import Limit, StudySpec
from studies.axes import WIDTH_SHARE
from studies.limit import describe_limit
from studies.objective import number_of, words_of

RECIPES = 5
"""Number of best trials that are shown, and whose settings are compared with the edges of the space."""

PAUSED = "Paused trials wait at a rung. They go on once they are among the best there, or with a larger budget."
"""Explanation above a list of paused trials."""

PAUSED_ROWS = 20
"""Largest number of paused trials that are listed."""

FEW_TRIALS = 10
"""Smallest number of completed trials from which importance is computed."""

IMPORTANCE_TRIALS = 200
"""Largest number of completed trials from which importance is computed; its cost grows with the square of the
number."""

EDGE = 0.05
"""Share of a range that counts as its edge; on a logarithmic scale if the setting is sampled on one."""

SURE_TRIALS = 30
"""Smallest number of completed trials with which importance is not called a guess."""


def setting_importances(trials: Sequence[FrozenTrial], spec: StudySpec) -> dict[str, float]:
    """Share of each sampled setting in the variance of the objective, largest first; empty with too few trials."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances  # imports scikit-learn: seconds

    axes = latest_axes(trials)
    complete = [trial for trial in ranked(trials, spec.limit) if trial.distributions == axes]
    if len(complete) < FEW_TRIALS or complete[0].value == complete[-1].value:
        return {}
    # Optuna's default, PED-ANOVA, compares the best tenth of the trials with the rest: with 20 trials, that is two. In
    # 10 studies with two important settings, it found both in 2 studies. fANOVA found them in all 10, with 16 trees as
    # well as with 64.
    evaluator = FanovaImportanceEvaluator(n_trees=16, seed=0)
    sample = optuna.create_study(direction="maximize")
    sample.add_trials(complete[:: math.ceil(len(complete) / IMPORTANCE_TRIALS)])
    found = get_param_importances(sample, evaluator=evaluator)
    return {"width_mult" if key == WIDTH_SHARE else key: float(value) for key, value in found.items()}


def story(spec: StudySpec, trials: Sequence[FrozenTrial], known: StudyResult = NO_RESULT) -> str:
    """The search in a few sentences: subject, time, result and cost.

    Args:
        spec: the study's spec.
        trials: all trials of the study.
        known: the result as far as it is known.
    """
    views = [view_of(trial) for trial in trials if trial.state.is_finished()]
    by_state = {state: [view for view in views if view.state == state] for state in ("COMPLETE", "PRUNED", "FAIL")}
    by_state["PAUSED"] = [view_of(trial) for trial in paused_trials(trials)]
    place = f" ({Path(spec.data.path).name})" if spec.data.path else ""
    limit = (
        "with no limit on the model" if spec.limit == Limit() else f"for models of at most {describe_limit(spec.limit)}"
    )
    choices = spec.space.get("model")
    model = f"one of {len(choices)} models" if isinstance(choices, tuple) else spec.train.model
    length = count(spec.train.epochs, "epoch")
    length = f"{count(spec.data.folds, 'fold')} of {length}" if spec.data.folds else f"{length} of training"
    rungs = build_ladder(spec).describe(step_word(spec), spec.search.reduction_factor)
    sentences = [
        f"The search looked for the best recipe for {model} on {spec.data.source}{place} at "
        f"{spec.data.image_size} px, {limit}, with {length} for each trial."
    ]
    if rungs:
        sentences = [f"{sentences[0].removesuffix(' for each trial.')}. Candidates are {rungs}."]
    paused = f", {len(by_state['PAUSED'])} paused" if by_state["PAUSED"] else ""
    if not views:
        return f"{sentences[0]} No trial has finished yet{paused}."
    begun = [trial.datetime_start for trial in trials if trial.datetime_start]
    ended = [trial.datetime_complete for trial in trials if trial.datetime_complete]
    when = f" from {_moment(min(begun))} to {_moment(max(ended))}" if begun and ended else ""
    budget, spent = Budget.of(spec), Spent.of(trials, spec)
    sentences.append(
        f"{' '.join(budget.progress(spent))}{when}: {len(by_state['COMPLETE'])} completed, "
        f"{len(by_state['PRUNED'])} pruned, {len(by_state['FAIL'])} failed{paused}."
    )
    if best := best_of(trials, spec.limit):
        first = ", one of the known recipes that were tried first" if "known" in best.user_attrs else ""
        if (source := best.user_attrs.get(TRANSFERRED)) is not None:
            first = f", a recipe of an earlier study ({source})"
        again = "" if known.sentences else "; export-best trains it again"
        sentences += known.sentences
        sentences.append(
            f"{'In the search, the' if known.sentences else 'The'} best, trial {best.number}{first}, reached "
            f"{words_of(best.values[0], spec.search.objective)} {judged_on(spec.data.folds)}. That is one training, "
            f"chosen as the best of {len(by_state['COMPLETE'])}, so partly luck{again}."
        )
    times = {state: sum(view.seconds for view in group) for state, group in by_state.items()}
    if total := sum(times.values()):
        words = {"COMPLETE": "completed", "PRUNED": "were pruned", "FAIL": "failed", "PAUSED": "are paused"}
        shares = [f"{seconds / total:.0%} on trials that {words[state]}" for state, seconds in times.items() if seconds]
        sentences.append(f"Training took {duration(total)}, summed over the workers: {', '.join(shares)}.")
    if rungs:
        sentences.append(
            f"Training its {count(spent.begun, 'candidate')} to the end would have taken "
            f"{count(spent.begun, 'full training')}; the search took {spent.trainings:,.1f}."
        )
    else:
        # The full cost of a pruned trial is estimated from its own time per epoch, or fold.
        saved = sum(
            view.seconds / view.epochs * (spec.num_steps - view.epochs) for view in by_state["PRUNED"] if view.epochs
        )
        sentences += [f"Pruning saved about {duration(saved)}."] if saved else []
    if known.noise is not None:
        sentences.append(f"Noise: {known.noise.sentence}.")
    if known.gain is not None:
        sentences.append(f"Gain of the search: {known.gain.sentence}.")
    return " ".join(sentences)


def findings(
    spec: StudySpec, trials: Sequence[FrozenTrial], importances: Mapping[str, float], runs: Runs = DEFAULT_RUNS
) -> list[str]:
    """Facts to know before trusting the result or launching the next search, one or two sentences each."""
    complete = ranked(trials, spec.limit)
    finished = [trial for trial in trials if trial.state.is_finished()]
    budget, spent = Budget.of(spec), Spent.of(trials, spec)
    unfinished = spent.begun - spent.finished - spent.paused
    found = []
    if finished and not complete:
        found.append("No trial has completed, so there is no best recipe yet.")
    if not budget.is_spent(spent):
        running = f", {unfinished} unfinished" if unfinished else ""
        found.append(f"The budget is not spent: {budget.describe(spent)}{running}. The same launch command goes on.")
    if complete:
        found += _edges(spec, trials, complete)
    if complete and len(complete) < SURE_TRIALS:
        guess = "the importance of the settings is a guess" if importances else "the importance of settings is left out"
        found.append(f"Only {count(len(complete), 'trial')} completed: {guess}.")
    found += _rungs(spec, trials, complete, runs) if build_ladder(spec).rungs else _first_rung(spec, trials, complete)
    diverged = [trial for trial in trials if outcome_of(trial) == DIVERGED]
    if diverged:
        rates = sorted(trial.params["lr"] for trial in diverged if "lr" in trial.params)
        where = f" (lr {' to '.join(dict.fromkeys(map(show, (rates[0], rates[-1]))))})" if rates else ""
        found.append(f"{count(len(diverged), 'trial')} diverged{where}.")
    too_large = sum(outcome_of(trial) == OUT_OF_MEMORY for trial in trials)
    if too_large:
        found.append(
            f"{count(too_large, 'trial')} ran out of memory, with each batch in {MOST_MICRO_BATCHES} parts too: fewer "
            "workers on a device, smaller models or a smaller image_size need less."
        )
    failed = sum(trial.state == TrialState.FAIL for trial in trials)
    if failed:
        found.append(
            f"{count(failed, 'trial')} failed; the sampler learns nothing from failed trials. The reasons are below."
        )
    return found


def as_toml(spec: StudySpec, trials: Sequence[FrozenTrial]) -> str:
    """Trials as ``[[known]]`` tables of a study file: a search with these tables begins with them."""

    def lines(trial: FrozenTrial) -> Iterator[str]:
        recipe = recipe_of(trial)
        yield f"[[known]]    # trial {trial.number}, {words_of(trial.values[0], spec.search.objective)}"
        for key in spec.space:
            if key in recipe:  # a dotted key needs quotes, or it would be a table
                yield f"{json.dumps(key) if '.' in key else key} = {json.dumps(recipe[key])}"

    return "\n\n".join("\n".join(lines(trial)) for trial in trials)


# -- single findings


def _edges(spec: StudySpec, trials: Sequence[FrozenTrial], complete: list[FrozenTrial]) -> Iterator[str]:
    """A sentence for each numeric setting of the best trial that is at an end of its range."""
    best = complete[0]
    for key, axis in sampled_axes(trials, spec).items():
        if key not in best.params or isinstance(axis, CategoricalDistribution):
            continue  # width_mult is not in params if a share is sampled: each trial then has its own range of widths
        assert isinstance(axis, FloatDistribution | IntDistribution)
        at = position(axis, best.params[key])
        end = "lower" if at <= EDGE else "upper" if at >= 1 - EDGE else None
        if end is None or axis.low == axis.high:
            continue
        top = [position(axis, trial.params[key]) for trial in complete[:RECIPES] if key in trial.params]
        near = sum(value <= 0.2 if end == "lower" else value >= 0.8 for value in top)
        sentence = (
            f"The best {key}, {show(best.params[key])}, is at the {end} edge of its range, {show(axis.low)} to "
            f"{show(axis.high)}; {near} of the top {len(top)} lie in the outermost fifth on that side."
        )
        if key == "width_mult" and end == "upper":
            asked = getattr(spec.space[key], "high", None)
            limited = asked is None or asked > axis.high
            cure = f"{'The limit' if limited else 'The space'} ends there; wider models may be better."
        elif end == "lower" and axis.low == 0:
            cure = "Perhaps it is not needed at all."
        else:
            cure = f"{'Lower values' if end == 'lower' else 'Higher values'} may be better: widen the range."
        yield f"{sentence} {cure}"


def _first_rung(spec: StudySpec, trials: Sequence[FrozenTrial], complete: list[FrozenTrial]) -> Iterator[str]:
    """A sentence with the number of trials that were pruned at the first rung, and how well values there predict the
    end."""
    rung = spec.search.min_epochs or 1
    pruned = [view_of(trial) for trial in trials if outcome_of(trial) == "pruned"]
    first = sum(view.epochs <= rung for view in pruned)
    if not first:
        return
    which = f"{first} of {len(pruned)} pruned trials" if len(pruned) > 1 else "The only pruned trial"
    early_steps = count(rung, step_word(spec))
    sentence = f"{which} ended at the first rung, after {early_steps} of {spec.num_steps}."
    pairs = [
        (trial.intermediate_values[rung], trial.values[0]) for trial in complete if rung in trial.intermediate_values
    ]
    yield sentence + _agreement(pairs, early_steps)


def _rungs(spec: StudySpec, trials: Sequence[FrozenTrial], complete: list[FrozenTrial], runs: Runs) -> Iterator[str]:
    """A sentence with the number of trials that are paused at each rung, and how well the first rung predicts the
    end."""
    ladder, step = build_ladder(spec), step_word(spec)
    where = Counter(trial.user_attrs[PAUSED_AT] for trial in paused_trials(trials))
    waits = [
        f"{where[rung]} at rung {number} of {len(ladder.rungs)} ({step} {ladder.lengths[number - 1]})"
        for number, rung in enumerate(ladder.rungs, 1)
        if where[rung]
    ]
    budget, spent = Budget.of(spec), Spent.of(trials, spec)
    verb = "is" if spent.paused == 1 else "are"
    sentence = f"{spent.paused} of {count(spent.begun, 'candidate')} {verb} paused: {' and '.join(waits)}."
    sentence = sentence if waits else ""
    if waits and budget.is_spent(spent):
        sentence += f" A larger budget ({budget.larger(spent)}) continues the best of them, "
        sentence += f"{runs.command('stop', spec.name, '--finish')} ends them."
    found = [(at[0], trial.values[0]) for trial in complete if 0 in (at := reached(trial, ladder))]
    if sentence := (sentence + _agreement(found, count(ladder.lengths[0], step))).strip():
        yield sentence


def _agreement(pairs: Sequence[tuple[float, float]], early_steps: str) -> str:
    """A sentence about the rank correlation of early and final values, given as pairs (early, final)."""
    if len(pairs) >= 8:  # with fewer, chance alone can produce any correlation
        # The rank of each value, from 0; all are 0 if the values are equal.
        early, final = (np.unique([pair[side] for pair in pairs], return_inverse=True)[1] for side in (0, 1))
        agreement = float(np.corrcoef(early, final)[0, 1]) if early.any() and final.any() else 0.0
        words = f" Among the {len(pairs)} that completed, the rank after {early_steps} and the final rank"
        return f"{words} correlate by {agreement:.2f}" + (
            ": so early a value says little; raise search.min_epochs." if agreement < 0.5 else "."
        )
    return ""


def paused_rows(spec: StudySpec, trials: Sequence[FrozenTrial]) -> list[tuple[str, str, str]]:
    """Number, place and value of each paused trial, in the order of ``paused_trials``."""
    ladder, step = build_ladder(spec), step_word(spec)
    return [
        (str(view.number), words_of_pause(trial.user_attrs[PAUSED_AT], ladder, step), value)
        for trial in paused_trials(trials)
        for view in [view_of(trial)]
        for value in ["-" if view.value is None else number_of(view.value, spec.search.objective)]
    ]


def _moment(moment: datetime) -> str:
    return f"{moment:%-d %B %Y, %H:%M}"
