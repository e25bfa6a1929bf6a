"""Recipes on a real cluster: fine-tuning with everything switched on, and cross-validation of a linear probe."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import keras
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray
from helpers import bundle_json
from scipy import optimize
from sklearn import metrics as sklearn_metrics
from sklearn.linear_model import LogisticRegression

from catdog.data import catalog, images, key_list
from catdog.data.catalog import Catalog
from catdog.errors import UsageError
from catdog.evaluation import metrics
from catdog.events import EpochDone, Event, FeaturesStarted, FoldStarted, MemberStarted, PartDone
from catdog.experiments import cross_validation
from catdog.inference import bundle
from catdog.inference.bundle import ModelBundle
from catdog.models import registry
from catdog.run_directory import RunDirectory
from catdog.scoring import results
from catdog.training import feature_cache, train
from catdog.training.config import resolve
from catdog.training.request import TrainConfig

pytestmark = pytest.mark.usefixtures("two_cpus")
SIZE = 64


@pytest.fixture(scope="module")
def weights(drawn: Catalog, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights for MobileNet 0.25: random ones, which cost nothing to have and tell cats from dogs a little."""
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mobilenet.weights.h5"
    model = keras.applications.MobileNet(input_shape=(SIZE, SIZE, 3), alpha=0.25, include_top=False, weights=None)
    # With batch-norm's statistics as they are at the start, the signal would be lost on its way through the layers.
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    pixels = np.stack([images.read_image(uri, SIZE).pixels for uri in drawn.split("train")["uri"].to_pylist()])
    model(pixels / np.float32(127.5) - 1, training=True)
    model.save_weights(path)
    return str(path)


def test_fine_tuning_with_everything_on_keeps_workers_equal_and_scores_as_it_validated(
    drawn: Catalog, weights: str, tmp_path: Path, catdog
) -> None:
    options = "--arch mobilenet --alpha 0.25 --image-size 64 --epochs 1 --batch-size 16 --workers 2 --name all"
    settings = [
        "ema=0.9",
        "mixup=0.4",
        "layer_decay=0.8",
        "label_smoothing=0.1",
        "balance=true",
        "augmentation.erase=0.3",
    ]
    done = catdog(
        "train", "--data", drawn.root, "--weights", weights, "--runs", tmp_path, *options.split(),
        *(part for setting in settings for part in ("--set", setting)),
    )  # fmt: skip
    assert done.code == 0, done.err
    said = bundle_json(str(tmp_path / "all"))
    images = bundle.read_provenance(str(tmp_path / "all" / "model"), bundle.read_info(str(tmp_path / "all"))[1])
    assert images.known
    assert images.trained_on(drawn.split("train")["digest"]).all()
    assert images.chosen_on(drawn.split("valid")["digest"]).all()
    assert not images.trained_on(drawn.split("valid")["digest"]).any()
    assert said["training"]["options"]["recipe"] == "fine-tune"
    assert said["training"]["options"]["augmentation"]["crop"] == [0.75, 1.0]
    assert said["views"] == ["identity", "mirror", "crop-88", "crop-88-mirror"]
    assert said["calibration"] == "validation"
    for entry in said["training"]["history"]:
        assert entry["variables_sha256"][0] == entry["variables_sha256"][1]
    # Trained at 55 pixels, saved for 64; the lower blocks are the file's, the upper ones are not.
    model = keras.saving.load_model(tmp_path / "all" / "model" / "model.keras")
    assert model.input_shape == (None, SIZE, SIZE, 3)
    before = registry.build_model(
        registry.ModelSpec("mobilenet", SIZE, 0.25, pretrained=True), Path(weights).read_bytes()
    )
    for layer, same in (("conv_pw_3", True), ("conv_pw_4", False)):
        ours, theirs = (m.get_layer("backbone").get_layer(layer).get_weights()[0] for m in (model, before))
        assert np.array_equal(ours, theirs) == same

    out = tmp_path / "results.csv"
    assert catdog("score", "--model", tmp_path / "all", "--data", drawn.root, "--out", out).code == 0
    report = json.loads(out.with_suffix("").with_suffix(".report.json").read_text())
    assert report["log_loss_plain"] == pytest.approx(said["validation"]["log_loss"], abs=1e-4)
    assert report["log_loss"] == pytest.approx(said["validation"]["log_loss_calibrated"], abs=1e-3)
    assert report["calibration"] == "cross-fitted on halves"
    # Both pages say the same of it.
    pages = [(tmp_path / "all" / "report.html").read_text(), out.with_suffix(".report.html").read_text()]
    shown = [float(re.findall(r"<strong>log loss is\s([\d.]+)</strong>", page)[0]) for page in pages]
    assert shown == pytest.approx([report["log_loss"]] * 2, abs=2e-3)


