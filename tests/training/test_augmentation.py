"""Augmentation does what its settings say, in pixels, and depends on seed, epoch and key alone."""

from __future__ import annotations

import numpy as np
import pydantic
import pytest
from scipy import ndimage

from catdog import rng
from catdog.training import augmentation
from catdog.training.request import Augmentation


def gradient(size: int) -> np.ndarray:
    """An image whose red says x and whose green says y, in levels of 255."""
    axis = np.linspace(0, 255, size)
    return np.stack([*np.meshgrid(axis, axis), np.full((size, size), 90.0)], axis=2).round().astype(np.uint8)


def changed(settings: Augmentation, random: np.ndarray, source: int = 60, size: int = 60) -> np.ndarray:
    out = np.zeros((len(random), size, size, 3), np.uint8)
    for place, parameters in zip(out, augmentation.draw_changes(random, settings, source, size), strict=True):
        augmentation.apply_change(gradient(source), parameters, settings, place)
    return out


def uniform(count: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, augmentation.DRAWS))


def test_random_numbers_depend_on_seed_epoch_and_key_alone() -> None:
    hashes = rng.key_hash([f"train/cat.{n}.jpg" for n in range(4000)])
    first = rng.uniform(3, 5, hashes, 5)
    order = np.random.default_rng(0).permutation(4000)
    assert (rng.uniform(3, 5, hashes[order], 5) == first[order]).all()
    for other in (rng.uniform(4, 5, hashes, 5), rng.uniform(3, 6, hashes, 5)):
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.03
    assert abs(first.mean() - 0.5) < 0.01
    assert np.abs(np.corrcoef(first.T) - np.eye(5)).max() < 0.06
    assert len(np.unique(hashes)) == 4000


def test_nothing_asked_for_is_nothing_done() -> None:
    assert (changed(Augmentation(), uniform(3)) == gradient(60)).all()


def test_half_are_mirrored() -> None:
    seen = changed(Augmentation(mirror=True), uniform(200))
    mirrored = (seen == gradient(60)[:, ::-1]).all(axis=(1, 2, 3))
    assert 80 < mirrored.sum() < 120
    assert (seen[~mirrored] == gradient(60)).all()


def test_a_crop_is_what_scipy_makes_of_the_same_pixels() -> None:
    settings, random = Augmentation(crop=(0.5, 0.9), aspect=1.3), uniform(50)
    parameters = augmentation.draw_changes(random, settings, 80, 48)
    seen = changed(settings, random, 80, 48)
    for image, row in zip(seen, parameters, strict=True):
        across, down = row[:3], row[3:6]
        matrix, offset = [[down[1], down[0]], [across[1], across[0]]], [down[2], across[2]]
        for channel in range(3):
            before = gradient(80)[:, :, channel].astype(float)
            expected = ndimage.affine_transform(before, matrix, offset, (48, 48), order=1, mode="nearest")
            assert np.abs(image[:, :, channel] - expected).max() <= 0.51
    # Sides and ratio stay within what was asked for, and no crop leaves the image.
    width, height = parameters[:, 0] * 48 / 80, parameters[:, 4] * 48 / 80
    assert np.sqrt(width * height).min() >= 0.5 - 1e-6
    assert np.sqrt(width * height).max() <= 0.9 + 1e-6
    assert (width / height).max() <= 1.3 + 1e-6
    for side, start in ((width, parameters[:, 2]), (height, parameters[:, 5])):
        left = (start + 0.5 - side * 80 / 48 * 0.5) / 80
        assert left.min() >= -1e-6
        assert (left + side).max() <= 1 + 1e-6
    assert np.ptp(left) > 0.2


def test_rotation_turns_about_the_centre_and_fills_as_told() -> None:
    turned = uniform(1)
    turned[:, 4] = 1.0  # all the way: 90 degrees
    assert np.abs(changed(Augmentation(rotation=90), turned)[0].astype(int) - np.rot90(gradient(60))).max() <= 1
    shifted = uniform(1)
    shifted[:, 8], shifted[:, 9] = 1.0, 0.5  # all the way to one side
    seen = changed(Augmentation(shift=0.25, fill="nearest"), shifted)[0]
    assert (seen[:, :45] == gradient(60)[:, 15:]).all()
    assert (seen[:, 45:, 0] == 255).all()


def test_brightness_contrast_and_erasing_stay_within_their_bounds() -> None:
    plain = gradient(60).astype(float)
    brighter = changed(Augmentation(brightness=20), uniform(50)).astype(float) - plain
    inner = (plain > 25) & (plain < 230)
    assert np.abs(brighter[:, inner]).max() <= 20.5
    assert np.ptp(brighter[:, inner].mean(axis=1)) > 25
    flatter = changed(Augmentation(contrast=0.5), uniform(50)).astype(float)
    assert np.abs(flatter.mean(axis=(1, 2, 3)) - plain.mean()).max() < 8
    assert flatter.std(axis=(1, 2, 3)).min() < 0.8 * plain.std()
    erased = (changed(Augmentation(erase=0.5), uniform(400)) != gradient(60)).any(axis=3).mean(axis=(1, 2))
    assert 0.4 < (erased > 0).mean() < 0.6
    assert erased[erased > 0].min() > 0.01
    assert erased.max() < 0.22


def test_mixup_blends_images_and_labels_alike() -> None:
    shares = np.array([0.25, 1.0, 0.5, 0.5], np.float32)
    pixels = np.stack([np.full((4, 4, 3), level, np.uint8) for level in (0, 10, 200, 250)])
    labels = np.array([0, 1, 1, 0], np.float32)
    mixed, blended = augmentation.mixup(shares, pixels, labels)
    assert [int(image[0, 0, 0]) for image in mixed.numpy()] == [150, 10]
    assert blended.numpy().tolist() == [0.75, 1.0]


def test_settings_that_cannot_be_are_refused() -> None:
    for wrong in ({"crop": (0.9, 0.5)}, {"crop": (0.0, 0.5)}, {"rotation": 200}, {"fill": "black"}, {"zooom": 1}):
        with pytest.raises(pydantic.ValidationError):
            Augmentation(**wrong)
