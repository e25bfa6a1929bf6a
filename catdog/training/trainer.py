"""One training worker: the loop over epochs, kept in step with the other workers.

Keras 3's `fit` does not work under MultiWorkerMirroredStrategy, so the loop is written out.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.train
from ray.train.collective import broadcast_from_rank_zero

from catdog import rng, stall
from catdog.errors import CatdogError
from catdog.events import EpochDone, Progress, RunWritten, StepDone, TrainingEvent, TrainingStarted
from catdog.inference import engines
from catdog.run_directory import RunDirectory
from catdog.training import checkpoint, distributed, ingest, stores
from catdog.training.bundle_writer import write_trained_bundle
from catdog.training.checkpoint_clock import CheckpointClock
from catdog.training.distributed import CommonError
from catdog.training.early_stopping import EarlyStopping
from catdog.training.job import Failure, SplitData, TrainResult, WorkerJob
from catdog.training.precision import choose_precision
from catdog.training.replica import build_replica
from catdog.training.stores import ImageStore
from catdog.training.tensorboard import TensorBoardWriter
from catdog.training.validation import Validator

_EVENT_SECONDS = 0.5
# With a greater share of unreadable images, the data set is out of reach rather than broken.
_MAX_REJECTED = 0.2


def run_worker(job: WorkerJob) -> TrainResult | Failure | None:
    """Trains in one Ray Train worker.

    Args:
        job: the same in every worker.

    Returns:
        The result on rank 0; a failure where every worker found the same error. An error of one worker alone is raised
        instead, so that Ray restarts all workers: if that one returned, the others would wait for it forever.
    """
    try:
        return Trainer(job).run()
    except CommonError as error:
        return Failure(str(error))


@dataclass(frozen=True)
class _Validated:
    """Result of the validation after an epoch.

    Attributes:
        log_loss: of the plain images, in nats.
        accuracy: share of them on the right side of 0.5.
        logits: float64, N.
        values: the weights that were validated, in the order of `checkpoint.variable_values`.
        variables_sha256: their digest, by worker.
    """

    log_loss: float
    accuracy: float
    logits: np.ndarray
    values: list[np.ndarray]
    variables_sha256: list[str]


class Trainer:
    """One worker's part of a training run."""

    def __init__(self, job: WorkerJob) -> None:
        """Fetches the images, joins the other workers and builds the model, or takes the last checkpoint's."""
        config = job.config
        engines.set_up(job.plan.cpus_per_worker, job.plan.gpu)
        import keras

        self.job = job
        context = ray.train.get_context()
        keras.utils.set_random_seed(config.run.seed)
        self.group = group = distributed.join(context.get_world_rank(), context.get_world_size(), job.plan.gpu)
        self.train_pixels = self._fetch_pixels(job.train, "training")
        valid_pixels = self._fetch_pixels(job.valid, "validation")
        hashes, train = rng.key_hash(job.train.keys), job.train
        # Without a GPU, the step itself uses all CPUs.
        threads = job.plan.cpus_per_worker if job.plan.gpu else 1
        self.batches = ingest.Batches(
            config, self.train_pixels, train.labels, hashes, train.blocks, group.rank, group.size, threads
        )
        batch_size = self.batches.size
        if batch_size < group.size:
            raise CommonError(f"{batch_size} training images for {group.size} workers, expected one each at least")
        steps = self.batches.steps * config.optimizer.epochs
        self.replica = build_replica(job, group, steps, checkpoint.saved_precision())
        self.validator = Validator(valid_pixels, job.valid.labels, job.prior, self.replica.predict, group, batch_size)
        self.stopping = EarlyStopping(config.optimizer.epochs, config.validation.keep, config.validation.patience)
        self.board: TensorBoardWriter | None = None  # rank 0 has one
        self.progress, self.best = checkpoint.restore_checkpoint(self.replica.model, self.replica.optimizer)
        if (moving := self.progress.moving).size:
            mine = moving[group.rank] if len(moving) == group.size else moving.mean(axis=0)
            distributed.assign_moving_statistics(self.replica.model, mine)
        self.clock = CheckpointClock(config.resources.checkpoint_minutes, group)
        self.choice = choose_precision(config, self.replica, group, self.batches, self.progress)
        self.progress.precision = self.choice.precision

    def _fetch_pixels(self, data: SplitData, split: str) -> ImageStore:
        """Opens a split's images.

        Raises:
            CommonError: too many of them are unreadable.
        """
        found: list[ray.ObjectRef] = []
        if self.group.rank == 0:
            blocks = stores.find_blocks(data.images, self.job.plan.cpus_per_worker, self._tell)
            # Ray Train shares only what is small. It pickles what it is given, so that the blocks live as long as this
            # process.
            found = [ray.put(blocks)]
        (shared,) = broadcast_from_rank_zero(found)
        pixels = stores.open_store(ray.get(shared), len(data.labels), data.images.size)
        if len(pixels.rejected) > _MAX_REJECTED * len(pixels.where):
            raise CommonError(
                f"{len(pixels.rejected)} of {len(pixels.where)} {split} images could not be used, more than "
                f"{_MAX_REJECTED:.0%} (the first {pixels.rejected[0][1]}); is the data set on every node?"
            )
        return pixels

    def run(self) -> TrainResult | None:
        """Trains to the last epoch or until patience runs out, then writes the bundle with the weights to keep."""
        self._tell_start()
        while not self.stopping.is_over(self.progress):
            started = time.perf_counter() - self.progress.spent
            loss = self._train_epoch(started)
            trained = time.perf_counter()
            validated = self._validate()
            entry = self._record(loss, validated, started, trained)
            self._leave_checkpoint()
            self._tell_epoch(entry)
        return self._finish()

    def _train_epoch(self, started: float) -> float:
        """Trains for an epoch, or what is left of it; returns its mean loss over all workers, in nats."""
        said, epoch, first = time.perf_counter(), self.progress.epoch, self.progress.step
        # Those of this session stay on their device until they are told, so that no step waits for the one before.
        losses: list[Any] = self._losses_so_far()

        def told() -> np.ndarray:
            return np.array([*map(float, losses)])

        for step, batch in enumerate(self.batches.epoch(epoch, first), first + 1):
            losses.append(self.choice.step(batch))
            stall.beat()
            if step < self.batches.steps and self.clock.is_due(step):
                self.progress.step, self.progress.spent = step, time.perf_counter() - started
                self.progress.losses = self.group.gather(told()).tolist()
                if not self.job.config.model.spec.pretrained:  # else batch-norm stays in inference mode
                    self.progress.moving = self.group.gather_moving_statistics(self.replica.model)
                self._leave_checkpoint()
            if self.group.rank == 0 and time.perf_counter() - said > _EVENT_SECONDS:
                said = time.perf_counter()
                # From this worker's images only: a sum over all workers would make them wait for each other once more.
                share = len(range(self.group.rank, self.batches.size, self.group.size))
                estimate = float(told().mean()) * self.batches.size / share
                self._tell(StepDone(epoch + 1, step, self.batches.steps, estimate))
        loss = float(self.group.gather(np.array([told().mean()])).sum())
        if not np.isfinite(loss):
            raise CommonError(
                f"training diverged: the loss of epoch {epoch + 1} is {loss}; use a --learning-rate below "
                f"{self.job.config.optimizer.learning_rate}"
            )
        return loss

    def _losses_so_far(self) -> list[float]:
        """This worker's losses in the steps of the epoch that are done already."""
        told = self.progress.losses
        if len(told) == self.group.size:
            return list(told[self.group.rank])
        # Of another number of workers.
        return [sum(each) if self.group.rank == 0 else 0.0 for each in zip(*told, strict=True)]

    def _leave_checkpoint(self) -> None:
        self._require_lease()
        replica = self.replica
        checkpoint.report_checkpoint(self.progress, replica.model, replica.optimizer, self.best, self.group.rank)
        self.clock.restart()

    def _validate(self) -> _Validated:
        """Validates the weights after an epoch, and makes sure that all workers have the same ones."""
        self._tell(Progress("validating", 0, len(self.validator.labels)))
        if not self.job.config.model.spec.pretrained:  # else batch-norm stays in inference mode
            self.group.average_moving_statistics(self.replica.model)
        with self.replica.validation_weights():
            digests = self.group.require_equal_variables(self.replica.model)
            logits = self.validator.logits(["identity"])
            values = checkpoint.variable_values(self.replica.model)
        log_loss, accuracy = self.validator.judge(logits)
        if not np.isfinite(log_loss):
            raise CommonError(f"the validation log loss of epoch {self.progress.epoch + 1} is {log_loss}")
        return _Validated(log_loss, accuracy, logits, values, digests)

    def _record(self, loss: float, validated: _Validated, started: float, trained: float) -> dict[str, Any]:
        """Notes an epoch in the run's progress; returns its entry in the history."""
        progress = self.progress
        if self.stopping.is_kept(progress, validated.log_loss):
            progress.best_log_loss, progress.best_epoch = validated.log_loss, progress.epoch + 1
            self.best = validated.values
        progress.epoch += 1
        entry = {
            "epoch": progress.epoch,
            "loss": loss,
            "valid_log_loss": validated.log_loss,
            "valid_accuracy": validated.accuracy,
            "learning_rate": float(np.asarray(self.replica.optimizer.learning_rate)),
            "seconds": time.perf_counter() - started,
            "images_per_second": self.batches.steps * self.batches.size / (trained - started),
            "variables_sha256": validated.variables_sha256,
        }
        progress.history.append(entry)
        progress.begin_epoch()
        progress.valid_logits.append(validated.logits.astype(np.float32))
        return entry

    def _finish(self) -> TrainResult | None:
        """Writes the bundle with the weights to keep; on rank 0."""
        self._tell(Progress("saving", 0, len(self.validator.labels)))
        self.replica.assign(self.best)
        digests = self.group.require_equal_variables(self.replica.model)
        logits = self.validator.logits(self.job.config.validation.views)
        self._require_lease()
        if self.group.rank != 0:
            return None
        result = write_trained_bundle(
            self.job, self.replica, self.train_pixels, self.validator, self.progress, logits, digests
        )
        self._tell(RunWritten())
        return result

    def _require_lease(self) -> None:
        """Ends the run in all workers before they write into one that another process has taken over.

        The process that started them may be cut off, or gone, and cannot tell them.
        """
        lost = ""
        if self.group.rank == 0:
            try:
                self.job.lease.require_held()
            except CatdogError as error:
                lost = str(error)
        if not self.group.all_true(not lost):
            raise CommonError(lost or "another process took over the run")

    # --- events, from rank 0 -------------------------------------------------------------------------------------

    def _tell(self, event: TrainingEvent) -> None:
        if self.group.rank == 0:
            self.job.events.put(event)

    def _tell_start(self) -> None:
        nodes = self.group.count_nodes()
        if self.group.rank != 0:
            return
        rejected = [
            f"{data.keys[row]}: {reason}"
            for data, pixels in ((self.job.train, self.train_pixels), (self.job.valid, self.validator.pixels))
            for row, reason in pixels.rejected
        ]
        self._tell(
            TrainingStarted(
                self.group.size,
                nodes,
                self.progress.epoch,
                rejected,
                self.job.config.optimizer.epochs,
                self.batches.size,
                self.progress.step,
                self.choice.precision,
                self.choice.rates,
            )
        )
        self.board = TensorBoardWriter(RunDirectory(self.job.config.run.uri).tensorboard, self.progress.epoch)

    def _tell_epoch(self, entry: dict[str, Any]) -> None:
        if self.board is None:
            return
        with contextlib.suppress(CatdogError):  # a curve is not worth a run
            self.board.add(entry)
        best = self.stopping.keep == "best" and self.progress.best_epoch == self.progress.epoch
        self._tell(EpochDone(**entry, best=best))
