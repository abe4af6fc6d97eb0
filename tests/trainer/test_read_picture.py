"""The one way a picture is read: every mode and orientation, and the same pixels as timm."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from folders import make_folder, noise, prepare, problems_of, saved, unzipped
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from trainer.config import DataConfig
from trainer.errors import DataError
from trainer.pictures import BYTES, DEPTH, SPREAD, TURNED, UNIT, read_picture, read_right

SIZE = DataConfig(image_size=16)


# Every mode


def gradient(top: float, dtype: type) -> NDArray[Any]:
    """[16, 16], from 0 at the left to ``top`` at the right."""
    return np.tile(np.linspace(0, top, 16), (16, 1)).astype(dtype)


def is_gray_gradient(pixels: NDArray[np.uint8]) -> bool:
    expected = np.linspace(0, 255, 16)[None, :, None]
    return pixels.shape == (16, 16, 3) and bool(np.abs(pixels - expected).max() <= 1)


GRAY_GRADIENTS = {
    "8-bit gray": saved(Image.fromarray(gradient(255, np.uint8)), "PNG"),
    "8-bit gray with alpha": saved(Image.fromarray(gradient(255, np.uint8)).convert("LA"), "PNG"),
    "palette": saved(Image.fromarray(gradient(255, np.uint8)).convert("P"), "PNG"),
    "palette with transparency": saved(
        Image.fromarray(gradient(255, np.uint8)).convert("P"), "PNG", transparency=bytes(range(0, 256, 2))
    ),
    "RGBA": saved(Image.fromarray(gradient(255, np.uint8)).convert("RGBA"), "PNG"),
    "16-bit gray PNG": saved(Image.fromarray(gradient(65535, np.uint16)), "PNG"),
    "16-bit gray TIFF": saved(Image.fromarray(gradient(65535, np.uint16)), "TIFF"),
    "big-endian 16-bit gray": saved(
        Image.frombytes("I;16B", (16, 16), gradient(65535, np.uint16).byteswap().tobytes()), "TIFF"
    ),
    "32-bit gray of 16 bits": saved(Image.fromarray(gradient(65535, np.int32)), "TIFF"),
    "32-bit gray beyond 16 bits": saved(Image.fromarray(gradient(2_000_000_000, np.int32)), "TIFF"),
    "8 bits in a 16-bit PNG": saved(Image.fromarray(gradient(255, np.uint16)), "PNG"),
    "float 0..1": saved(Image.fromarray(gradient(1, np.float32)), "TIFF"),
    "float 0..255": saved(Image.fromarray(gradient(255, np.float32)), "TIFF"),
    "float 0..65535": saved(Image.fromarray(gradient(65535, np.float32)), "TIFF"),
    "float -1..1": saved(Image.fromarray(gradient(2, np.float32) - 1), "TIFF"),
    "BMP": saved(Image.fromarray(gradient(255, np.uint8)), "BMP"),
    "PPM": saved(Image.fromarray(gradient(255, np.uint8)).convert("RGB"), "PPM"),
    "lossless WebP": saved(Image.fromarray(gradient(255, np.uint8)).convert("RGB"), "WEBP", lossless=True),
    "GIF": saved(Image.fromarray(gradient(255, np.uint8)), "GIF"),
}


@pytest.mark.parametrize("content", GRAY_GRADIENTS.values(), ids=GRAY_GRADIENTS)
def test_a_gradient_is_the_same_in_every_mode(content: bytes) -> None:
    assert is_gray_gradient(read_picture(content, SIZE))


def test_half_a_16_bit_picture_is_half_as_bright(tmp_path: Path) -> None:
    """Scaled by what its kind can hold, not by its own brightest pixel, so that pictures stay comparable."""
    dim = read_picture(saved(Image.fromarray(gradient(32767, np.uint16)), "PNG"), SIZE)
    assert 126 <= dim.max() <= 128


def test_one_bit_pictures_are_black_and_white(tmp_path: Path) -> None:
    image = Image.fromarray(gradient(255, np.uint8) > 127)
    assert image.mode == "1"
    pixels = read_picture(saved(image, "PNG"), SIZE)
    assert (pixels[:, :8] == 0).all()
    assert (pixels[:, 8:] == 255).all()


def test_cmyk_becomes_the_colour_it_was(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (200, 30, 30)).convert("CMYK")
    pixels = read_picture(saved(red, "JPEG", quality=100), SIZE)
    assert np.abs(pixels.astype(int) - [200, 30, 30]).max() < 8


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        content = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert (read_picture(content, SIZE) == [255, 0, 0]).all(), format


ORIENTATIONS = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels),
}


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pictures_that_the_camera_marked_as_turned_are_upright(orientation: int, format: str) -> None:
    image = noise(16, 16).resize((4, 4)).resize((16, 16), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(format, {})
    expected = ORIENTATIONS[orientation](read_picture(saved(image, format, **options), SIZE))
    turned = read_picture(saved(image, format, exif=exif, **options), SIZE)
    np.testing.assert_array_equal(turned, expected)


def test_a_turned_picture_is_cropped_after_turning() -> None:
    image = noise(64, 16)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = read_picture(saved(image, "PNG", exif=exif), SIZE)
    np.testing.assert_array_equal(turned, read_picture(image.transpose(Image.Transpose.ROTATE_270), SIZE))


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12", b"\xff" * 50])
def test_a_broken_exif_block_does_not_spoil_the_picture(exif: bytes) -> None:
    image = noise(16, 16)
    pixels = read_picture(saved(image, "JPEG", exif=exif), SIZE)
    np.testing.assert_array_equal(pixels, read_picture(saved(image, "JPEG"), SIZE))


def test_pictures_that_cannot_be_used_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    not_finite = gradient(1, np.float32)
    not_finite[3, 3] = np.nan
    jpeg = saved(noise(200, 200), "JPEG")
    reasons = {
        b"<html>404</html>": "is not a picture in a format that Pillow knows",
        saved(Image.fromarray(not_finite), "TIFF"): "has values that are not finite",
        jpeg[:-2000]: "cannot be decoded (image file is truncated",
        saved(Image.new("1", (20_000, 9_000)), "PNG"): "has too many pixels (Image size (180000000 pixels)",
    }
    for content, reason in reasons.items():
        with pytest.raises(DataError) as error:
            read_picture(content, SIZE)
        assert str(error.value).startswith(reason)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "a pointer of Git LFS: git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html><body>404", "a web page"),
        (b'<?xml version="1.0"?>\n<!-- made by hand -->\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"<!-- a --><!-- b -->\n<svg/>", "SVG"),
        (b"<!---->" * 1000, ""),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC: convert it to JPEG"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "RAW of a camera: develop it to JPEG"),
        (b"FUJIFILMCCD-RAW 0201", "RAW of a camera"),
        (b"IIU\0\x18\0\0\0", "RAW of a camera"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0", "a video"),
        (b"\xff\x0a\0\0", "JPEG XL"),
        (b"\0" * 128 + b"DICM" + b"\0" * 50, "DICOM"),
        (b"\x93NUMPY\x01\0v\0", "an array of NumPy"),
        (b"PK\x03\x04\x14\0", "an archive"),
        (b"%PDF-1.7\n", "PDF"),
        (b"a note", ""),
    ],
)
def test_files_that_are_something_else_are_named_with_the_cure(content: bytes, what: str) -> None:
    with pytest.raises(DataError) as error:
        read_picture(content, SIZE)
    told, _, rest = str(error.value).partition(", but ")
    assert told == "is not a picture in a format that Pillow knows"
    assert rest.startswith(what)
    assert bool(rest) == bool(what)


def tiff_of_12_bits(width: int, height: int) -> bytes:
    """A gray TIFF, uncompressed; two pixels take three bytes. Pillow reads such files, but writes none."""
    pixels = b"\x80\x08\x00" * (width * height // 2)
    tags = [(256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 126), (277, 1), (278, height)]
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in [*tags, (279, len(pixels))])
    return (struct.pack("<4sIH", b"II*\0", 8, 9) + entries).ljust(126, b"\0") + pixels


WHITE_IS_0 = {
    mode: saved(image, "TIFF").replace(struct.pack("<HHIH", 262, 3, 1, 1), struct.pack("<HHIH", 262, 3, 1, 0))
    for mode, image in (("16", Image.fromarray(gradient(65535, np.uint16))), ("8", noise(16, 16).convert("L")))
}


def test_tiffs_whose_gray_levels_pillow_does_not_scale_are_refused_by_name(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "scans", {"cat": 2, "dog": 2})
    deep = tiff_of_12_bits(16, 16)
    assert np.asarray(Image.open(io.BytesIO(deep))).max() == 2048, "half of 12 bits, a 32nd of 16"
    (root / "cat" / "deep.tif").write_bytes(deep)
    (root / "cat" / "white.tif").write_bytes(WHITE_IS_0["16"])
    message = problems_of(root, tmp_path)
    assert "cat/deep.tif: is a TIFF of 12 bits; save it with 8 or with 16 bits" in message
    assert "cat/white.tif: is a TIFF of more than 8 bits in which 0 is white; save it with black as 0" in message
    assert len(prepare(root, tmp_path, bad_files="skip").bad_files) == 2
    inverted = 255 - np.asarray(noise(16, 16).convert("L"), dtype=int)
    assert np.abs(read_picture(WHITE_IS_0["8"], SIZE)[..., 0] - inverted).max() <= 1  # Pillow inverts these itself


def test_up_to_twice_pillows_limit_of_pixels_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 2, "dog": 2})
    noise(40, 39).save(root / "cat" / "poster.png")
    expected = read_picture((root / "cat" / "poster.png").read_bytes(), SIZE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 800)
    data = prepare(root, tmp_path)
    np.testing.assert_array_equal(data.images[data.names.index("cat/poster.png")], expected)
    assert data.misread == {}  # Pillow warns of it, and reads the same
    noise(40, 41).save(root / "cat" / "map.png")
    message = problems_of(root, tmp_path)
    assert "cat/map.png: has too many pixels (Image size (1640 pixels) exceeds limit of 1600" in message
    assert "poster" not in message


def turned_by(orientation: int, format: str, image: Image.Image | None = None) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image or noise(20, 24), format, exif=exif)


MISREAD = {
    "6.jpg": (turned_by(6, "JPEG"), TURNED),
    "3.png": (turned_by(3, "PNG"), TURNED),
    "2.webp": (turned_by(2, "WEBP"), TURNED),
    "16.png": (GRAY_GRADIENTS["16-bit gray PNG"], DEPTH),
    "16.tif": (GRAY_GRADIENTS["big-endian 16-bit gray"], DEPTH),
    "float.tif": (GRAY_GRADIENTS["float 0..1"], UNIT),
    "float 255.tif": (saved(Image.fromarray(gradient(254, np.float32)), "TIFF"), BYTES),
    "float 65535.tif": (GRAY_GRADIENTS["float 0..65535"], DEPTH),
    "below 0.tif": (GRAY_GRADIENTS["float -1..1"], SPREAD),
    "beyond 16.tif": (saved(Image.fromarray(gradient(227_000, np.int32) + 150), "TIFF"), SPREAD),
    "one value.tif": (saved(Image.fromarray(np.full((16, 16), 70_000, np.int32)), "TIFF"), SPREAD),
    "16-turned.png": (turned_by(6, "PNG", Image.fromarray(gradient(65535, np.uint16))), DEPTH),
    "8 of 16-turned.png": (turned_by(6, "PNG", Image.fromarray(gradient(255, np.uint16))), BYTES),
}
READ_ALIKE = {
    "upright.jpg": turned_by(1, "JPEG"),
    "turned.tif": turned_by(6, "TIFF"),  # Pillow turns these itself
    "one colour.png": turned_by(3, "PNG", Image.new("RGB", (16, 16), "red")),
    "palette.png": GRAY_GRADIENTS["palette"],
    "8 of 16.png": GRAY_GRADIENTS["8 bits in a 16-bit PNG"],
}


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_that_a_plain_convert_reads_otherwise_are_named_with_the_reason(tmp_path: Path, channels: int) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 2, "dog": 2})
    contents = {name: content for name, (content, _) in MISREAD.items()} | READ_ALIKE
    for name, content in contents.items():
        (root / "cat" / name).write_bytes(content)
    data = prepare(root, tmp_path, channels=channels)
    assert data.misread == {f"cat/{name}": why for name, (_, why) in MISREAD.items()}
    deep = {f"cat/{name}": why for name, (_, why) in MISREAD.items() if why != TURNED} | {"cat/8 of 16.png": BYTES}
    assert data.scales == deep
    config = DataConfig.model_validate({"image_size": 16, "channels": channels})
    for name in contents:
        with Image.open(root / "cat" / name) as image:
            converted = Image.fromarray(np.asarray(image.convert("RGB" if channels == 3 else "L")))  # without its EXIF
        plain = read_picture(converted, config)
        expected = data.images[data.names.index(f"cat/{name}")]
        assert np.array_equal(plain, expected) == (name in READ_ALIKE), name
        if name in MISREAD:
            scope = {"Image": Image, "ImageOps": ImageOps, "np": np, "file": root / "cat" / name}
            right = eval(read_right(MISREAD[name][1], channels), scope)
            assert np.array_equal(read_picture(right, config), expected), name


def test_reading_a_picture_leaves_the_filters_of_warnings_as_they_were(tmp_path: Path) -> None:
    before = list(warnings.filters)
    read_picture(GRAY_GRADIENTS["palette with transparency"], SIZE)
    root = make_folder(tmp_path / "pets", {"cat": 2, "dog": 2})
    (root / "cat" / "p.png").write_bytes(GRAY_GRADIENTS["palette with transparency"])
    prepare(root, tmp_path)
    assert warnings.filters == before


def test_tiffs_of_signed_bytes_are_refused_if_they_have_values_below_0() -> None:
    signed = {"tiffinfo": {339: 2}}
    positive = Image.fromarray(gradient(127, np.uint8))
    np.testing.assert_array_equal(
        read_picture(saved(positive, "TIFF", **signed), SIZE), read_picture(saved(positive, "TIFF"), SIZE)
    )
    with pytest.raises(DataError, match=r"^is a TIFF of signed 8 bits with values below 0"):
        read_picture(saved(Image.fromarray(gradient(255, np.uint8)), "TIFF", **signed), SIZE)


def test_reading_a_picture_does_not_change_it() -> None:
    image = noise()
    exif = image.getexif()
    exif[0x0112] = 6
    before = image.tobytes()
    read_picture(image, SIZE)
    assert (image.size, image.tobytes(), image.mode) == ((24, 20), before, "RGB")


# The same pixels as a stranger's


def timm_pixels(image: Image.Image, config: DataConfig) -> NDArray[np.uint8]:
    """What timm's own evaluation transform makes of an opened picture, before it normalises."""
    from timm.data import create_transform

    transform = create_transform(
        input_size=(3, config.image_size, config.image_size),
        interpolation=config.interpolation,
        crop_pct=1.0,
        crop_mode={"crop": "center", "squash": "squash"}[config.resize],
        normalize=False,
    )
    return np.asarray(transform(image.convert("RGB"))).transpose(1, 2, 0)


