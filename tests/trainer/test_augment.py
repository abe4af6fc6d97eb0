"""Augmentation: each draw against numpy, the two executors against each other, and what the draws depend on."""

from __future__ import annotations

import warnings
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trainer.augment import (
    ERASE_AREA,
    Augmentation,
    Draw,
    change_colours,
    draw,
    normalise,
    normalise_on_host,
    warp_on_device,
    warp_on_host,
)
from trainer.config import TrainConfig
from trainer.data import IMAGENET_MEAN as MEAN
from trainer.data import IMAGENET_STD as STD
from trainer.data import Dataset
from trainer.device import Device
from trainer.errors import ConfigError
from trainer.transforms import HostAugmentation

SIZE = 16


class Highest(np.random.Generator):
    """Draws the largest rotation, and always the same shift: what numpy can repeat exactly."""

    def __init__(self, shift: int = 0) -> None:
        super().__init__(np.random.PCG64(0))
        self.shift = shift

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        return np.full(size, high)

    def integers(self, low: Any, high: Any = None, size: Any = None, *args: Any, **kwargs: Any) -> Any:
        return np.full(size, self.shift)


def noise(batch: int = 5) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8)


def config_of(**settings: object) -> TrainConfig:
    return TrainConfig.model_validate(settings)


def on_host(pictures: NDArray[np.uint8], drawn: Draw) -> NDArray[np.uint8]:
    return warp_on_host(pictures, drawn, MEAN, SIZE)


def on_device(pictures: NDArray[np.uint8], drawn: Draw, device: Device) -> NDArray[np.float32]:
    """[batch, S, S, 3] on 0..255."""
    images = warp_on_device(device.copy(np.array(pictures)), drawn, device, MEAN, SIZE)
    return images.cpu().permute(0, 2, 3, 1).numpy()


def normalised(pictures: NDArray[np.uint8]) -> torch.Tensor:
    return normalise(torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float(), MEAN, STD)


def augmented(
    pictures: NDArray[np.uint8], device: Device, seed: tuple[int, ...] = (0, 1, 1), **settings: object
) -> torch.Tensor:
    """The images of one batch, through host and device as training does it."""
    augment = Augmentation(config_of(**settings), device, MEAN, STD, SIZE)
    return augment(augment.on_host(pictures, *seed), torch.zeros(len(pictures)).long(), *seed).images


def drawn(shift: int = 0, **settings: object) -> Draw:
    return draw(config_of(**settings), 5, SIZE, Highest(shift))


# What a draw does to a picture, on both executors


def moved(pictures: NDArray[np.uint8], shift: int) -> NDArray[np.uint8]:
    """What a crop at (shift, shift) of the picture in its black border shows."""
    bordered = np.pad(pictures, ((0, 0), (4, 4), (4, 4), (0, 0)))
    return bordered[:, 4 + shift : 4 + shift + SIZE, 4 + shift : 4 + shift + SIZE]


EXACT: list[tuple[str, Draw, Any]] = [
    ("left-right", drawn(hflip=1), lambda pictures: pictures[:, :, ::-1]),
    ("top-bottom", drawn(vflip=1), lambda pictures: pictures[:, ::-1]),
    ("both flips", drawn(hflip=1, vflip=1), lambda pictures: pictures[:, ::-1, ::-1]),
    ("rotation by 90", drawn(rotate=90), lambda pictures: np.rot90(pictures, axes=(1, 2))),
    ("rotation by 180", drawn(rotate=180), lambda pictures: pictures[:, ::-1, ::-1]),
    ("crop down right", drawn(3, crop_padding=4), lambda pictures: moved(pictures, 3)),
    ("crop up left", drawn(-4, crop_padding=4), lambda pictures: moved(pictures, -4)),
    (
        "flip, rotation and crop at once",
        drawn(-2, hflip=1, rotate=90, crop_padding=2),
        lambda pictures: np.rot90(moved(pictures, -2), axes=(1, 2))[:, :, ::-1],
    ),
]


@pytest.mark.parametrize(("drawn", "expected"), [case[1:] for case in EXACT], ids=[case[0] for case in EXACT])
def test_on_whole_pixels_both_executors_do_exactly_what_numpy_does(drawn: Draw, expected: Any, cpu: Device) -> None:
    pictures = noise()
    assert np.array_equal(on_host(pictures, drawn), expected(pictures))
    # grid_sample weighs neighbours by coordinates that are off by some 1e-6 pixels.
    assert np.abs(on_device(pictures, drawn, cpu) - expected(pictures)).max() < 0.01


