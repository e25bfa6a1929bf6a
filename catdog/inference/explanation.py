"""Explanations: which part of a photo speaks for a class, by Grad-CAM (Selvaraju et al., 2017).

A heat map is the last feature map's channels, each weighted by how much the class's logit grows with it on average,
summed, and without what speaks against the class. It is as coarse as that feature map. It shows where a model looks,
not that it looks there for a good reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import cv2
import numpy as np

from catdog.data import images
from catdog.errors import CatdogError
from catdog.inference.bundle import SavedBundle, load_member, merge_infos, read_info
from catdog.models.surgery import split_at_feature_map

if TYPE_CHECKING:
    import keras

# How much of the photo its hottest part hides.
_OPACITY = 0.6


class Explainer:
    """One bundle, or several, ready to explain; run by TensorFlow, whose threads are the whole process's.

    Attributes:
        info: description of the bundles as one.
    """

    def __init__(self, saved: list[SavedBundle]) -> None:
        self.info = merge_infos([each.info for each in saved])
        self._members = [
            (each.info.image_size, *split_at_feature_map(load_member(each.uri, each.info, member)))
            for each in saved
            for member in each.info.members
        ]

    @classmethod
    def load(cls, models: Iterable[str | SavedBundle]) -> Explainer:
        """Loads the Keras models of bundles.

        Args:
            models: URIs of runs or of bundles, or bundles whose description was read already.

        Raises:
            UsageError: there is no such bundle, or their classes differ.
            CatdogError: a bundle is of another version, incomplete or damaged.
        """
        return cls([read_info(model) if isinstance(model, str) else model for model in models])

    def heat_map(self, data: bytes, label: int) -> np.ndarray:
        """Maps what speaks for a class in a photo; of several members, the mean of their maps.

        Args:
            data: the bytes of the file.
            label: of the class, 0 or 1.

        Returns:
            float32, h×w, in [0, 1]: the feature map's size, stretched over the photo; 0 everywhere if nothing in it
            speaks for the class.

        Raises:
            CatdogError: the photo is unreadable.
        """
        maps = []
        for size, before, after in self._members:
            decoded = images.decode_image(data, size)
            if decoded.status == "unreadable":
                raise CatdogError(f"the photo cannot be read: {decoded.detail}")
            maps.append(grad_cam(before, after, decoded.pixels, label))
        height, width = max((one.shape for one in maps), key=lambda shape: shape[0] * shape[1])
        # One map as it is: resizing is for members of different kinds.
        same = [one if one.shape == (height, width) else _resized(one, height, width) for one in maps]
        return np.asarray(np.mean(same, axis=0, dtype=np.float32))


def grad_cam(before: keras.Model, after: keras.Model, pixels: np.ndarray, label: int) -> np.ndarray:
    """Computes Grad-CAM's heat map.

    Args:
        before: from uint8 1×S×S×3 to the feature map, 1×h×w×C.
        after: from the feature map to the logit of label 1; that of label 0 is its negative.
        pixels: uint8, S×S×3, RGB.
        label: 0 or 1.

    Returns:
        float32, h×w, in [0, 1]; its largest value is 1 unless it is 0 everywhere.
    """
    import tensorflow as tf

    features = tf.convert_to_tensor(before(pixels[None], training=False))
    with tf.GradientTape() as tape:
        tape.watch(features)
        logit = after(features, training=False)
        score = logit if label == 1 else -logit
    weights = tf.reduce_mean(tape.gradient(score, features), axis=(1, 2), keepdims=True)
    heat = tf.nn.relu(tf.reduce_sum(weights * features, axis=-1))[0].numpy().astype(np.float32)
    highest = heat.max()
    return heat / highest if highest > 0 else heat


def overlay_heat(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lays a heat map over a photo: the hotter, the more colour, from violet to yellow; what is cold stays as it is.

    Args:
        pixels: uint8, H×W×3, RGB.
        heat: float32, h×w, in [0, 1].

    Returns:
        uint8, H×W×3, RGB.
    """
    large = _resized(heat, *pixels.shape[:2])
    colours = cv2.applyColorMap(np.round(large * 255).astype(np.uint8), cv2.COLORMAP_PLASMA)[:, :, ::-1]
    share = _OPACITY * large[:, :, None]
    return np.round(pixels * (1 - share) + colours * share).astype(np.uint8)


def _resized(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.clip(cv2.resize(heat, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)
