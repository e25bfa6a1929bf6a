"""Distillation without a cluster: steps against plain Keras, checkpoints, and teachers that are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import ray.train
from helpers import save_like, saved_info

from catdog import rng
from catdog.data.catalog import Catalog
from catdog.errors import UsageError
from catdog.experiments import cross_validation
from catdog.inference import bundle, export
from catdog.inference.provenance import Provenance
from catdog.lease import Lease
from catdog.models import registry, surgery
from catdog.resources import TrainPlan
from catdog.training import checkpoint
from catdog.training.checkpoint import Progress
from catdog.training.config import ResolvedConfig, resolve
from catdog.training.distillation import Teacher
from catdog.training.distributed import WorkerGroup
from catdog.training.ingest import Batches
from catdog.training.job import SplitData, WorkerJob
from catdog.training.replica import Replica, build_replica
from catdog.training.request import TrainConfig
from catdog.training.step import training_step
from catdog.training.stores import DecodedStore, LoadedImages

COUNT, SIZE, TEACHER_SIZE = 12, 48, 64
# Fields of `bundle.json` that are of its files.
WRITTEN = {"schema_version", "members", "onnx", "images_known", "checksums", "versions"}
# A network without batch-norm and dropout, and an optimizer whose first step is along the gradient.
STUDENT: dict[str, Any] = {"arch": "workshop_cnn", "epochs": 2, "batch_size": 8, "image_size": SIZE, "augment": False}
PLAIN: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 1.0, "schedule": "constant", "warm_up": 0}


def squares(size: int) -> np.ndarray:
    """Images, each of 16 coloured squares: uint8 N×S×S×3."""
    colours = np.random.default_rng(0).integers(0, 256, (COUNT, 4, 4, 3), dtype=np.uint8)
    return colours.repeat(size // 4, axis=1).repeat(size // 4, axis=2)


@pytest.fixture(scope="module")
def mixed(drawn: Catalog, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle of two networks that take their pixels in other ranges; one has batch-norm that can be folded."""
    folder = tmp_path_factory.mktemp("mixed")
    described = saved_info(drawn, image_size=TEACHER_SIZE, views=["identity", "mirror"], temperature=1.7, clip=0.4)
    fields = described.model_dump(exclude=WRITTEN)
    kinds: list[dict[str, Any]] = [{"arch": "small_resnet"}, {"arch": "mobilenet", "alpha": 0.25}]
    for kind in kinds:
        keras.utils.set_random_seed(5)
        model = registry.build_model(registry.ModelSpec(image_size=TEACHER_SIZE, **kind))
        for layer in surgery.all_layers(model):
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.0
        model(squares(TEACHER_SIZE), training=True)  # batch-norm's statistics: new ones let no image through
        (kernel, bias), logits = model.layers[-1].weights, model.predict(squares(TEACHER_SIZE), verbose=0)
        kernel.assign(np.asarray(kernel) * 4 / np.std(logits))
        bias.assign([-4 * np.mean(logits) / np.std(logits)])
        own = {"architecture": kind["arch"], "training": {"options": kind}}
        export.save_bundle(str(folder / kind["arch"]), [model], **fields | own)
    both = {"architecture": "small_resnet + mobilenet", "training": {"members": [{"options": kind} for kind in kinds]}}
    export.assemble_bundle(str(folder / "both"), [str(folder / kind["arch"]) for kind in kinds], **fields | both)
    return str(folder / "both")


@pytest.fixture
def loaded(mixed: str, monkeypatch: pytest.MonkeyPatch) -> Teacher:
    """The same as a worker is given it, but for Ray."""
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    saved = bundle.read_info(mixed)
    return Teacher(saved, Provenance(), [bundle.read_file(*saved, member) for member in saved.info.members])


def config(**options: Any) -> ResolvedConfig:
    return resolve(TrainConfig(**{"data": "d"} | STUDENT | options))