def test_host_and_device_give_nearly_the_same_pictures(digits: Dataset, cpu: Device) -> None:
    """OpenCV rounds coordinates to 1/32 pixel: up to 8 grey levels at a black-white edge, one on average."""
    config = config_of(hflip=0.5, vflip=0.5, rotate=30, crop_padding=3, erase=0.5)
    pictures = digits.images[:256]
    both = draw(config, 256, SIZE, np.random.default_rng(3))
    host = on_host(pictures, both).astype(np.float32)
    assert np.abs(host - pictures).mean() > 20
    difference = np.abs(host - on_device(pictures, both, cpu))
    assert difference.max() < 8.5
    assert difference.mean() < 1


@pytest.mark.parametrize(
    ("settings", "most", "mean"),
    [
        ({"shift": 0.2}, 8.5, 1),  # in grey levels; OpenCV's coordinates again
        ({"scale": 0.3}, 8.5, 1),
        ({"brightness": 0.3}, 0.01, 0.001),
        ({"mixup": 1}, 0.01, 0.001),
        ({"cutmix": 1}, 0.01, 0.001),
        (
            {"rotate": 15, "shift": 0.1, "scale": 0.1, "brightness": 0.2, "erase": 0.5, "mixup": 0.5, "cutmix": 0.5},
            15,
            1,
        ),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_a_batch_is_nearly_the_same_whichever_executor_makes_it(
    settings: dict[str, object], most: float, mean: float, digits: Dataset, cpu: Device
) -> None:
    pictures, labels = np.array(digits.images[:64]), torch.tensor(digits.labels[:64])
    augment = Augmentation(config_of(**settings), cpu, MEAN, STD, SIZE)
    host, device = augment(pictures, labels, 3, 1, 1), augment(torch.from_numpy(pictures), labels, 3, 1, 1)
    assert (host.images - normalised(pictures)).abs().mean() > 0.01
    difference = (host.images - device.images).abs() * torch.tensor(STD).view(1, 3, 1, 1) * 255
    assert difference.max() < most
    assert difference.mean() < mean
    assert host.share == device.share
    for ours, theirs in ((host.labels, device.labels), (host.other_labels, device.other_labels)):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)  # type: ignore[arg-type]


@pytest.mark.cuda
def test_host_and_gpu_give_nearly_the_same_pictures(digits: Dataset, cuda: Device) -> None:
    config = config_of(hflip=0.5, vflip=0.5, rotate=30, crop_padding=3, erase=0.5)
    pictures = np.array(digits.images[:256])
    both = draw(config, 256, SIZE, np.random.default_rng(3))
    difference = np.abs(on_host(pictures, both) - on_device(pictures, both, cuda))
    assert difference.max() < 8.5
    assert difference.mean() < 1


def test_nothing_configured_leaves_pictures_as_they_are(cpu: Device) -> None:
    pictures = noise()
    nothing = draw(config_of(), 5, SIZE, np.random.default_rng(0))
    assert nothing == Draw()
    assert torch.equal(augmented(pictures, cpu), normalised(pictures))
    assert np.array_equal(on_device(pictures, nothing, cpu), pictures)


def test_a_batch_is_normalised_channels_last_and_leaves_the_cache_alone(cpu: Device) -> None:
    pictures = noise()
    before = pictures.copy()
    augmented(pictures, cpu, erase=1, hflip=1)
    batch = augmented(pictures, cpu, erase=1)
    assert batch.shape == (5, 3, SIZE, SIZE)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(pictures, before)
    grey = normalised(np.full((1, 2, 2, 3), 128, dtype=np.uint8))[0, :, 0, 0]
    assert grey.tolist() == pytest.approx([(128 / 255 - m) / s for m, s in zip(MEAN, STD, strict=True)], abs=1e-5)


# What is drawn


def test_flips_come_as_often_as_asked() -> None:
    matrices = draw(config_of(hflip=0.2, vflip=0.7), 20_000, SIZE, np.random.default_rng(0)).matrices
    assert matrices is not None
    assert np.mean(matrices[:, 0, 0] < 0) == pytest.approx(0.2, abs=0.02)
    assert np.mean(matrices[:, 1, 1] < 0) == pytest.approx(0.7, abs=0.02)


def test_rotations_fill_their_range_evenly_either_way() -> None:
    matrices = draw(config_of(rotate=30), 20_000, SIZE, np.random.default_rng(0)).matrices
    assert matrices is not None
    angles = np.rad2deg(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert np.abs(angles).max() == pytest.approx(30, abs=0.1)
    assert np.histogram(angles, 4, (-30, 30))[0] / 20_000 == pytest.approx([0.25] * 4, abs=0.02)


def test_crops_start_at_every_pixel_of_the_border_and_not_beyond() -> None:
    matrices = draw(config_of(crop_padding=2), 5_000, SIZE, np.random.default_rng(0)).matrices
    assert matrices is not None
    for axis in (0, 1):
        starts, counts = np.unique(matrices[:, axis, 2], return_counts=True)
        assert starts.tolist() == [-2, -1, 0, 1, 2]
        assert counts.min() > 800
    assert np.abs(np.corrcoef(matrices[:, 0, 2], matrices[:, 1, 2])[0, 1]) < 0.05


def test_erased_rectangles_have_the_stated_share_and_lie_within_the_picture() -> None:
    size, batch = 64, 20_000
    boxes = draw(config_of(erase=0.6), batch, size, np.random.default_rng(0)).boxes
    assert boxes is not None
    top, left, height, width = boxes.T
    erased = height * width > 0
    assert erased.mean() == pytest.approx(0.6, abs=0.02)
    assert min(top.min(), left.min()) == 0
    assert (top + height).max() == (left + width).max() == size
    # Sides are rounded to whole pixels.
    top, left, height, width = boxes[erased].T
    assert ((height + 0.5) * (width + 0.5)).min() >= ERASE_AREA[0] * size**2
    assert ((height - 0.5) * (width - 0.5)).max() <= ERASE_AREA[1] * size**2
    assert np.mean(height * width) / size**2 == pytest.approx(np.mean(ERASE_AREA), rel=0.02)
    assert np.median(height / width) == pytest.approx(1.0, abs=0.05)


def test_an_erased_rectangle_has_the_mean_colour_and_the_rest_is_untouched(cpu: Device) -> None:
    pictures = noise(1)
    box = Draw(None, np.array([[2, 5, 4, 7]]))
    for batch in (on_host(pictures, box), on_device(pictures, box, cpu)):
        assert np.abs(batch[0, 2:6, 5:12] - 255 * np.array(MEAN)).max() < 0.51
        outside = np.ones((SIZE, SIZE), dtype=bool)
        outside[2:6, 5:12] = False
        assert np.array_equal(batch[0, outside], pictures[0, outside])


EVERYTHING: dict[str, object] = {
    "hflip": 0.5,
    "rotate": 20,
    "crop_padding": 2,
    "erase": 0.5,
    "augment": ["TrivialAugmentWide", {"name": "ColorJitter", "p": 0.7}, {"name": "GaussNoise", "p": 0.7}],
}


def test_the_same_seed_epoch_and_batch_give_the_same_pictures_whatever_was_drawn_before(cpu: Device) -> None:
    pictures = noise(32)
    expected = augmented(pictures, cpu, (5, 3, 2), **EVERYTHING)
    host = HostAugmentation(config_of(**EVERYTHING))
    first = host(pictures, 5, 3, 2)
    host(pictures[:7], 1, 1, 1)
    torch.manual_seed(99)
    assert np.array_equal(host(pictures, 5, 3, 2), first)
    assert torch.equal(augmented(pictures, cpu, (5, 3, 2), **EVERYTHING), expected)
    for seed in ((6, 3, 2), (5, 4, 2), (5, 3, 4)):
        assert not torch.equal(augmented(pictures, cpu, seed, **EVERYTHING), expected)


def test_augmenting_on_the_host_leaves_the_random_state_of_training_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    HostAugmentation(config_of(augment=["AutoAugment"]))(noise(), 1, 2, 3)
    assert torch.equal(torch.rand(3), expected)


# Albumentations by name


def test_an_albumentations_transform_is_applied_first(cpu: Device) -> None:
    pictures = noise()
    batch = augmented(pictures, cpu, augment=[{"name": "InvertImg", "p": 1}], hflip=1)
    assert torch.equal(batch, normalised(255 - pictures[:, :, ::-1]))


@pytest.mark.parametrize(
    ("transform", "sentence"),
    [
        ({"name": "ColorJiter"}, "no transform 'ColorJiter'; did you mean ColorJitter?"),
        ({"name": "Compose"}, "no transform 'Compose'"),
        ({"name": "zzzzzz"}, "no transform 'zzzzzz'"),
        ({"name": "ColorJitter", "brightness": "much"}, "ColorJitter refuses {'brightness': 'much'}: "),
        ({"name": "ColorJitter", "brightnes": 0.2}, "ColorJitter refuses {'brightnes': 0.2}: "),
    ],
)
def test_a_transform_that_cannot_be_built_is_a_sentence(transform: dict[str, Any], sentence: str, cpu: Device) -> None:
    # As outside of tests, where a warning is no error.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ConfigError) as error:
            Augmentation(config_of(augment=[transform]), cpu, MEAN, STD, SIZE)
    assert str(error.value).startswith(f"augment: {sentence}")


@pytest.mark.parametrize(
    ("transform", "became"),
    [
        ({"name": "Normalize"}, r"\(16, 16, 3\) float32"),
        ({"name": "ToTensorV2"}, r"\(3, 16, 16\) torch.uint8"),
    ],
)
def test_a_transform_that_changes_the_type_is_a_sentence(transform: dict[str, Any], became: str, cpu: Device) -> None:
    with pytest.raises(ConfigError, match=rf"a picture of \(16, 16, 3\) uint8 became {became}; use transforms that"):
        augmented(noise(), cpu, augment=[transform])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_whose_size_a_transform_changed_is_resized(channels: int) -> None:
    pictures = noise()[..., :channels].copy()
    host = HostAugmentation(config_of(augment=[{"name": "CenterCrop", "height": 8, "width": 8, "p": 1}]))
    size = pictures.shape[1]
    corner = (size - 8) // 2
    middle = pictures[:, corner : corner + 8, corner : corner + 8]
    expected = [cv2.resize(one, (size, size), interpolation=cv2.INTER_LINEAR).reshape(size, size, -1) for one in middle]
    assert np.array_equal(host(pictures, 0), np.stack(expected))
    assert host.notes(pictures, 0) == [
        f"augment: CenterCrop changes the size of pictures; each is then resized to {size} px"
    ]


def test_a_warning_of_albumentations_is_a_note() -> None:
    host = HostAugmentation(config_of(augment=["HorizontalFlip", "ShiftScaleRotate"]))
    (note,) = host.notes(noise(), 0)
    assert note.startswith("augment: ShiftScaleRotate is a special case of Affine transform")


def test_every_transform_is_applied_that_albumentations_itself_applies_with_its_defaults() -> None:
    import albumentations

    pictures, failed, applied = noise(2), {}, 0
    kinds = [kind for kind in vars(albumentations).values() if isinstance(kind, type)]
    for kind in (kind for kind in kinds if issubclass(kind, albumentations.BasicTransform)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                alone = albumentations.Compose([kind(p=1)])(image=pictures[0])["image"]
            except (TypeError, ValueError, KeyError, NotImplementedError):  # it needs arguments, or more than pictures
                continue
            if alone.dtype != np.uint8:
                continue
            try:
                result = HostAugmentation(config_of(augment=[{"name": kind.__name__, "p": 1}]))(pictures, 1)
            except ConfigError as error:
                failed[kind.__name__] = str(error)
                continue
        applied += 1
        assert (result.shape, result.dtype) == (pictures.shape, np.uint8), kind
    assert failed == {}
    assert applied > 70


# Scale, shift, colour, mixing


def test_two_rotations_lean_towards_upright_and_reach_twice_as_far() -> None:
    matrices = draw(config_of(rotate=10, rotations=2), 20_000, SIZE, np.random.default_rng(0)).matrices
    assert matrices is not None
    angles = np.rad2deg(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert 17 < np.abs(angles).max() <= 20
    assert np.mean(np.abs(angles) < 10) == pytest.approx(0.75, abs=0.02)  # of a triangle


def test_listed_rotations_are_added_up_each_from_its_own_range() -> None:
    matrices = draw(config_of(rotate=[15, 25]), 20_000, SIZE, np.random.default_rng(0)).matrices
    assert matrices is not None
    angles = np.rad2deg(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert 38 < np.abs(angles).max() <= 40
    # The sum of two even distributions is a trapezoid: flat up to 25 - 15 degrees, then falling to 0 at 25 + 15.
    assert np.mean(np.abs(angles) < 10) == pytest.approx(20 / 50, abs=0.02)
    assert np.mean(np.abs(angles) > 25) == pytest.approx(15**2 / (30 * 50), abs=0.02)


def test_one_listed_rotation_is_that_number() -> None:
    listed, number = (draw(config_of(rotate=one), 9, SIZE, np.random.default_rng(0)) for one in ([20], 20))
    assert listed.matrices is not None
    assert np.array_equal(listed.matrices, number.matrices)


def test_scale_zooms_evenly_round_the_centre_and_shift_moves_by_a_share() -> None:
    matrices = draw(config_of(scale=0.2, shift=0.25), 20_000, SIZE, np.random.default_rng(0)).matrices
    assert matrices is not None
    zoom = 1 / matrices[:, 0, 0]
    assert (zoom.min(), zoom.max()) == pytest.approx((0.8, 1.2), abs=0.01)
    centre = np.array([(SIZE - 1) / 2, (SIZE - 1) / 2, 1])
    moved_by = matrices @ centre - centre[:2]
    assert np.abs(moved_by).max() == pytest.approx(0.25 * SIZE, abs=0.05)


def test_colour_factors_do_what_torchvision_does() -> None:
    from torchvision.transforms.v2 import functional

    images = torch.rand(4, 3, 8, 8) * 255
    for number, adjust in enumerate(
        (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    ):
        for factor in (0.6, 1.3):
            factors = torch.ones(4, 3)
            factors[:, number] = factor
            expected = torch.stack([adjust(image / 255, factor) for image in images]) * 255
            assert (change_colours(images, factors) - expected).abs().max() < 0.05


def test_mixup_blends_pictures_and_tells_both_labels(cpu: Device) -> None:
    pictures, labels = noise(6), torch.arange(6)
    batch = Augmentation(config_of(mixup=1), cpu, MEAN, STD, SIZE)(pictures, labels, 0, 1, 1)
    assert batch.other_labels is not None
    plain = normalised(pictures)
    expected = batch.share * plain + (1 - batch.share) * plain[batch.other_labels]
    assert (batch.images - expected).abs().max() < 1e-5
    assert sorted(batch.other_labels.tolist()) == labels.tolist()


def test_cutmix_pastes_a_rectangle_whose_area_is_the_other_labels_share(cpu: Device) -> None:
    pictures, labels = noise(6), torch.arange(6)
    plain, seen = normalised(pictures), set()
    for number in range(20):
        batch = Augmentation(config_of(cutmix=1), cpu, MEAN, STD, SIZE)(pictures, labels, 0, 1, number)
        assert batch.other_labels is not None
        others = plain[batch.other_labels]
        own = (batch.images == plain).all(dim=1)
        assert torch.equal(torch.where(own[:, None], plain, others), batch.images)
        moved = batch.other_labels != labels
        assert own[moved].float().mean().item() == pytest.approx(batch.share, abs=1e-6)
        seen.add(batch.share)
    assert len(seen) > 10


def test_mixing_takes_the_stated_share_of_batches(cpu: Device) -> None:
    config, rng = config_of(mixup=0.25, cutmix=0.25), np.random.default_rng(0)
    mixes = [draw(config, 4, SIZE, rng).mix for _ in range(4_000)]
    assert np.mean([mix is not None and mix.box is None for mix in mixes]) == pytest.approx(0.25, abs=0.03)
    assert np.mean([mix is not None and mix.box is not None for mix in mixes]) == pytest.approx(0.25, abs=0.03)


def test_gray_pictures_go_through_everything(cpu: Device) -> None:
    pictures = noise(8)[..., :1].copy()
    config = config_of(rotate=20, hflip=0.5, erase=0.5, brightness=0.2, mixup=0.5)
    augment = Augmentation(config, cpu, (0.5,), (0.2,), SIZE)
    images = augment(pictures, torch.zeros(8).long(), 0, 1, 1).images
    assert images.shape == (8, 1, SIZE, SIZE)
    assert images.isfinite().all()


@pytest.mark.parametrize("channels", [1, 3])
def test_values_that_are_looked_up_are_those_that_are_computed(channels: int) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, channels), dtype=np.uint8)
    mean, std = MEAN[:channels], STD[:channels]
    computed = normalise(torch.from_numpy(pictures).permute(0, 3, 1, 2).float(), mean, std)
    looked_up = normalise_on_host(pictures, mean, std)
    assert torch.equal(looked_up, computed)
    assert looked_up.stride() == computed.stride()