RESIZES = [(resize, filter) for resize in ("crop", "squash") for filter in ("bilinear", "bicubic")]


@pytest.mark.parametrize(("resize", "interpolation"), RESIZES)
def test_pictures_of_odd_sizes_are_read_as_timm_reads_them(resize: str, interpolation: str) -> None:
    sides = [1, 2, 3, 7, 31, 32, 33, 64, 65, 97, 333, 500]
    for size in (8, 33, 224):
        config = DataConfig.model_validate({"image_size": size, "resize": resize, "interpolation": interpolation})
        for width, height in zip(sides * 2, sides[::-1] + sides[3:] + sides[:3], strict=True):
            if max(width, height) > 64 * min(width, height):
                continue
            image = noise(width, height)
            np.testing.assert_array_equal(
                read_picture(saved(image, "PNG"), config),
                timm_pixels(image, config),
                err_msg=f"{width} x {height}",
            )


@pytest.mark.parametrize(("resize", "interpolation"), RESIZES)
def test_photos_of_many_sizes_are_read_as_timm_reads_them(resize: str, interpolation: str, tmp_path: Path) -> None:
    files = sorted(unzipped("flowers5_varied_mini", tmp_path).glob("*/*/*.jpg"))[::4]
    config = DataConfig.model_validate({"image_size": 96, "resize": resize, "interpolation": interpolation})
    sizes = set()
    for path in files:
        with Image.open(path) as image:
            np.testing.assert_array_equal(
                read_picture(path.read_bytes(), config), timm_pixels(image, config), err_msg=path.name
            )
            sizes.add(image.size)
    assert len(sizes) > 20


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (3, 400), (401, 6), (9000, 100)])
def test_a_thin_strip_is_read_nearly_as_timm_reads_it(size: tuple[int, int], interpolation: str) -> None:
    config = DataConfig.model_validate({"image_size": 32, "interpolation": interpolation})
    smooth = noise(3, 3).resize(size, Image.Resampling.BICUBIC)
    difference = read_picture(smooth, config).astype(int) - timm_pixels(smooth, config)
    assert np.abs(difference).max() <= 1
    # In noise, bicubic overshoots and is clipped after the first pass, which may be the other one.
    difference = read_picture(noise(*size), config).astype(int) - timm_pixels(noise(*size), config)
    assert np.abs(difference).mean() < 2


