"""Distillation on a cluster: one worker and two, what is written of the teacher, resuming, sizes that do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import bundle_json, save_like, weights

from catdog.data.catalog import Catalog
from catdog.inference import bundle, export
from catdog.inference.provenance import Provenance
from catdog.models import registry
from catdog.training import train
from catdog.training.request import TrainConfig

pytestmark = pytest.mark.usefixtures("two_cpus")

SIZE = 32
STUDENT: dict[str, Any] = {"arch": "workshop_cnn", "epochs": 1, "batch_size": 8, "image_size": SIZE, "augment": False}
# Fields of `bundle.json` that are of its files.
WRITTEN = {"schema_version", "members", "onnx", "images_known", "checksums", "versions"}
ELSEWHERE = np.array([1, 2, 3], np.uint64), np.array([4], np.uint64)


@pytest.fixture(scope="module")
def teacher(untrained: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained bundle, of which it is said that it was made from other images."""
    uri = tmp_path_factory.mktemp("teacher") / "model"
    return save_like(untrained, str(uri), Provenance(*ELSEWHERE, known=True), temperature=0.5)


@pytest.fixture(scope="module")
def distilled(teacher: str, drawn: Catalog, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The runs of one worker and of two."""
    runs = tmp_path_factory.mktemp("runs")
    asked = TrainConfig(data=drawn.root, **STUDENT, cpus_per_worker=1, teacher=teacher, runs=str(runs))
    return {
        workers: train.train_model(asked.model_copy(update={"workers": workers, "name": f"w{workers}"})).run
        for workers in (1, 2)
    }


def test_one_worker_and_two_learn_the_same(distilled: dict[int, str]) -> None:
    start = registry.build_model(registry.ModelSpec("workshop_cnn", SIZE))
    for one, two, initial in zip(weights(distilled[1]), weights(distilled[2]), start.weights, strict=True):
        assert one == pytest.approx(two, abs=2e-5)
        assert not np.allclose(one, np.asarray(initial), atol=1e-4)
    one, two = (bundle_json(run)["training"]["history"][0] for run in distilled.values())
    assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
    assert len(set(two["variables_sha256"])) == 1


def test_what_it_was_distilled_from_is_written_down(distilled: dict[int, str], teacher: str, drawn: Catalog) -> None:
    uri, info = bundle.read_info(distilled[2])
    made_by = bundle.read_provenance(uri, info)
    assert set(made_by.train) == {*drawn.split("train")["digest"].to_pylist(), *ELSEWHERE[0]}
    assert set(made_by.valid) == {*drawn.split("valid")["digest"].to_pylist(), *ELSEWHERE[1]}
    assert made_by.known
    fingerprint = bundle.fingerprint_of(bundle.read_info(teacher).info)
    assert info.training["teacher"] == {"fingerprint": fingerprint, "architecture": "small_resnet", "members": 1}
    assert f"--set teacher={teacher}" in info.training["command"]
    text = (Path(uri) / "README.md").read_text()
    assert f"distilled from a bundle (small_resnet; models: 1; fingerprint {fingerprint[:12]})" in text
    assert f"{len(made_by.train)} different images" in text
    assert json.loads((Path(distilled[2]) / "config.json").read_text())["teacher_fingerprint"] == fingerprint


def test_a_run_goes_on_with_the_teacher_that_it_had_only(
    distilled: dict[int, str], teacher: str, untrained: str, tmp_path: Path, catdog
) -> None:
    run = Path(distilled[1])
    words = ["train", "--resume", "--name", run.name, "--runs", run.parent]
    away = shutil.move(teacher, tmp_path / "away")
    save_like(untrained, teacher)
    changed = catdog(*words)
    assert (changed.code, changed.err.count("\n")) == (2, 1)
    assert f"--resume: the teacher {teacher} has changed since 'w1' was started" in changed.err
    shutil.rmtree(teacher)
    shutil.move(away, teacher)
    other = catdog(*words, "--set", "teacher_share=0.5")
    assert "--resume: run 'w1' was started with --teacher-share 1.0, received 0.5" in other.err
    assert catdog(*words).code == 0


def test_a_size_that_the_teacher_does_not_take_is_found_before_training(
    teacher: str, drawn: Catalog, tmp_path: Path, catdog
) -> None:
    flat, model = str(tmp_path / "flat"), registry.build_model(registry.ModelSpec("workshop_cnn", SIZE))
    kept = bundle.read_info(teacher).info.model_dump(exclude=WRITTEN)
    export.save_bundle(flat, [model], **kept | {"architecture": "workshop_cnn"})
    small = ("--arch", "small_resnet", "--image-size", 48, "--runs", tmp_path / "runs", "--set", f"teacher={flat}")
    said = catdog("train", "--data", drawn.root, *small, "--dry-run")
    assert (said.code, said.err.count("\n")) == (2, 1), said.err
    assert f"teacher received {flat}, which takes images of 32 pixels, and not of the 48" in said.err
