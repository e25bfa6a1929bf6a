"""Bundles that somebody made to do harm: loading one runs nothing, reads no other file, and takes no memory.

Each attack on `.keras` files is one that was published, in the smallest form.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import marshal
import pickle
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import onnx
import pyarrow as pa
import pytest
from helpers import jpeg
from onnx import helper

from catdog import tables
from catdog.errors import CatdogError
from catdog.inference import bundle, export
from catdog.inference.bundle import ModelBundle
from catdog.inference.novelty import FeatureStatistics
from catdog.models import registry
from catdog.models.spec import ModelSpec

SIZE = 16
BATCH = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
LAYERS = {"conv_layers": 1, "units": 4, "dense_layers": 1}


@pytest.fixture(scope="module")
def tiny(untrained: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle without ONNX files, of a model that is built in no time."""
    uri = str(tmp_path_factory.mktemp("tiny") / "model")
    fields = bundle.read_info(untrained).info.model_dump(
        exclude={"schema_version", "members", "onnx", "checksums", "versions", "images_known"}
    )
    changed = {"architecture": "gray_cnn", "image_size": SIZE, "training": {"options": LAYERS}}
    export.save_bundle(uri, [registry.build_model(ModelSpec("gray_cnn", SIZE, **LAYERS))], **(fields | changed))
    return uri


@pytest.fixture(scope="module")
def expected(tiny: str) -> np.ndarray:
    return logits(Path(tiny))


