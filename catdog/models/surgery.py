"""Parts of a built model: its layers, head and feature extractor; and its forward pass with frozen batch-norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from catdog.models.spec import BACKBONE, FEATURES

if TYPE_CHECKING:
    import keras


def forward_in_inference_mode(
    model: keras.Model, batch: Any, run: Callable[[Any, Any], Any] | None = None, training: bool = True
) -> Any:
    """Forward pass of a model whose backbone is pretrained: batch-norm stays in inference mode, also in training.

    `model(batch, training=True)` cannot be used: Keras then also trains the batch-norm of a nested model, even where
    that was called with `training=False`.

    Args:
        model: with a backbone; its layers form a chain.
        batch: uint8, N×S×S×3.
        run: computes the backbone's output from the backbone and its input; None lets Keras do it.
        training: whether dropout is on.

    Returns:
        float32, N×1.
    """
    import keras

    x = batch
    for operation in model.operations[1:]:
        if operation.name == BACKBONE:
            x = run(operation, x) if run is not None else operation(x, training=False)
        else:
            x = operation(x, training=training) if isinstance(operation, keras.layers.Dropout) else operation(x)
    return x


def copy_model(model: keras.Model, copy: Callable[[Any], Any]) -> keras.Model:
    """Copies a model and its weights, with each layer as a function makes it.

    Args:
        model: functional; its backbone may be nested.
        copy: makes a layer from one that has the same weights; also of operations such as sums, which have none.
    """
    import keras

    copied = keras.models.clone_model(model, clone_function=copy, recursive=True)
    copied.set_weights(model.get_weights())
    return copied


def feature_extractor(model: keras.Model) -> keras.Model:
    """The model without its head: uint8 N×S×S×3 to float32 N×D, the features."""
    import keras

    return keras.Model(model.inputs, model.get_layer(FEATURES).output)


def split_at_feature_map(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Cuts a model in two at its last feature map, the last tensor with two spatial axes.

    Args:
        model: of the registry; one with a backbone has layers that form a chain.

    Returns:
        A model from uint8 N×S×S×3 to the feature map, float32 N×h×w×C, and one from there to the logit, N×1.
    """
    import keras

    inner = next((layer for layer in model.layers if layer.name == BACKBONE), None)
    if inner is None:
        cut = [operation.output for operation in model.operations[1:] if len(operation.output.shape) == 4][-1]
        return keras.Model(model.input, cut), keras.Model(cut, model.output)
    at = model.operations.index(inner)
    if len(inner.output.shape) == 4:
        cut = model.operations[at + 1].input
        return keras.Model(model.input, cut), keras.Model(cut, model.output)
    # A backbone with dense layers of its own is cut inside, which a nested model allows only by calling its halves.
    cut = [layer.output for layer in inner.layers[1:] if len(layer.output.shape) == 4][-1]
    features = keras.Model(inner.input, cut)(model.operations[at - 1].output)
    given = keras.Input(cut.shape[1:])
    x = keras.Model(cut, inner.output)(given)
    for operation in model.operations[at + 1 :]:
        x = operation(x)
    return keras.Model(model.input, features), keras.Model(given, x)


def all_layers(model: keras.Model) -> list[keras.Layer]:
    """The layers of a model in order, with the backbone replaced by its own layers."""
    flat: list[keras.Layer] = []
    for layer in model.layers:
        flat += layer.layers if layer.name == BACKBONE else [layer]
    return flat


def head_layers(model: keras.Model) -> list[keras.Layer]:
    """The layers after the features, in order; the last one outputs the logit."""
    names = [layer.name for layer in model.layers]
    return model.layers[names.index(FEATURES) + 1 :]
