"""The limit, exactly: what ``widest`` answers against counting by hand, and what ``search limit`` says of it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from inside import run_inside

from search.errors import UsageError
from search.plan.limit import answer_limit, text_of_limit
from search.plan.width import WIDEST, WIDTH_STEP, Fitter, SizedWidth, Width
from studies import Limit
from trainer.config import ModelSize, Shape, TrainConfig
from trainer.errors import ConfigError, LimitError
from trainer.kept import write_checked
from trainer.models import count, count_params, dip
from trainer.values import to_json

IMAGE_SIZE = 32
NUM_CLASSES = 10
SHAPE = Shape(NUM_CLASSES, IMAGE_SIZE)


def counted(model: str, width_mult: float, what: str) -> int:
    """By hand: parameters from timm itself, multiply-adds from the counter that trials are recorded with."""
    if what == "macs":
        return count(TrainConfig(model=model, width_mult=width_mult), SHAPE).macs
    if model.startswith("resnet"):
        width = {"channels": [max(1, round(channels * width_mult)) for channels in (64, 128, 256, 512)]}
    else:
        width = {"width_mult": width_mult}
    with torch.device("meta"):
        net = timm.create_model(model, num_classes=NUM_CLASSES, **width)
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)


@cache
def find(model: str, limit: Limit, *, low: float = WIDTH_STEP) -> Width:
    return Fitter(SHAPE, limit).widest(TrainConfig(model=model), low)


def find_through(memory: Path, limit: Limit, *, low: float = WIDTH_STEP) -> Width:
    return Fitter(SHAPE, limit, memory).widest(TrainConfig(model="resnet10t"), low)


@pytest.mark.parametrize(
    ("model", "what", "bound"),
    [
        ("rexnet_100", "params", 2_000_000),
        pytest.param("rexnetr_100", "params", 5_000_000, marks=pytest.mark.slow),
        ("resnet18", "params", 300_000),
        pytest.param("resnet50", "params", 5_000_000, marks=pytest.mark.slow),
        ("rexnet_100", "macs", 5_000_000),
        pytest.param("resnet18", "macs", 10_000_000, marks=pytest.mark.slow),
    ],
)
def test_the_widest_width_is_that_of_a_brute_force_count(model: str, what: str, bound: int) -> None:
    answer = find(model, Limit.model_validate({what: bound}))
    assert answer.next.width_mult == pytest.approx(answer.widest.width_mult + WIDTH_STEP, abs=1e-9)
    assert answer.next is not None
    assert getattr(answer.widest, what) == counted(model, answer.widest.width_mult, what) <= bound
    assert getattr(answer.next, what) == counted(model, answer.next.width_mult, what) > bound

    nearby = [answer.widest.width_mult + steps * WIDTH_STEP for steps in (-2, -1, 0, 1, 2)]
    widths = sorted([*nearby, *(answer.widest.width_mult * factor for factor in (0.3, 0.6, 0.9, 1.1, 1.6))])
    sizes = [counted(model, width, what) for width in widths]
    assert sizes == sorted(sizes), "a staircase that only rises"
    for width, size in zip(widths, sizes, strict=True):
        assert (size <= bound) == (width < answer.widest.width_mult + WIDTH_STEP / 2), width


def test_both_limits_hold_and_the_tighter_one_decides() -> None:
    params, macs = find("resnet10t", Limit(params=300_000)), find("resnet10t", Limit(macs=7_000_000))
    both = find("resnet10t", Limit(params=300_000, macs=7_000_000))
    assert both == macs
    assert macs.widest.width_mult < params.widest.width_mult


def test_the_contests_limit_has_the_contests_answer() -> None:
    answer = Fitter(Shape(400, 224), Limit(params=5_000_000)).widest(TrainConfig(model="rexnet_100"), low=0.8)
    assert (answer.widest.width_mult, answer.widest.params) == (1.12451, 4_997_523)
    assert answer.next is not None
    assert (answer.next.width_mult, answer.next.params) == (1.12452, 5_001_941)


@pytest.mark.slow
def test_where_a_resnet_gets_smaller_as_it_widens_no_width_below_the_answer_is_over() -> None:
    # The first stage of a resnet14t loses a projection at 16 channels: from 0.24122 on it has 507,420 parameters,
    # from 0.24219 on 504,559, from 0.24317 on 509,096.
    sizes = [counted("resnet14t", width, "params") for width in (0.24121, 0.24218, 0.24219, 0.24317)]
    assert sizes == [502_909, 507_420, 504_559, 509_096]
    assert find("resnet14t", Limit(params=506_000), low=0.24).widest.width_mult == 0.24121
    assert find("resnet14t", Limit(params=507_420), low=0.24).widest.width_mult == 0.24316, "the brim of the dip fits"
    assert find("resnet14t", Limit(params=506_000), low=0.2422).widest.width_mult == 0.24316, (
        "the space begins in the dip"
    )


@pytest.mark.parametrize(
    ("model", "at"),
    [
        *(("rexnet_100", None), ("rexnetr_100", None), ("efficientnet_b0", None)),
        *(("resnet18", 63.5 / 64), ("resnet50", 15.5 / 64), ("resnet50s", 31.5 / 64)),
        ("wrn-16-4", None),
    ],
)
def test_the_dip_of_a_family_is_where_its_first_stage_meets_its_stem(model: str, at: float | None) -> None:
    assert dip(TrainConfig(model=model)) == at


@pytest.mark.slow
def test_the_stem_is_part_of_the_question(tmp_path: Path) -> None:
    memory, limit = tmp_path / "widths.json", Limit(macs=20_000_000)
    own, cifar = (
        Fitter(SHAPE, limit, memory).widest(TrainConfig.model_validate({"model": "resnet10t", "stem": stem}))
        for stem in ("timm", "cifar")
    )
    assert cifar.widest.width_mult < own.widest.width_mult / 3
    at = TrainConfig(model="resnet10t", stem="cifar", width_mult=cifar.widest.width_mult)
    assert count(at, SHAPE).macs == cifar.widest.macs <= 20_000_000
    assert cifar.next is not None
    assert count(at.model_copy(update={"width_mult": cifar.next.width_mult}), SHAPE).macs > 20_000_000


def test_a_wide_resnet_only_grows() -> None:
    """Its first stage loses a projection at its stem's width too, but gains more: round it and over the whole scale."""
    around = [step / 100 for step in range(86, 110, 2)]
    sizes = [count_params(TrainConfig(model="wrn-10-1", width_mult=width), Shape(10, 32)) for width in around]
    assert sizes == sorted(sizes)