@pytest.fixture
def copy(tiny: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture
def onnx_copy(untrained: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(untrained, tmp_path / "model"))


def put(folder: Path, name: str, data: bytes) -> None:
    """Replaces a bundle's file, with the right checksum: whoever can write the one can write the other."""
    (folder / name).write_bytes(data)
    content = json.loads((folder / "bundle.json").read_text())
    content["checksums"][name] = hashlib.sha256(data).hexdigest()
    (folder / "bundle.json").write_text(json.dumps(content))


def with_files(folder: Path, compression: int = zipfile.ZIP_STORED, **files: bytes | None) -> bytes:
    """The bundle's `.keras` file with other files in it; None leaves one out."""
    with zipfile.ZipFile(folder / "model.keras") as archive:
        there = {name: archive.read(name) for name in archive.namelist()}
    there |= {name.replace("_json", ".json").replace("_h5", ".weights.h5"): data for name, data in files.items()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in there.items():
            if data is not None:
                archive.writestr(name, data)
    return out.getvalue()


def logits(folder: Path) -> np.ndarray:
    return ModelBundle.load(str(folder), "tensorflow").logits(BATCH)


def refused(folder: Path, engine: str = "tensorflow") -> str:
    with pytest.raises(CatdogError) as error:
        ModelBundle.load(str(folder), engine)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    return str(error.value)


# --- the description of the layers, which is never read ------------------------------------------------------------


def function(module: str, name: str) -> dict[str, Any]:
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def layer(where: str, what: str, **config: object) -> dict[str, Any]:
    return {"module": where, "class_name": what, "config": {"name": "evil", **config}, "registered_name": None}


def called(what: dict[str, Any], **arguments: object) -> dict[str, Any]:
    """A layer that calls a function of any module with any arguments when it is built, by way of Lambda."""
    made = layer("keras.layers", "Lambda", function=what, arguments=arguments)
    return made | {"name": "evil", "inbound_nodes": [{"args": [], "kwargs": {"inputs": "x"}}]}


def code_that_makes(marker: Path) -> str:
    code = compile(f"lambda x: open({str(marker)!r}, 'w')", "evil", "eval").co_consts[0]
    return base64.b64encode(marshal.dumps(code)).decode()


class Opens:
    """What a pickle runs when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self._marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self._marker, "w")


def evil_tar(folder: Path, marker: Path) -> str:
    with tarfile.open(folder / "evil.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo(f"../../{marker.name}"))
    return (folder / "evil.tar").as_uri()


ATTACKS: dict[str, Callable[[Path, Path], list[dict[str, Any]]]] = {
    "CVE-2025-1550, any function of any module": lambda _, marker: [
        called(function("os", "system"), command=f"touch {marker}"),
        {"module": "subprocess", "class_name": "Popen", "config": {"args": ["touch", str(marker)]}},
    ],
    "CVE-2025-8747, Keras's own functions as gadgets": lambda folder, marker: [
        called(function("keras.utils", "get_file"), origin=(folder / "bundle.json").as_uri(), cache_dir=str(marker)),
    ],
    "CVE-2025-9906, safe mode switched off from within": lambda _, marker: [
        called(function("keras.config", "enable_unsafe_deserialization")),
        layer("keras.layers", "Lambda", function={
            "class_name": "__lambda__", "config": {"code": code_that_makes(marker), "defaults": None, "closure": None},
        }),
    ],
    "CVE-2025-12058, files and servers read as a vocabulary": lambda folder, _: [
        layer("keras.layers", "StringLookup", vocabulary=str(folder / "bundle.json")),
        layer("keras.layers", "IntegerLookup", vocabulary="http://127.0.0.1:9/vocabulary.txt"),
    ],
    "CVE-2025-12060, a tar that unpacks outside": lambda folder, marker: [
        called(function("keras.utils", "get_file"), origin=evil_tar(folder, marker), extract=True,
               cache_dir=str(folder), cache_subdir="a/b"),
    ],
    "CVE-2025-49655, a pickle in TorchModuleWrapper": lambda _, marker: [
        layer("keras.layers", "TorchModuleWrapper", module=base64.b64encode(pickle.dumps(Opens(marker))).decode()),
    ],
    "CVE-2026-1462, a graph of TensorFlow's from elsewhere": lambda folder, _: [
        layer("keras.layers", "TFSMLayer", filepath=str(folder), call_endpoint="serve"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_keras_file_says_of_its_layers_is_never_read(
    copy: Path, tmp_path: Path, expected: np.ndarray, attack: str
) -> None:
    marker = tmp_path / "marker"
    config = layer("keras", "Functional", layers=ATTACKS[attack](copy, marker), input_layers=[], output_layers=[])
    put(copy, "model.keras", with_files(copy, config_json=json.dumps(config).encode()))
    assert np.array_equal(logits(copy), expected)
    assert not marker.exists()


def test_nor_is_anything_else_in_it_but_the_weights(copy: Path, expected: np.ndarray) -> None:
    with zipfile.ZipFile(copy / "model.keras") as archive:
        weights = archive.read("model.weights.h5")
    for files in (
        {"config_json": None, "metadata_json": None},
        {"config_json": b"{" * 1_000_000, "assets/../../evil": b"x", "model.weights.npz": pickle.dumps(Opens(copy))},
    ):
        put(copy, "model.keras", with_files(copy, zipfile.ZIP_DEFLATED, model_h5=weights, **files))
        assert np.array_equal(logits(copy), expected)


# --- the weights, which are numbers, or refused --------------------------------------------------------------------

FIRST = "layers/conv2d/vars/0"


def external(file: h5py.File, folder: Path) -> None:
    shape, size = file[FIRST].shape, file[FIRST].nbytes
    del file[FIRST]
    (folder / "secret").write_bytes(bytes(size))
    file.create_dataset(FIRST, shape, "f4", external=[(str(folder / "secret"), 0, size)])


def external_link(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["secret"] = file[FIRST][()]
    del file[FIRST]
    file[FIRST] = h5py.ExternalLink(str(folder / "other.h5"), "/secret")


def virtual(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["secret"] = file[FIRST][()]
        layout = h5py.VirtualLayout(file[FIRST].shape, "f4")
        layout[...] = h5py.VirtualSource(other["secret"])
    del file[FIRST]
    file.create_virtual_dataset(FIRST, layout)


def replaced(**options: Any) -> Callable[[h5py.File, Path], None]:
    def change(file: h5py.File, _folder: Path) -> None:
        del file[FIRST]
        file.create_dataset(FIRST, **options)

    return change


def soft_link(file: h5py.File, _folder: Path) -> None:
    file["elsewhere"] = file[FIRST][()]
    del file[FIRST]
    file[FIRST] = h5py.SoftLink("/elsewhere")


def itself(file: h5py.File, _folder: Path) -> None:
    file["layers/again"] = file["layers"]


WEIGHTS: dict[str, tuple[Callable[[h5py.File, Path], None], str]] = {
    "CVE-2026-1669, bytes of another file": (external, "numbers in another file, expected them in this one"),
    "a link to another file": (external_link, "is a link to another place"),
    "a mosaic of other files": (virtual, "numbers in another file, expected them in this one"),
    "a link within the file": (soft_link, "is a link to another place"),
    "CVE-2026-0897, a shape that fills the memory": (
        replaced(shape=(10**12,), dtype="f4"), "declares 4,000,000,000,000 bytes and stores 0"
    ),
    "a compressed bomb": (
        replaced(data=np.zeros((3, 3, 1, 4), np.float32), compression="gzip"), "is in chunks or compressed"
    ),
    "nothing at all": (replaced(data=h5py.Empty("f4")), "is not an array of numbers"),
    "another shape": (replaced(data=np.zeros((2, 2), np.float32)), r"lacks arrays: 1, such as float32 of shape"),
    "another type": (replaced(data=np.zeros((3, 3, 1, 4), np.float16)), r"lacks arrays: 1, such as float32"),
    "text": (replaced(data=["=cmd"] * 9), "is not an array of numbers"),
    "an array more": (lambda file, _: file.create_dataset("more", data=[1.0]), "has too many arrays: 1, such as"),
    "no array": (lambda file, _: file.__delitem__(FIRST), "lacks arrays: 1, such as"),
    "a group that holds itself": (itself, "and the arrays before it take"),
    "a group that holds itself and nothing else": (
        lambda file, _: file.create_group("g").__setitem__("g", file["g"]), "holds more than 20,000 groups and arrays"
    ),
}  # fmt: skip


@pytest.mark.parametrize("attack", WEIGHTS)
def test_weights_that_are_not_the_models_own_numbers(copy: Path, tmp_path: Path, attack: str) -> None:
    change, message = WEIGHTS[attack]
    with zipfile.ZipFile(copy / "model.keras") as archive:
        weights = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(weights, "r+") as file:
        change(file, tmp_path)
    put(copy, "model.keras", with_files(copy, model_h5=weights.getvalue()))
    said = refused(copy)
    assert message in said
    assert said.startswith(f"{copy}/model.keras: it is not the gray_cnn for 16 pixels that bundle.json describes: ")


def test_what_is_no_keras_file(copy: Path) -> None:
    """CVE-2025-9905 among them: Keras's older format, for which it knows no safe mode."""
    whole = {
        "is no Keras file, or damaged": [b"PK" * 2000, (copy / "model.keras").read_bytes()[:-99]],
        "holds no model.weights.h5": [with_files(copy, model_h5=None)],
        "is larger than": [with_files(copy, zipfile.ZIP_DEFLATED, model_h5=bytes(1 << 20))],
        "file signature not found": [with_files(copy, model_h5=b"x" * 1000)],
        "of which the file has 0": [b""],
    }
    inputs = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    older = keras.Model(inputs, keras.layers.Lambda(lambda x: x)(keras.layers.Dense(1)(keras.layers.Flatten()(inputs))))
    older.save(copy / "older.h5")
    whole["is no Keras file, or damaged"].append((copy / "older.h5").read_bytes())
    for message, files in whole.items():
        for data in files:
            put(copy, "model.keras", data)
            assert message in refused(copy)


def test_a_description_of_a_giant_is_never_allocated(copy: Path, expected: np.ndarray) -> None:
    """Of terabytes, now and when another model is loaded afterwards."""
    content = (copy / "bundle.json").read_text()
    for change in ({"image_size": 2048}, {"training": {"options": LAYERS | {"units": 50_000}}}):
        giant = json.loads(content) | {"training": {"options": LAYERS | {"units": 1000}}} | change
        (copy / "bundle.json").write_text(json.dumps(giant))
        assert re.search(r"describes: its weights take [\d,]{15,} bytes, of which", refused(copy))
    (copy / "bundle.json").write_text(content)
    assert np.array_equal(logits(copy), expected)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"options": {"alpha": -1}}, "training.options: alpha: Input should be greater than 0"),
        ({"options": {"units": "many"}}, "training.options: units: Input should be a valid integer"),
        ({"options": []}, "training.options"),
    ],
)
def test_options_that_no_training_has(copy: Path, training: dict, message: str) -> None:
    content = json.loads((copy / "bundle.json").read_text())
    (copy / "bundle.json").write_text(json.dumps(content | {"training": training}))
    assert message in refused(copy)


