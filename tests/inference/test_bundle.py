"""What a bundle promises, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import save_untrained

from catdog.data.catalog import Catalog
from catdog.errors import CatdogError, UsageError
from catdog.inference import bundle, export
from catdog.inference.bundle import ModelBundle
from catdog.inference.provenance import Provenance
from catdog.training.request import TrainConfig


@pytest.fixture
def copy(untrained: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(untrained, tmp_path / "run" / "model"))


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    content = json.loads((folder / "bundle.json").read_text())
    change(content)
    (folder / "bundle.json").write_text(json.dumps(content))


def test_a_run_and_its_bundle_are_the_same_model(copy: Path) -> None:
    batch = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    run, folder = ModelBundle.load(str(copy.parent)), ModelBundle.load(str(copy))
    assert run.uri == folder.uri == str(copy)
    plain = keras.saving.load_model(copy / "model.keras").predict(batch, verbose=0)[:, 0]
    assert run.logits(batch) == pytest.approx(plain, abs=1e-5)
    assert ModelBundle.load(str(copy), "tensorflow").logits(batch) == pytest.approx(plain, abs=1e-6)
    assert folder.logits(batch).dtype == np.float32


def test_members_and_views_are_averaged_in_logit_space(tmp_path: Path, drawn: Catalog) -> None:
    uri = str(tmp_path / "two")
    save_untrained(uri, drawn, members=2, views=["identity", "mirror"], temperature=2.0, clip=0.2)
    batch = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    models = [keras.saving.load_model(Path(uri) / name) for name in ("model.keras", "model-2.keras")]
    each = [model.predict(view, verbose=0)[:, 0] for model in models for view in (batch, batch[:, :, ::-1])]
    loaded = ModelBundle.load(uri)
    logits = loaded.logits(batch)
    assert logits == pytest.approx(np.mean(each, axis=0), abs=1e-5)
    expected = np.clip(1 / (1 + np.exp(-logits / 2.0)), 0.2, 0.8)
    assert loaded.probabilities(logits) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(schema_version=99), "schema version 99, expected 3"),
        (lambda c: c.pop("temperature"), "temperature: Field required"),
        (lambda c: c.update(clip=0.7), "clip: Input should be less than 0.5"),
        (lambda c: c.update(surprise=1), "surprise: Extra inputs"),
        (lambda c: c.update(members=["../../evil.keras"]), "without a checksum or outside its folder"),
        (lambda c: c["checksums"].update({"model.onnx": "0" * 64}), "its checksum differs"),
        (lambda c: c["checksums"].pop("model.onnx"), "without a checksum or outside its folder"),
    ],
)
def test_what_is_refused_in_one_line(copy: Path, change: Callable[[dict], object], message: str) -> None:
    edit(copy, change)
    with pytest.raises(CatdogError, match=message) as error:
        ModelBundle.load(str(copy))
    assert "\n" not in str(error.value)


def test_a_bundle_knows_its_images_and_those_of_its_members(tmp_path: Path, drawn: Catalog) -> None:
    train, valid = drawn.split("train"), drawn.split("valid")
    places = [str(tmp_path / name) for name in ("one", "other", "both", "partly")]
    infos = [
        save_untrained(place, drawn, provenance=Provenance.of(train[rows], valid))
        for place, rows in zip(places, (slice(0, 40), slice(30, 60)), strict=False)
    ]
    fields = infos[0].model_dump(exclude={"members", "onnx", "images_known", "checksums", "versions", "schema_version"})
    both = export.assemble_bundle(places[2], places[:2], **fields)
    made = bundle.read_provenance(places[2], both)
    assert made.trained_on(train["digest"]).tolist() == [number < 60 for number in range(len(train))]
    assert made.chosen_on(valid["digest"]).all()
    assert made.known
    assert bundle.merge_infos(infos).images_known

    # A bundle of version 2 names none, and so one that it is a member of does not know all.
    edit(
        Path(places[1]),
        lambda c: (
            c.update(schema_version=2, training={"options": {"keep": "best"}}),
            c.pop("chosen_on"),
            c.pop("images_known"),
            c["checksums"].pop("images.parquet"),
        ),
    )
    _, old = bundle.read_info(places[1])
    assert not bundle.read_provenance(places[1], old).known
    assert (infos[1].chosen_on, old.chosen_on) == ("none", "validation")
    assert not export.assemble_bundle(places[3], places[:2], **fields).images_known

    (Path(places[0]) / "images.parquet").write_bytes(b"PAR1")
    with pytest.raises(CatdogError, match=r"images.parquet is not the file that bundle.json was written for"):
        bundle.read_provenance(places[0], infos[0])


def test_a_damaged_file_and_an_absent_one(copy: Path, tmp_path: Path) -> None:
    (copy / "bundle.json").write_text("{")
    with pytest.raises(CatdogError, match="is not a valid bundle"):
        bundle.read_info(str(copy))
    with pytest.raises(UsageError, match=r"holds no bundle.json, nor does its model/ folder; train one first"):
        bundle.read_info(str(tmp_path))
    content = {"options": TrainConfig(data="d").model_dump(mode="json"), "catalog_fingerprint": ""}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="--resume"):
        bundle.read_info(str(tmp_path))
