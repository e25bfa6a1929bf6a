"""Pretrained backbones: their weights, downloaded or from a file, and the pixel ranges that they were trained on."""

from __future__ import annotations

import functools
import inspect
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catdog.errors import CatdogError, first_line
from catdog.models import efficientnet_lite, torch_files, weight_files
from catdog.models.spec import BACKBONE, ModelSpec, registered, use_keras_defaults

if TYPE_CHECKING:
    import keras


def find_application(name: str) -> tuple[Callable[..., keras.Model], Callable[[Any], Any]]:
    """The function that builds a published model, and the one that scales its pixels.

    Args:
        name: `Architecture.application`.

    Returns:
        The former takes what functions of `keras.applications` take, the latter pixels from 0 to 255.
    """
    import keras

    if name in efficientnet_lite.KINDS:
        return functools.partial(efficientnet_lite.build_efficientnet_lite, name), efficientnet_lite.preprocess_input
    application = getattr(keras.applications, name)
    home: Any = inspect.getmodule(application)
    return application, home.preprocess_input


def build_backbone(spec: ModelSpec, weights: str | None) -> keras.Model:
    """Builds the backbone of an architecture.

    Args:
        spec: the model it is for; its architecture has an `application`.
        weights: as `keras.applications` takes them: "imagenet", or None for random ones.
    """
    import keras

    use_keras_defaults()
    application = find_application(registered[spec.arch].application or "")[0]
    options = {"alpha": spec.alpha} if spec.arch == "mobilenet" else {}
    shape = (spec.image_size, spec.image_size, 3)
    built = application(input_shape=shape, include_top=spec.arch == "vgg16_top", weights=weights, **options)
    # Renamed afterwards: EfficientNetV2 finds its own blocks by the `name` argument.
    return keras.Model(built.input, built.output, name=BACKBONE)


def load_backbone_weights(backbone: keras.Model, weights: bytes, spec: ModelSpec) -> None:
    """Loads weights into a backbone.

    Args:
        backbone: built from `spec`.
        weights: the bytes of a Keras weights file, of either layout; for vgg16_top with the top, otherwise without.
        spec: the model.

    Raises:
        CatdogError: the weights do not fit the backbone.
    """
    whole = build_backbone(spec, None) if spec.arch == "vgg16_top" else backbone
    top = "with" if spec.arch == "vgg16_top" else "without"
    _load_file(whole, weights, f"{spec.arch} with --alpha {spec.alpha}", f"that backbone {top} its top")
    if whole is not backbone:
        backbone.set_weights(whole.get_weights()[:-2])


def _load_file(model: keras.Model, weights: bytes, what: str, expected: str) -> None:
    import h5py

    try:
        if torch_files.is_torch_file(weights):
            efficientnet_lite.load_state(model, torch_files.read_state(weights))
            return
        with h5py.File(io.BytesIO(weights)) as file:
            weight_files.plain_arrays(file, len(weights))
            # Keras tells its two file layouts apart by the file name's ending.
            ending = ".h5" if "layer_names" in file.attrs else ".weights.h5"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"weights{ending}"
            path.write_bytes(weights)
            model.load_weights(path)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CatdogError(
            f"--weights does not fit {what}: {first_line(error)}; expected a Keras weights file of {expected}"
        ) from error


def build_imagenet_classifier(name: str, weights: bytes | None) -> keras.Model:
    """Builds a whole model of `keras.applications`, as published, at its own image size.

    Args:
        name: an architecture with an `application`.
        weights: the bytes of a Keras weights file with the top, or None to download those for ImageNet.

    Returns:
        A model from N×S×S×3, pixels from 0 to 255, to the probabilities of ImageNet's 1,000 classes, N×1000.

    Raises:
        CatdogError: the weights do not fit, or could not be downloaded.
    """
    import keras

    use_keras_defaults()
    application, preprocess = find_application(registered[name].application or "")
    try:
        model = application(weights=None if weights is not None else "imagenet")
    except CatdogError as error:
        raise CatdogError(f"--imagenet {name}: {error}") from error
    except Exception as error:  # as in `download_imagenet`
        raise CatdogError(
            f"could not download ImageNet's weights of {name} ({first_line(error)}); fetch Keras's file with the top "
            "elsewhere and give it as --weights FILE"
        ) from error
    if weights is not None:
        _load_file(model, weights, f"{name} of ImageNet", "it with its top, at width 1")
    size = model.input_shape[1] or registered[name].image_size  # some take any size
    inputs = keras.Input((size, size, 3))
    return keras.Model(inputs, model(preprocess(keras.ops.convert_to_tensor(inputs))))


def download_imagenet(spec: ModelSpec) -> bytes:
    """Downloads the ImageNet weights that Keras publishes for a backbone.

    Args:
        spec: the model that the backbone is for.

    Returns:
        The bytes of a Keras weights file without the top.

    Raises:
        CatdogError: the download failed.
    """
    import keras

    try:
        backbone = build_backbone(spec, "imagenet")
    except CatdogError as error:
        raise CatdogError(f"--weights imagenet: {error}, or give a file as --weights PATH") from error
    except Exception as error:  # urllib, socket and Keras raise different ones
        reason = first_line(error)
        raise CatdogError(
            f"--weights imagenet: could not download the weights of {spec.arch} ({reason}); fetch the file without "
            "the top elsewhere and give it as --weights PATH"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "backbone.weights.h5"
        keras.Model.save_weights(backbone, path)
        return path.read_bytes()


def scale_to_unit_range(inputs: Any) -> Any:
    """Scales pixels from 0…255 to -1…1."""
    from keras import layers

    return layers.Rescaling(1 / 127.5, offset=-1)(inputs)


def scale_to_imagenet_range(inputs: Any) -> Any:
    """Subtracts ImageNet's mean of each channel and divides by its standard deviation."""
    from keras import layers

    deviation = (0.229, 0.224, 0.225)
    return layers.Rescaling(
        [1 / (255 * d) for d in deviation],
        offset=[-mean / d for mean, d in zip((0.485, 0.456, 0.406), deviation, strict=True)],
    )(inputs)


def keep_byte_range(inputs: Any) -> Any:
    """Converts pixels to floats and keeps 0…255, for backbones that scale them in their own first layer."""
    from keras import layers

    return layers.Rescaling(1.0)(inputs)


def center_bgr(inputs: Any) -> Any:
    """Subtracts ImageNet's mean of each channel and converts RGB to BGR, which VGG16 was trained on."""
    import keras
    from keras import layers

    x = layers.Rescaling(1.0, offset=[-123.68, -116.779, -103.939])(inputs)
    return keras.ops.flip(x, axis=-1)
