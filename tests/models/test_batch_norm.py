"""The faster forward pass computes what the Keras model computes, and its gradients are those of the Keras model."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from catdog.models import batch_norm, registry, surgery
from catdog.models.registry import ModelSpec
from catdog.models.spec import BACKBONE, FEATURES


def randomize(model: keras.Model) -> keras.Model:
    """Gives the batch-norm of a model something to do."""
    random = np.random.default_rng(0)
    for variable in model.variables:
        if "moving" in variable.path or "beta" in variable.path:
            variable.assign(np.abs(random.normal(0.5, 0.3, variable.shape)).astype(np.float32))
    return model


def in_chain(backbone: keras.Model) -> keras.Model:
    """A model around a backbone, as the registry's are."""
    x = layers.Rescaling(1 / 255)(inputs := keras.Input((64, 64, 3), dtype="uint8"))
    backbone = keras.Model(backbone.input, backbone.output, name=BACKBONE)
    x = layers.GlobalAveragePooling2D(name=FEATURES)(backbone(x, training=False))
    return keras.Model(inputs, layers.Dense(1)(x))


def branched() -> keras.Model:
    """Two tensors of two takers each, one of them a batch-norm's, and layers that no architecture here has."""
    x = inputs = keras.Input((64, 64, 3))
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, 2, use_bias=False)(layers.ZeroPadding2D(1)(x)))
    left = layers.Activation("swish")(x)
    left = layers.BatchNormalization()(layers.Conv2D(8, 1, use_bias=False)(layers.Dropout(0.5)(left)))
    right = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x))
    x = layers.Add()([left, right, x])
    x = layers.Add()([layers.MaxPooling2D(2)(x), layers.AveragePooling2D(2)(x)])
    return in_chain(keras.Model(inputs, x))


def build(name: str) -> keras.Model:
    """A model whose backbone is trained from the layer in TRAINED on, where it is one of the registry."""
    keras.utils.set_random_seed(1)
    if name == "branched":
        return randomize(branched())
    spec = ModelSpec(name, 64, 0.25 if name == "mobilenet" else 1.0, pretrained=True, dropout=0.0)
    return randomize(registry.build_model(dataclasses.replace(spec, trainable_from=TRAINED[name])))


TRAINED = {"mobilenet": "conv_dw_4", "efficientnet_lite0": "block3a_expand_conv", "mobilenetv2": "block_6_expand"}


def gradients(model: keras.Model, forward: object) -> tuple[np.ndarray, list[np.ndarray]]:
    batch = tf.constant(np.random.default_rng(2).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8))
    with tf.GradientTape() as tape:
        logits = forward(batch)  # type: ignore[operator]
        loss = tf.reduce_sum(logits)
    return logits.numpy(), [g.numpy() for g in tape.gradient(loss, [v.value for v in model.trainable_variables])]


@pytest.mark.parametrize("name", [*TRAINED, "branched"])
def test_it_agrees_with_keras(name: str) -> None:
    model = build(name)
    assert batch_norm.can_fold_batch_norm(model)
    expected, theirs = gradients(model, lambda batch: surgery.forward_in_inference_mode(model, batch))
    theirs = np.concatenate([part.ravel() for part in theirs])
    for bfloat16, logit, angle in ((False, 1e-4, 1e-5), (True, 0.05, 0.02)):
        found, ours = gradients(model, lambda batch, low=bfloat16: batch_norm.apply_folded(model, batch, low))
        assert found == pytest.approx(expected, abs=logit * max(1.0, float(np.abs(expected).max())))
        ours = np.concatenate([part.ravel() for part in ours])
        assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 1 - angle
        assert np.linalg.norm(ours) == pytest.approx(np.linalg.norm(theirs), rel=1e-3 if not bfloat16 else 0.02)
    if name in TRAINED:
        assert model.trainable_variables[0].path.split("/")[-2] == TRAINED[name]


def test_other_architectures_are_computed_as_keras_does() -> None:
    for arch in ("vgg16", "mobilenetv3small", "resnet50v2"):
        assert not batch_norm.can_fold_batch_norm(registry.build_model(ModelSpec(arch, 64)))


@pytest.mark.parametrize("why", ["bias", "activation", "dilation", "no batch-norm", "two takers", "output", "twice"])
def test_what_could_not_be_folded_rightly_is_not(why: str) -> None:
    options = {"bias": {"use_bias": True}, "activation": {"activation": "relu"}, "dilation": {"dilation_rate": 2}}
    convolution = layers.Conv2D(3, 3, padding="same", **{"use_bias": False} | options.get(why, {}))
    norm = layers.BatchNormalization()
    x = inputs = keras.Input((64, 64, 3))
    made = convolution(x)
    x = layers.ReLU()(made if why == "no batch-norm" else norm(made))
    if why == "two takers":
        x = layers.Add()([x, made])
    if why == "twice":
        x = layers.ReLU()(norm(convolution(x)))
    assert not batch_norm.can_fold_batch_norm(in_chain(keras.Model(inputs, made if why == "output" else x)))


def in_float64(spec: ModelSpec) -> keras.Model:
    """In float32 Keras's own gradients are up to 0.0007 off."""
    keras.config.set_dtype_policy("float64")
    try:
        return registry.build_model(spec)
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("arch", ["small_resnet", "mobilenet"])
def test_a_step_with_fused_batch_norm_is_that_of_keras(arch: str) -> None:
    keras.utils.set_random_seed(4)  # with most seeds a ReLU is so near its kink that float32 and float64 part
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
