"""Every mistake that a folder of pictures can have is told with all the others, each with its cure."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from folders import make_folder, prepare, problems_of, unzipped

from trainer.config import DataConfig
from trainer.data import BadFile, Duplicate, prepare_data
from trainer.errors import DataError


def test_no_folder_given_says_the_layout_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        prepare_data(DataConfig(), tmp_path / "caches")
    assert "give it with --data DIR" in str(error.value)
    assert "CLASS/* or train/CLASS/*" in str(error.value)
    assert not (tmp_path / "caches").exists()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path / 'nowhere'} does not exist; check --data" in problems_of(tmp_path / "nowhere", tmp_path)
    (tmp_path / "file.zip").write_text("")
    assert "file.zip is not a folder" in problems_of(tmp_path / "file.zip", tmp_path)


def test_an_empty_folder_is_refused_with_the_layout(tmp_path: Path) -> None:
    (tmp_path / "pets" / ".git").mkdir(parents=True)
    (tmp_path / "pets" / "loose.png").write_bytes(b"")
    assert "holds no class folders; expected are CLASS/* or train/CLASS/*" in problems_of(tmp_path / "pets", tmp_path)
    make_folder(tmp_path / "pets", {"train": 0, "test/cat": 1})
    assert problems_of(tmp_path / "pets", tmp_path)


def test_pictures_without_any_labels_are_told_how_to_give_them(tmp_path: Path) -> None:
    root = make_folder(tmp_path, {"frames": 4}) / "frames"
    for file in [*root.iterdir()]:
        file.rename(root / f"d{file.name}")
    assert problems_of(root, tmp_path).endswith(
        "; nothing says the class of d000.png and of the other pictures; put them into such folders, or write a table "
        "of labels (data.labels): a CSV file with the first line file,label and lines such as d000.png,CLASS"
    )
    (root / "labels.csv").write_text("file,label\n" + "".join(f"d00{i}.png,{'ab'[i % 2]}\n" for i in range(4)))
    assert prepare(root, tmp_path, labels="labels.csv").class_names == ("a", "b")
    for folder in ("train", "pics"):  # no class folder, and one class
        message = problems_of(make_folder(tmp_path / f"of_{folder}", {folder: 4}), tmp_path)
        assert message.endswith(
            "(and, if you have them, val/CLASS/* and test/CLASS/*), or a table of labels (data.labels)"
        )


def test_class_folders_without_a_readable_picture_are_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 0, "dog": 0})
    assert problems_of(root, tmp_path).endswith("holds no readable picture:\n  its class folders are empty")
    (root / "cat" / "a.png").write_text("text")
    for policy in ("fail", "skip"):
        message = problems_of(root, tmp_path, bad_files=policy)
        assert message.endswith(
            "holds no readable picture:\n  cat/a.png: is not a picture in a format that Pillow knows"
        )
    assert not [path for path in (tmp_path / "caches").iterdir() if not path.name.endswith(".lock")]


def test_one_class_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "flowers", {"rose": 2})
    message = problems_of(root, tmp_path)
    assert "one class, rose, to train on, and a classifier needs two; expected is CLASS/*" in message


def test_an_empty_val_or_test_folder_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"train/cat": 2, "train/dog": 2, "val/cat": 0, "test": 0})
    message = problems_of(root, tmp_path)
    assert "the val split has no readable picture; add some or remove its folder" in message
    assert "the test split has no readable picture; add some or remove its folder" in message


def test_classes_with_one_picture_are_named_where_it_would_have_to_be_split(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"train/cat": 1, "train/dog": 1, "train/emu": 2})
    message = problems_of(root, tmp_path)
    assert "2 problems" in message
    assert "cat: one training picture, so none is left for validation; add some or remove the class" in message
    assert "dog: one training picture" in message
    assert "emu" not in message
    make_folder(root / "val", {"cat": 1})
    assert len(prepare(root, tmp_path).splits["train"]) == 4


def test_a_class_that_only_val_or_test_has_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"train/cat": 2, "train/dog": 2, "val/cat": 1, "test/emu": 1, "test/cat": 1})
    assert "test/emu: this class has no training picture; add some or remove its folder" in problems_of(root, tmp_path)


def test_an_empty_class_folder_fails_or_is_left_out(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"train/cat": 2, "train/dog": 2, "train/emu": 0})
    assert "train/emu: this class has no readable picture; add some or remove its folder" in problems_of(root, tmp_path)
    assert prepare(root, tmp_path, bad_files="skip").class_names == ("cat", "dog")


def test_bad_files_are_listed_all_at_once_with_everything_else(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"train/cat": 2, "train/dog": 1, "train/emu": 0, "test/fox": 1})
    whole = (root / "train/cat/000.png").read_bytes()
    (root / "train/cat/truncated.png").write_bytes(whole[: len(whole) // 2])
    (root / "train/cat/zero.png").write_bytes(b"")
    (root / "train/dog/line\nbreak.png").write_text("x")
    message = problems_of(root, tmp_path)
    first, *lines = message.splitlines()
    assert first == (
        f'{root}: 6 problems with the pictures; bad_files = "skip" goes on without files that cannot be read:'
    )
    assert lines[0].startswith("  train/cat/truncated.png: cannot be decoded (")
    assert lines[1:] == [
        "  train/cat/zero.png: is empty (0 bytes)",
        r"  train/dog/line\nbreak.png: is not a picture in a format that Pillow knows",
        "  test/fox: this class has no training picture; add some or remove its folder",
        "  train/emu: this class has no readable picture; add some or remove its folder",
        "  dog: one training picture, so none is left for validation; add some or remove the class",
    ]


def test_of_many_bad_files_fifty_are_shown(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 2, "dog": 2})
    for i in range(60):
        (root / "cat" / f"bad{i:02}").write_text("x")
    lines = problems_of(root, tmp_path).splitlines()
    assert len(lines) == 52
    assert lines[0].startswith(f"{root}: 60 problems")
    assert lines[-1] == "  ... and 10 more"


def test_texts_and_annotations_in_class_folders_are_not_used_and_are_told_in_a_line_for_each_ending(
    tmp_path: Path,
) -> None:
    root = make_folder(tmp_path / "tiny", {"train/n1/images": 4, "train/n2/images": 4})
    plain = prepare(root, tmp_path)
    for name in ("n1", "n2"):
        (root / "train" / name / f"{name}_boxes.TXT").write_text("000.png\t0\t0\t9\t9\n")
    (root / "train" / "n2" / "images" / "annotation_0001.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    data = prepare(root, tmp_path)
    assert (data.names, data.bad_files, data.fingerprint) == (plain.names, (), plain.fingerprint)
    assert data.notices == (
        "train/n2/images/annotation_0001.mat is not used, because no picture ends in .mat",
        "2 files are not used, because no picture ends in .txt, the first: train/n1/n1_boxes.TXT",
    )


@pytest.mark.parametrize("inside", ["", "train/"])
def test_folders_of_texts_beside_class_folders_are_no_classes(tmp_path: Path, inside: str) -> None:
    root = make_folder(tmp_path / "birds", {f"{inside}cat": 4, f"{inside}dog": 4})
    for name in ("gt_query/a_good.mat", "meta/classes.txt"):
        (root / inside / name).parent.mkdir()
        (root / inside / name).write_text("x")
    data = prepare(root, tmp_path)
    assert data.class_names == ("cat", "dog")
    assert (
        f"{inside}gt_query, {inside}meta have only texts, code and annotations, so they are no classes; if pictures "
        "are missing, add them"
    ) in data.notices
    (root / inside / "notes").mkdir()
    (root / inside / "notes" / "LICENSE").write_text("no text, by its name")
    assert "notes/LICENSE: is not a picture" in problems_of(root, tmp_path)


@pytest.mark.parametrize("inside", ["", "train/"])
@pytest.mark.parametrize("files", [["notebooks/eda.ipynb"], ["scripts/a.py", "scripts/b/c.sh"], ["docs/README.md"]])
def test_folders_of_code_are_no_classes(tmp_path: Path, inside: str, files: list[str]) -> None:
    root = make_folder(tmp_path / "birds", {f"{inside}cat": 4, f"{inside}dog": 4})
    plain = prepare(root, tmp_path)
    for name in files:
        (root / inside / name).parent.mkdir(parents=True)
        (root / inside / name).write_text("x")
    for policy in ("fail", "skip"):
        data = prepare(root, tmp_path, bad_files=policy)
        assert (data.class_names, data.bad_files, data.fingerprint) == (("cat", "dog"), (), plain.fingerprint)
        folder = inside + files[0].split("/")[0]
        assert any(one.startswith(f"{folder} has only texts, code and annotations, so") for one in data.notices)


@pytest.mark.parametrize("inside", ["", "train/"])
@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["models/a.pkl"], "(its file is none: "),
        (["build/Makefile", "build/x/LICENSE", "build/notes.txt"], "(none of its 2 files is one, the first: "),
        (["bin/activate", "bin/python", "bin/pip"], "(none of its 3 files is one, the first: "),
    ],
)
def test_a_folder_without_a_picture_is_one_problem_and_never_a_class(
    tmp_path: Path, inside: str, files: list[str], told: str
) -> None:
    root = make_folder(tmp_path / "birds", {f"{inside}cat": 4, f"{inside}dog": 4})
    for name in files:
        (root / inside / name).parent.mkdir(parents=True, exist_ok=True)
        (root / inside / name).write_text("x")
    first, *lines = problems_of(root, tmp_path).splitlines()
    assert 'a problem with the pictures; bad_files = "skip" goes on without files' in first
    assert len(lines) == 1
    assert lines[0].startswith(f"  {inside}{files[0].split('/')[0]}: this folder has no picture {told}{inside}")
    assert prepare(root, tmp_path, bad_files="skip").class_names == ("cat", "dog")


def test_a_class_of_pictures_that_cannot_be_read_names_each_of_them(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "birds", {"cat": 4, "dog": 4, "emu": 0})
    for name in ("1.jpg", "2.jpg"):
        (root / "emu" / name).write_text("x")
    told = problems_of(root, tmp_path)
    assert "3 problems" in told
    assert "emu/2.jpg: is not a picture" in told


def test_a_class_that_has_only_texts_in_one_split_is_still_a_class(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"train/cat": 4, "train/dog": 4, "test/cat": 2})
    (root / "test" / "dog").mkdir()
    (root / "test" / "dog" / "a.txt").write_text("x")
    assert not [notice for notice in prepare(root, tmp_path).notices if "no class" in notice]


def test_sidecars_of_google_takeout_are_passed_over_without_a_further_hint(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos", {"cat": 6, "dog": 6})
    for i, file in enumerate(sorted(root.rglob("*.png"))):
        ending = (".json", ".supplemental-metadata.json", ".supplemental-me.json")[i % 3]
        text = json.dumps({"title": file.name, "description": "", "imageViews": "12"})
        file.with_name(file.name + ending).write_text(text)
    (root / "cat" / "metadata.json").write_text(json.dumps({"title": "cat", "access": "protected"}))
    data = prepare(root, tmp_path)
    assert data.notices == ("13 files are not used, because no picture ends in .json, the first: cat/000.png.json",)


def test_boxes_beside_the_pictures_of_camera_folders_are_told(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "yolo", {"cam1": 4, "cam2": 4})
    for picture in list(root.rglob("*.png")):
        picture.with_suffix(".txt").write_text("0 0.5 0.5 0.25 0.25\n")
    assert prepare(root, tmp_path).notices[1].startswith("cam1/000.txt seems to describe objects in the pictures")


def test_a_change_of_bad_files_decodes_nothing_again(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 2, "dog": 2})
    (root / "cat" / "bad.jpg").write_text("x")
    problems_of(root, tmp_path)
    stages: list[str] = []
    config = DataConfig(path=str(root), image_size=16, bad_files="skip")
    data = prepare_data(config, tmp_path / "caches", progress=lambda stage, done, total: stages.append(stage))
    assert "decoding pictures" not in stages
    assert data.bad_files == (BadFile("cat/bad.jpg", "is not a picture in a format that Pillow knows"),)


def test_a_file_name_that_is_not_utf8_is_a_picture_like_any_other(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 2, "dog": 2})
    (root / "cat" / "000.png").rename(root / "cat" / "caf\udce9.png")
    assert "cat/caf\udce9.png" in prepare(root, tmp_path).names
    (root / "cat" / "caf\udce9.png").write_text("x")
    assert r"cat/caf\udce9.png: is not a picture" in problems_of(root, tmp_path)


def test_awkward_pictures_fail_with_all_bad_files_at_once_or_are_skipped(tmp_path: Path) -> None:
    root = unzipped("awkward", tmp_path)
    with (root / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if Path(row["path"]).name not in (".DS_Store", "Thumbs.db")]
    bad = {row["path"] for row in rows if row["pillow_convert_rgb"].startswith("error")}
    assert len(bad) >= 7

    message = problems_of(root, tmp_path, image_size=32)
    assert {line.strip().split(": ")[0] for line in message.splitlines()[1:]} == bad

    data = prepare(root, tmp_path, image_size=32, bad_files="skip")
    assert {file.name for file in data.bad_files} == bad
    assert set(data.names) == {row["path"] for row in rows} - bad
    assert data.class_names == ("daisy", "rose", "tulip")
    assert Duplicate("train/rose/x_crossclass.jpg", "train/tulip/x_dup_b.jpg", "across classes") in data.duplicates
    # Neither black nor white: 16-bit, float and CMYK pictures kept their content.
    for name in (
        "rose/x_16bit_gray.png",
        "rose/x_float.tif",
        "tulip/p_pil_sample_cmyk.jpg",
        "tulip/p_i_trns.png",
    ):
        assert data.images[data.names.index(f"train/{name}")].std() > 10, name


def test_side_cars_of_cameras_are_counted_and_not_used(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "phone", {"cat": 3, "dog": 3})
    for name in ("cat/000.XMP", "cat/000.png.xmp", "dog/000.AAE", "dog/000.png.pp3"):
        (root / name).write_text("x")
    (root / "dog/000.thm").write_bytes((root / "dog/000.png").read_bytes())
    data = prepare(root, tmp_path)
    assert len(data.names) == 6
    assert data.notices == (
        "dog/000.AAE is not used, because no picture ends in .aae",
        "dog/000.png.pp3 is not used, because no picture ends in .pp3",
        "dog/000.thm is not used, because no picture ends in .thm",
        "2 files are not used, because no picture ends in .xmp, the first: cat/000.XMP",
    )


def test_broken_links_say_where_they_lead(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "annex", {"cat": 3, "dog": 3})
    (root / "cat/003.png").symlink_to("../.git/annex/objects/x.png")
    (root / "cat/004.png").symlink_to("../gone.png")
    message = problems_of(root, tmp_path)
    assert "cat/003.png: is a broken link, to ../.git/annex/objects/x.png; git annex get fetches its content" in message
    assert message.endswith("cat/004.png: is a broken link, to ../gone.png")


def test_classes_of_other_splits_are_not_told_if_no_training_picture_is_readable(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", {"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1})
    for file in root.glob("train/*/*.png"):
        file.write_bytes(b"no picture")
    message = problems_of(root, tmp_path)
    assert "no class to train on" in message
    assert "is a class of train" not in message
    assert "no training picture" not in message
