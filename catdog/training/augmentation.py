"""Augmentation: how each training image is changed in each epoch, drawn from its key, applied as batches are gathered.

Every geometric change of an image is one affine transform from output to input pixels, so that an image is resampled
once however many changes there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from catdog.training.request import Augmentation

# How many random numbers `draw_changes` takes for an image.
DRAWS = 16


def draw_changes(random: np.ndarray, settings: Augmentation, source: int, size: int) -> np.ndarray:
    """Draws one change an image.

    Args:
        random: float64 in [0, 1), N×DRAWS, from `uniform`.
        settings: what may be drawn.
        source: the side of the images, in pixels.
        size: the side of what `apply_change` makes of them, in pixels.

    Returns:
        float32, N×12: the affine transform (6), brightness, contrast, and the erased rectangle's left, top,
        right and bottom as shares of the side.
    """
    signed = 2.0 * random - 1.0
    side = settings.crop[0] + (settings.crop[1] - settings.crop[0]) * random[:, 1]
    stretch = settings.aspect ** (signed[:, 2] / 2)
    width, height = np.minimum(side * stretch, 1.0), np.minimum(side / stretch, 1.0)
    zoom = 1.0 + settings.zoom * signed[:, 3]
    angle = np.deg2rad(settings.rotation) * signed[:, 4]
    shear = np.tan(np.deg2rad(settings.shear) * signed[:, 5])
    scale_x, scale_y = (zoom * extent * source / size for extent in (width, height))
    mirror = np.where(settings.mirror & (random[:, 0] < 0.5), -1.0, 1.0)
    # Mirror and scale first, then shear along x, then rotate, each about the centre.
    cosine, sine = np.cos(angle), np.sin(angle)
    x_x, x_y = cosine * scale_x * mirror, (cosine * shear - sine) * scale_y
    y_x, y_y = sine * scale_x * mirror, (sine * shear + cosine) * scale_y
    # A crop lies anywhere inside the image; a shift moves it beyond the edge.
    from_centre, to_centre = (size - 1) / 2, (source - 1) / 2
    move_x = source * ((1 - width) * signed[:, 6] / 2 + settings.shift * signed[:, 8])
    move_y = source * ((1 - height) * signed[:, 7] / 2 + settings.shift * signed[:, 9])
    area = 0.02 + 0.18 * random[:, 12]
    erased = np.where(random[:, 13] < settings.erase, np.sqrt(area), 0.0)
    left, top = (1 - erased) * random[:, 14], (1 - erased) * random[:, 15]
    parameters = [
        x_x, x_y, to_centre - (x_x + x_y) * from_centre + move_x,
        y_x, y_y, to_centre - (y_x + y_y) * from_centre + move_y,
        settings.brightness * signed[:, 10], 1.0 + settings.contrast * signed[:, 11],
        left, top, left + erased, top + erased,
    ]  # fmt: skip
    return np.stack(parameters, axis=1).astype(np.float32)


def apply_change(image: np.ndarray, parameters: np.ndarray, settings: Augmentation, out: np.ndarray) -> None:
    """Applies one drawn change to one image, with OpenCV, in a sixth of the time of TensorFlow's transform of batches.

    Args:
        image: uint8, R×R×3.
        parameters: float32, 12: a row that `draw_changes` made of the same settings.
        settings: what was drawn from.
        out: uint8, S×S×3, contiguous, of the size that `draw_changes` was given; is overwritten with the changed image.
    """
    import cv2

    size = out.shape[0]
    border = cv2.BORDER_REFLECT if settings.fill == "reflect" else cv2.BORDER_REPLICATE
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cv2.warpAffine(image, parameters[:6].reshape(2, 3), (size, size), dst=out, flags=flags, borderMode=border)
    if settings.contrast or settings.brightness:
        brightness, gain = (float(value) for value in parameters[6:8])
        mean = float(np.mean(cv2.mean(out)[:3]))
        cv2.addWeighted(out, gain, out, 0.0, mean * (1 - gain) + brightness, dst=out)
    if settings.erase:
        left, top, right, bottom = np.rint(parameters[8:] * size).astype(int)
        out[top:bottom, left:right] = 128


def mixup(shares: Any, *doubled: Any) -> list[Any]:
    """MixUp (Zhang et al., 2018): blends the first half of each batch with its second half.

    Args:
        shares: float32, 2N; the first N are those of the images that are mixed into.
        *doubled: images, uint8, or figures, float32, 2N each.

    Returns:
        As many of N each; images are uint8 again.
    """
    import tensorflow as tf

    count = tf.shape(shares)[0] // 2
    mixed = []
    for values in doubled:
        share = tf.reshape(shares[:count], [-1] + [1] * (len(values.shape) - 1))
        blend = share * tf.cast(values[:count], tf.float32) + (1 - share) * tf.cast(values[count:], tf.float32)
        mixed.append(tf.cast(tf.round(blend), tf.uint8) if values.dtype == tf.uint8 else blend)
    return mixed