def test_an_answer_is_found_from_the_smallest_width_asked_for() -> None:
    limit = Limit(params=300_000)
    answer = find("resnet10t", limit)
    for low in (answer.widest.width_mult, answer.widest.width_mult - WIDTH_STEP / 2):
        assert find("resnet10t", limit, low=low).widest.width_mult == answer.widest.width_mult
    with pytest.raises(LimitError, match="no width of resnet10t fits"):
        find("resnet10t", limit, low=answer.widest.width_mult + WIDTH_STEP)


def test_without_a_limit_within_reach_the_widest_is_the_end_of_the_scale() -> None:
    assert find("resnet10t", Limit(params=10**12)) == Width(
        SizedWidth.of(WIDEST, count(TrainConfig(model="resnet10t", width_mult=WIDEST), SHAPE)), None
    )


def test_a_limit_that_no_width_fits_is_an_error_with_the_smallest_size() -> None:
    with pytest.raises(LimitError) as caught:
        find("resnet10t", Limit(params=100))
    smallest = counted("resnet10t", WIDTH_STEP, "params")
    assert f"no width of resnet10t fits: at 1e-05, the narrowest, it has {smallest:,} parameters" in str(caught.value)
    assert "the limit is 100 parameters; raise it, or choose a smaller width or model" in str(caught.value)