def test_a_dense_head_is_fitted_to_cached_features(tmp_path: Path) -> None:
    """The first of little-data's two steps; tests/test_models.py has the other."""
    random = np.random.default_rng(0)
    labels = np.arange(120) % 2
    values = random.normal(0, 1, (120, 512)).astype(np.float32) + np.where(labels == 1, 1, -1)[:, None] / 4
    keys = [f"{number}.jpg" for number in range(120)]
    columns = {"key": keys, "view": ["identity"] * 120, "features": pa.array(list(values), pa.list_(pa.float32()))}
    pq.write_table(pa.table(columns), tmp_path / "features.parquet")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    (tmp_path / ".being-written.parquet.1-2.tmp").write_bytes(b"")
    spec = resolve(TrainConfig(data="d", recipe="little-data", weights="none", image_size=32)).model.spec
    rows = pa.table({"key": keys, "label": labels})
    found = feature_cache.fit_head(str(tmp_path), rows, spec, 0, ["identity"])
    assert [value.shape for value in found] == [(512, 256), (256,), (256, 1), (1,)]
    hidden = np.maximum(values @ found[0] + found[1], 0)
    logits = (hidden @ found[2] + found[3])[:, 0]
    assert ((logits > 0) == labels).mean() > 0.95


def test_an_image_that_cannot_be_read_has_no_features_and_costs_no_second_run(
    drawn: Catalog, weights: str, tmp_path: Path
) -> None:
    rows = drawn.split("train")[:6]
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    uris = [*rows["uri"].to_pylist()[:5], str(tmp_path / "broken.jpg")]
    rows = rows.set_column(2, "uri", pa.array(uris))
    spec = registry.ModelSpec("mobilenet", SIZE, 0.25, freeze=True, pretrained=True)
    loaded = ray.put(Path(weights).read_bytes())
    said: list[Event] = []
    for _ in range(2):
        feature_cache.compute_features(rows, spec, loaded, 0, ["identity"], str(tmp_path / "cache"), said.append)
    assert [event.images for event in said if isinstance(event, FeaturesStarted)] == [6, 1]
    _, at = feature_cache.read_features(str(tmp_path / "cache"), rows["key"].to_pylist(), "identity")
    assert at.tolist() == [0, 1, 2, 3, 4]