def test_a_thin_strip_takes_no_memory_for_what_is_cropped() -> None:
    """Resized first, 1 x 60,000 at 1024 pixels would be 250 GB."""
    pixels = read_picture(noise(1, 60_000), DataConfig(image_size=1024))
    assert pixels.shape == (1024, 1024, 3)


def test_crop_pct_resizes_and_then_crops_as_timm_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for width, height in ((90, 60), (61, 97), (40, 40), (200, 31)):
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for resize, mode in (("crop", "center"), ("squash", "squash")):
            ours = read_picture(
                picture, DataConfig.model_validate({"image_size": 28, "crop_pct": 0.875, "resize": resize})
            )
            theirs = timm.data.create_transform(
                (3, 28, 28), crop_pct=0.875, crop_mode=mode, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
            )(picture)
            assert np.array_equal(ours, (theirs * 255).round().byte().permute(1, 2, 0).numpy())


def test_the_cache_holds_what_read_picture_gives(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 3, "dog": 3})
    (root / "dog" / "gray16.png").write_bytes(GRAY_GRADIENTS["16-bit gray PNG"])
    data = prepare(root, tmp_path, resize="squash", interpolation="bilinear")
    config = DataConfig(image_size=16, resize="squash", interpolation="bilinear")
    for name, pixels in zip(data.names, data.images, strict=True):
        np.testing.assert_array_equal(pixels, read_picture((root / name).read_bytes(), config))


