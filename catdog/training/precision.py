"""The precision of training's matrix products: as asked for, as before a restart, or the faster one by measuring.

A CPU's flags do not say which is faster: with AVX-512 BF16 and no AMX, bfloat16 is slower than float32 on some CPUs.
On GPUs it is decided earlier, in `gpu_precision.py`, because the model is built in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from catdog import stall
from catdog.models import batch_norm
from catdog.training import checkpoint
from catdog.training.checkpoint import Precision, Progress
from catdog.training.config import ResolvedConfig
from catdog.training.distributed import WorkerGroup
from catdog.training.ingest import Batches
from catdog.training.replica import Replica
from catdog.training.step import training_step

Step = Callable[[list[np.ndarray]], Any]
_MEASURED = 3  # steps of each precision, after one that traces it
# A shorter run would spend more of its time on measuring than the faster precision could give back.
_FEWEST_STEPS = 50


@dataclass(frozen=True)
class Choice:
    """How a run trains.

    Attributes:
        precision: of the matrix products.
        step: from `step.training_step`, in this precision.
        rates: images per second of all workers in each precision, the other one's too; empty if nothing was measured.
    """

    precision: Precision
    step: Step
    rates: dict[str, float] = field(default_factory=dict)


def choose_precision(
    config: ResolvedConfig, replica: Replica, group: WorkerGroup, batches: Batches, progress: Progress
) -> Choice:
    """Decides the precision of a run; all workers decide alike.

    Args:
        config: of the run.
        replica: this worker's, as it is at the start or in the last checkpoint; it stays so.
        group: the workers.
        batches: this worker's, of which the first one is measured with.
        progress: where the run stands.
    """
    possible = possible_precisions(config, replica, group, batches.steps * config.optimizer.epochs, progress)
    steps = {precision: training_step(config, replica, group, batches.size, precision) for precision in possible}
    if len(possible) == 1:
        return Choice(possible[0], steps[possible[0]])
    seconds = measure_steps(steps, replica, group, next(batches.epoch(0)))
    fastest = min(possible, key=lambda precision: seconds[precision])
    return Choice(fastest, steps[fastest], {precision: batches.size / seconds[precision] for precision in possible})


def possible_precisions(
    config: ResolvedConfig, replica: Replica, group: WorkerGroup, steps: int, progress: Progress
) -> list[Precision]:
    """The precisions of which a run takes the fastest; the same in all workers.

    Args:
        config: of the run.
        replica: this worker's.
        group: the workers.
        steps: of the whole run.
        progress: where the run stands.

    Returns:
        One or two.
    """
    if replica.mixed != "float32":
        return [replica.mixed]
    if config.optimizer.precision != "auto":
        return [config.optimizer.precision]
    if progress.precision is not None:
        return [progress.precision]
    if not (replica.folds_batch_norm and group.all_true(batch_norm.has_bfloat16())):
        return ["float32"]
    if progress.epoch:
        # A checkpoint that does not say is of a version that folded MobileNet only, and believed the flags.
        return ["bfloat16" if config.model.arch == "mobilenet" else "float32"]
    return ["float32", "bfloat16"] if steps >= _FEWEST_STEPS else ["float32"]


def measure_steps(
    steps: dict[Precision, Step], replica: Replica, group: WorkerGroup, batch: list[np.ndarray]
) -> dict[Precision, float]:
    """Measures steps of training, then puts model and optimizer back to what they were.

    Args:
        steps: by precision.
        replica: this worker's, which the steps train.
        group: the workers.
        batch: this worker's share of one.

    Returns:
        Seconds of a step, by precision: of the fastest, since whatever else the machine does only adds to them, in the
        slowest worker, for which the others wait. The same in all workers.
    """
    before = checkpoint.variable_values(replica.model), checkpoint.variable_values(replica.optimizer)
    seconds: dict[Precision, list[float]] = {precision: [] for precision in steps}
    for _ in range(1 + _MEASURED):
        for precision, step in steps.items():  # in turn, so that a busy spell of the machine slows down both
            stall.beat()
            started = time.perf_counter()
            float(step(batch))  # which waits until it is done
            seconds[precision].append(time.perf_counter() - started)
    for part, values in zip((replica.model, replica.optimizer), before, strict=True):
        checkpoint.assign_variables(part, values)
    fastest = group.gather(np.array([min(taken[1:]) for taken in seconds.values()]))
    return dict(zip(steps, fastest.max(axis=0).tolist(), strict=True))
