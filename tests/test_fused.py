"""The faster forward pass computes what the Keras model computes, and its gradients are those of the Keras model."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from catdog import fused, models
from catdog.models import Spec


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(1)
    built = models.build(Spec("mobilenet", 64, 0.25, pretrained=True, trainable_from="conv_dw_4", dropout=0.0))
    random = np.random.default_rng(0)
    for variable in built.variables:  # batch-norm that does something
        if "moving" in variable.path or "beta" in variable.path:
            variable.assign(np.abs(random.normal(0.5, 0.3, variable.shape)).astype(np.float32))
    return built


def gradients(model: keras.Model, forward: object) -> tuple[np.ndarray, list[np.ndarray]]:
    batch = tf.constant(np.random.default_rng(2).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8))
    with tf.GradientTape() as tape:
        logits = forward(batch)  # type: ignore[operator]
        loss = tf.reduce_sum(logits)
    return logits.numpy(), [g.numpy() for g in tape.gradient(loss, [v.value for v in model.trainable_variables])]


@pytest.mark.parametrize(("bfloat16", "logit", "angle"), [(False, 1e-4, 1e-5), (True, 0.05, 0.02)])
def test_it_agrees_with_keras(model: keras.Model, bfloat16: bool, logit: float, angle: float) -> None:
    expected, theirs = gradients(model, lambda batch: models.forward(model, batch))
    found, ours = gradients(model, lambda batch: fused.apply(model, batch, bfloat16))
    assert found == pytest.approx(expected, abs=logit * max(1.0, float(np.abs(expected).max())))
    flat = [np.concatenate([part.ravel() for part in parts]) for parts in (ours, theirs)]
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert cosine > 1 - angle
    assert model.trainable_variables[0].path.split("/")[-2] == "conv_dw_4"


def test_it_is_for_chains_only(model: keras.Model) -> None:
    assert fused.suits(model)
    assert not fused.suits(models.build(Spec("vgg16", 64)))
    assert not fused.suits(models.build(Spec("mobilenetv2", 64)))