def test_a_remembered_answer_equals_the_computed_one(tmp_path: Path) -> None:
    memory = tmp_path / "cache" / "widths.json"
    limits = [Limit(params=300_000), Limit(params=10**12)]
    computed = [find_through(memory, limit) for limit in limits]
    assert computed == [find("resnet10t", limit) for limit in limits]
    assert [find_through(memory, limit) for limit in limits] == computed
    assert len(json.loads(memory.read_text())["answers"]) == len(limits)
    assert [path.name for path in memory.parent.iterdir()] == ["widths.json"]


def test_the_memory_is_really_asked_and_only_for_the_same_question(tmp_path: Path) -> None:
    memory = tmp_path / "widths.json"
    right = find_through(memory, Limit(params=300_000))
    (key,) = json.loads(memory.read_text())["answers"]
    write_checked(memory, {"answers": {key: {"widest": {"width_mult": 0.5, "params": 1, "macs": 2}, "next": None}}})
    assert find_through(memory, Limit(params=300_000)) == Width(SizedWidth(width_mult=0.5, params=1, macs=2), None)
    assert find_through(memory, Limit(params=300_000), low=0.01) == right


def test_the_size_of_a_fixed_model_is_remembered_as_well(tmp_path: Path) -> None:
    memory, limit = tmp_path / "widths.json", Limit(params=10_000_000)
    fitter, config = Fitter(SHAPE, limit, memory), TrainConfig(model="resnet10t", width_mult=0.5)
    size = fitter.check(config)
    assert size == fitter.check(config)
    (key,) = json.loads(memory.read_text())["answers"]
    write_checked(memory, {"answers": {key: {"params": 7, "macs": 8}}})
    assert fitter.check(config) == ModelSize(params=7, macs=8)
    wider = config.model_copy(update={"width_mult": 0.6})
    assert fitter.check(wider).params > size.params
    write_checked(memory, {"answers": {key: {"params": 10_000_001, "macs": 8}}})
    with pytest.raises(LimitError, match="10,000,001 parameters"):
        fitter.check(config)


@pytest.mark.parametrize("content", ["", "{", "\0", "[1, 2]", '{"of a version before": {"params": 7, "macs": 8}}'])
def test_a_damaged_memory_is_no_memory(tmp_path: Path, content: str) -> None:
    memory = tmp_path / "widths.json"
    memory.write_text(content)
    with pytest.warns(UserWarning, match=r"widths\.json is damaged.*; sizes are counted again$"):
        found = find_through(memory, Limit(params=300_000))
    assert found == find("resnet10t", Limit(params=300_000))
    assert len(json.loads(memory.read_text())["answers"]) == 1


def test_a_memory_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert find_through(tmp_path / "file" / "widths.json", Limit(params=300_000)).widest.width_mult > 0.1


@pytest.mark.parametrize("model", ["rexnet_100", "resnet18", "efficientnet_b0"])
def test_parameters_alone_are_those_of_the_full_count(model: str) -> None:
    config = TrainConfig(model=model)
    assert count_params(config, SHAPE) == count(config, SHAPE).params


# -- search limit


def fitter(classes: int, image_size: int, max_params: int | None = None) -> Fitter:
    return Fitter(Shape(classes, image_size), Limit(params=max_params))


def test_an_answer_holds_the_question_the_size_and_the_proof() -> None:
    answer = answer_limit("resnet10t", fitter(NUM_CLASSES, IMAGE_SIZE, 300_000))
    width = find("resnet10t", Limit(params=300_000))
    assert width.next is not None
    assert json.loads(json.dumps(to_json(answer))) == {
        "model": "resnet10t",
        "classes": NUM_CLASSES,
        "image_size": IMAGE_SIZE,
        "limit": {"params": 300_000, "macs": None},
        "width_mult": width.widest.width_mult,
        "params": width.widest.params,
        "macs": width.widest.macs,
        "fits": True,
        "next": {
            "width_mult": width.next.width_mult,
            "params": width.next.params,
            "macs": width.next.macs,
        },
    }
    question, size, proof = text_of_limit(answer).splitlines()
    assert question == "resnet10t, 10 classes, 32 px; 300,000 parameters at most"
    assert f"{width.widest.params:,} parameters" in size
    assert size.endswith("fits")
    assert proof.endswith(f"  {width.next.params - 300_000:,} parameters over")


