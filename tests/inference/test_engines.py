"""ONNX files are made and trusted only where they predict what Keras does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from helpers import in_process

from catdog.data.catalog import Catalog
from catdog.errors import CatdogError, UsageError
from catdog.inference import bundle, export
from catdog.inference.engines import OnnxEngine, TensorFlowEngine
from catdog.models import registry
from catdog.models.registry import Architecture, ModelSpec
from catdog.models.spec import registered


def pictures(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["small_resnet", "workshop_cnn", "gray_cnn", "mobilenet"])
def test_onnx_predicts_what_keras_does_in_batches_of_any_size(name: str) -> None:
    keras.utils.set_random_seed(1)
    model = registry.build_model(ModelSpec(name, 64, alpha=0.25 if name == "mobilenet" else 1.0))
    for variable in model.trainable_variables:  # as random weights give logits of next to nothing
        variable.assign(variable * 1.5)
    engine = OnnxEngine(export.export_onnx(model, pictures(4, 64)), threads=1)
    for count in (1, 3, 8):
        batch = pictures(count, 64)
        assert engine.logits(batch) == pytest.approx(np.asarray(model(batch, training=False))[:, 0], rel=1e-4, abs=1e-4)


def test_a_model_without_a_translation_says_so_and_is_run_by_tensorflow(
    tmp_path: Path, drawn: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    from helpers import save_untrained

    uri = str(tmp_path / "model")
    save_untrained(uri, drawn)
    content = json.loads((tmp_path / "model" / "bundle.json").read_text())
    wanted = {name: content[name] for name in bundle.BundleInfo.model_fields if name not in (
        "members", "onnx", "checksums", "versions", "schema_version", "image_size", "architecture", "images_known",
        "quantisation",
    )}  # fmt: skip

    def gelu(inputs: object, spec: ModelSpec) -> object:  # noqa: ARG001
        # What ConvNeXt has and what Keras's export leaves out.
        x = keras.layers.Conv2D(4, 3, activation="gelu")(keras.layers.Rescaling(1 / 255)(inputs))
        return keras.layers.Dense(1)(keras.layers.GlobalAveragePooling2D()(x))

    monkeypatch.setitem(registered, "gelu", Architecture("gelu", gelu, 32, 1, None, ""))
    model = registry.build_model(ModelSpec("gelu", 32))
    info = export.save_bundle(uri, [model], pictures(2, 32), architecture="gelu", image_size=32, **wanted)
    assert info.onnx.startswith("no ONNX translation: ")
    assert info.engines == ("tensorflow",)
    batch = pictures(3, 32)
    found = bundle.ModelBundle.load(uri).logits(batch)
    assert found == pytest.approx(np.asarray(model(batch, training=False))[:, 0], abs=1e-5)
    with pytest.raises(UsageError, match="--engine received onnx, but .* has no ONNX model: no ONNX translation"):
        bundle.ModelBundle.load(uri, "onnx")


def test_a_translation_that_predicts_something_else_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(CatdogError, match="the ONNX translation's logits differ by .* from Keras's"):
        export.export_onnx(registry.build_model(ModelSpec("gray_cnn", 32)), pictures(2, 32))


class SmallMemory(keras.layers.Layer):
    """The mean of the pixels; runs out of memory with more than so many images, as a GPU would."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.sizes = most, list[int]()

    def call(self, images: Any) -> Any:
        import tensorflow as tf

        def mean(values: np.ndarray) -> np.ndarray:
            self.sizes.append(len(values))
            if len(values) > self.most:
                raise MemoryError("OOM when allocating tensor")  # which TensorFlow makes its own error of
            return values.mean(axis=(1, 2, 3), dtype=np.float32)

        return tf.reshape(tf.numpy_function(mean, [images], tf.float32), (-1, 1))

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, int]:
        return shape[0], 1


def test_a_batch_that_memory_does_not_hold_is_halved_until_it_does() -> None:
    layer, batch = SmallMemory(3), pictures(10, 8)
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    engine = TensorFlowEngine(keras.Model(inputs, layer(inputs)))
    for _ in range(2):
        assert engine.logits(batch) == pytest.approx(batch.mean(axis=(1, 2, 3)), rel=1e-5)
    assert engine.logits(batch[:2]) == pytest.approx(batch[:2].mean(axis=(1, 2, 3)), rel=1e-5)
    # It remembers what memory holds.
    assert layer.sizes == [10, 5, 3, 3, 3, 1, 3, 3, 3, 1, 2]
    layer.most = 0
    with pytest.raises(CatdogError, match="not enough memory to predict one image .*OOM"):
        engine.logits(batch)


def test_a_process_without_a_gpu_sees_none_and_one_with_a_gpu_keeps_its_own() -> None:
    """Ray hides GPUs only from processes that were given others, and TensorFlow takes all memory of those it sees.

    Unless memory growth is on: without it no second process could share a GPU.
    """
    script = """
import os
import tensorflow as tf
from catdog.inference import engines
grown, gpu = [], tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
tf.config.list_physical_devices = lambda kind: [gpu] * (kind == "GPU")
tf.config.experimental.set_memory_growth = lambda device, on: grown.append((device is gpu, on))
engines.set_up(1, gpu=True)
given = os.environ["CUDA_VISIBLE_DEVICES"]
engines.set_up(1, gpu=False)
print([given, os.environ["CUDA_VISIBLE_DEVICES"], tf.config.get_visible_devices("GPU"), grown])
"""
    assert in_process(script, timeout=60, CUDA_VISIBLE_DEVICES="1").splitlines()[-1] == "['1', '', [], [(True, True)]]"
