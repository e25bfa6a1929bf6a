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


def feature_extractor(model: keras.Model) -> keras.Model:
    """The model without its head: uint8 N×S×S×3 to float32 N×D, the features."""
    import keras

    return keras.Model(model.inputs, model.get_layer(FEATURES).output)


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
