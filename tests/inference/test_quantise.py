"""Int8 bundles: nearly the same logits, kept only where the validation photos say so, and named wherever it matters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import Outcome, save_untrained

from catdog import storage
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError, UsageError
from catdog.inference import bundle, card, novelty, quantised_bundle
from catdog.inference.bundle import ModelBundle, SavedBundle
from catdog.inference.engines import OnnxEngine
from catdog.inference.export import export_onnx
from catdog.inference.precision import precision_of
from catdog.inference.quantise import Quantiser
from catdog.inference.rounding import Moments, round_weights
from catdog.models import registry
from catdog.scoring import plan
from catdog.scoring.config import ScoreConfig

# So few pictures cannot show that a log loss changes by less than 0.0005.
_SHOWN_BY_FEW = 0.1


def pictures(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Smooth random pictures, as photos are smooth."""
    small = np.random.default_rng(seed).integers(0, 256, (count, size // 8, size // 8, 3), dtype=np.uint8)
    return small.repeat(8, axis=1).repeat(8, axis=2)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory, untrained: str, drawn: Catalog) -> SavedBundle:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantised_bundle, "MOST_CHANGE", _SHOWN_BY_FEW)
        return quantised_bundle.quantise_bundle(
            untrained, drawn, str(tmp_path_factory.mktemp("int8") / "model"), 8, keep_float=0
        )


@pytest.mark.parametrize("name", ["mobilenet", "small_resnet"])
def test_logits_are_nearly_the_same_and_the_weights_small(name: str) -> None:
    keras.utils.set_random_seed(1)
    model = registry.build_model(registry.ModelSpec(name, 64, alpha=0.25 if name == "mobilenet" else 1.0))
    for variable in model.trainable_variables:  # as random weights give logits of next to nothing
        variable.assign(variable * 1.5)
    data = export_onnx(model, pictures(2, 64))
    checked = pictures(8, 64, 1)
    expected = OnnxEngine(data, 1).logits(checked)
    quantiser = Quantiser(data, pictures(16, 64))
    whole = quantiser.quantise(127)
    found = OnnxEngine(whole, 1).logits(checked)
    assert np.sqrt(np.square(found - expected).mean()) < 0.3 * expected.std()
    assert (found != expected).any()
    weights = [tensor for tensor in onnx.load_from_string(whole).graph.initializer if len(tensor.dims) == 4]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.INT8}
    assert max(np.abs(onnx.numpy_helper.to_array(tensor).astype(int)).max() for tensor in weights) > 64

    portable = onnx.load_from_string(quantiser.quantise()).graph.initializer
    assert all(np.abs(onnx.numpy_helper.to_array(t).astype(int)).max() <= 64 for t in portable if len(t.dims) == 4)
    exact = quantiser.quantise(in_float=frozenset(quantiser.convolutions))
    assert OnnxEngine(exact, 1).logits(checked) == pytest.approx(expected, abs=1e-4)
    assert sorted(quantiser.by_sensitivity(checked[:2])) == sorted(quantiser.convolutions)


