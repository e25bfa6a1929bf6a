"""One worker's model: which weights are validated, and which are trained on."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from catdog.training import checkpoint
from catdog.training.replica import Replica


def test_averaged_weights_are_validated_and_training_goes_on_with_its_own() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    validation_model = keras.models.clone_model(model)
    optimizer = keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5)
    optimizer.build(model.trainable_variables)
    replica = Replica(model, validation_model, optimizer, ema=True, folds_batch_norm=False)
    trained = []
    for _ in range(2):
        optimizer.apply([np.ones(variable.shape, np.float32) for variable in model.trainable_variables])
        trained.append(checkpoint.variable_values(model))
    with replica.validation_weights():
        for each in (model, validation_model):
            for value, first, second in zip(checkpoint.variable_values(each), *trained, strict=True):
                assert value == pytest.approx((first + second) / 2)
    for value, second in zip(checkpoint.variable_values(model), trained[1], strict=True):
        assert np.array_equal(value, second)
    pixels = np.array([[1.0, 2.0]], np.float32)
    kernel, bias = ((first + second) / 2 for first, second in zip(*trained, strict=True))
    assert np.asarray(replica.predict(pixels)) == pytest.approx(pixels @ kernel + bias, rel=1e-5)