def with_tags(tags: dict[int, int | bytes], **options: Any) -> bytes:
    ifd = ImageFileDirectory_v2()
    for tag, value in tags.items():
        ifd[tag] = value
        ifd.tagtype[tag] = 1 if isinstance(value, bytes) else 4
    return saved(noise(), "TIFF", tiffinfo=ifd, **options)


def as_cr2(tiff: bytes) -> bytes:
    """A TIFF with the header of CR2, whose last part takes the place of the tags; these move to the end."""
    assert tiff[:8] == b"II*\0\x08\0\0\0"
    return tiff[:4] + len(tiff).to_bytes(4, "little") + b"CR\2\0" + tiff[12:] + tiff[8:]


@pytest.mark.parametrize(
    "content",
    [
        with_tags({50706: b"\1\4\0\0"}),  # DNG
        with_tags({254: 1, 330: 8}),
        with_tags({254: 1}, save_all=True, append_images=[noise(240, 200)]),
        as_cr2(with_tags({})),
    ],
)
def test_of_raw_not_even_the_preview_is_read(content: bytes) -> None:
    assert Image.open(io.BytesIO(content)).size == (24, 20)
    with pytest.raises(DataError, match=r"RAW of a camera: develop it to JPEG or PNG, .*; only its small preview"):
        read_picture(content, SIZE)