# --- ONNX ------------------------------------------------------------------------------------------------------------


def outside(model: onnx.ModelProto, folder: Path) -> None:
    tensor = model.graph.initializer[0]
    (folder / "secret").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret")


def constant_outside(model: onnx.ModelProto, folder: Path) -> None:
    outside(model, folder)
    node = helper.make_node("Constant", [], ["extra"], value=model.graph.initializer[0])
    del model.graph.initializer[0]
    model.graph.node.append(node)


def custom(model: onnx.ModelProto, _folder: Path) -> None:
    model.graph.node[-1].domain = "com.evil"


def branch(model: onnx.ModelProto, _folder: Path) -> None:
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))


def local_function(model: onnx.ModelProto, _folder: Path) -> None:
    model.functions.append(helper.make_function("local", "f", ["x"], ["y"], [], model.opset_import))


def other_type(model: onnx.ModelProto, _folder: Path) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.STRING


def other_shape(model: onnx.ModelProto, _folder: Path) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2


def more_inputs(model: onnx.ModelProto, _folder: Path) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1]))


ONNX: dict[str, tuple[Callable[[onnx.ModelProto, Path], None], str]] = {
    "numbers in another file": (outside, "from another file, expected all numbers in this one"),
    "a constant in another file": (constant_outside, "from another file, expected all numbers in this one"),
    "an operator of one's own": (custom, "has the operator com.evil."),
    "a branch": (branch, "has the operator If, a branch or loop"),
    "a function": (local_function, "has functions, training or sparse arrays"),
    "strings": (other_type, "takes STRING N×32×32×3, expected UINT8 N×32×32×3"),
    "two logits": (other_shape, "gives FLOAT N×2, expected FLOAT N×1"),
    "two inputs": (more_inputs, "takes UINT8 N×32×32×3, FLOAT N×, expected UINT8 N×32×32×3"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ONNX)
def test_onnx_files_that_reach_beyond_themselves(
    onnx_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str
) -> None:
    monkeypatch.chdir(tmp_path)  # which names of other files are relative to
    change, message = ONNX[attack]
    model = onnx.load(str(onnx_copy / "model.onnx"))
    change(model, tmp_path)
    put(onnx_copy, "model.onnx", model.SerializeToString())
    said = refused(onnx_copy, "onnx")
    assert message in said
    assert said.startswith(f"{onnx_copy}/model.onnx ")


def test_what_onnx_runtime_does_not_load_or_run(onnx_copy: Path, catdog) -> None:
    model = onnx.load(str(onnx_copy / "model.onnx"))
    model.graph.node[-1].op_type = "Evil"
    put(onnx_copy, "model.onnx", model.SerializeToString())
    assert "ONNX Runtime cannot load the model: " in refused(onnx_copy, "onnx")
    (onnx_copy / "photo.jpg").write_bytes(jpeg())
    shown = catdog("predict", onnx_copy / "photo.jpg", "--model", onnx_copy)
    assert (shown.code, shown.err.count("\n")) == (1, 1)
    assert "ONNX Runtime cannot load the model: " in shown.err
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["x"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Reshape", ["x", "shape"], ["y"]),
        ],
        "graph",
        [helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["N", 32, 32, 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 1])],
        [helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [7, 1])],
    )
    other = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    put(onnx_copy, "model.onnx", other.SerializeToString())
    loaded = ModelBundle.load(str(onnx_copy), "onnx")
    with pytest.raises(CatdogError, match="ONNX Runtime cannot run the model: ") as error:
        loaded.logits(np.zeros((4, 32, 32, 3), np.uint8))
    assert "\n" not in str(error.value)


