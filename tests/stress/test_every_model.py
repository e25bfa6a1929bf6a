"""Every architecture, saved and rebuilt: catdog's way of loading gives the bits that Keras's own does."""

from __future__ import annotations

import functools
from pathlib import Path

import keras
import numpy as np
import pytest

from catdog.models import registry, weight_files
from catdog.models.spec import ModelSpec

SPECS = [ModelSpec(name, 72, alpha=0.5 if name == "mobilenet" else 1.0) for name in registry.get_architectures()]
SPECS += [
    ModelSpec("mobilenet", 64, freeze=True, pretrained=True, dropout=0.5),
    ModelSpec("gray_cnn", 64, conv_layers=2, units=32, dense_layers=2, dropout=0.3),
    ModelSpec("vgg16", 64, pretrained=True, trainable_from="block5_conv1", dropout=0.0),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.arch}-{spec.image_size}-{spec.dropout}")
def test_a_rebuilt_model_is_the_one_that_keras_loads(spec: ModelSpec, tmp_path: Path) -> None:
    batch = np.random.default_rng(0).integers(0, 256, (3, spec.image_size, spec.image_size, 3), dtype=np.uint8)
    model = registry.build_model(spec)
    for number, weight in enumerate(model.weights):  # so that none has the value that it is built with
        noise = np.random.default_rng(number).random(weight.shape, np.float32)
        weight.assign(np.asarray(weight) * 1.1 + 0.01 * noise)
    model.save(tmp_path / "model.keras")
    plain = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    # What a bundle does not say: whether layers are trained, and their dropout.
    bare = ModelSpec(spec.arch, spec.image_size, spec.alpha, conv_layers=spec.conv_layers, units=spec.units,
                     dense_layers=spec.dense_layers)  # fmt: skip
    data = (tmp_path / "model.keras").read_bytes()
    rebuilt = weight_files.load_saved_model(functools.partial(registry.build_model, bare), data)
    expected = np.asarray(plain(batch, training=False))
    assert np.isfinite(expected).all()
    assert np.array_equal(np.asarray(rebuilt(batch, training=False)), expected)