@pytest.mark.parametrize(
    ("max_params", "fits", "verdict"),
    [(5_000_000, True, "fits"), (4_967_719, True, "fits"), (4_967_718, False, "1 parameters over")],
)
def test_a_width_of_ones_own_is_counted_and_compared(max_params: int, fits: bool, verdict: str) -> None:
    answer = answer_limit("rexnet_100", fitter(400, 224, max_params), 1.12)
    assert (answer.width_mult, answer.params, answer.fits) == (1.12, 4_967_719, fits)
    assert answer.next is None
    assert text_of_limit(answer).endswith(verdict)


def test_a_width_without_a_limit_is_only_counted() -> None:
    answer = answer_limit("resnet10t", fitter(NUM_CLASSES, IMAGE_SIZE), 0.5)
    assert answer.fits is None
    assert text_of_limit(answer).splitlines()[0] == "resnet10t, 10 classes, 32 px; no limit"
    assert text_of_limit(answer).endswith(" GFLOPs")


def test_a_model_without_a_width_has_its_one_size() -> None:
    answer = answer_limit("mobilenetv2_100", fitter(400, IMAGE_SIZE, 5_000_000))
    assert (answer.width_mult, answer.params, answer.fits) == (None, 2_736_272, True)
    assert "its one size" in text_of_limit(answer)
    with pytest.raises(
        LimitError, match=r"mobilenetv2_100 .* has 2,736,272 parameters .* the limit is 2,000,000 param"
    ):
        answer_limit("mobilenetv2_100", fitter(400, IMAGE_SIZE, 2_000_000))
    with pytest.raises(ConfigError, match="mobilenetv2_100 has no width"):
        answer_limit("mobilenetv2_100", fitter(400, IMAGE_SIZE, 2_000_000), 0.5)


def test_the_scales_end_is_said_to_be_one() -> None:
    assert "no width beyond 10 is tried" in text_of_limit(answer_limit("resnet10t", fitter(10, IMAGE_SIZE, 10**12)))


def test_a_question_without_a_limit_or_a_width_says_how_to_ask() -> None:
    with pytest.raises(UsageError, match="for example: search limit resnet18 --classes 7 --max-params 5000000"):
        answer_limit("resnet18", fitter(7, IMAGE_SIZE))


def test_an_unknown_model_names_the_nearest() -> None:
    for max_params, width_mult in ((1, None), (None, 1.0)):
        with pytest.raises(ConfigError, match="'rexnet_1000' is not a timm model; did you mean rexnet_100"):
            answer_limit("rexnet_1000", fitter(7, IMAGE_SIZE, max_params), width_mult)


@pytest.mark.parametrize("width_mult", [0.0, -1.0, 10.5, float("nan")])
def test_a_width_that_is_none_is_refused(width_mult: float) -> None:
    with pytest.raises(ConfigError, match=f"width_mult = {width_mult}: input should be"):
        answer_limit("resnet18", fitter(7, IMAGE_SIZE), width_mult)


def test_the_command_answers_and_exits_as_documented(tmp_path: Path) -> None:
    asked = ("limit", "resnet10t", "--classes", "10", "--image-size", "32")
    code, out, err = run_inside(tmp_path, *asked, "--max-params", "300000", "--json")
    assert (code, err) == (0, "")
    found = to_json(answer_limit("resnet10t", fitter(10, 32, 300_000)))
    assert isinstance(found, dict)
    assert json.loads(out) == {"version": 1} | found
    code, out, err = run_inside(tmp_path, *asked, "--max-params", "100")
    assert (code, out) == (5, "")
    assert err.startswith("search: no width of resnet10t fits")
    assert run_inside(tmp_path, *asked)[0] == 2
