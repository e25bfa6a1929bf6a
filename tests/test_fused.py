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


@pytest.mark.parametrize("arch", ["small_resnet", "mobilenet"])
def test_a_step_with_fused_batch_norm_is_that_of_keras(arch: str) -> None:
    plain = models.build(Spec(arch, 64, 0.25))
    copied = fused.fuse_batch_norm(plain)
    assert [v.path.split("/", 1)[1] for v in copied.variables] == [v.path.split("/", 1)[1] for v in plain.variables]
    # In float32 Keras's own gradients are up to 0.0007 off.
    keras.config.set_dtype_policy("float64")
    exact = models.build(Spec(arch, 64, 0.25))
    keras.config.set_dtype_policy("float32")
    exact.set_weights(plain.get_weights())
    for layer in (*exact.layers, *copied.layers):
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0  # masks would differ
    for _ in range(2):
        expected, theirs = gradients(exact, lambda batch: exact(batch, training=True))
        found, ours = gradients(copied, lambda batch: copied(batch, training=True))
        assert found == pytest.approx(expected, abs=1e-4)
        for mine, other in zip(ours, theirs, strict=True):
            assert np.linalg.norm(mine - other) <= 5e-4 * np.linalg.norm(other)
    for mine, other in zip(copied.weights, exact.weights, strict=True):
        assert mine.numpy() == pytest.approx(other.numpy(), rel=1e-5, abs=1e-6)


def test_batch_norm_that_is_not_trained_stays_as_it_is() -> None:
    frozen = models.build(Spec("mobilenet", 64, 0.25, freeze=True, dropout=0.0))
    before = [v.numpy() for v in frozen.variables]
    copied = fused.fuse_batch_norm(frozen)
    copied(np.full((2, 64, 64, 3), 9, np.uint8), training=True)
    assert len(copied.trainable_variables) == len(frozen.trainable_variables) == 2
    for mine, old in zip(copied.variables, before, strict=True):
        assert (mine.numpy() == old).all()
    plain = models.build(Spec("blog_cnn", 64))
    assert fused.fuse_batch_norm(plain) is plain
