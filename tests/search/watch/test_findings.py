"""What a study's trials say: its story, its findings, its best, and settings that people know."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from datetime import datetime
from io import StringIO
from pathlib import Path

import optuna
import pytest
from invented import SPACE, at_rungs, complete, many_trials, page_of, pruned, trial
from marked import mark_of
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from scripted import EPOCHS, Bench, ScriptedPool, epoch, spec_of, started

from search.errors import NothingToExport
from search.export.choice import choose_trials
from search.figures.catalogue import study_figures
from search.figures.charts import learning_curves
from search.paths import DEFAULT_RUNS, Runs
from search.study.marks import MARK
from search.study.trial import ranked, view_of
from search.watch.findings import as_toml, findings, setting_importances, story
from search.watch.live import text_of_snapshot
from search.watch.page import note_text
from search.watch.status import snapshot_of
from search.workers.messages import Assign, FromWorker
from studies import Limit, StudySpec, load


class TestStory:
    def test_tells_counts_best_and_what_pruning_saved(self, spec: StudySpec) -> None:
        told = story(spec, [complete(0, 0.9), complete(1, 0.95), pruned(2, 0.3), trial(3, TrialState.FAIL, [0.2])])
        assert "4 of 60 trials finished from 7 March 2026, 09:30 to 7 March 2026, 09:37" in told
        assert "2 completed, 1 pruned, 1 failed" in told
        assert "trial 1, reached 95.00% on validation" in told
        # 18 + 1 + 1 epochs of 40 s; the pruned trial had 8 epochs to go.
        assert "Training took 13 min" in told
        assert "90% on trials that completed, 5% on trials that were pruned, 5% on trials that failed" in told
        assert "Pruning saved about 5 min" in told

    def test_says_when_the_best_was_a_known_recipe(self, spec: StudySpec) -> None:
        best = complete(0, 0.9)
        best.user_attrs["known"] = 0
        assert "trial 0, one of the known recipes that were tried first, reached" in story(spec, [best])

    def test_names_only_the_last_folder_of_the_data(self, spec: StudySpec) -> None:
        data = spec.data.model_copy(update={"source": "folder", "path": "/home/ada/birds"})
        page = page_of(spec.model_copy(update={"data": data}), [complete(0, 0.9)])
        assert "folder (birds)" in page
        assert "/home" not in page


class TestFindings:
    def test_the_edge_of_a_logarithmic_range_is_measured_in_the_logarithm(self, spec: StudySpec) -> None:
        # 0.0018 lies in the lowest twentieth of 0.001 to 0.02, but a fifth up its logarithm.
        inside = findings(spec, [complete(0, 0.9, params={"lr": 0.0018})], {})
        at_edge = findings(spec, [complete(0, 0.9, params={"lr": 0.0011})], {})
        assert not [line for line in inside if "edge" in line]
        assert [line for line in at_edge if "edge" in line] == [
            "The best lr, 0.0011, is at the lower edge of its range, 0.001 to 0.02; 1 of the top 1 lie in the "
            "outermost fifth on that side. Lower values may be better: widen the range."
        ]

    @pytest.mark.parametrize(
        ("params", "cure"),
        [
            ({"lr": 0.0199}, "Higher values may be better: widen the range."),
            ({"dropout": 0.01}, "Perhaps it is not needed at all."),
            ({"width_mult": 0.232}, "The limit ends there; wider models may be better."),
        ],
    )
    def test_what_to_do_about_an_edge_depends_on_the_edge(
        self, spec: StudySpec, params: dict[str, float], cure: str
    ) -> None:
        (line,) = [line for line in findings(spec, [complete(0, 0.9, params=params)], {}) if "edge" in line]
        assert line.endswith(cure)

    def test_says_how_many_were_pruned_at_the_first_rung(self, spec: StudySpec) -> None:
        trials = [complete(0, 0.9), pruned(1, 0.2), pruned(2, 0.2), pruned(3, 0.2, 0.3, 0.4)]
        assert "2 of 3 pruned trials ended at the first rung, after 1 epoch of 9." in findings(spec, trials, {})

    def test_says_when_the_first_rung_is_a_bad_judge(self, spec: StudySpec) -> None:
        # The earlier the better, the worse at the end.
        crossing = [trial(number, TrialState.COMPLETE, [0.5 + number / 50, 0.9 - number / 50]) for number in range(9)]
        parallel = [trial(number, TrialState.COMPLETE, [0.5 + number / 50, 0.7 + number / 50]) for number in range(9)]
        (bad,) = [line for line in findings(spec, [*crossing, pruned(9, 0.2)], {}) if "rung" in line]
        (good,) = [line for line in findings(spec, [*parallel, pruned(9, 0.2)], {}) if "rung" in line]
        assert "correlate by -1.00: so early a value says little; raise search.min_epochs." in bad
        assert good.endswith("correlate by 1.00.")

    def test_says_how_many_are_paused_at_which_rung_and_how_to_go_on(self, series: StudySpec) -> None:
        waits = [at_rungs(series, number, 0.3) for number in range(3)]
        trials = [*waits, at_rungs(series, 3, 0.5, 0.6), at_rungs(series, 4, 0.6, 0.7, 0.9)]
        (going,) = [line for line in findings(series, trials, {}) if "rung" in line]
        assert going == "4 of 5 candidates are paused: 3 at rung 1 of 2 (epoch 2) and 1 at rung 2 of 2 (epoch 6)."
        spent = series.model_copy(update={"search": series.search.model_copy(update={"trainings": 2.0})})
        (line,) = [line for line in findings(spent, trials, {}) if "rung" in line]
        assert line == (
            f"{going} A larger budget (--trainings 4) continues the best of them, search stop digits --finish ends "
            "them."
        )
        (line,) = [line for line in findings(spent, trials, {}, Runs(Path("here"))) if "rung" in line]
        assert line.endswith("search stop digits --finish --runs here ends them.")
        told = story(series, trials)
        how = "after 2, 6 and 18 epochs, each in a separate training; the best third goes on."
        assert f"Candidates are compared {how}" in told
        assert "1 completed, 0 pruned, 0 failed, 4 paused." in told
        assert "65% on trials that completed, 35% on trials that are paused." in told
        assert "Training its 5 candidates to the end would have taken 5 full trainings; the search took 2.2." in told
        assert "Pruning saved" not in told

    def test_says_how_the_rank_at_the_first_rung_agrees_with_that_at_the_end(self, series: StudySpec) -> None:
        good = [at_rungs(series, number, 0.1 + number / 50, 0.5, 0.7 + number / 50) for number in range(9)]
        bad = [at_rungs(series, number, 0.3 - number / 50, 0.5, 0.7 + number / 50) for number in range(9)]
        (line,) = [line for line in findings(series, good, {}) if "rank" in line]
        assert line == "Among the 9 that completed, the rank after 2 epochs and the final rank correlate by 1.00."
        (line,) = [line for line in findings(series, bad, {}) if "rank" in line]
        assert line.endswith("correlate by -1.00: so early a value says little; raise search.min_epochs.")

    def test_a_paused_trial_is_neither_finished_nor_to_be_exported(self, series: StudySpec) -> None:
        study = optuna.create_study(direction="maximize")
        study.add_trial(at_rungs(series, 0, 0.99))
        with pytest.raises(NothingToExport, match=r"no completed trial yet \(1 begun, 1 paused\)"):
            choose_trials(study, (), series)
        with pytest.raises(NothingToExport, match=r"trial 0 of .* is paused, not complete"):
            choose_trials(study, (0,), series)

    def test_diverged_trials_are_not_the_pruners(self, spec: StudySpec) -> None:
        diverged = pruned(1, 0.2, reason="DivergedError: epoch 2 has a training loss of nan; try a lower lr than 0.005")
        lines = findings(spec, [complete(0, 0.9), diverged], {})
        assert "1 trial diverged (lr 0.005)." in lines
        assert not [line for line in lines if "rung" in line]

    def test_trials_out_of_memory_are_neither_diverged_nor_the_pruners(self, spec: StudySpec) -> None:
        too_large = pruned(1, 0.2, reason="out of memory with 4 micro-batches")
        lines = findings(spec, [complete(0, 0.9), too_large], {})
        assert any(line.startswith("1 trial ran out of memory, with each batch in 4 parts too:") for line in lines)
        assert not [line for line in lines if "rung" in line or "diverged" in line]
        page = page_of(spec, [complete(0, 0.9), too_large])
        assert "<td>out of memory</td><td>1</td>" in page
        assert "<td>diverged</td>" not in page

    def test_a_fold_after_which_the_pruner_ended_a_trial_is_no_divergence(self, spec: StudySpec) -> None:
        lines = findings(spec, [complete(0, 0.9), pruned(1, 0.2, reason="median after fold 1")], {})
        assert not [line for line in lines if "diverged" in line]

    def test_few_completed_trials_make_the_importance_a_guess(self, spec: StudySpec) -> None:
        few = [complete(number, 0.9) for number in range(12)]
        many = [complete(number, 0.9) for number in range(30)]
        assert "Only 12 trials completed: the importance of the settings is a guess." in findings(
            spec, few, {"lr": 1.0}
        )
        assert not [line for line in findings(spec, many, {"lr": 1.0}) if "guess" in line]

    def test_a_search_that_goes_on_says_so(self, spec: StudySpec) -> None:
        lines = findings(spec, [complete(0, 0.9), trial(1, TrialState.RUNNING, [0.2])], {})
        unspent = "The budget is not spent: 1 of 60 trials finished, 1 complete, 1 unfinished. "
        assert f"{unspent}The same launch command goes on." in lines

    def test_folds_are_counted_as_folds(self, spec: StudySpec) -> None:
        folded = StudySpec.model_validate(spec.model_dump() | {"data": {"source": "digits", "folds": 3}})
        done = trial(0, TrialState.COMPLETE, [0.9, 0.9, 0.9])
        told = story(folded, [done, pruned(1, 0.3)])
        assert "with 3 folds of 9 epochs for each trial" in told
        assert "Pruning saved about 80 s." in told, "two folds of 40 s"
        lines = findings(folded, [done, pruned(1, 0.3)], {})
        assert "The only pruned trial ended at the first rung, after 1 fold of 3." in lines
        assert learning_curves([done], folded).layout.xaxis.title.text == "fold"
        assert "The best, trial 0, reached 90.00% in 3-fold cross-validation." in told
        snapshot = snapshot_of(folded, [done])
        console = Console(file=StringIO(), width=80)
        console.print(text_of_snapshot(snapshot))
        assert "best    trial 0, 90.00% in 3-fold cross-validation" in console.file.getvalue()
        note = note_text(folded, [], snapshot, "is being searched", datetime(2026, 3, 7), DEFAULT_RUNS)
        assert "; in 3-fold cross-validation, of one training, in the search." in note


class TestNumbers:
    def test_the_smaller_then_the_older_model_wins_a_tie(self) -> None:
        trials = [complete(0, 0.9, size=200), complete(1, 0.9, size=100), complete(2, 0.9, size=100), pruned(3, 0.99)]
        assert [trial.number for trial in ranked(trials)] == [1, 2, 0]

    def test_a_trial_over_the_limit_is_never_the_best(self, study: optuna.Study) -> None:
        for accuracy, excess in ((0.9, -1), (0.99, 1)):
            asked = study.ask(SPACE)
            asked.set_constraint("params", excess)
            asked.set_user_attr(MARK, mark_of(study, asked.number))
            study.tell(asked, accuracy)
        assert [trial.number for trial in ranked(study.get_trials())] == [0]

    def test_importance_finds_the_settings_that_mattered(self, spec: StudySpec) -> None:
        found = setting_importances(many_trials(), spec)
        assert set(list(found)[:2]) == {"lr", "width_mult"}  # many_trials is made so
        assert sum(found.values()) == pytest.approx(1)

    def test_importance_needs_trials_that_differ(self, spec: StudySpec) -> None:
        assert setting_importances([complete(number, 0.9) for number in range(9)], spec) == {}
        assert setting_importances([complete(number, 0.9) for number in range(20)], spec) == {}

    def test_the_toml_can_be_pasted_into_the_study_file(self, spec: StudySpec) -> None:
        best = ranked(many_trials())[:2]
        recipes = tomllib.loads(as_toml(spec, best))["known"]
        assert recipes == [trial.params for trial in best]
        assert StudySpec.model_validate(spec.model_dump() | {"known": recipes}).known == tuple(recipes)

    def test_a_setting_of_a_table_can_be_pasted_too(self) -> None:
        spec = load("contest/resnet_sam")
        best = complete(0, 0.9, params={"sam.rho": 0.1, "width_mult": 0.9, "weight_decay": 1e-4})
        recipes = tomllib.loads(as_toml(spec, [best]))["known"]
        assert recipes[0].keys() == {"lr", "weight_decay", "label_smoothing", "sam.rho", "width_mult"}
        assert StudySpec.model_validate(spec.model_dump() | {"known": recipes}).known == tuple(recipes)


class TestSharedWidth:
    """Where other sampled settings change the size, trials sample a share of the widths; people see widths."""

    @pytest.fixture
    def survey(self, spec: StudySpec) -> StudySpec:
        space = {"model": ["resnet10t", "resnet18"], "width_mult": {"low": 0.1}, "lr": spec.space["lr"]}
        return StudySpec.model_validate(spec.model_dump() | {"space": space})

    @staticmethod
    def trials(survey: StudySpec) -> list[FrozenTrial]:
        assert survey.shares_width
        axes = {"model": CategoricalDistribution(["resnet10t", "resnet18"]), "width_share": FloatDistribution(0, 1)}
        found = []
        for made in many_trials(24):
            share = (made.params["width_mult"] - 0.1) / 0.132
            model = ("resnet10t", "resnet18")[made.number % 2]
            made.params = {"model": model, "width_share": share, "lr": made.params["lr"]}
            made.distributions = axes | {"lr": SPACE["lr"]}
            made.user_attrs["sizes"] = {"width_mult": 0.1 + share * (0.2 if model == "resnet10t" else 0.1)}
            found.append(made)
        return found

    def test_a_pasted_recipe_is_the_same_model(self, survey: StudySpec) -> None:
        best = ranked(self.trials(survey))[0]
        (recipe,) = tomllib.loads(as_toml(survey, [best]))["known"]
        width = best.user_attrs["sizes"]["width_mult"]
        assert recipe == {"model": best.params["model"], "width_mult": width, "lr": best.params["lr"]}
        assert StudySpec.model_validate(survey.model_dump() | {"known": [recipe]}).known == (recipe,)

    def test_importance_is_found(self, survey: StudySpec) -> None:
        assert setting_importances(self.trials(survey), survey).keys() == {"model", "width_mult", "lr"}

    def test_no_page_and_no_figure_tells_of_shares(self, survey: StudySpec) -> None:
        page = page_of(survey, self.trials(survey), {"width_mult": 0.5, "lr": 0.5})
        assert "width_share" not in page
        assert "for one of 2 models on digits" in page
        axes = [figure for figure in study_figures(self.trials(survey), survey) if figure.id in ("parallel", "slices")]
        assert all("width_mult" in figure.chart.to_json() for figure in axes)

    def test_the_terminal_and_the_webhook_see_widths(self, survey: StudySpec) -> None:
        view = view_of(self.trials(survey)[0])
        assert list(view.params) == ["model", "lr", "width_mult"]
        never_counted = trial(0, TrialState.FAIL, [], params={"width_share": 0.5})
        del never_counted.params["width_mult"]
        assert "width_share" not in view_of(never_counted).params


def test_the_best_trial_is_feasible_then_accurate_then_small_then_old() -> None:
    study = optuna.create_study(direction="maximize")
    for value, size, excess in ((0.9, 500, 100), (0.8, 300, -100), (0.8, 200, -200), (0.8, 200, -200), (0.7, 10, -390)):
        trial = study.ask()
        trial.set_user_attr("num_params", size)
        trial.set_constraint("params", excess)
        study.tell(trial, value)
    pruned = study.ask()
    pruned.report(0.99, 1)
    study.tell(pruned, state=TrialState.PRUNED)
    assert [trial.number for trial in ranked(study.get_trials())] == [2, 3, 1, 4]
    lowered = Limit(params=299)
    assert [trial.number for trial in ranked(study.get_trials(), lowered)] == [2, 3, 4]


def test_a_trial_over_a_lowered_limit_is_nobodys_best(bench: Bench) -> None:
    def better_and_larger(assignment: Assign, _times: int) -> Iterator[FromWorker]:
        number = assignment.trial
        yield started(number)
        for step in range(1, EPOCHS + 1):
            yield epoch(number, step, number / 10)

    bench.coordinator(ScriptedPool(better_and_larger), spec_of(trials=4)).run()
    bench.accept_changes = True
    lowered = spec_of(trials=4).model_copy(update={"limit": Limit(params=902)})  # trial 3 has 903
    coordinator = bench.coordinator(ScriptedPool(better_and_larger), lowered)
    assert coordinator.run() is True
    trials = coordinator.trials.study.get_trials()
    live, outside = coordinator.snapshot().best, snapshot_of(lowered, trials).best
    assert live is not None
    assert live == outside
    assert live.number == choose_trials(coordinator.trials.study, (), lowered)[0].number == 2
    assert [view.feasible for view in coordinator.snapshot().finished] == [True, True, True, False]
