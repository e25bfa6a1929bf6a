"""The precision of training on GPUs.

It follows from what the GPUs are: tensor cores, which multiply 16-bit matrices several times faster than others do
float32, come with bfloat16 from compute capability 8.0 on and with float16 alone from 7.0. So nothing is measured, as
it is on CPUs, of which the flags do not tell; nor was that rule checked by measuring: benchmarks/gpu.md.
"""

from __future__ import annotations

import numpy as np

from catdog.training.checkpoint import Precision
from catdog.training.config import ResolvedConfig
from catdog.training.distributed import WorkerGroup

# From the one for any GPU to the one for the fewest.
_ORDER: tuple[Precision, ...] = ("float32", "float16", "bfloat16")


def choose_gpu_precision(config: ResolvedConfig, group: WorkerGroup, saved: Precision | None) -> Precision:
    """Decides the precision of a run whose workers have GPUs; all workers decide alike.

    Args:
        config: of the run.
        group: the workers.
        saved: the precision in the checkpoint that the run goes on from, if it does.
    """
    if config.optimizer.precision != "auto":
        return config.optimizer.precision
    if saved is not None:
        return saved
    return _ORDER[int(group.gather(np.array([_ORDER.index(_own_precision())])).min())]


def _own_precision() -> Precision:
    """The precision for this worker's GPU: float32 where TensorFlow sees none, or cannot tell what it is."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    capabilities = [tf.config.experimental.get_device_details(gpu).get("compute_capability") or (0, 0) for gpu in gpus]
    least = min(capabilities, default=(0, 0))
    return "bfloat16" if least >= (8, 0) else "float16" if least >= (7, 0) else "float32"