def test_several_models_are_averaged_in_logit_space(drawn: Catalog, untrained: str, tmp_path: Path, catdog) -> None:
    from helpers import save_untrained

    other = str(tmp_path / "other")
    save_untrained(other, drawn, size=48, members=2, temperature=4.0, calibration="validation")
    out = tmp_path / "results.csv"
    command = ["score", "--model", untrained, "--model", other, "--data", drawn.root, "--out", out]
    done = catdog(*command)
    assert done.code == 0, done.err
    parts = results.read_parts(str(out)).sort_by("key")
    places = dict(zip(drawn.table["key"].to_pylist(), drawn.table["uri"].to_pylist(), strict=True))
    each = []
    for uri, size in ((untrained, 32), (other, 48)):
        pixels = np.stack([images.read_image(places[key], size).pixels for key in parts["key"].to_pylist()])
        each.append(ModelBundle.load(uri).logits(pixels))
    logits = parts["logit"].to_numpy()
    assert logits == pytest.approx(np.mean(each, axis=0), abs=1e-5)

    # Written is what is fitted to the mean of the logits of the validation photos; SciPy finds no better one.
    meta = json.loads((tmp_path / "results.meta.json").read_text())
    valid = parts.filter(pc.is_valid(parts["label"]))
    labels, known = valid["label"].to_numpy(), valid["logit"].to_numpy()

    def cost(temperature: float, clip: float) -> float:
        loss = sklearn_metrics.log_loss(labels, metrics.calibrated(known, temperature, clip), normalize=False)
        # A normal prior of log temperature, and a quarter of one more image that is a certain mistake.
        return loss + (np.log(temperature) / 0.2) ** 2 / 2 - 0.25 * np.log(clip)

    best = min(
        optimize.minimize_scalar(cost, bounds=(0.5, 3), args=(clip,)).fun for clip in np.geomspace(1e-5, 0.02, 20)
    )
    assert cost(meta["temperature"], meta["clip"]) < best + 0.02
    assert meta["calibration"] == f"refitted on the mean of the models' logits for {len(valid)} validation images"
    assert meta["calibration"] in done.out
    report = json.loads((tmp_path / "results.report.json").read_text())
    written = metrics.calibrated(known, meta["temperature"], meta["clip"])
    assert report["log_loss_as_written"] == pytest.approx(sklearn_metrics.log_loss(labels, written))
    assert report["calibration"] == "cross-fitted on halves"
    submitted = dict(line.split(",") for line in out.read_text().splitlines()[1:])
    test = parts.filter(pc.is_null(parts["label"]))
    expected = metrics.calibrated(test["logit"].to_numpy(), meta["temperature"], meta["clip"])
    assert [float(submitted[key]) for key in test["id"].to_pylist()] == pytest.approx(expected)

    # Without validation photos there is nothing to fit it to: temperatures 1 and 4 make 2.
    for part in (tmp_path / "results.parts").glob("valid-*"):
        part.unlink()
    done = catdog(*command, "--split", "test")
    assert "the mean of the models' own" in done.out
    submitted = dict(line.split(",") for line in out.read_text().splitlines()[1:])
    expected = metrics.calibrated(test["logit"].to_numpy(), 2.0, 1e-6)
    assert [float(submitted[key]) for key in test["id"].to_pylist()] == pytest.approx(expected, abs=1e-9)


@pytest.fixture(scope="module")
def probed(
    drawn: Catalog, weights: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainConfig, cross_validation.OutOfFold]:
    config = TrainConfig(
        data=drawn.root, recipe="linear-probe", arch="mobilenet", alpha=0.25, weights=weights, image_size=SIZE,
        name="probe", runs=str(tmp_path_factory.mktemp("runs")),
    )  # fmt: skip
    return config, cross_validation.cross_validate(config, 3)


def test_cached_features_are_what_keras_computes(
    drawn: Catalog, weights: str, probed: tuple[TrainConfig, cross_validation.OutOfFold]
) -> None:
    (folder,) = (Path(probed[0].runs) / ".features").iterdir()
    rows = drawn.split("valid")
    keys = rows["key"].to_pylist()[::-1]
    pixels = np.stack([images.read_image(uri, SIZE).pixels for uri in rows["uri"].to_pylist()[::-1]])
    backbone = keras.applications.MobileNet(
        input_shape=(SIZE, SIZE, 3), alpha=0.25, include_top=False, weights=None, pooling="avg"
    )
    backbone.load_weights(weights)
    for view, shown in (("identity", pixels), ("mirror", pixels[:, :, ::-1])):
        found, at = feature_cache.read_features(str(folder), keys, view)
        assert at.tolist() == list(range(len(keys)))
        assert found == pytest.approx(backbone.predict(shown / 127.5 - 1, verbose=0), rel=1e-3, abs=1e-4)