@pytest.mark.parametrize(
    "content",
    [
        with_tags({}),
        with_tags({254: 1}),
        with_tags({254: 0, 330: 8}),  # a pyramid
        with_tags({254: 0}, save_all=True, append_images=[noise(12, 10)]),
        as_cr2(with_tags({})).replace(b"CR\2\0", b"CR\3\0"),  # pixels at the place of the mark
    ],
)
def test_other_tiffs_are_read(content: bytes) -> None:
    assert read_picture(content, SIZE).shape == (SIZE.image_size, SIZE.image_size, 3)


@pytest.mark.parametrize("ending", ["NEF", "cr2", "dng", "arw", "pef", "srw"])
def test_a_file_that_is_raw_by_its_name_is_listed_with_the_cure(tmp_path: Path, ending: str) -> None:
    root = make_folder(tmp_path / "birds", {"owl": 2, "wren": 2})
    noise().save(root / "owl" / "002.png", "TIFF")
    assert len(prepare(root, tmp_path).names) == 5
    (root / "owl" / "002.png").rename(root / "owl" / f"002.{ending}")
    assert f"owl/002.{ending}: is not a picture, but RAW of a camera: develop it" in problems_of(root, tmp_path)
    assert len(prepare(root, tmp_path, bad_files="skip").names) == 4
    (root / "owl" / f"002.{ending}").write_bytes(saved(noise(), "JPEG"))  # only its name is wrong
    assert len(prepare(root, tmp_path).names) == 5


def test_raw_beside_a_picture_of_the_same_name_is_passed_over_and_counted(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "birds", {"train/owl": 3, "train/wren": 2, "test/owl": 1})
    for name in ("train/owl/000.NEF", "train/owl/001.NEF", "test/owl/000.nef"):
        (root / name).write_bytes(with_tags({50706: b"\1\4\0\0"}))
    data = prepare(root, tmp_path)
    assert len(data.names) == 6
    assert [one for one in data.notices if "RAW" in one] == [
        "3 files are RAW of a camera, and are not used, because pictures of the same names are beside them, the first: "
        "test/owl/000.nef"
    ]
    (root / "train/wren/alone.NEF").write_bytes(with_tags({}))
    told = problems_of(root, tmp_path)
    assert "train/wren/alone.NEF: is not a picture, but RAW of a camera" in told
    assert "train/owl" not in told
