"""One replica of the model in one Ray Train worker: the loop over epochs and steps, kept in step with the others.

Keras 3's `fit` does not work under MultiWorkerMirroredStrategy, so the loop is written out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.train

from catdog import storage
from catdog.errors import CatdogError
from catdog.evaluation import calibration, metrics, selection
from catdog.events import EpochDone, StepDone, TrainingEvent, TrainingStarted
from catdog.inference import bundle, engines
from catdog.inference.views import apply_view
from catdog.models import batch_norm, registry
from catdog.run_directory import RunDirectory
from catdog.training import augmentation, checkpoint, ingest, optimizers
from catdog.training.config import TrainConfig
from catdog.training.tensorboard import TensorBoardWriter

_EVENT_SECONDS = 0.5
# Beyond this share of unreadable images it is not the images that are broken.
_MAX_REJECTED = 0.2
# Images that the bundle's ONNX file must agree with Keras on.
_SAMPLE = 32


class CommonError(CatdogError):
    """What every worker finds at the same step: all of them return, and Ray need not start them again."""


def run(job: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train runs in each worker.

    Args:
        job: `config` (resolved), `refs`, `labels`, `hashes` and `keys` by split, `weights` (a reference or None),
            `head` (its variables' values or None), `prior`, `class_names`, `catalog_fingerprint`, `provenance`,
            `run` (URI) and `events` (a queue).

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
        engines.set_up(job["config"].cpus_per_worker or 1, bool(job["config"].gpu))
        import keras
        import tensorflow as tf

        self.job = job
        self.config: TrainConfig = job["config"]
        config = self.config
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        keras.utils.set_random_seed(config.seed)
        self.strategy = tf.distribute.MultiWorkerMirroredStrategy()

        self.size = config.image_size or 0
        self.train_pixels = ingest.Pixels.fetch(job["refs"]["train"], len(job["labels"]["train"]), self.size)
        self.valid_pixels = ingest.Pixels.fetch(job["refs"]["valid"], len(job["labels"]["valid"]), self.size)
        for split, pixels in (("training", self.train_pixels), ("validation", self.valid_pixels)):
            if len(pixels.rejected) > _MAX_REJECTED * len(pixels.where):
                raise CommonError(
                    f"{len(pixels.rejected)} of {len(pixels.where)} {split} images could not be used, more than "
                    f"{_MAX_REJECTED:.0%} (the first {pixels.rejected[0][1]}); is the data set on every node?"
                )
        labels, hashes = job["labels"]["train"], job["hashes"]["train"]
        self.batches = ingest.Batches(config, self.train_pixels, labels, hashes, self.rank, self.world)
        self.batch_size = self.batches.size
        if self.batch_size < self.world:
            raise CommonError(f"{self.batch_size} training images for {self.world} workers, expected one each at least")
        self.steps = self.batches.steps

        weights = ray.get(job["weights"]) if job["weights"] is not None else None
        # One signature for all that is gathered, or TensorFlow traces anew for each.
        numbers = tf.TensorSpec([1, None], tf.int64)
        self._gather = tf.function(self._gather_in_replicas, input_signature=[numbers], autograph=False)
        with self.strategy.scope():
            # What is trained, and what is validated and saved: they differ where training's images are smaller, and
            # where batch-norm is fused, which plain Keras could not load.
            built = self._build(dataclasses.replace(config.spec, image_size=config.train_size), weights)
            self.model = built if config.spec.pretrained else batch_norm.fuse_batch_norm(built)
            self.scorer = built if config.train_size == self.size else self._build(config.spec, None)
            if [v.shape for v in self.model.variables] != [v.shape for v in self.scorer.variables]:
                raise CommonError(
                    f"train_scale received {config.train_scale}, but {config.arch} has other weights at another size; "
                    "expected 1"
                )
            if job["head"] is not None:
                variables = [variable for layer in registry.head_layers(self.model) for variable in layer.weights]
                for variable, value in zip(variables, job["head"], strict=True):
                    variable.assign(value)
            self.optimizer = optimizers.build_optimizer(config, self.model, self.steps * config.epochs)
            self.optimizer.build(self.model.trainable_variables)
        self.folds = config.spec.pretrained and batch_norm.can_fold_batch_norm(self.model) and not config.gpu
        self.precision = self._choose_precision()
        # No tensor decides what is run, and looking for one that does takes a third of the tracing.
        self._step = tf.function(self._step_in_replicas, autograph=False)
        self._predict = tf.function(self._forward, autograph=False)

    def _build(self, spec: registry.ModelSpec, weights: bytes | None) -> Any:
        """Builds the model in every worker, or finds in every worker that it cannot be built."""
        try:
            model, error = registry.build_model(spec, weights), None
        except CatdogError as caught:
            model, error = None, caught
        if self._all_gather(np.array([error is not None], np.int64)).all():
            raise CommonError(str(error))
        if error is not None:
            raise error
        return model

    def _choose_precision(self) -> str:
        """bfloat16 where every worker's CPU has it in hardware and the backbone's batch-norm stays as it is."""
        config = self.config
        if config.precision == "bfloat16" and not self.folds:
            raise CommonError(f"--precision bfloat16 received, but {config.arch} as asked for is not trained in it")
        able = self._all_gather(np.array([batch_norm.has_bfloat16()], np.int64)).all()
        wanted = config.precision == "bfloat16" or (config.precision == "auto" and able)
        return "bfloat16" if self.folds and wanted else "float32"

    def _forward(self, batch: Any) -> Any:
        """What validation computes: the logits, N×1."""
        if self.folds:
            return batch_norm.apply_folded(self.scorer, batch, bfloat16=False, training=False)
        return self.scorer(batch, training=False)

    def train(self) -> dict[str, Any]:
        """Trains to the last epoch or until patience runs out, then writes the bundle with the best weights."""
        progress, best = checkpoint.restore_checkpoint(self.model, self.optimizer)
        node = np.frombuffer(bytes.fromhex(ray.get_runtime_context().get_node_id())[:8], np.int64)
        nodes = len(np.unique(self._all_gather(node)))
        if self.rank == 0:
            self._emit(TrainingStarted(self.world, nodes, progress.epoch, self._rejected()))
        board = self._open_board(progress) if self.rank == 0 else None
        config = self.config
        while progress.epoch < config.epochs and not self._out_of_patience(progress):
            started = time.perf_counter()
            loss = self._epoch(progress.epoch)
            trained = time.perf_counter() - started
            self._average_moving_statistics()
            with self._scoring_weights():
                digests = self._require_equal_replicas()
                logits = self._valid_logits(["identity"])
                figures = self._judge(logits)
                values = checkpoint.variable_values(self.model)
            if not np.isfinite(figures["log_loss"]):
                raise CommonError(f"the validation log loss of epoch {progress.epoch + 1} is {figures['log_loss']}")
            progress.epoch += 1
            entry: dict[str, Any] = {
                "epoch": progress.epoch,
                "loss": loss,
                "valid_log_loss": figures["log_loss"],
                "valid_accuracy": figures["accuracy"],
                "learning_rate": float(np.asarray(self.optimizer.learning_rate)),
                "seconds": time.perf_counter() - started,
                "images_per_second": self.steps * self.batch_size / trained,
                "variables_sha256": digests,
            }
            progress.history.append(entry)
            progress.valid_logits.append(logits.astype(np.float32))
            if config.keep == "last" or figures["log_loss"] < progress.best_log_loss:
                progress.best_log_loss, progress.best_epoch = figures["log_loss"], progress.epoch
                best = values
            checkpoint.report_checkpoint(progress, self.model, self.optimizer, best, self.rank)
            if board is not None:
                with contextlib.suppress(CatdogError):  # a curve is not worth a run
                    board.add(entry)
                kept = config.keep == "best" and progress.best_epoch == progress.epoch
                self._emit(EpochDone(**entry, best=kept))
        for model in (self.model, self.scorer):
            checkpoint.assign_variables(model, best)
        digests = self._require_equal_replicas()
        logits = self._valid_logits(config.views)
        return self._save(progress, digests, logits) if self.rank == 0 else {}

    def _out_of_patience(self, progress: checkpoint.Progress) -> bool:
        return self.config.keep == "best" and progress.epoch - progress.best_epoch >= self.config.patience

    @contextlib.contextmanager
    def _scoring_weights(self) -> Iterator[None]:
        """Puts the weights to be judged, averaged if they are to be, into the model that is; training's come back."""
        own = checkpoint.variable_values(self.model)
        if self.config.ema:
            self.optimizer.finalize_variable_values(self.model.trainable_variables)
        if self.scorer is not self.model:
            checkpoint.assign_variables(self.scorer, checkpoint.variable_values(self.model))
        yield
        if self.config.ema:
            checkpoint.assign_variables(self.model, own)

    # --- one epoch ---------------------------------------------------------------------------------------------

    def _epoch(self, epoch: int) -> float:
        import tensorflow as tf

        losses, said = [], time.perf_counter()
        for step, batch in enumerate(self.batches.epoch(epoch)):
            losses.append(float(self._step(*map(tf.constant, batch))))
            if self.rank == 0 and time.perf_counter() - said > _EVENT_SECONDS:
                said = time.perf_counter()
                # From this worker's images: to add up all in each step would be one more time that workers wait.
                estimate = float(np.mean(losses)) * self.batch_size / len(range(self.rank, self.batch_size, self.world))
                self._emit(StepDone(epoch + 1, step + 1, self.steps, estimate))
        loss = float(self._all_gather(np.array([np.mean(losses)])).sum())
        if not np.isfinite(loss):
            raise CommonError(
                f"training diverged: the loss of epoch {epoch + 1} is {loss}; use a --learning-rate below "
                f"{self.config.learning_rate}"
            )
        return loss

    def _step_in_replicas(self, *batch: Any) -> Any:
        """Trains on a batch; returns this worker's share of its loss."""
        import tensorflow as tf

        config = self.config

        def forward(pixels: Any) -> Any:
            if self.precision == "bfloat16":
                return batch_norm.apply_folded(self.model, pixels)
            return (
                registry.forward_in_inference_mode(self.model, pixels)
                if config.spec.pretrained
                else self.model(pixels, training=True)
            )

        def step(pixels: Any, labels: Any, weights: Any, shares: Any) -> Any:
            if config.mixup:
                pixels, labels, weights = augmentation.mixup(shares, pixels, labels, weights)
            labels = labels * (1 - config.label_smoothing) + config.label_smoothing / 2
            with tf.GradientTape() as tape:
                logits = forward(pixels)[:, 0]
                each = weights * tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
                # Gradients are summed over the workers, so each divides by the whole batch.
                loss = tf.reduce_sum(each) / self.batch_size
            gradients = tape.gradient(loss, [variable.value for variable in self.model.trainable_variables])
            self.optimizer.apply(gradients, self.model.trainable_variables)
            return loss

        return self.strategy.run(step, args=batch)

    def _valid_logits(self, views: list[str]) -> np.ndarray:
        """Predicts every validation image, over all workers; an unreadable one gets the prior.

        Returns:
            float64, N: the mean over the views.
        """
        pixels, labels = self.valid_pixels, self.job["labels"]["valid"]
        mine = pixels.readable[self.rank :: self.world]
        share = -(-len(pixels.readable) // self.world)
        size = min(self.batch_size, share)
        logits = np.zeros(share)
        for start in range(0, len(mine), size):
            rows = mine[start : start + size]
            # A batch of its own size would cost a trace of its own.
            batch = pixels.take(np.pad(rows, (0, size - len(rows)), mode="edge"))
            seen = [self._predict(apply_view(batch, view)).numpy()[: len(rows), 0] for view in views]
            logits[start : start + len(rows)] = np.mean(seen, axis=0)
        every = self._all_gather(logits)
        all_logits = np.full(len(labels), np.log(self.job["prior"] / (1 - self.job["prior"])))
        for rank in range(self.world):
            rows = pixels.readable[rank :: self.world]
            all_logits[rows] = every[rank, : len(rows)]
        return all_logits

    def _judge(self, logits: np.ndarray) -> dict[str, float]:
        labels = self.job["labels"]["valid"]
        return {
            "log_loss": float(metrics.losses_from_logits(labels, logits).mean()),
            "accuracy": float(((logits > 0) == (labels == 1)).mean()),
        }

    # --- keeping replicas equal ----------------------------------------------------------------------------------

    def _gather_in_replicas(self, value: Any) -> Any:
        import tensorflow as tf

        def gather(value: Any) -> Any:
            # Only what the replica itself made has a device to gather to.
            return tf.distribute.get_replica_context().all_gather(tf.identity(value), axis=0)

        return self.strategy.run(gather, args=(value,))

    def _all_gather(self, value: np.ndarray) -> np.ndarray:
        """Every worker's array, of one shape and int64 or float64, stacked by rank; the same on all workers."""
        import tensorflow as tf

        bits = np.ascontiguousarray(value).reshape(1, -1).view(np.int64)
        return self._gather(tf.constant(bits)).numpy().view(value.dtype).reshape(-1, *value.shape)

    def _average_moving_statistics(self) -> None:
        """Batch-norm's statistics are the one thing the strategy does not keep equal: each worker saw other images."""
        moving = [v for v in self.model.non_trainable_variables if str(v.dtype).startswith("float")]
        if not moving or self.config.spec.pretrained:  # whose batch-norm stays in inference mode
            return
        flat = np.concatenate([np.asarray(variable).ravel() for variable in moving], dtype=np.float64)
        mean = self._all_gather(flat).mean(axis=0).astype(np.float32)
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
        digest = hashlib.sha256(b"".join(value.tobytes() for value in checkpoint.variable_values(self.model))).digest()
        every = self._all_gather(np.frombuffer(digest, np.int64))
        digests = [row.tobytes().hex() for row in every]
        if len(set(digests)) > 1:
            raise CommonError(f"the workers' models have drifted apart ({digests}); nothing more was saved")
        return digests

    # --- events and the bundle -----------------------------------------------------------------------------------

    def _save(self, progress: checkpoint.Progress, digests: list[str], logits: np.ndarray) -> dict[str, Any]:
        config, labels, keys = self.config, self.job["labels"]["valid"], self.job["keys"]["valid"]
        figures, temperature, clip = calibration.judge_and_calibrate(labels, logits, keys, config.calibrate)
        validation = {"epoch": progress.best_epoch, **figures}
        # Each epoch was judged on the plain image: of several views there is no such figure.
        all_there = len(progress.valid_logits) == progress.epoch and config.views == ["identity"]
        chose = config.keep == "best" and progress.epoch > 1
        chosen_on = "validation" if chose else "none"
        if chose and all_there and len(labels) > 1:
            judged = selection.judge_selection(labels, np.stack(progress.valid_logits), keys, config.calibrate)
            validation["log_loss_cross_chosen"] = judged.log_loss
        # For whom wants to average several runs' models, and calibrate them together.
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"key": keys, "label": labels, "logit": logits}), sink)
        storage.write_bytes(RunDirectory(self.job["run"]).valid, sink.getvalue().to_pybytes())
        uri = RunDirectory(self.job["run"]).model
        bundle.save_bundle(
            uri,
            [self.scorer],
            self.valid_pixels.take(self.valid_pixels.readable[:_SAMPLE]),
            self.job["provenance"],
            architecture=config.arch,
            image_size=self.size,
            class_names=self.job["class_names"],
            views=config.views,
            calibration="validation" if config.calibrate else "none",
            temperature=temperature,
            clip=clip,
            prior=self.job["prior"],
            validation=validation,
            chosen_on=chosen_on,
            catalog_fingerprint=self.job["catalog_fingerprint"],
            seed=config.seed,
            training={
                "options": config.model_dump(mode="json"),
                "precision": self.precision,
                "history": progress.history,
                "variables_sha256": digests,
            },
        )
        return {
            "bundle": uri,
            "validation": validation,
            "chosen_on": chosen_on,
            "epochs": progress.epoch,
            "history": progress.history,
        }

    def _rejected(self) -> list[str]:
        keys = self.job["keys"]
        return [
            f"{keys[split][row]}: {reason}"
            for split, pixels in (("train", self.train_pixels), ("valid", self.valid_pixels))
            for row, reason in pixels.rejected
        ]

    def _emit(self, event: TrainingEvent) -> None:
        self.job["events"].put(event)

    def _open_board(self, progress: checkpoint.Progress) -> TensorBoardWriter:
        return TensorBoardWriter(RunDirectory(self.job["run"]).tensorboard, progress.epoch)