def test_out_of_fold_predictions_are_those_of_models_that_never_saw_the_image(
    drawn: Catalog, probed: tuple[TrainConfig, cross_validation.OutOfFold]
) -> None:
    config, found = probed
    labelled = drawn.count("train") + drawn.count("valid")
    assert len(set(found.keys)) == len(found.keys) == labelled
    for fold in (1, 2, 3):
        assert abs(found.labels[found.folds == fold].mean() - 0.5) < 0.05
    # scikit-learn alone, on the same features, folds and penalties, comes to the same: the mean of the views' losses
    # and one of the penalties.
    (folder,) = (Path(config.runs) / ".features").iterdir()
    views = resolve(config).validation.views
    seen = [feature_cache.read_features(str(folder), found.keys, view)[0] for view in views]
    candidates = []
    for strength in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0):
        rest, held_out = found.folds != 1, found.folds == 1
        model = LogisticRegression(C=strength, max_iter=2000)
        weights = np.full(len(views) * rest.sum(), 1 / len(views))
        model.fit(np.concatenate([view[rest] for view in seen]), np.tile(found.labels[rest], len(views)), weights)
        candidates.append(np.mean([model.decision_function(view[held_out]) for view in seen], axis=0))
    assert min(np.abs(found.logits[held_out] - each).max() for each in candidates) < 1e-3

    again = cross_validation.read_out_of_fold(str(Path(config.runs) / "probe"))
    assert again.keys == sorted(found.keys)
    loss = again.figures.log_loss
    assert loss == pytest.approx(sklearn_metrics.log_loss(again.labels, again.probabilities))
    written = json.loads((Path(config.runs) / "probe" / cross_validation.REPORT_NAME).read_text())
    assert (written["log_loss"], written["log_loss_plain"]) == pytest.approx((loss, again.log_loss_plain))
    with pytest.raises(UsageError, match="--folds received 200, but .* has 48"):
        cross_validation.assign_folds(drawn, 200, 0)


def test_listed_images_are_left_out_of_training_and_still_judged(
    probed: tuple[TrainConfig, cross_validation.OutOfFold], tmp_path: Path
) -> None:
    config, before = probed
    listed = tmp_path / "out.csv"
    # As the audit writes it: a column `key` among others, and unlabelled images too.
    listed.write_text("split,key\n" + "".join(f"train,{key}\n" for key in [*before.keys[::4], "test/1.jpg"]))
    found = cross_validation.cross_validate(config.model_copy(update={"name": "fewer", "leave_out": str(listed)}), 3)
    assert found.keys == before.keys
    assert np.abs(found.logits - before.logits).max() > 1e-3
    # Most dogs turned by a review: the models say cat more often, and are judged by the labels as they were.
    dogs = [key for key, label in zip(before.keys, before.labels, strict=True) if label == 1]
    listed.write_text(key_list.format_actions(dict.fromkeys(dogs[6:], key_list.FLIP)))
    turned = cross_validation.cross_validate(config.model_copy(update={"name": "turned", "leave_out": str(listed)}), 3)
    assert turned.labels.tolist() == before.labels.tolist()
    assert turned.logits.mean() < before.logits.mean() - 0.5
    listed.write_text("train/nobody.jpg\n")
    with pytest.raises(
        UsageError, match="1 unknown keys such as 'train/nobody.jpg'; expected keys of .* such as 'train/"
    ):
        train.train_model(config.model_copy(update={"leave_out": str(listed), "name": "x"}))


