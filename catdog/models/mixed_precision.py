"""Mixed precision for training on GPUs: layers that compute in 16 bits, with variables in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from catdog.models import surgery

if TYPE_CHECKING:
    import keras


def to_mixed_precision(model: keras.Model, dtype: Literal["bfloat16", "float16"]) -> keras.Model:
    """Copies a model so that its layers compute in 16 bits.

    Args:
        model: functional; its backbone may be nested.
        dtype: of activations and products.

    Returns:
        A model with the same layers and weights in the same order. The variables are float32, and so are the scaling of
        pixels, whose steps bfloat16 would round, and the logit. Its dropout masks differ.
    """
    from keras import layers

    def copy(operation: Any) -> Any:
        config = operation.get_config()
        scales = isinstance(operation, layers.Rescaling | layers.Normalization)
        if isinstance(operation, layers.Layer) and not scales and operation is not model.layers[-1]:
            config["dtype"] = f"mixed_{dtype}"
        return type(operation).from_config(config)

    return surgery.copy_model(model, copy)
