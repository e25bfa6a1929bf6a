"""The end of a training run: validation figures, calibration, and the model bundle on disk."""

from __future__ import annotations

import json
import shlex
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pydantic
import ray.train

from catdog import rng, tables
from catdog.evaluation import calibration, selection
from catdog.inference import export, novelty
from catdog.inference.novelty import KnownImages
from catdog.run_directory import RunDirectory
from catdog.training.checkpoint import Progress
from catdog.training.config import ResolvedConfig, default_options
from catdog.training.job import TrainResult, WorkerJob
from catdog.training.recipes import get_recipe
from catdog.training.replica import Replica
from catdog.training.request import PLACE_FIELDS
from catdog.training.stores import ImageStore
from catdog.training.validation import Validator

# Options of the command line; all others are given to --set.
_FLAGS = {"data", "recipe", "arch", "alpha", "weights", "image_size", "epochs", "batch_size", "learning_rate"}
_FLAGS |= {"patience", "seed", "leave_out", "name", "freeze", "augment"}
# Images that the bundle's ONNX file must agree with Keras on.
_SAMPLE = 32


def write_trained_bundle(
    job: WorkerJob,
    replica: Replica,
    train_pixels: ImageStore,
    validator: Validator,
    progress: Progress,
    logits: np.ndarray,
    variables_sha256: list[str],
) -> TrainResult:
    """Writes a run's validation logits and its bundle.

    Args:
        job: what was trained.
        replica: with the weights to keep.
        train_pixels: of the training images.
        validator: which has the validation images.
        progress: after the last epoch.
        logits: float64, N: the validation images', of these weights in the config's views.
        variables_sha256: digest of these weights, by worker.
    """
    config, labels, keys, run = job.config, validator.labels, job.valid.keys, RunDirectory(job.config.run.uri)
    figures, temperature, clip = calibration.judge_and_calibrate(labels, logits, keys, config.validation.calibrate)
    # So that the models of several runs can be averaged and calibrated together.
    unreadable = dict(validator.pixels.rejected)
    details = [unreadable.get(row, "") for row in range(len(keys))]
    table = pa.table({"key": keys, "label": labels, "logit": logits, "detail": pa.array(details, pa.string())})
    tables.write_table(run.valid, table)
    validation = {"epoch": progress.best_epoch, **figures, **_cross_chosen(job, labels, progress)}
    chosen_on = "validation" if _was_chosen(job, progress) else "none"
    pixels = validator.pixels
    export.save_bundle(
        run.model,
        [replica.validation_model],
        pixels.take(pixels.readable[:_SAMPLE]),
        job.provenance,
        _known_images(job, train_pixels, pixels),
        # The other workers of this node have nothing to do any more.
        ray.train.get_context().get_local_world_size() * job.plan.cpus_per_worker,
        architecture=config.model.arch,
        image_size=config.model.image_size,
        class_names=job.class_names,
        views=config.validation.views,
        calibration="validation" if config.validation.calibrate else "none",
        temperature=temperature,
        clip=clip,
        prior=job.prior,
        validation=validation,
        chosen_on=chosen_on,
        catalog_fingerprint=job.catalog_fingerprint,
        seed=config.run.seed,
        training={
            **training_record(config),
            **({"teacher": job.teacher.record} if job.teacher else {}),
            "precision": progress.precision,
            "history": progress.history,
            # Of a resumed run: what its epochs took, if that is more than the last session.
            "seconds": max(time.time() - job.started, sum(entry["seconds"] for entry in progress.history)),
            "variables_sha256": variables_sha256,
        },
    )
    return TrainResult(config.run.uri, run.model, validation, chosen_on, progress.epoch, progress.history)


def training_record(config: ResolvedConfig) -> dict[str, Any]:
    """What a bundle says of how it was trained: all options, and a command that decides them alike.

    Args:
        config: of the run.
    """
    options = config.options()
    recipe = get_recipe(config.run.recipe)
    own = pydantic.TypeAdapter(dict[str, Any]).dump_python(recipe.options, mode="json")
    usual = default_options() | {"shuffle": "full"} | own
    words = ["catdog", "train", "--data", config.data.uri, "--recipe", recipe.name]
    for name, value in options.items():
        is_usual = value is None or value == usual.get(name) or (name == "augmentation" and not config.data.augment)
        if name in PLACE_FIELDS or name == "recipe" or is_usual:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool) and name in _FLAGS:
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif name in _FLAGS:
            words += [f"--{flag}", str(value)]
        else:
            fields = (
                {f"{name}.{inner}": of for inner, of in value.items()} if isinstance(value, dict) else {name: value}
            )
            for field, of in fields.items():
                words += ["--set", f"{field}={of if isinstance(of, str) else json.dumps(of)}"]
    return {"options": options, "command": shlex.join(words)}


def _known_images(job: WorkerJob, train: ImageStore, valid: ImageStore) -> KnownImages:
    """A sample of both splits' images, drawn by their keys, so that it is the same for any number of workers."""

    def sample(pixels: ImageStore, keys: rng.Keys, count: int) -> np.ndarray:
        rows = pixels.readable
        return np.sort(rows[np.argsort(rng.key_hash(keys)[rows], kind="stable")[:count]])

    chosen = sample(train, job.train.keys, novelty.TRAIN_IMAGES)
    judged = sample(valid, job.valid.keys, novelty.VALID_IMAGES)
    return KnownImages(list(train.images(chosen)), job.train.labels[chosen], list(valid.images(judged)))


def _was_chosen(job: WorkerJob, progress: Progress) -> bool:
    """Tells whether the validation images chose the epoch that is kept."""
    return job.config.validation.keep == "best" and progress.epoch > 1


def _cross_chosen(job: WorkerJob, labels: np.ndarray, progress: Progress) -> dict[str, Any]:
    """The log loss of each half of the images in the epoch that the other half chooses, where it can be told."""
    # Each epoch was judged on the plain image: of several views there is no such figure.
    all_there = len(progress.valid_logits) == progress.epoch and job.config.validation.views == ["identity"]
    if not (_was_chosen(job, progress) and all_there and len(labels) > 1):
        return {}
    logits = np.stack(progress.valid_logits)
    judged = selection.judge_selection(labels, logits, job.valid.keys, job.config.validation.calibrate)
    return {"log_loss_cross_chosen": judged.log_loss}
