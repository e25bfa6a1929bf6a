"""The faster forward pass computes what the Keras model computes, and its gradients are those of the Keras model."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from catdog.models import batch_norm, registry, surgery
from catdog.models.registry import ModelSpec


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(1)
    built = registry.build_model(
        ModelSpec("mobilenet", 64, 0.25, pretrained=True, trainable_from="conv_dw_4", dropout=0.0)
    )
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
    expected, theirs = gradients(model, lambda batch: surgery.forward_in_inference_mode(model, batch))
    found, ours = gradients(model, lambda batch: batch_norm.apply_folded(model, batch, bfloat16))
    assert found == pytest.approx(expected, abs=logit * max(1.0, float(np.abs(expected).max())))
    flat = [np.concatenate([part.ravel() for part in parts]) for parts in (ours, theirs)]
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert cosine > 1 - angle
    assert model.trainable_variables[0].path.split("/")[-2] == "conv_dw_4"


def test_it_is_for_chains_only(model: keras.Model) -> None:
    assert batch_norm.can_fold_batch_norm(model)
    assert not batch_norm.can_fold_batch_norm(registry.build_model(ModelSpec("vgg16", 64)))
    assert not batch_norm.can_fold_batch_norm(registry.build_model(ModelSpec("mobilenetv2", 64)))


def in_float64(spec: ModelSpec) -> keras.Model:
    """In float32 Keras's own gradients are up to 0.0007 off."""
    keras.config.set_dtype_policy("float64")
    try:
        return registry.build_model(spec)
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("arch", ["small_resnet", "mobilenet"])
def test_a_step_with_fused_batch_norm_is_that_of_keras(arch: str) -> None:
    plain = registry.build_model(ModelSpec(arch, 64, 0.25))
    copied = batch_norm.fuse_batch_norm(plain)
    exact = in_float64(ModelSpec(arch, 64, 0.25))
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
    for spec in (ModelSpec("mobilenet", 64, 0.25, freeze=True), ModelSpec("blog_cnn", 64)):
        plain = registry.build_model(spec)
        assert batch_norm.fuse_batch_norm(plain) is plain
    copied = batch_norm.fuse_batch_norm(
        registry.build_model(ModelSpec("mobilenet", 64, 0.25, trainable_from="conv_dw_4"))
    )
    copied(np.full((2, 64, 64, 3), 9, np.uint8), training=True)
    moved = {v.path.split("/")[0] for v in copied.weights if "moving_mean" in v.path and v.numpy().any()}
    blocks = [f"conv_{kind}_{number}_bn" for number in range(4, 14) for kind in ("dw", "pw")]
    assert moved == set(blocks)


def test_a_copy_keeps_the_layers_of_a_model_with_branches() -> None:
    plain = registry.build_model(ModelSpec("mobilenetv3small", 64))
    copied = batch_norm.fuse_batch_norm(plain)
    assert copied is not plain
    assert [v.path for v in copied.weights] == [v.path for v in plain.weights]
    assert all((mine.numpy() == other.numpy()).all() for mine, other in zip(copied.weights, plain.weights, strict=True))
