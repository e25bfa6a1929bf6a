"""The architectures: one function each, from the uint8 input tensor (N×S×S×3, RGB) to the logit (N×1).

Preprocessing is part of each model, so `model.keras` takes images as they are decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from catdog.errors import CatdogError
from catdog.models import efficientnet_lite, pretrained
from catdog.models.spec import BACKBONE, FEATURES, Architecture, ModelSpec, architecture, register_architecture

if TYPE_CHECKING:
    import keras


def _apply_backbone(
    x: Any, spec: ModelSpec, cut: Callable[[keras.Model], keras.Model] = lambda backbone: backbone
) -> Any:
    backbone = cut(pretrained.build_backbone(spec, None))
    backbone.trainable = not spec.freeze
    if spec.trainable_from is not None:
        names = [layer.name for layer in backbone.layers]
        if spec.trainable_from not in names:
            raise CatdogError(
                f"trainable_from received {spec.trainable_from!r}, expected a layer of {spec.arch}'s backbone such as "
                f"{names[len(names) // 2]}"
            )
        for layer in backbone.layers[: names.index(spec.trainable_from)]:
            layer.trainable = False
    # Pretrained statistics are better than those of small batches; None leaves the mode to the caller of the model.
    return backbone(x, training=False if spec.pretrained or spec.freeze else None)


def _logit(x: Any, spec: ModelSpec, dropout: float) -> Any:
    from keras import layers

    rate = dropout if spec.dropout is None else spec.dropout
    return layers.Dense(1, name="logit")(layers.Dropout(rate)(x) if rate else x)


def _pooled_backbone(x: Any, spec: ModelSpec) -> Any:
    from keras import layers

    return _logit(layers.GlobalAveragePooling2D(name=FEATURES)(_apply_backbone(x, spec)), spec, 0.2)


def _three_convolutions(inputs: Any, filters: tuple[int, int, int], units: int, dropout: float) -> Any:
    from keras import layers

    x = layers.Rescaling(1 / 255)(inputs)
    for width in filters:
        x = layers.Conv2D(width, 3, activation="relu")(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(units, activation="relu")(x)
    if dropout:
        x = layers.Dropout(dropout)(x)
    return layers.Dense(1, name="logit")(x)


@architecture(image_size=128, learning_rate=3e-3)
def small_resnet(inputs: Any, spec: ModelSpec) -> Any:  # noqa: ARG001
    """A compact residual network (He et al., 2016) that trains from scratch on a CPU."""
    from keras import layers

    def convolve(x: Any, width: int, stride: int = 1, size: int = 3) -> Any:
        x = layers.Conv2D(width, size, strides=stride, padding="same", use_bias=False)(x)
        # In short runs, Keras's momentum of 0.99 would let the moving statistics lag behind the weights by epochs.
        return layers.BatchNormalization(momentum=0.9)(x)

    x = layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    x = layers.ReLU()(convolve(x, 16, stride=2))
    for width, blocks in ((24, 1), (48, 2), (96, 2), (128, 1)):
        for block in range(blocks):
            stride = 2 if block == 0 else 1
            shortcut = convolve(x, width, stride, size=1) if block == 0 else x
            x = layers.ReLU()(convolve(x, width, stride))
            x = layers.ReLU()(layers.Add()([convolve(x, width), shortcut]))
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.2)(x)
    return layers.Dense(1, name="logit")(x)


@architecture(image_size=150, learning_rate=1e-3)
def blog_cnn(inputs: Any, spec: ModelSpec) -> Any:  # noqa: ARG001
    """Three convolutions (32-32-64), a 64-unit layer, dropout 0.3: the small CNN of many a blog."""
    return _three_convolutions(inputs, (32, 32, 64), 64, 0.3)


@architecture(image_size=150, learning_rate=1e-3)
def workshop_cnn(inputs: Any, spec: ModelSpec) -> Any:  # noqa: ARG001
    """Three convolutions (32-64-64) and a 256-unit layer: the small CNN of the NTUOSS workshop."""
    return _three_convolutions(inputs, (32, 64, 64), 256, 0.0)


@architecture(image_size=64, learning_rate=1e-3)
def gray_cnn(inputs: Any, spec: ModelSpec) -> Any:
    """Convolutions, and dense layers if asked for, on grey pixels: the grid of a TensorBoard tutorial."""
    import keras
    from keras import layers

    x = keras.ops.image.rgb_to_grayscale(layers.Rescaling(1 / 255)(inputs))
    for _ in range(spec.conv_layers):
        x = layers.Conv2D(spec.units, 3, activation="relu")(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Flatten()(x)
    for _ in range(spec.dense_layers):
        x = layers.Dense(spec.units, activation="relu")(x)
    return _logit(x, spec, 0.0)


@architecture(
    image_size=224, learning_rate=3e-3, fine_tuning_rate=2e-4, application="MobileNet", trainable_from="conv_dw_4"
)
def mobilenet(inputs: Any, spec: ModelSpec) -> Any:
    """MobileNet (Howard et al., 2017) of any width, pooled, with a logistic head."""
    return _pooled_backbone(pretrained.scale_to_unit_range(inputs), spec)


@architecture(
    image_size=150, learning_rate=3e-4, fine_tuning_rate=2e-5, application="VGG16", trainable_from="block5_conv1"
)
def vgg16(inputs: Any, spec: ModelSpec) -> Any:
    """VGG16 (Simonyan and Zisserman, 2015) with a 256-unit head and dropout 0.4."""
    from keras import layers

    x = layers.Flatten(name=FEATURES)(_apply_backbone(pretrained.center_bgr(inputs), spec))
    x = layers.Dense(256, activation="relu")(x)
    return _logit(x, spec, 0.4)


@architecture(image_size=224, learning_rate=1e-3, fine_tuning_rate=1e-5, application="VGG16", trainable_from="fc1")
def vgg16_top(inputs: Any, spec: ModelSpec) -> Any:
    """The whole VGG16, its two 4,096-unit layers too, with one logit for its 1,000 classes: fast.ai's first lesson."""
    import keras
    from keras import layers

    rate = 0.5 if spec.dropout is None else spec.dropout

    def cut(backbone: keras.Model) -> keras.Model:
        x = layers.Dropout(rate)(backbone.get_layer("fc1").output)
        x = layers.Dropout(rate)(backbone.get_layer("fc2")(x))
        return keras.Model(backbone.inputs, x, name=BACKBONE)

    x = _apply_backbone(pretrained.center_bgr(inputs), spec, cut)
    return layers.Dense(1, name="logit")(layers.Identity(name=FEATURES)(x))


