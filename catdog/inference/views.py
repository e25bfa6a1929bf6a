"""Views of images: how test-time augmentation shows each image to a model, more than once."""

from __future__ import annotations

import cv2
import numpy as np


def apply_view(batch: np.ndarray, view: str) -> np.ndarray:
    """Makes a view of a batch.

    Args:
        batch: uint8, N×S×S×3.
        view: "identity", "mirror", or "crop-88" (the middle 88 % of each side, enlarged again) and "crop-88-mirror".

    Returns:
        uint8, N×S×S×3.
    """
    kind, _, share = view.removesuffix("mirror").rstrip("-").partition("-")
    if kind == "crop":
        size = batch.shape[1]
        side = size * int(share) / 100
        # Pixel centres: output x shows input (x + 1/2)·share - 1/2 + offset.
        scale = side / size
        offset = (size - side) / 2 + (scale - 1) / 2
        matrix = np.array([[scale, 0, offset], [0, scale, offset]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        batch = np.stack([cv2.warpAffine(image, matrix, (size, size), flags=flags) for image in batch])
    return batch[:, :, ::-1] if view.endswith("mirror") else batch
