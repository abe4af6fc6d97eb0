"""bench/quality.py: replays on made-up tables, and the arithmetic of what they say."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import onnx
import optuna
import pytest
from onnx import TensorProto, helper, numpy_helper

sys.path.append(str(Path(__file__).parent.parent / "bench"))

from quality import measure, noise, races, real, report, stops, transfer
from quality.curves import Recorded, TableTask
from quality.folder import JUDGES_RUNGS, JUDGES_SHORT, tasks_of
from quality.ours import PromoteSubject, anew, truncated
from quality.replay import RACE5, RACE8, Look, Search, race_of
from quality.results import Key, Run, read, run_of
from quality.subjects import SUBJECTS

from bench import rungs
from search.policy.race import FIXED, LONG

BENCH = Path(__file__).parent.parent / "bench"

OURS_AND_OPTUNA = [
    name
    for name in SUBJECTS
    if name not in ("asha", "bohb", "smac", "priorband")
    and (not name.startswith("model") or importlib.util.find_spec("search.policy.model"))
]


@pytest.fixture(autouse=True)
def quiet_optuna():
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(verbosity)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One table of each kind."""
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    full, short, opda = [], [], []
    for config in range(30):
        params = {"lr": 10 ** rng.uniform(-4, -1), "dropout": rng.uniform(0, 0.5), "kind": ["a", "b"][config % 2]}
        end = 0.9 - 0.1 * (math.log10(params["lr"]) + 2) ** 2 - 0.1 * params["dropout"]
        for seed in (0, 1):
            curve = [end * (epoch + 1) / 9 + 0.01 * seed for epoch in range(9)]
            full.append({"config": config, "seed": seed, "epochs": 9, "params": params, "val_accuracy": curve})
        short.append({"config": config, "seed": 2, "params": params, "val_accuracy": [end / 2, end / 1.5, end * 0.9]})
        opda.append(
            {
                "nan_train_loss": config == 0,
                "epochs": 20 + config,
                "batch_size": 128 << (config % 4),
                "lr": 0.01 + config,
            }
            | {"lr_peak_epoch": 3, "momentum": 0.9, "weight_decay": 1e-5, "label_smoothing": 0.1}
            | {"learning_curve": [{"top_1": 0.01 * epoch} for epoch in range(3 if config == 0 else 20 + config)]}
        )
    full[-1] = {key: value for key, value in full[-1].items() if key != "val_accuracy"} | {"diverged": "loss is nan"}
    for name, lines in {"own": full, "owne3": short, "net_tuning": opda}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "lcbench_encoding.json").write_text(json.dumps({"OpenML_task_id": {"#na#": 0, "3": 1, "167083": 2}}))
    onnx.save(surrogate(), str(folder / "made_up.onnx"))
    return folder