def _register_lite() -> None:
    """Registers the backbones whose weights the package index has."""
    for application in efficientnet_lite.KINDS:
        name = f"efficientnet_lite{application[-1]}"
        summary = f"{application} (after Tan and Le, 2019), pooled, with a logistic head."

        def add_layers(inputs: Any, spec: ModelSpec) -> Any:
            return _pooled_backbone(efficientnet_lite.scale_pixels(inputs), spec)

        # The sizes of the networks themselves go up to 260 px, which costs a third more time. Rates of 2e-4, as of
        # mobilenet, undo in an epoch what they know (benchmarks/log_loss.md).
        register_architecture(
            Architecture(name, add_layers, 224, 3e-3, 5e-5, summary, application, "block3a_expand_conv", 4)
        )


def _register_applications() -> None:
    """Registers the backbones of `keras.applications` that differ only in name, size and pixel range."""
    for application, size, scale, paper in (
        ("MobileNetV2", 224, pretrained.scale_to_unit_range, "Sandler et al., 2018"),
        ("MobileNetV3Small", 224, pretrained.keep_byte_range, "Howard et al., 2019"),
        ("MobileNetV3Large", 224, pretrained.keep_byte_range, "Howard et al., 2019"),
        ("EfficientNetV2B0", 224, pretrained.keep_byte_range, "Tan and Le, 2021"),
        ("EfficientNetV2B1", 240, pretrained.keep_byte_range, "Tan and Le, 2021"),
        ("EfficientNetV2B2", 260, pretrained.keep_byte_range, "Tan and Le, 2021"),
        ("EfficientNetV2B3", 300, pretrained.keep_byte_range, "Tan and Le, 2021"),
        ("EfficientNetV2S", 384, pretrained.keep_byte_range, "Tan and Le, 2021"),
        ("ConvNeXtTiny", 224, pretrained.keep_byte_range, "Liu et al., 2022"),
        ("ConvNeXtSmall", 224, pretrained.keep_byte_range, "Liu et al., 2022"),
        ("ResNet50V2", 224, pretrained.scale_to_unit_range, "He et al., 2016"),
        ("Xception", 299, pretrained.scale_to_unit_range, "Chollet, 2017"),
        ("DenseNet121", 224, pretrained.scale_to_imagenet_range, "Huang et al., 2017"),
    ):

        def add_layers(inputs: Any, spec: ModelSpec, scale: Callable[[Any], Any] = scale) -> Any:
            return _pooled_backbone(scale(inputs), spec)

        name = application.lower()
        summary = f"{application} ({paper}), pooled, with a logistic head."
        register_architecture(Architecture(name, add_layers, size, 3e-3, 1e-4, summary, application))


_register_lite()
_register_applications()
