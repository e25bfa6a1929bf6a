"""Faster batch-norm for training; the saved and scored models are plain Keras models.

For trained batch-norm, TensorFlow has a single operation where Keras 3 uses a dozen, each of which reads and writes the
whole activation.

Batch-norm in inference mode is a scale and an offset, which can be folded into the preceding kernel. A 1×1
convolution is then a matrix product, which CPUs with AMX compute several times faster in bfloat16 than in float32; with
AVX-512 BF16 alone some are faster and some are not. The variables are those of the Keras model and stay float32.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catdog.models import surgery
from catdog.models.spec import BACKBONE

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


def fuse_batch_norm(model: keras.Model) -> keras.Model:
    """Copies a model with each trained batch-norm as a single operation, forward and backward.

    Args:
        model: functional; its backbone may be nested.

    Returns:
        A model with the same layers and weights in the same order, for training only: plain Keras cannot load it. Its
        dropout masks differ. If there is nothing to fuse, the model itself.
    """
    import keras
    import tensorflow as tf

    class FusedBatchNormalization(keras.layers.BatchNormalization):
        def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
            if not (training and self.trainable):
                return super().call(inputs, training=training, mask=mask)
            unused = tf.zeros([0])  # the moving statistics are not used in training
            outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
                x=inputs,
                scale=self.gamma.value,
                offset=self.beta.value,
                mean=unused,
                variance=unused,
                epsilon=self.epsilon,
            )
            # TensorFlow's variance is the unbiased one (n - 1); Keras uses the biased one (n).
            count = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance * (count - 1) / count)):
                moving.assign(moving * self.momentum + batch * (1 - self.momentum))
            return outputs

    def fuses(layer: keras.Layer) -> bool:
        return (
            type(layer) is keras.layers.BatchNormalization
            and layer.trainable
            and layer.input_spec.ndim == 4
            and layer.axis in (-1, 3)
            and layer.scale
            and layer.center
            and not (layer.renorm or layer.synchronized)
        )

    if not any(map(fuses, surgery.all_layers(model))):
        return model

    def copy(layer: keras.Layer) -> keras.Layer:
        return (FusedBatchNormalization if fuses(layer) else type(layer)).from_config(layer.get_config())

    return surgery.copy_model(model, copy)


def has_bfloat16() -> bool:
    """Returns whether this machine's CPU multiplies bfloat16 matrices in hardware."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def can_fold_batch_norm(model: keras.Model) -> bool:
    """Returns whether every convolution of a model's backbone is followed by a batch-norm of its own.

    That is so in MobileNet, MobileNetV2 and EfficientNet-Lite. Not in networks with biases or activations in their
    convolutions (VGG16, squeeze-and-excitation), with batch-norm before a convolution or after a sum (ResNet50V2,
    DenseNet121), or with layers of other kinds (Xception's separable convolutions, ConvNeXt's layer-norm).

    Args:
        model: with a backbone; the layers around that form a chain. The head may be missing.
    """
    from keras import layers

    outer = (layers.InputLayer, layers.Rescaling, layers.GlobalAveragePooling2D, layers.Dropout, layers.Dense)
    # Their inference mode is a function of their inputs alone.
    inner = (
        *(layers.Conv2D, layers.DepthwiseConv2D, layers.BatchNormalization, layers.ReLU, layers.Activation, layers.Add),
        *(layers.ZeroPadding2D, layers.Dropout, layers.MaxPooling2D, layers.AveragePooling2D),
    )
    backbone = model.get_layer(BACKBONE)
    inside = backbone.layers[1:]
    if not (
        all(isinstance(layer, outer) or layer.name == BACKBONE for layer in model.layers)
        and all(isinstance(layer, inner) for layer in inside)
    ):
        return False
    takers: dict[int, list[keras.Layer | None]] = {id(backbone.output): [None]}
    for layer in inside:
        for tensor in _inputs(layer):
            takers.setdefault(id(tensor), []).append(layer)
    made = {id(backbone.input)} | {id(layer.output) for layer in inside}
    convolutions = [layer for layer in inside if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D)]
    norms = [layer for layer in inside if isinstance(layer, layers.BatchNormalization)]
    followers = [takers.get(id(layer.output), []) for layer in convolutions]
    return (
        # A tensor that no layer makes is of a layer called twice.
        set(takers) <= made
        and all(map(_has_kernel_alone, convolutions))
        and all(len(after) == 1 and after[0] in norms for after in followers)
        and len(convolutions) == len(norms)
        and all(norm.scale and norm.center and norm.axis in (-1, 3) for norm in norms)
    )


