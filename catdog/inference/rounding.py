"""Weights as small integers, rounded so that a convolution's output changes least; pure functions of arrays.

A rounding error in one weight can make up for those in others, since a convolution's inputs vary together: neighbouring
pixels are nearly equal. So each weight is rounded to what is best given all others, again and again (coordinate
descent), where best means the least variance of the output's error over calibration photos. What stays as the mean of
that error goes into the bias.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# What is tried for the range that the integers span, as a share of the largest weight.
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
_SWEEPS = 3
# Added to the inputs' variance, as a share of its mean: few photos must not make a direction look free.
_DAMPING = 0.01
# With more inputs, all shares are judged by weights rounded one by one.
_FEW = 64
_LEAST_SCALE = 1e-8


class Moments(NamedTuple):
    """The inputs of a convolution's weights over calibration photos, by group of channels.

    Attributes:
        mean: float64, G×K.
        covariance: float64, G×K×K.
    """

    mean: np.ndarray
    covariance: np.ndarray


class Rounded(NamedTuple):
    """A convolution's weights as integers.

    Attributes:
        integers: int8, in the weights' shape.
        scales: float32, O: what each output channel's integers are multiplied by.
        shift: float64, O: what the bias needs besides, so that the output keeps its mean.
    """

    integers: np.ndarray
    scales: np.ndarray
    shift: np.ndarray


def round_weights(weights: np.ndarray, moments: Moments, most: int) -> Rounded:
    """Rounds a convolution's weights.

    Args:
        weights: float32, O×I×h×w.
        moments: of their inputs: K is I·h·w, and G the number of groups, 1 or more.
        most: the largest integer.
    """
    groups, inputs = moments.mean.shape
    outputs = len(weights)
    exact = weights.reshape(groups, outputs // groups, inputs).astype(np.float64)
    trace = np.trace(moments.covariance, axis1=1, axis2=2)
    damping = _DAMPING * np.maximum(trace / inputs, _LEAST_SCALE)
    variance = moments.covariance + np.eye(inputs) * damping[:, None, None]
    largest = np.maximum(np.abs(exact).max(axis=-1, keepdims=True) / most, _LEAST_SCALE)

    best = np.full(exact.shape[:2], np.inf)
    integers, scales = np.zeros_like(exact), largest.copy()
    for share in _SHARES:
        tried = largest * share
        found = np.clip(np.round(exact / tried), -most, most)
        if inputs <= _FEW:
            found = _descend(exact, variance, tried, found, most)
        off = exact - found * tried
        error = ((off @ variance) * off).sum(axis=-1)
        better = (error < best)[..., None]
        best = np.minimum(error, best)
        integers, scales = np.where(better, found, integers), np.where(better, tried, scales)
    # As the file holds them, since the rest makes up for the rounding of the scales too.
    scales = scales.astype(np.float32).astype(np.float64)
    integers = _descend(exact, variance, scales, integers, most)
    shift = np.einsum("gok,gk->go", exact - integers * scales, moments.mean)
    return Rounded(
        integers.reshape(weights.shape).astype(np.int8),
        scales.reshape(outputs).astype(np.float32),
        shift.reshape(outputs),
    )


def _descend(exact: np.ndarray, variance: np.ndarray, scales: np.ndarray, start: np.ndarray, most: int) -> np.ndarray:
    """Integers at which no single one can be changed for the better, or nearly so.

    Args:
        exact: float64, G×O×K.
        variance: float64, G×K×K.
        scales: float64, G×O×1.
        start: integers to start from, G×O×K.
        most: the largest integer.
    """
    integers = start.copy()
    pull = (exact - integers * scales) @ variance
    for _ in range(_SWEEPS):
        moved = False
        for column in range(exact.shape[-1]):
            own = variance[:, column, column][:, None] * scales[..., 0]
            wanted = np.clip(np.round(integers[..., column] + pull[..., column] / own), -most, most)
            step = wanted - integers[..., column]
            if step.any():
                moved = True
                integers[..., column] = wanted
                pull -= (step * scales[..., 0])[..., None] * variance[:, None, column, :]
        if not moved:
            break
    return integers
