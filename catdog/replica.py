"""One replica of the model in one Ray Train worker: the loop over epochs and steps, kept in step with the others.

Keras 3's `fit` does not work under MultiWorkerMirroredStrategy, so the loop is written out. Which images make up a
global batch, and how each is augmented, follows from seed, epoch and key; each worker takes every `world`-th image of
it. So one worker or four compute the same steps.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train

from catdog import bundle, images, ingest, metrics, models, storage
from catdog.errors import CatdogError

_EVENT_SECONDS = 0.5
# Beyond this share of unreadable images it is not the images that are broken.
_MAX_REJECTED = 0.2
_ORDER_STREAM, _AUGMENT_STREAM = 0, 1


class CommonError(CatdogError):
    """What every worker finds at the same step: all of them return, and Ray need not start them again."""


@dataclass
class Progress:
    """Where a run stands after an epoch; with the variables it is all that resuming needs."""

    epoch: int = 0
    best_epoch: int = 0
    best_log_loss: float = float("inf")
    history: list[dict[str, Any]] = field(default_factory=list)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train runs in each worker.

    Args:
        job: `config` (the resolved options), `refs` and `labels` and `hashes` by split, `weights` (a reference or
            None), `prior`, `class_names`, `catalog_fingerprint`, `run` (URI) and `events` (a queue).

    Returns:
        On rank 0 the bundle's URI and figures, or `{"error": line}`: an error that would only come again is no reason
        for Ray to start the workers again. Whatever goes wrong in one worker alone is raised, and Ray starts all anew;
        if that worker returned, the others would wait for it for ever.
    """
    try:
        return Replica(job).train()
    except CommonError as error:
        return {"error": str(error)}