def build(given: ResolvedConfig, teacher: Teacher | None) -> tuple[Replica, Batches]:
    """A replica that begins with the same weights each time, and batches."""
    keys, labels, rows = [str(number) for number in range(COUNT)], np.arange(COUNT) % 2, np.arange(COUNT)
    split = SplitData(LoadedImages([], ray.ObjectRef.nil(), SIZE, "decoded"), keys, labels, rows)
    keras.utils.set_random_seed(3)
    nothing = Provenance(), Lease("", "testing"), None
    plan, names = TrainPlan(1, 1, False), ("cat", "dog")
    job = WorkerJob(given, plan, split, split, None, None, 0.5, names, "", *nothing, 0.0, teacher)
    store = DecodedStore([squares(SIZE)], np.stack([0 * rows, rows], axis=1), [])
    batches = Batches(given, store, labels, rng.key_hash(keys), rows, 0, 1)
    return build_replica(job, WorkerGroup(), batches.steps * given.optimizer.epochs), batches


def taught_by_keras(uri: str, pixels: np.ndarray) -> np.ndarray:
    """The probabilities of a bundle by plain Keras, of one view, without the clip."""
    info = json.loads((Path(uri) / "bundle.json").read_text())
    logits = []
    for name in info["members"]:
        saved = keras.saving.load_model(Path(uri) / name, compile=False)
        spec = registry.ModelSpec(saved.name, pixels.shape[1], alpha=0.25 if saved.name == "mobilenet" else 1.0)
        model = registry.build_model(spec)
        model.set_weights(saved.get_weights())
        logits.append(model.predict(pixels, verbose=0)[:, 0])
    return 1 / (1 + np.exp(-np.mean(logits, axis=0) / info["temperature"]))


@pytest.mark.parametrize(
    "options", [{}, {"mixup": 0.4, "label_smoothing": 0.1, "teacher_share": 0.7}], ids=["alone", "with labels"]
)
def test_a_step_is_that_of_plain_keras(options: dict[str, Any], mixed: str, loaded: Teacher) -> None:
    """Its images are smaller than the teacher's own."""
    given = config(teacher=mixed, **PLAIN, **options)
    replica, batches = build(given, loaded)
    batch = next(batches.epoch(0))
    pixels, labels, shares = batch[0], batch[1], batch[3]
    if given.data.mixup:
        count = len(shares) // 2
        wide, shares = shares[:count, None, None, None], shares[:count]
        pixels = np.rint(wide * pixels[:count] + (1 - wide) * pixels[count:]).astype(np.uint8)
        labels = shares * labels[:count] + (1 - shares) * labels[count:]
    taught, share = taught_by_keras(mixed, pixels), given.optimizer.teacher_share
    assert np.std(taught) > 0.05
    assert abs(taught - 0.5).max() > 0.11  # so that the clip would be seen
    smoothing = given.optimizer.label_smoothing
    targets = share * taught + (1 - share) * ((1 - smoothing) * labels + smoothing / 2)
    plain = registry.build_model(registry.ModelSpec("workshop_cnn", SIZE))
    before = replica.model.get_weights()
    plain.set_weights(before)
    plain.compile(
        keras.optimizers.SGD(1.0, momentum=0.9, nesterov=True), keras.losses.BinaryCrossentropy(from_logits=True)
    )
    expected = plain.train_on_batch(pixels, targets[:, None])
    step = training_step(given, replica, WorkerGroup(), batches.size, "float32")
    assert float(step(batch)) == pytest.approx(expected, rel=1e-5)
    for ours, theirs, was in zip(replica.model.get_weights(), plain.get_weights(), before, strict=True):
        assert ours - was == pytest.approx(theirs - was, abs=1e-3 * float(np.abs(theirs - was).max()))


