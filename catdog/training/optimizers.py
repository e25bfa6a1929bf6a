"""The optimizer of a training run, its learning-rate schedule, and a lower rate for lower layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from catdog.models import surgery
from catdog.training.config import ResolvedConfig

if TYPE_CHECKING:
    import keras

_CLASSES = {"adamw": "AdamW", "adam": "Adam", "rmsprop": "RMSprop", "sgd": "SGD"}


def build_optimizer(
    config: ResolvedConfig, model: keras.Model, steps: int, scaled: bool = False
) -> keras.optimizers.Optimizer:
    """Makes the optimizer that a config asks for, not yet built.

    Args:
        config: its optimizer, schedule and rates.
        model: what it will train.
        steps: of the whole run.
        scaled: scale the loss, so that small gradients are not lost in float16: by as much as leaves all of them
            finite. A step in which one is not is left out, and the scale is halved.

    Returns:
        With an averaged copy of the weights if the config has `ema`, and without weight decay on biases and batch-norm.
    """
    import keras

    options: dict[str, Any] = {"learning_rate": _schedule(config, steps)}
    if config.optimizer.name == "adamw":
        options["weight_decay"] = config.optimizer.weight_decay
    if config.optimizer.name == "sgd":
        options |= {"momentum": 0.9, "nesterov": True}
    if config.optimizer.ema:
        options |= {"use_ema": True, "ema_momentum": config.optimizer.ema}
    optimizer = _with_layer_rates(getattr(keras.optimizers, _CLASSES[config.optimizer.name]), config, model)(**options)
    optimizer.exclude_from_weight_decay([v for v in model.trainable_variables if len(v.shape) < 2])
    return keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer


def _schedule(config: ResolvedConfig, steps: int) -> Any:
    """Linear warm-up over the given share of all steps, then cosine down to 0, or the rate as it is."""
    import keras

    warm_up = max(1, int(config.optimizer.warm_up * steps))
    rate = config.optimizer.learning_rate
    if config.optimizer.schedule == "cosine":
        rest = max(1, steps - warm_up)
        return keras.optimizers.schedules.CosineDecay(0.0, rest, warmup_target=rate, warmup_steps=warm_up)
    if config.optimizer.warm_up:
        return keras.optimizers.schedules.PolynomialDecay(rate / warm_up, warm_up, end_learning_rate=rate)
    return rate


def _with_layer_rates(base: type, config: ResolvedConfig, model: keras.Model) -> type:
    """An optimizer that scales each update by how far its layer lies below the head (Clark et al., 2020)."""
    if config.optimizer.layer_decay == 1:
        return base
    depth, rates = 0, {}
    for layer in reversed([layer for layer in surgery.all_layers(model) if layer.trainable_variables]):
        for variable in layer.trainable_variables:
            rates[variable.path] = config.optimizer.layer_decay**depth
        # Batch-norm belongs to the convolution before it.
        depth += any(len(variable.shape) > 1 for variable in layer.trainable_variables)

    class LayerRates(base):
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            reference = self._trainable_variables[self._get_variable_index(variable)]
            super().update_step(gradient, variable, learning_rate * rates[reference.path])

    return LayerRates