def test_what_is_no_onnx_file(onnx_copy: Path) -> None:
    for data in (b"\x08", b"\xff" * 100):
        put(onnx_copy, "model.onnx", data)
        assert "is no ONNX file, or damaged" in refused(onnx_copy, "onnx")
    put(onnx_copy, "model.onnx", b"")
    assert "takes nothing, expected UINT8" in refused(onnx_copy, "onnx")


# --- other files -----------------------------------------------------------------------------------------------------


def test_statistics_that_declare_more_than_they_hold() -> None:
    def saved(**arrays: np.ndarray) -> dict[str, bytes]:
        out = io.BytesIO()
        np.savez(out, **arrays)
        with zipfile.ZipFile(out) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    one = np.float64(1)
    good = saved(means=np.zeros((2, 3)), directions=np.eye(3, 1), variances=np.ones(1), rest=one, limit=one)
    shape = io.BytesIO()
    np.lib.format.write_array_header_1_0(shape, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)})
    for name, data in {
        "means.npy": shape.getvalue(),
        "directions.npy": good["directions.npy"] + bytes(65 << 20),
        "variances.npy": saved(variances=np.ones(2))["variances.npy"],
        "rest.npy": saved(rest=np.array([{}]))["rest.npy"],  # which NumPy pickles
    }.items():
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for each, content in (good | {name: data}).items():
                archive.writestr(each, content)
        with pytest.raises(CatdogError, match="statistics of features are damaged"):
            FeatureStatistics.from_bytes(out.getvalue())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"digest": ["=1"], "split": ["train"]}), r"columns \['digest', 'split'\], expected"),
        (pa.table({"digest": pa.nulls(50_000_000, pa.uint64())}), "50,000,000 rows in"),
    ],
)
def test_lists_of_images_that_are_none(tiny: str, tmp_path: Path, table: pa.Table, message: str) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    put(folder, "images.parquet", tables.table_to_bytes(table))
    with pytest.raises(CatdogError, match=f"images.parquet is no list of images that catdog wrote .{message}") as error:
        bundle.read_provenance(*bundle.read_info(str(folder)))
    assert "\n" not in str(error.value)