def test_a_run_starts_with_the_weights_that_it_has_without_a_teacher_and_resumes_to_the_same_bits(
    loaded: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config(mixup=0.4)

    def train_epoch(replica: Replica, batches: Batches, epoch: int) -> list[bytes]:
        step = training_step(given, replica, WorkerGroup(), batches.size, "float32")
        for batch in batches.epoch(epoch):
            step(batch)
        return bits(replica)

    whole, batches = build(given, loaded)
    assert bits(whole) == bits(build(given, None)[0])
    train_epoch(whole, batches, 0)
    folder = tmp_path / "checkpoint"
    monkeypatch.setattr(ray.train, "report", lambda _, checkpoint: shutil.copytree(checkpoint.path, folder))
    best = checkpoint.variable_values(whole.model)
    checkpoint.report_checkpoint(Progress(1), whole.model, whole.optimizer, best, 0)
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: ray.train.Checkpoint.from_directory(folder))
    other, _ = build(given, loaded)
    checkpoint.restore_checkpoint(other.model, other.optimizer)
    assert train_epoch(other, batches, 1) == train_epoch(whole, batches, 1)


def bits(replica: Replica) -> list[bytes]:
    return [value.tobytes() for value in checkpoint.variable_values(replica.model)]


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_a_teacher_that_cannot_teach_is_one_line_before_anything_begins(
    dry: list[str], untrained: str, drawn: Catalog, tmp_path: Path, catdog
) -> None:
    runs = tmp_path / "runs"

    def refused(*words: object, teacher: object = None) -> str:
        options = ["--arch", "workshop_cnn", "--image-size", 32, "--runs", runs, *words, *dry]
        options += [] if teacher is None else ["--set", f"teacher={teacher}"]
        said = catdog("train", "--data", drawn.root, *options)
        assert (said.code, said.err.count("\n")) == (2, 1), said.err
        assert not list(runs.glob("*"))
        return said.err

    assert f"teacher received {tmp_path}/none, which holds no bundle.json" in refused(teacher=tmp_path / "none")
    birds = save_like(untrained, f"{tmp_path}/birds", class_names=["gull", "tern"])
    assert f"teacher received {birds}, which tells ('gull', 'tern') apart" in refused(teacher=birds)
    figures = ("log_loss_float32", "log_loss_change", "log_loss_change_low", "log_loss_change_high")
    int8 = {"weight_bits": 7, "calibration_images": 1, "in_float": [[]], "n": 1, "float32_fingerprint": ""}
    int8 = save_like(untrained, f"{tmp_path}/int8", quantisation=int8 | dict.fromkeys(figures, 0.0))
    assert f"teacher received {int8}, which is int8; give the float32 bundle" in refused(teacher=int8)
    judging = drawn.split("valid")["digest"].to_numpy()
    judged = save_like(untrained, f"{tmp_path}/judged", Provenance(judging[:3], known=True))
    said = refused(teacher=judged)
    assert f"{judged}, which was trained on 3 of the {len(judging)} images that judge this run, such as" in said
    assert "teacher_share received 0.5 without a teacher" in refused("--set", "teacher_share=0.5")
    assert "in the folder of the run itself" in refused("--name", "x", teacher=runs / "x" / "model")
    probe = ("--arch", "mobilenet", "--weights", "none", "--recipe", "linear-probe")
    assert "with 0 epochs only a head is fitted, and that to the labels" in refused(*probe, teacher=untrained)
    # Which teacher knows a fold depends on the images that it was trained on.
    cross = ("--folds", 2, "--name", "cv")
    assert "it is not known which images it was trained on" in refused(*cross, teacher=untrained)
    seen = Provenance(drawn.split("train")["digest"].to_numpy()[:1], known=True)
    knows_one = save_like(untrained, f"{tmp_path}/one", seen)
    assert "which was trained on 1 of the 96 images that judge this run" in refused(*cross, teacher=knows_one)


def test_folds_that_a_teacher_does_not_know_are_trained(untrained: str, drawn: Catalog, tmp_path: Path) -> None:
    seen = Provenance(drawn.split("train")["digest"].to_numpy()[:1], known=True)
    given = config(data=drawn.root, teacher=save_like(untrained, f"{tmp_path}/one", seen))

    def is_refused(fold: int) -> bool:
        try:
            return not cross_validation.deal_folds(given, 2, fold)
        except UsageError:
            return True

    assert sorted([is_refused(1), is_refused(2)]) == [False, True]
