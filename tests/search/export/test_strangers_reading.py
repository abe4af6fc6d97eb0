"""What a stranger reads from the raw files, picture by picture, and what the card says of those read otherwise."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import studies
from search.export import proof
from search.export.files import ModelConfig, read_images
from search.export.formats import weights
from search.export.gallery import confident_mistakes
from search.export.how_to_load import READ, loading_paragraphs, reading_paragraph
from search.export.proof import Difference, Pictures
from search.export.record import ExportRecord, Proof
from trainer.config import DataConfig, Shape, TrainConfig
from trainer.data import Dataset, prepare_data
from trainer.models import build_model, count
from trainer.pictures import BYTES, DEPTH, SPREAD, TURNED, UNIT, read_right

STATED = {"input_size": (3, 16, 16), "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic"}
STATED |= {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(4):
            image = Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))
            image.save(tmp_path / "pets" / name / f"{i}.png")
            if name == "cat":
                image.save(tmp_path / "pets" / name / f"turned{i}.jpg", exif=exif)
    deep = rng.integers(0, 65536, (20, 24), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "pets" / "dog" / "deep.png")
    return tmp_path / "pets"


def read_raw(data: Dataset, config: DataConfig) -> Pictures:
    indices = np.arange(len(data.names))
    mean, std = (np.array(STATED[name], np.float32) for name in ("mean", "std"))

    def cached(start: int) -> Pictures:
        pictures = data.images[indices[start : start + proof.BATCH]].astype(np.float32) / 255
        return np.ascontiguousarray(((pictures - mean) / std).transpose(0, 3, 1, 2))

    return proof._as_a_stranger(STATED, config, data, indices, cached)(0)


def test_pictures_read_otherwise_are_accepted_and_all_others_compared_one_by_one(folder: Path, tmp_path: Path) -> None:
    config = DataConfig(path=str(folder), image_size=16)
    data = prepare_data(config, tmp_path / "cache")
    assert set(data.misread) == {*(f"cat/turned{i}.jpg" for i in range(4)), "dog/deep.png"}
    assert read_raw(data, config).shape == (13, 3, 16, 16)
    Image.new("RGB", (24, 20), "red").save(folder / "dog" / "2.png")
    with pytest.raises(
        Difference, match=r"the raw files, read as timm's own transform reads them, differ: dog/2.png by"
    ):
        read_raw(data, config)


@pytest.mark.parametrize("why", [TURNED, DEPTH])
def test_the_line_reads_right_what_a_plain_convert_reads_otherwise(folder: Path, tmp_path: Path, why: str) -> None:
    from PIL import ImageOps

    config = DataConfig(path=str(folder), image_size=16)
    data = prepare_data(config, tmp_path / "cache")
    transform = timm.data.create_transform(**{**STATED, "mean": (0, 0, 0), "std": (1, 1, 1)})
    for name in [name for name, reason in data.misread.items() if reason == why]:
        scope = {"Image": Image, "ImageOps": ImageOps, "np": np, "file": folder / name}
        pixels = (transform(eval(read_right(why, 3), scope)) * 255).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(pixels, data.images[data.names.index(name)])


def test_the_card_states_them_with_the_line_and_says_nothing_where_there_are_none() -> None:
    proven = Proof(
        num_params=1,
        macs=1,
        formats={},
        stranger_accuracy=0.5,
        max_logit_difference=0,
        misread={TURNED: 30},
        misread_in_all={TURNED: 1200, DEPTH: 2},
    )
    evaluation = SimpleNamespace(n=100, split="test")
    data = SimpleNamespace(channels=1, config={})
    assert "trainer" not in READ  # a stranger has stock libraries alone
    text = reading_paragraph(cast(ExportRecord, SimpleNamespace(data=data, evaluation=evaluation, proof=proven)))
    assert "reads some of the pictures differently from how they were read for training and evaluation" in text
    assert "with it, the accuracy is 50.00%" in text
    assert (
        f"- 1,200 of all pictures, 30 of the 100 in the test split, are {TURNED}; this line reads such a picture"
        in text
    )
    assert '`ImageOps.exif_transpose(Image.open(file)).convert("L")`' in text
    assert f"- 2 of all pictures, 0 of the 100 in the test split, are {DEPTH}" in text
    none = proven.model_copy(update={"misread": {}, "misread_in_all": {}})
    assert reading_paragraph(cast(ExportRecord, SimpleNamespace(data=data, evaluation=evaluation, proof=none))) == ""


def test_an_export_of_cropped_pictures_is_read_as_it_was_validated(folder: Path, tmp_path: Path) -> None:
    config = DataConfig(path=str(folder), image_size=16, cache_size=19)
    data = prepare_data(config, tmp_path / "cache")
    recipe, spec = TrainConfig(model="resnet10t", width_mult=0.1), studies.load("digits")
    spec = spec.model_copy(update={"data": config})
    weights.write_weights(tmp_path, build_model(recipe, data.shape), [recipe], spec, data)
    written = ModelConfig.model_validate_json((tmp_path / "config.json").read_bytes())
    assert float(json.loads(weights.metadata(spec, data)["crop_pct"])) == written.pretrained_cfg.crop_pct == 16 / 19
    validated = written.pretrained_cfg.normalised(list(data.images[data.centre]))
    assert np.array_equal(read_images([folder / name for name in data.names], written), validated)
    stated = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path}", pretrained=True))
    transform = timm.data.create_transform(**stated)
    for name, expected in zip(data.names, validated, strict=True):
        if name not in data.misread:
            assert np.abs(transform(Image.open(folder / name)).numpy() - expected).max() < 1e-5
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2)).eval()
    wrong = np.eye(2, dtype=np.float32)[1 - data.labels[data.splits["val"]]]
    pictures = [one.picture for one in confident_mistakes(net, data, "val", wrong)]
    assert np.array_equal(pictures, data.images[data.splits["val"]][data.centre])


# Without the background


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """Pictures of discs, whose background GrabCut finds."""
    y, x = np.mgrid[:40, :48]
    inside = (x - 24) ** 2 + (y - 20) ** 2 < 150
    for number, name in enumerate(("rose", "tulip")):
        (tmp_path / "flowers" / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.where(inside[..., None], [200, 40 + 90 * number, 40], [40, 150, 60])
            noise = np.random.default_rng(i).integers(-30, 30, pixels.shape)
            Image.fromarray((pixels + noise).astype(np.uint8)).save(tmp_path / "flowers" / name / f"{i}.png")
    return tmp_path / "flowers"


def without(folder: Path) -> DataConfig:
    return DataConfig(path=str(folder), image_size=16, background="grabcut", test_fraction=0.3)


def test_a_stranger_reads_pictures_without_their_background_only_with_the_step(flowers: Path, tmp_path: Path) -> None:
    config = without(flowers)
    data = prepare_data(config, tmp_path / "cache")
    assert read_raw(data, config).shape == (6, 3, 16, 16)
    with pytest.raises(Difference, match=r"differ: rose/0\.png by"):
        read_raw(data, config.model_copy(update={"background": "keep"}))


def test_an_exports_files_say_that_the_background_is_removed_and_predict_removes_it(
    flowers: Path, tmp_path: Path
) -> None:
    config = without(flowers)
    data = prepare_data(config, tmp_path / "cache")
    recipe = TrainConfig(model="resnet10t", width_mult=0.1)
    files = [flowers / name for name in data.names]
    written = {}
    for background in ("grabcut", "keep"):
        chosen = studies.load("digits").model_copy(
            update={"data": config.model_copy(update={"background": background})}
        )
        (tmp_path / background).mkdir()
        weights.write_weights(tmp_path / background, build_model(recipe, data.shape), [recipe], chosen, data)
        timm.create_model(f"local-dir:{tmp_path / background}", pretrained=True)
        written[background] = ModelConfig.model_validate_json((tmp_path / background / "config.json").read_bytes())
        assert ("background" in weights.metadata(chosen, data)) == (background == "grabcut")
    read = {name: read_images(files, one) for name, one in written.items()}
    cached = written["keep"].pretrained_cfg.normalised(list(data.images))
    assert np.array_equal(read["grabcut"], cached)
    assert not np.array_equal(read["keep"], cached)


@pytest.mark.parametrize("ranges", [(), (DEPTH,), (DEPTH, UNIT, BYTES, SPREAD)])
def test_the_lines_of_the_card_read_pictures_without_their_background(
    ranges: tuple[str, ...], flowers: Path, tmp_path: Path
) -> None:
    config = without(flowers)
    if ranges:
        gray = np.asarray(Image.open(flowers / "rose" / "0.png").convert("L"))
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.open(flowers / "rose" / "0.png").rotate(20).save(flowers / "rose" / "turned.jpg", exif=exif)
        Image.fromarray(gray.astype(np.uint16) * 257).save(flowers / "rose" / "deep.png", exif=exif)
        floats = (gray / 2).astype(np.float32)
        deep = {UNIT: gray / np.float32(255), SPREAD: gray * np.int32(1000), BYTES: floats}
        for i, why in enumerate(ranges[1:]):
            Image.fromarray(deep[why]).save(flowers / f"rose/{i}.tif")
    data = prepare_data(config, tmp_path / "cache")
    misread = Counter(data.misread.values())
    assert misread == ({TURNED: 1} | dict.fromkeys(ranges, 1) if ranges else {})
    told = {"size": 16, "channels": 3, "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic"}
    proven = SimpleNamespace(misread_in_all=misread, misread=misread, stranger_accuracy=0.5)
    record = SimpleNamespace(
        data=SimpleNamespace(config=config.model_dump(), channels=3, image_size=16, class_names=["rose", "tulip"]),
        model=SimpleNamespace(members=1, views=(), stock_timm=True),
        evaluation=SimpleNamespace(accuracy=0.5, plain_accuracy=0.5, n=2, split="test"),
        proof=proven,
        formats=("onnx",),
    )
    step, read, _, onnx, *_ = loading_paragraphs(cast(ExportRecord, record))
    assert step.startswith("The model was trained on pictures without their background. This function removes it")
    scope: dict[str, Any] = {"about": told | {"mean": STATED["mean"], "std": STATED["std"]}}
    exec(step.partition("```python")[2].removesuffix("```"), scope)
    lines = onnx.partition("```python")[2]
    exec("import json, numpy as np\nfrom PIL import Image, ImageOps\n", scope)
    exec("def read" + lines.partition("def read")[2].partition("logits =")[0], scope)
    stated = {"pretrained_cfg": STATED, "label_names": data.class_names, "background": "grabcut"}
    expected = read_images([flowers / name for name in data.names], ModelConfig.model_validate(stated))
    for name, pixels in zip(data.names, expected, strict=True):
        assert np.abs(scope["read"](flowers / name) - pixels).max() < 1e-5
    assert 'transform(without_background(Image.open("PICTURE.png")).convert("RGB"))' in read
    said = reading_paragraph(cast(ExportRecord, record))
    assert said.count("without_background(") == len(misread)
    plain = SimpleNamespace(**vars(record) | {"data": SimpleNamespace(**vars(record.data) | {"config": {}})})
    assert "without_background" not in "".join(loading_paragraphs(cast(ExportRecord, plain)))


@pytest.mark.parametrize("model", ["mobilevit_xxs", "resnet10t"])
def test_the_proof_counts_attention_as_it_was_counted(model: str) -> None:
    """torch counts nothing of the fused attention that it uses on the CPU."""
    recipe, shape = TrainConfig(model=model), Shape(10, 64, 3)
    counted = count(recipe, shape)
    assert proof._counted(build_model(recipe, shape).eval(), list(shape.of_image)) == (counted.params, counted.macs)