def _has_kernel_alone(layer: Any) -> bool:
    """Whether a convolution is one that `_convolve` computes: a kernel, and neither bias nor activation."""
    import keras

    return (
        not layer.use_bias
        and layer.activation is keras.activations.linear
        and layer.strides[0] == layer.strides[1]
        and set(layer.dilation_rate) == {1}
        and getattr(layer, "groups", 1) == 1
        and getattr(layer, "depth_multiplier", 1) == 1
        and layer.data_format == "channels_last"
    )


def _inputs(layer: keras.Layer) -> list[Any]:
    """The symbolic tensors that a layer of a functional model takes."""
    return layer.input if isinstance(layer.input, list) else [layer.input]


def apply_folded(model: keras.Model, batch: tf.Tensor, bfloat16: bool = True, training: bool = True) -> tf.Tensor:
    """Forward pass as `surgery.forward_in_inference_mode`, with batch-norm folded into the kernels.

    Args:
        model: a model for which `can_fold_batch_norm` is true.
        batch: uint8, N×S×S×3.
        bfloat16: multiply matrices in bfloat16.
        training: whether dropout is on.

    Returns:
        float32, what the model gives, N×1 with a head; gradients reach the model's variables.
    """
    return surgery.forward_in_inference_mode(model, batch, functools.partial(_backbone, bfloat16=bfloat16), training)


def _backbone(backbone: keras.Model, x: tf.Tensor, bfloat16: bool) -> tf.Tensor:
    """Computes a backbone's output; its layers are in an order in which each comes after those that it takes from."""
    from keras import layers

    values = {id(backbone.input): x}
    convolutions = {}  # and what they take, by what they make: each is computed with its batch-norm
    for layer in backbone.layers[1:]:
        inputs, made = _inputs(layer), id(layer.output)
        if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D):
            convolutions[made] = layer, values[id(inputs[0])]
        elif isinstance(layer, layers.BatchNormalization):
            convolution, given = convolutions[id(inputs[0])]
            values[made] = _convolve(convolution, layer, given, bfloat16)
        elif isinstance(layer, layers.Dropout):
            values[made] = values[id(inputs[0])]
        else:
            given = [values[id(tensor)] for tensor in inputs]
            values[made] = layer(given if len(given) > 1 else given[0])
    return values[id(backbone.output)]


def _convolve(layer: Any, norm: keras.layers.BatchNormalization, x: tf.Tensor, bfloat16: bool) -> tf.Tensor:
    import tensorflow as tf
    from keras import layers

    scale = norm.gamma.value * tf.math.rsqrt(norm.moving_variance.value + norm.epsilon)
    offset = norm.beta.value - norm.moving_mean.value * scale
    padding, stride = layer.padding.upper(), layer.strides[0]
    if isinstance(layer, layers.DepthwiseConv2D):
        kernel = layer.kernel.value * scale[None, None, :, None]
        x = tf.nn.depthwise_conv2d(x, kernel, (1, stride, stride, 1), padding)
    elif bfloat16 and layer.kernel_size == (1, 1) and stride == 1:
        kernel = tf.cast(layer.kernel.value[0, 0] * scale, tf.bfloat16)
        flat = tf.reshape(tf.cast(x, tf.bfloat16), (-1, kernel.shape[0]))
        shape = tf.concat([tf.shape(x)[:3], [kernel.shape[1]]], axis=0)
        x = tf.ensure_shape(tf.reshape(tf.cast(flat @ kernel, tf.float32), shape), [*x.shape[:3], kernel.shape[1]])
    else:
        x = tf.nn.conv2d(x, layer.kernel.value * scale, stride, padding)
    return tf.nn.bias_add(x, offset)