def surrogate() -> onnx.ModelProto:
    """The accuracy is the epoch plus the momentum."""
    weights = np.zeros((8, 2), np.float32)
    weights[0, 1] = weights[3, 1] = 1
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x_cont", "weights"], ["y"])],
        "made-up",
        [
            helper.make_tensor_value_info("x_cat", TensorProto.INT32, [None, 1]),
            helper.make_tensor_value_info("x_cont", TensorProto.FLOAT, [None, 8]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 2])],
        [numpy_helper.from_array(weights, "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_a_folder_of_tables_is_read(folder):
    tasks = tasks_of(folder, "all")

    assert set(tasks) == {"own", "net", "3"}
    own = tasks["own"]
    assert (own.epochs, own.short, own.size) == (9, (3,), 30)
    assert own.space["lr"].log
    assert not own.space["dropout"].log
    assert own.space["kind"].choices == ("a", "b")
    assert tasks["net"].curve(tasks["net"].rows[0].params, 0, 27).max() < 5, "diverged: a guess from its third epoch on"
    assert own.truth(own.rows[-1].params) == 0, "one of its trainings diverged"


def test_the_surrogate_counts_epochs_from_its_second_input(folder):
    task = tasks_of(folder, "3")["3"]
    (params,) = task.sample(np.random.default_rng(1), 1)

    assert task.truth(params) == pytest.approx(51 + params["momentum"], abs=1e-4)
    assert task.best == pytest.approx(51.99, abs=0.01)
    assert task.median == pytest.approx(51.545, abs=0.02)
    assert task.curve(params, 7, 50)[-1] == pytest.approx(task.truth(params), abs=2.5)


def test_a_task_that_is_not_there_is_named(folder):
    with pytest.raises(ValueError, match="has no elsewhere"):
        tasks_of(folder, "own,elsewhere")


@pytest.mark.parametrize("name", OURS_AND_OPTUNA)
def test_a_search_is_replayed_and_repeats_itself(folder, name):
    task = tasks_of(folder, "own")["own"]

    first, second = (Search(SUBJECTS[name](), task, 3, 4).run(12) for _ in range(2))

    assert first == second
    assert [look.budget for look in first] == [1, 2, 3, 4, 5, 6, 8, 10, 12]
    assert first[-1].complete >= 1
    assert first[-1].raw < 60
    if name in ("tpe", "gp", "random", "model_whole"):
        assert first[-1].candidates == 16, "each of four workers is at its fourth training"
    else:
        assert first[-1].complete < 12


def test_the_compute_spent_is_that_of_all_trainings(folder):
    task = tasks_of(folder, "own")["own"]
    search = Search(SUBJECTS["random_anew"](), task, 0, 4)
    while search.spent < 10:
        search.step()

    assert sum(len(one.values) for one in search.candidates) == search.steps == 90


def test_after_a_whole_short_training_a_candidate_begins_anew():
    rows = [
        Recorded({"x": number / 10}, np.arange(9.0) + number, {3: np.full(3, 70.0 + number)}) for number in range(10)
    ]
    task = TableTask("crossing", "trainings", {"x": optuna.distributions.FloatDistribution(0, 1)}, rows)
    search = Search(PromoteSubject(lambda seed, ladder: optuna.samplers.RandomSampler(seed), anew), task, 0, 1)
    while not any(len(one.values) == 12 for one in search.candidates):
        search.step()

    promoted = next(one for one in search.candidates if len(one.values) == 12)
    number = round(10 * task.rows[task._nearest(promoted.params)].params["x"])
    assert promoted.values[:3] == [70 + number] * 3
    assert promoted.values[-1] == pytest.approx(8 + number, abs=4)
    assert promoted is max(search.candidates[:3], key=lambda one: one.values[0])


def test_without_short_trainings_a_task_cannot_judge_them(folder):
    tasks = tasks_of(folder, "all")

    with pytest.raises(ValueError, match="net has no whole short trainings"):
        anew(tasks["net"])
    assert truncated(tasks["net"]).lengths == (3, 9, 27)


def exact_task(ends: list[float]) -> TableTask:
    """A table whose trainings show their mean."""
    zeros = np.zeros(9)
    rows = [Recorded({"x": float(index)}, np.full(9, end), {}, deviation=zeros) for index, end in enumerate(ends)]
    axis = optuna.distributions.FloatDistribution(0, len(ends) - 1)
    return TableTask("exact", "trainings", {"x": axis}, rows)


def test_a_race_is_won_by_the_best_of_those_that_take_part():
    task = exact_task([10, 20, 30, 40, 50])
    finalists = [row.params for row in task.rows]

    assert race_of(task, finalists, RACE5, (0, 1)) == ({"x": 2.0}, 5)
    assert race_of(task, finalists, RACE8, (0, 1)) == ({"x": 3.0}, 8)
    assert race_of(task, finalists[:1], RACE5, (0, 1)) == ({"x": 0.0}, 2)


def look(budget: int, raw: float, raced: float = 0.0) -> Look:
    return Look(budget, candidates=budget, complete=budget, raw=raw, raced=raced, race=5)


def made(policy: str, task: str, run: int, raw: dict[int, float]) -> Run:
    looks = tuple(look(budget, behind, behind / 2) for budget, behind in raw.items())
    return Run(Key(policy, task, run, 4), scale=20.0, cpu=1.0, kind="lcbench", judges=JUDGES_RUNGS, looks=looks)


def test_regret_is_a_share_of_what_median_settings_lack():
    runs = [made("p", "t", 0, {5: 10.0, 10: 4.0}), made("p", "t", 1, {5: 6.0, 10: 2.0}), made("p", "u", 0, {5: 0.0})]

    curve = measure.curve_of(runs, raced=False)
    assert curve.budgets == (5,)
    assert curve.regrets.tolist() == [[40.0], [0.0]]
    assert measure.curve_of(runs[:2], raced=True).costs.tolist() == [[10.0, 15.0]]
    assert measure.curve_of(runs[:2], raced=True).regrets.tolist() == [[20.0, 7.5]]
    assert measure.regret_at(runs, 5, raced=False).value == 20.0


@pytest.mark.parametrize(
    ("target", "expected"), [(80.0, 5.0), (50.0, 7.5), (40.0, 10.0), (30.0, 17.5), (5.0, math.inf)]
)
def test_compute_to_reach_is_linear_between_looks_and_keeps_what_was_reached(target, expected):
    costs, regrets = np.array([5.0, 10, 15, 20]), np.array([60.0, 40, 50, 20])

    assert measure.compute_to_reach(costs, regrets, target) == expected


def test_ratio_gains_and_worst_task():
    base = [made("tpe", task, run, {10: 8.0, 30: 4.0}) for task in "tu" for run in (0, 1)]
    ours = [made("p", "t", run, {5: 8.0, 10: 2.0, 15: 1.0}) for run in (0, 1)]
    ours += [made("p", "u", run, {5: 10.0, 10: 6.0, 15: 5.0 + run}) for run in (0, 1)]

    found = measure.ratio(ours, base, 30, raced=False)
    assert found.value == pytest.approx(10 / 30)
    assert (found.low, found.high, found.n) == (pytest.approx((5 + 5 * 4 / 6) / 30), math.inf, 4)
    assert measure.ratio(ours, base, 30, raced=True).value == pytest.approx(15 / 35)
    assert measure.difference(ours, base, 10).value == pytest.approx((-30 - 10) / 2)
    gained = measure.gains(ours, 15, base, 30)
    assert gained["t"].tolist() == [3.0, 3.0]
    task, worst = measure.worst_task(gained)
    assert (task, worst.value, worst.low, worst.high) == ("u", -1.5, -2.0, -1.0)


def test_a_run_comes_back_from_its_line():
    run = made("p", "t", 0, {5: 10.0, 10: 4.0})

    assert run_of(run.line()) == run


@pytest.mark.parametrize("early", ["like the end", "reversed"])
def test_a_rule_stops_the_best_where_early_values_mislead(early):
    sign = 1 if early == "like the end" else -1
    rows = [
        Recorded({"x": float(end)}, np.append(np.full(8, 50.0 + sign * end / 2), 10.0 + end), {}, np.zeros(9))
        for end in range(60)
    ]
    task = TableTask("t", "trainings", {"x": optuna.distributions.FloatDistribution(0, 59)}, rows)

    found = [stops.lost_best(rule, task, draws=5, workers=4) for rule in ("promote", "halving")]

    assert [one.stopped for one in found] == ([0, 0] if early == "like the end" else [5 - found[0].unbegun, 5])
    assert all(one.lost >= one.stopped for one in found)


def run_program(*arguments: str) -> None:
    specification = importlib.util.spec_from_file_location("quality_program", BENCH / "quality.py")
    program = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(program)
    program.main(list(arguments))


def test_the_program_adds_what_is_missing_and_prints_it(folder, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    replay = ["replay", "--data", str(folder), "--out", str(out), "--set", "own,3", "--budget", "30"]

    run_program(*replay, "--policies", "tpe", "--runs", "1")
    run_program(*replay, "--policies", "tpe,random_promote", "--runs", "1")
    assert len(out.read_text().splitlines()) == 4
    run_program("stops", "--data", str(folder), "--out", str(out), "--set", "3", "--draws", "2")
    assert [(run.key.policy, run.key.task) for run in read([out])] == [
        (policy, task) for policy in ("tpe", "random_promote") for task in ("3", "own")
    ]
    assert {run.judges for run in read([out])} == {JUDGES_RUNGS, JUDGES_SHORT}

    capsys.readouterr()
    run_program("table", str(out), "--json")
    tables = json.loads(capsys.readouterr().out)
    assert [row["policy"] for row in tables[1]["rows"]] == ["tpe", "random_promote"]
    assert float(tables[1]["rows"][0]["30"]) >= 0
    run_program("goals", str(out), "--policy", "random_promote")
    said = capsys.readouterr().out
    assert "compute to reach TPE at 30, search alone, raw choice" in said
    assert "best of 60 not trained to its end at 15 trainings, promote (1 LCBench tasks)" in said


def test_a_goal_is_met_or_not():
    base = [made("tpe", "t", 0, {8: 9.0, 15: 8.0, 30: 4.0})]
    good = [made("model", "t", 0, {8: 4.0, 15: 3.9, 30: 1.0})]
    bad = [made("model", "t", 0, {8: 9.5, 15: 6.0, 30: 3.0})]

    rows = {aim: report.goals(base + runs, [], "model").rows for aim, runs in (("good", good), ("bad", bad))}
    assert [row[3] for row in rows["good"]] == ["yes", "yes", "yes", "yes", "yes", "yes"]
    assert [row[3] for row in rows["bad"]] == ["no", "no", "no", "no", "yes", "yes"]
    assert rows["good"][0][2] == "0.27 (0.27 to 0.27)"


def test_a_race_costs_little_and_only_its_report_is_true() -> None:
    """The goals of bench/commands.md, "The race", with intervals as wide as fewer draws make them."""
    rng = np.random.default_rng(0)
    race = [races.choose(LONG, 12, 3.0, rng) for _ in range(600)]
    fixed = [races.choose((FIXED,), 12, 3.0, rng) for _ in range(600)]
    assert abs(np.mean([one.reported for one in race])) < 0.1
    assert np.mean([one.chosen_by for one in race]) > 0.2
    assert np.mean([one.regret for one in race]) - np.mean([one.regret for one in fixed]) < 0.08


@pytest.fixture
def tiny(monkeypatch):
    """A task of two epochs on 180 digits."""
    data = {"source": "digits", "image_size": 16, "val_fraction": 0.5, "test_fraction": 0.8}
    monkeypatch.setitem(real.TASKS, "tiny", rungs.Task(epochs=2, data=data, recipe={}))


@pytest.mark.slow
def test_plain_optuna_searches_with_real_trainings(tiny, tmp_path):
    out = tmp_path / "real.jsonl"
    key = real.Key("launch", "tiny", 1, 0)
    chosen = real.Chosen(1.0, 5.0, 2, 1, {"lr": 0.01}, 0.5)
    done = real.Judged(key, chosen, (0.4, 0.6))
    out.write_text(done.line() + "\n")

    run_program("real", "tiny", "--out", str(out), "--budgets", "1,3", "--runs", "1", "--minutes", "0")
    assert real.read([out]) == [done], "the time is up before the first search"
    place = real.Place("tiny", None, tmp_path)
    training = real.Training(place, 0)
    looks = real.by_optuna(training, [1, 3])

    assert {budget: look.candidates for budget, look in looks.items()} == {1: 1, 3: 3}
    assert [look.spent for look in looks.values()] == [1.0, 3.0], "the median pruner's first five are not pruned"
    assert looks[1].params.keys() == {"label_smoothing", "weight_decay", "lr", "dropout", "width_mult"}
    assert looks[3].claimed >= looks[1].claimed
    truth = training.truth(looks[1].params)
    assert len(truth) == 5
    assert len(set(truth)) > 1, "each has a seed of its own"
    assert real.by_optuna(training, [1])[1].params == looks[1].params


@pytest.mark.slow
def test_both_search_and_go_on_with_what_is_missing(tiny, tmp_path):
    out = tmp_path / "real.jsonl"
    run_program("real", "tiny", "--out", str(out), "--budgets", "2", "--runs", "1")
    first = out.read_text()
    run_program("real", "tiny", "--out", str(out), "--budgets", "2", "--runs", "1")

    assert out.read_text() == first
    launched, other = real.read([out])
    assert (launched.key.searcher, other.key.searcher) == ("launch", "optuna")
    assert launched.chosen.params.keys() == other.chosen.params.keys()
    assert 1 <= launched.chosen.complete <= launched.chosen.candidates
    assert 2 <= launched.chosen.spent <= 3
    assert launched.chosen.cpu > 1


def searched(searcher: str, budget: int, run: int, truth: float) -> real.Judged:
    chosen = real.Chosen(budget + 0.5, 10.0, 2 * budget, budget, {}, 1.0)
    return real.Judged(real.Key(searcher, "t", budget, run), chosen, (truth - 0.01, truth + 0.01))


def test_choices_are_compared_in_pairs(tmp_path, capsys):
    out = tmp_path / "real.jsonl"
    searches = [searched("launch", 8, run, 0.90 + 0.01 * run) for run in range(3)]
    searches += [searched("optuna", 8, run, truth) for run, truth in enumerate((0.90, 0.90, 0.92))]
    searches += [searched("optuna", 15, run, 0.92) for run in (0, 1)]
    out.write_text("".join(one.line() + "\n" for one in searches))

    run_program("table", str(out), "--json")
    (table,) = json.loads(capsys.readouterr().out)
    first, half = table["rows"]
    columns = ("ours : Optuna", "n", "ours, %", "Optuna, %", "ours better by, points")
    assert [first[column] for column in columns] == ["8 : 8", "3", "91.00", "90.67", "+0.33 (-0.64 to +1.31)"]
    assert [half[column] for column in columns] == ["8 : 15", "2", "90.50", "92.00", "-1.50 (-4.66 to +1.66)"]
    assert first["trainings really spent"] == "8.5 : 8.5"
    assert math.isnan(real.gap_of([(searches[0], searches[3])]).low)
    run_program("goals", str(out), "--json")
    (goals,) = json.loads(capsys.readouterr().out)
    assert [row["measured"] for row in goals["rows"]] == ["+1.50 (-1.66 to +4.66)"]
    assert goals["rows"][0]["met"] == "no"


def test_recipes_of_earlier_studies_are_tried_first_and_the_rest_is_as_without_them(folder):
    task = tasks_of(folder, "own")["own"]
    recipes = [dict(task.rows[number].params) for number in (3, 7)]

    warm = Search(transfer.Warm(recipes), task, 0, 4)
    warm.run(4)

    assert [dict(one.params) for one in warm.candidates[:2]] == recipes
    assert len(warm.candidates) > 2
    assert transfer.recipe_of(task, 0) == transfer.recipe_of(task, 0)


def test_the_regret_with_and_without_earlier_studies_is_compared_on_all_tasks():
    first = transfer.Compared("a", 10.0, cold=(4.0, 3.0, 2.0, 1.0), warm=(2.0, 1.5, 1.0, 1.0))
    second = transfer.Compared("b", 20.0, cold=(4.0, 2.0, 2.0, 0.0), warm=(5.0, 2.0, 2.0, 0.4))

    rows = [line.split(" | ") for line in transfer.table([first, second]).splitlines()]

    assert rows[2][1:] == ["30.0", "20.0", "15.0", "5.0 |"]
    assert rows[3][1:] == ["22.5", "12.5", "10.0", "6.0 |"]
    assert rows[4][1:] == ["0.75", "0.62", "0.67", "1.20 |"]
    assert rows[6] == ["| points gained, task b", "-1.00", "+0.00", "+0.00", "-0.40 |"]


def test_an_estimate_of_the_noise_is_judged_by_the_noise_pooled_over_the_best_recipes(tmp_path):
    for name in noise.PICTURES:
        lines = [
            {"config": config, "seed": seed, "val_accuracy": [0.1, 0.9 - config / 100 + 0.02 * seed]}
            for config in range(6)
            for seed in (0, 1)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    digits = noise.table(tmp_path).splitlines()[2].split(" | ")

    assert digits[1:3] == ["2", "1.41%"], "the best two of six, whose seeds differ by two points"
    assert digits[4] == "1.00", "every pair has the same difference"
    assert float(digits[5]) == pytest.approx(0.0141421 / math.sqrt(0.905 * 0.095 / 897), rel=0.02)