class Replica:
    """The model, its optimizer and its data in one worker."""

    def __init__(self, job: dict[str, Any]) -> None:
        import keras
        import tensorflow as tf

        from catdog import cluster

        self.job, self.config = job, job["config"]
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        cluster.limit_threads(self.config["cpus_per_worker"])
        keras.utils.set_random_seed(self.config["seed"])
        self.strategy = tf.distribute.MultiWorkerMirroredStrategy()

        size = self.config["image_size"]
        self.train_pixels = ingest.Pixels.fetch(job["refs"]["train"], len(job["labels"]["train"]), size)
        self.valid_pixels = ingest.Pixels.fetch(job["refs"]["valid"], len(job["labels"]["valid"]), size)
        for split, pixels in (("training", self.train_pixels), ("validation", self.valid_pixels)):
            if len(pixels.rejected) > _MAX_REJECTED * len(pixels.where):
                raise CommonError(
                    f"{len(pixels.rejected)} of {len(pixels.where)} {split} images could not be used, more than "
                    f"{_MAX_REJECTED:.0%} (the first {pixels.rejected[0][1]}); is the data set on every node?"
                )
        self.batch_size = min(self.config["batch_size"], len(self.train_pixels.readable))
        if self.batch_size < self.world:
            raise CommonError(f"{self.batch_size} training images for {self.world} workers, expected one each at least")
        self.steps = len(self.train_pixels.readable) // self.batch_size

        weights = ray.get(job["weights"]) if job["weights"] is not None else None
        spec = models.Spec(
            self.config["arch"],
            size,
            self.config["alpha"],
            self.config["freeze"],
            pretrained=weights is not None,
        )
        self._gather = tf.function(self._gather_in_replicas)
        with self.strategy.scope():
            self.model = self._build(spec, weights)
            self.optimizer = keras.optimizers.AdamW(self._schedule(), weight_decay=1e-4)
            self.optimizer.build(self.model.trainable_variables)
        self._step = tf.function(self._step_in_replicas)
        self._predict = tf.function(lambda batch: self.model(batch, training=False))

    def _build(self, spec: models.Spec, weights: bytes | None) -> Any:
        """Builds the model in every worker, or finds in every worker that it cannot be built."""
        try:
            model, error = models.build(spec, weights), None
        except CatdogError as caught:
            model, error = None, caught
        if self._all_gather(np.array([error is not None], np.int64)).all():
            raise CommonError(str(error))
        if error is not None:
            raise error
        return model

    def train(self) -> dict[str, Any]:
        """Trains to the last epoch or until patience runs out, then writes the bundle with the best weights."""
        progress, best = self._restore()
        node = np.frombuffer(bytes.fromhex(ray.get_runtime_context().get_node_id())[:8], np.int64)
        nodes = len(np.unique(self._all_gather(node)))
        if self.rank == 0:
            self._emit("start", workers=self.world, nodes=nodes, epoch=progress.epoch, rejected=self._rejected())
        board = self._open_board(progress) if self.rank == 0 else None
        while progress.epoch < self.config["epochs"] and not self._out_of_patience(progress):
            started = time.perf_counter()
            loss = self._epoch(progress.epoch)
            self._average_moving_statistics()
            digests = self._require_equal_replicas()
            figures = self._validate()
            if not np.isfinite(figures["valid_log_loss"]):
                raise CommonError(
                    f"the validation log loss of epoch {progress.epoch + 1} is {figures['valid_log_loss']}"
                )
            progress.epoch += 1
            entry = {
                "epoch": progress.epoch,
                "loss": loss,
                **figures,
                "learning_rate": float(np.asarray(self.optimizer.learning_rate)),
                "seconds": time.perf_counter() - started,
                "variables_sha256": digests,
            }
            progress.history.append(entry)
            if figures["valid_log_loss"] < progress.best_log_loss:
                progress.best_log_loss, progress.best_epoch = figures["valid_log_loss"], progress.epoch
                best = self._model_values()
            self._report(progress, best)
            if board is not None:
                with contextlib.suppress(CatdogError):  # a curve is not worth a run
                    board.add(entry)
                self._emit("epoch", best=progress.best_epoch == progress.epoch, **entry)
        for variable, value in zip(self.model.variables, best, strict=True):
            variable.assign(value)
        digests = self._require_equal_replicas()
        return self._save(progress, digests) if self.rank == 0 else {}

    def _out_of_patience(self, progress: Progress) -> bool:
        return progress.epoch - progress.best_epoch >= self.config["patience"]

    # --- one epoch ---------------------------------------------------------------------------------------------

    def _schedule(self) -> Any:
        """Linear warm-up over the first twentieth of all steps, then cosine down to 0."""
        import keras

        total = self.steps * self.config["epochs"]
        warm_up = max(1, total // 20)
        return keras.optimizers.schedules.CosineDecay(
            0.0, max(1, total - warm_up), warmup_target=self.config["learning_rate"], warmup_steps=warm_up
        )

    def _batches(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """This worker's share of each global batch: images, labels and transforms, gathered one step ahead."""
        seed, size = self.config["seed"], self.config["image_size"]
        rows = self.train_pixels.readable
        hashes, labels = self.job["hashes"]["train"], self.job["labels"]["train"].astype(np.float32)
        order = rows[np.argsort(images.uniform(2 * seed + _ORDER_STREAM, epoch, hashes[rows], 1)[:, 0], kind="stable")]
        random = images.uniform(2 * seed + _AUGMENT_STREAM, epoch, hashes, 5)
        transforms = images.augmentation(random, size)

        def share(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            mine = order[step * self.batch_size : (step + 1) * self.batch_size][self.rank :: self.world]
            return self.train_pixels.take(mine), labels[mine], transforms[mine]

        with ThreadPoolExecutor(1) as ahead:
            following = ahead.submit(share, 0)
            for step in range(self.steps):
                current = following.result()
                if step + 1 < self.steps:
                    following = ahead.submit(share, step + 1)
                yield current

    def _epoch(self, epoch: int) -> float:
        import tensorflow as tf

        losses, said = [], time.perf_counter()
        for step, batch in enumerate(self._batches(epoch)):
            losses.append(float(self._step(*map(tf.constant, batch))))
            if self.rank == 0 and time.perf_counter() - said > _EVENT_SECONDS:
                said = time.perf_counter()
                self._emit("step", epoch=epoch + 1, step=step + 1, steps=self.steps, loss=float(np.mean(losses)))
        loss = float(np.mean(losses))
        if not np.isfinite(loss):
            raise CommonError(
                f"training diverged: the loss of epoch {epoch + 1} is {loss}; use a --learning-rate below "
                f"{self.config['learning_rate']}"
            )
        return loss

    def _step_in_replicas(self, batch: Any, labels: Any, transforms: Any) -> Any:
        import tensorflow as tf

        def step(batch: Any, labels: Any, transforms: Any) -> Any:
            if self.config["augment"]:
                batch = images.augment(batch, transforms)
            with tf.GradientTape() as tape:
                logits = self.model(batch, training=True)[:, 0]
                each = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
                # Gradients are summed over the workers, so each divides by the whole batch.
                loss = tf.reduce_sum(each) / self.batch_size
            gradients = tape.gradient(loss, [variable.value for variable in self.model.trainable_variables])
            self.optimizer.apply(gradients, self.model.trainable_variables)
            return loss

        return self.strategy.reduce("SUM", self.strategy.run(step, args=(batch, labels, transforms)), axis=None)

    def _validate(self) -> dict[str, float]:
        """Predicts every validation image once, over all workers; an unreadable one counts with the prior."""
        pixels, labels = self.valid_pixels, self.job["labels"]["valid"]
        mine = pixels.readable[self.rank :: self.world]
        share = -(-len(pixels.readable) // self.world)
        size = min(self.batch_size, share)
        logits = np.full(share, np.nan)
        for start in range(0, len(mine), size):
            rows = mine[start : start + size]
            # A batch of its own size would cost a trace of its own.
            padded = np.pad(rows, (0, size - len(rows)), mode="edge")
            logits[start : start + len(rows)] = self._predict(pixels.take(padded)).numpy()[: len(rows), 0]
        every = self._all_gather(logits)
        all_logits = np.full(len(labels), np.log(self.job["prior"] / (1 - self.job["prior"])))
        for rank in range(self.world):
            rows = pixels.readable[rank :: self.world]
            all_logits[rows] = every[rank, : len(rows)]
        return {
            "valid_log_loss": float(metrics.losses_from_logits(labels, all_logits).mean()),
            "valid_accuracy": float(((all_logits > 0) == (labels == 1)).mean()),
        }

    # --- keeping replicas equal ----------------------------------------------------------------------------------

    def _gather_in_replicas(self, value: Any) -> Any:
        import tensorflow as tf

        def gather(value: Any) -> Any:
            # Only what the replica itself made has a device to gather to.
            return tf.distribute.get_replica_context().all_gather(tf.identity(value), axis=0)

        return self.strategy.run(gather, args=(value,))

    def _all_gather(self, value: np.ndarray) -> np.ndarray:
        """Every worker's array of one shape, stacked by rank; the same on all workers."""
        import tensorflow as tf

        return self._gather(tf.constant(value[None])).numpy()

    def _average_moving_statistics(self) -> None:
        """Batch-norm's statistics are the one thing the strategy does not keep equal: each worker saw other images."""
        moving = [v for v in self.model.non_trainable_variables if str(v.dtype).startswith("float")]
        if not moving:
            return
        flat = np.concatenate([np.asarray(variable).ravel() for variable in moving])
        mean = self._all_gather(flat).mean(axis=0, dtype=np.float64).astype(np.float32)
        at = 0
        for variable in moving:
            count = int(np.prod(variable.shape))
            variable.assign(mean[at : at + count].reshape(variable.shape))
            at += count

    def _require_equal_replicas(self) -> list[str]:
        """Compares every variable of all workers, bit for bit.

        Returns:
            SHA-256 of the variables, by rank.

        Raises:
            CatdogError: they differ.
        """
        digest = hashlib.sha256(b"".join(value.tobytes() for value in self._model_values())).digest()
        every = self._all_gather(np.frombuffer(digest, np.int64))
        digests = [row.tobytes().hex() for row in every]
        if len(set(digests)) > 1:
            raise CommonError(f"the workers' models have drifted apart ({digests}); nothing more was saved")
        return digests

    # --- checkpoints, events, the bundle -------------------------------------------------------------------------

    def _model_values(self) -> list[np.ndarray]:
        return [np.asarray(variable).copy() for variable in self.model.variables]

    def _restore(self) -> tuple[Progress, list[np.ndarray]]:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return Progress(), self._model_values()
        with checkpoint.as_directory() as folder:
            progress = Progress(**json.loads((Path(folder) / "progress.json").read_text()))
            variables = [*self.model.variables, *self.optimizer.variables]
            with np.load(Path(folder) / "variables.npz", allow_pickle=False) as saved:
                for at, variable in enumerate(variables):
                    variable.assign(saved[f"v{at}"])
            with np.load(Path(folder) / "best.npz", allow_pickle=False) as saved:
                best = [saved[f"v{at}"] for at in range(len(self.model.variables))]
        return progress, best

    def _report(self, progress: Progress, best: list[np.ndarray]) -> None:
        figures = {name: value for name, value in progress.history[-1].items() if isinstance(value, int | float)}
        if self.rank != 0:
            ray.train.report(figures)
            return
        with tempfile.TemporaryDirectory() as folder:
            values = self._model_values() + [np.asarray(variable) for variable in self.optimizer.variables]
            _save_arrays(Path(folder) / "variables.npz", values)
            _save_arrays(Path(folder) / "best.npz", best)
            (Path(folder) / "progress.json").write_text(json.dumps(vars(progress)))
            ray.train.report(figures, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _save(self, progress: Progress, digests: list[str]) -> dict[str, Any]:
        kept = progress.history[progress.best_epoch - 1]
        validation = {
            "epoch": progress.best_epoch,
            "n": len(self.job["labels"]["valid"]),
            "log_loss": kept["valid_log_loss"],
            "accuracy": kept["valid_accuracy"],
        }
        uri = storage.join(self.job["run"], "model")
        bundle.save(
            uri,
            [self.model],
            architecture=self.config["arch"],
            image_size=self.config["image_size"],
            class_names=self.job["class_names"],
            views=["identity"],
            temperature=1.0,
            clip=bundle.DEFAULT_CLIP,
            prior=self.job["prior"],
            validation=validation,
            catalog_fingerprint=self.job["catalog_fingerprint"],
            seed=self.config["seed"],
            training={"options": self.config, "history": progress.history, "variables_sha256": digests},
        )
        return {"bundle": uri, "validation": validation, "epochs": progress.epoch, "workers": self.world}

    def _rejected(self) -> list[str]:
        keys = self.job["keys"]
        return [
            f"{keys[split][row]}: {reason}"
            for split, pixels in (("train", self.train_pixels), ("valid", self.valid_pixels))
            for row, reason in pixels.rejected
        ]

    def _emit(self, kind: str, **values: Any) -> None:
        self.job["events"].put({"kind": kind, **values})

    def _open_board(self, progress: Progress) -> Board:
        return Board(storage.join(self.job["run"], "tensorboard"), progress.epoch)


def _save_arrays(path: Path, values: list[np.ndarray]) -> None:
    named: dict[str, Any] = {f"v{at}": value for at, value in enumerate(values)}
    np.savez(path, **named)


class Board:
    """TensorBoard's scalars of one run; for a bucket they are written here and copied after each epoch."""

    def __init__(self, uri: str, epoch: int) -> None:
        # tensorboardX comes with ray[train]; TensorFlow's own writer would want all of TensorBoard installed.
        from tensorboardX import SummaryWriter

        self._uri = uri
        self._copy = None if storage.is_local(uri) else tempfile.TemporaryDirectory()
        self._folder = uri if self._copy is None else self._copy.name
        # A resumed run goes on in a file of its own, which TensorBoard shows as one curve.
        self._writer = SummaryWriter(self._folder, filename_suffix=f".from-epoch-{epoch}")

    def add(self, entry: dict[str, Any]) -> None:
        """Adds one epoch."""
        names = {
            "loss": "loss/train",
            "valid_log_loss": "loss/valid",
            "valid_accuracy": "accuracy/valid",
            "learning_rate": "learning_rate",
            "seconds": "seconds_per_epoch",
        }
        for key, name in names.items():
            self._writer.add_scalar(name, entry[key], entry["epoch"])
        self._writer.flush()
        if self._copy is not None:
            for path in Path(self._folder).iterdir():
                storage.write_bytes(storage.join(self._uri, path.name), path.read_bytes())