def test_folds_are_trained_one_by_one_and_a_second_call_does_nothing_twice(
    drawn: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tmp_path / "out.csv"
    listed.write_text("\n".join(drawn.split("train")["key"].to_pylist()[:12]))
    config = TrainConfig(
        data=drawn.root, arch="workshop_cnn", image_size=32, epochs=1, batch_size=16, name="cv", runs=str(tmp_path),
        workers=1, members=[{"seed": 1}, {"arch": "gray_cnn"}], leave_out=str(listed),
    )  # fmt: skip
    events: list[Event] = []
    found = cross_validation.cross_validate(config, 2, only=2, on_event=events.append)
    assert set(found.folds) == {2}
    assert len(found.keys) == 48
    # It keeps its best epoch, so that was chosen on images of neither fold.
    monkeypatch.setenv(catalog.ALLOW_OUTSIDE, "1")  # the files are the whole set's
    fold = catalog.read_catalog(str(tmp_path / "cv" / "data" / "fold-2"))
    assert set(fold.split("test")["key"].to_pylist()) == set(found.keys)
    assert not set(fold.split("valid")["key"].to_pylist()) & set(found.keys)
    assert {type(event) for event in events} >= {FoldStarted, MemberStarted, EpochDone, PartDone}
    # Its bundle knows what it was trained on, in whatever set that comes again, and what was left out.
    made_by = bundle.read_provenance(*bundle.read_info(str(tmp_path / "cv" / "fold-2")))
    out = set(listed.read_text().split())
    expected = [key not in out for key in fold.split("train")["key"].to_pylist()]
    assert made_by.trained_on(fold.split("train")["digest"]).tolist() == expected
    assert 0 < sum(expected) < len(expected)
    assert made_by.chosen_on(fold.split("valid")["digest"]).all()
    assert not made_by.trained_on(fold.split("test")["digest"]).any()
    # Two members of different kinds in one bundle, which was judged by the mean of their logits.
    run = tmp_path / "cv" / "fold-2"
    said, first, second = (bundle_json(str(run / name)) for name in ("", "member-1", "member-2"))
    assert (said["architecture"], second["architecture"]) == ("workshop_cnn + gray_cnn", "gray_cnn")
    digests = [
        {name: digest for name, digest in each["checksums"].items() if name != bundle.IMAGES_NAME}
        for each in (said, first, second)
    ]
    assert {"model.keras", "model.onnx"} <= digests[1].keys()
    assert digests[0] == digests[1] | {name.replace("model", "model-2"): of for name, of in digests[2].items()}
    pixels = np.stack([images.read_image(uri, 32).pixels for uri in drawn.split("valid")["uri"].to_pylist()[:4]])
    by_engine = [ModelBundle.load(str(run), engine).logits(pixels) for engine in ("onnx", "tensorflow")]
    assert by_engine[0] == pytest.approx(by_engine[1], abs=1e-4)
    page = (run / "oof.report.html").read_text()
    assert "<h3>Member 1</h3>" in page
    assert "<h3>Member 2</h3>" in page
    each = [pq.read_table(run / f"member-{n}" / "valid.parquet") for n in (1, 2)]
    mean = (each[0]["logit"].to_numpy() + each[1]["logit"].to_numpy()) / 2
    expected = sklearn_metrics.log_loss(each[0]["label"].to_numpy(), metrics.calibrated(mean))
    assert said["validation"]["log_loss"] == pytest.approx(expected)
    twice: list[Event] = []
    again = cross_validation.cross_validate(config, 2, only=2, on_event=twice.append)
    assert (again.logits == found.logits).all()
    assert again.seconds == found.seconds
    assert twice == [FoldStarted(2, 2)]
    # All that is left of it is known as such: overwriting leaves nothing.
    fold_run = RunDirectory(str(run))
    assert fold_run.open(fold_run.read() or {}, overwrite=True) == []
    whole = RunDirectory(str(tmp_path / "cv"))
    shutil.copy(fold_run.config, whole.config)
    assert whole.open(whole.read() or {}, overwrite=True) == []