def test_what_stays_in_float_is_not_rounded_by_onnx_runtime_either() -> None:
    """It rounds weights between integers, with one scale for all channels, unless something is in between."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    for convolve in (
        keras.layers.Conv2D(8, 3, padding="same"),
        keras.layers.DepthwiseConv2D(3, padding="same"),
        keras.layers.Conv2D(8, 1),
    ):
        x = keras.layers.ReLU(6)(convolve(x))
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.GlobalAveragePooling2D()(x)))
    quantiser, checked = Quantiser(export_onnx(model, pictures(2, 32)), pictures(16, 32)), pictures(4, 32, 1)
    (depthwise,) = (name for name in quantiser.convolutions if "depthwise" in name)
    mixed = quantiser.quantise(in_float=frozenset([depthwise]))
    session = onnxruntime.InferenceSession(
        mixed, providers=["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
    )
    (found,) = session.run(None, {session.get_inputs()[0].name: checked})
    assert np.array_equal(OnnxEngine(mixed, 1).logits(checked), found[:, 0])


def test_rounding_makes_less_error_than_one_by_one_where_inputs_vary_together() -> None:
    random = np.random.default_rng(0)
    weights = random.normal(size=(4, 1, 3, 3)).astype(np.float32)
    inputs = random.normal(size=(4, 5000, 1)) + 0.1 * random.normal(size=(4, 5000, 9)) + 2
    moments = Moments(inputs.mean(axis=1), np.stack([np.cov(each.T) for each in inputs]))
    rounded = round_weights(weights, moments, 127)
    exact = weights.reshape(4, 9)

    def off(approximate: np.ndarray, shift: np.ndarray) -> float:
        return float(np.square(np.einsum("gnk,gk->gn", inputs, approximate - exact) + shift[:, None]).mean())

    scales = np.abs(exact).max(axis=1, keepdims=True) / 127
    plain = off(np.round(exact / scales) * scales, np.zeros(4))
    assert off(rounded.integers.reshape(4, 9) * rounded.scales[:, None], rounded.shift) < plain / 4


def test_an_int8_bundle_is_one_like_any_other(int8: SavedBundle, untrained: str, drawn: Catalog) -> None:
    info = bundle.read_info(int8.uri).info
    quantisation = info.quantisation
    assert quantisation is not None
    assert quantisation.float32_fingerprint == bundle.fingerprint_of(bundle.read_info(untrained).info)
    assert (quantisation.n, quantisation.calibration_images) == (drawn.count("valid"), 8)
    assert quantisation.log_loss_change_low < quantisation.log_loss_change < quantisation.log_loss_change_high
    bundle.require_intact(int8, "onnx")
    batch = pictures(5, 32)
    logits = {engine: ModelBundle.load(int8.uri, engine).logits(batch) for engine in ("onnx", "tensorflow")}  # type: ignore[arg-type]
    assert logits["tensorflow"] == pytest.approx(ModelBundle.load(untrained).logits(batch), abs=1e-5)
    assert logits["onnx"] == pytest.approx(logits["tensorflow"], abs=0.2)
    assert (logits["onnx"] != logits["tensorflow"]).any()
    assert novelty.has_statistics(int8)
    text = (Path(int8.uri) / card.NAME).read_text()
    assert "The ONNX files are int8" in text
    assert "In ONNX Runtime, in int8:" in text
    # Of which photos made it, its reports know.
    provenance = bundle.read_provenance(int8.uri, info)
    assert provenance.chosen_on(drawn.split("valid")["digest"]).all()


def test_precision_is_that_of_the_files_which_predict(int8: SavedBundle, untrained: str) -> None:
    plain = bundle.read_info(untrained).info
    assert precision_of([int8.info.quantisation], "onnx") == "int8"
    assert precision_of([int8.info.quantisation], "tensorflow") == "float32"
    assert precision_of([int8.info.quantisation, plain.quantisation], "onnx") == "int8 and float32"
    # A float32 bundle is written as before there were others.
    assert "quantisation" not in json.loads((Path(untrained) / "bundle.json").read_text())


def test_a_bundle_that_would_be_worse_is_not_written(
    tmp_path: Path, untrained: str, drawn: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantised_bundle, "MOST_CHANGE", -1.0)
    out = tmp_path / "int8"
    with pytest.raises(CatdogError, match=r"int8 is not kept: on 23 .* it changes the log loss of .* nothing was") as e:
        quantised_bundle.quantise_bundle(untrained, drawn, str(out), 8, keep_float=0)
    assert e.value.exit_code == 1
    assert not out.exists()


def test_the_command(
    catdog: Callable[..., Outcome],
    tmp_path: Path,
    drawn: Catalog,
    int8: SavedBundle,
    untrained: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quantised_bundle, "MOST_CHANGE", _SHOWN_BY_FEW)
    uri, out = str(tmp_path / "two"), tmp_path / "two-int8"
    save_untrained(uri, drawn, members=2, views=["identity", "mirror"])
    options = ("--calibration", 8, "--keep-float", 1, "--weight-bits", 8)
    (out / "model.onnx").parent.mkdir()
    (out / "model.onnx").write_bytes(b"left by a killed command")
    made = catdog("bundle", "quantise", uri, "--data", drawn.root, *options)
    assert made.code == 0, made.err
    assert "validation photos" in made.out
    assert "In float32, of model-2.keras: " in made.out
    (found,) = quantised_bundle.read_bundles([uri], "int8")
    assert (found.uri, found.info.views) == (str(out), ["identity", "mirror"])
    for model, target, message in (
        (int8.uri, tmp_path / "again", "is int8 already"),
        (untrained, out, "which holds something already"),
        (uri, None, "two-int8, where the int8 version goes, holds something already; delete it"),
        (str(tmp_path / "none"), tmp_path / "again", r"holds no bundle.json"),
    ):
        refused = catdog("bundle", "quantise", model, "--data", drawn.root, *(["--out", target] if target else []))
        assert (refused.code, message in refused.err, len(refused.err.splitlines())) == (2, True, 1)


def scored(model: str, drawn: Catalog, **options: object) -> plan.ScoringJob:
    return plan.open_job(ScoreConfig(model=model, data=drawn.root, out=f"{drawn.root}-scores/r.csv", **options))


@pytest.mark.usefixtures("bucket")
def test_precision_takes_the_int8_version_beside_a_bundle(
    tmp_path: Path, int8: SavedBundle, untrained: str, drawn: Catalog
) -> None:
    run = str(tmp_path / "first")
    shutil.copytree(untrained, f"{run}/model")
    shutil.copytree(int8.uri, f"{run}/model-int8")
    for name in ("model", "model-int8"):
        for file in Path(run, name).iterdir():
            storage.write_bytes(f"s3://bucket/first/{name}/{file.name}", file.read_bytes())
    plain, before = scored(run, drawn), scored(untrained, drawn)
    assert plain.fingerprint == before.fingerprint
    assert [storage.name(part.uri) for part in plain.parts_to_score("onnx")] == [
        storage.name(part.uri) for part in before.parts_to_score("onnx")
    ]
    for model in (run, f"{run}/model/", f"{run}/model-int8", "s3://bucket/first", "s3://bucket/first/model"):
        job = scored(model, drawn, precision="int8")
        assert job.bundles[0].uri.rstrip("/").endswith("first/model-int8")
        assert (job.fingerprint, job.engines) == (bundle.fingerprint_of(int8.info), ("onnx",))
    assert scored(run, drawn, precision="float32").fingerprint == before.fingerprint
    # The float32 one may have been marked since, but must have these weights.
    info = bundle.read_info(run).info
    for changed, fits in (
        ({"chosen_on": "validation"}, True),
        ({"views": ["mirror"]}, False),
        ({"checksums": info.checksums | {"model.keras": "0" * 64}}, False),
    ):
        Path(run, "model", "bundle.json").write_text(info.model_copy(update=changed).model_dump_json())
        if fits:
            assert scored(run, drawn, precision="int8").fingerprint == job.fingerprint
        else:
            with pytest.raises(UsageError, match="model-int8 was not made of .*/first/model; delete it"):
                scored(run, drawn, precision="int8")


def test_without_an_int8_version_one_line_says_how_to_make_it(
    catdog: Callable[..., Outcome], tmp_path: Path, int8: SavedBundle, untrained: str, drawn: Catalog
) -> None:
    for model, options, message in (
        (
            untrained,
            ["int8"],
            f"{untrained} has no int8 version in {untrained}-int8; make it by `catdog bundle quantise",
        ),
        (int8.uri, ["float32"], "is int8; give the bundle that it was made of"),
        (int8.uri, ["int8", "--engine", "tensorflow"], "int8 with --engine tensorflow, which computes in float32"),
        (int8.uri, ["int8", "--gpu"], "int8 with --gpu, which computes in float32"),
        (str(tmp_path / "none"), ["int8"], "holds no bundle.json"),
    ):
        refused = catdog("score", "--model", model, "--data", drawn.root, "--precision", *options)
        assert (refused.code, message in refused.err, len(refused.err.splitlines())) == (2, True, 1), refused.err
