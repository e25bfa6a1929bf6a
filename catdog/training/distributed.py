"""The group of workers that train one model: arrays gathered from all of them, and replicas kept equal."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import ray

from catdog.errors import CatdogError
from catdog.training import checkpoint


class CommonError(CatdogError):
    """An error that every worker finds at the same step: all of them return, and Ray need not start them again."""


class WorkerGroup:
    """All workers of a run, as one of them sees them.

    Attributes:
        rank: of this worker.
        size: how many there are.
        strategy: TensorFlow's, in whose scope models are built.
    """

    def __init__(self, rank: int, size: int) -> None:
        """Joins the group that TF_CONFIG describes.

        Args:
            rank: of this worker.
            size: how many there are.
        """
        import tensorflow as tf

        self.rank, self.size = rank, size
        self.strategy = tf.distribute.MultiWorkerMirroredStrategy()
        # One signature for all that is gathered, or TensorFlow traces anew for each.
        numbers = tf.TensorSpec([1, None], tf.int64)
        self._gather = tf.function(self._gather_in_replicas, input_signature=[numbers], autograph=False)

    def gather(self, value: np.ndarray) -> np.ndarray:
        """Every worker's array, stacked by rank; the same on all workers.

        Args:
            value: int64 or float64, of one shape in all workers.

        Returns:
            The group's size × the shape of `value`.
        """
        import tensorflow as tf

        bits = np.ascontiguousarray(value).reshape(1, -1).view(np.int64)
        return self._gather(tf.constant(bits)).numpy().view(value.dtype).reshape(-1, *value.shape)

    def all_true(self, value: bool) -> bool:
        """Tells whether something is so in every worker."""
        return bool(self.gather(np.array([value], np.int64)).all())

    def count_nodes(self) -> int:
        """How many nodes the workers are on."""
        node = np.frombuffer(bytes.fromhex(ray.get_runtime_context().get_node_id())[:8], np.int64)
        return len(np.unique(self.gather(node)))

    def average_moving_statistics(self, model: Any) -> None:
        """Averages batch-norm's statistics over the workers.

        They are the one thing that the strategy does not keep equal, because each worker saw other images.

        Args:
            model: of Keras, built in the strategy's scope; its floating non-trainable variables are overwritten.
        """
        moving = [variable for variable in model.non_trainable_variables if str(variable.dtype).startswith("float")]
        if not moving:
            return
        flat = np.concatenate([np.asarray(variable).ravel() for variable in moving], dtype=np.float64)
        mean = self.gather(flat).mean(axis=0).astype(np.float32)
        at = 0
        for variable in moving:
            count = int(np.prod(variable.shape))
            variable.assign(mean[at : at + count].reshape(variable.shape))
            at += count

    def require_equal_variables(self, model: Any) -> list[str]:
        """Compares every variable of all workers' models, bit for bit.

        Args:
            model: of Keras.

        Returns:
            SHA-256 of the variables, by rank.

        Raises:
            CommonError: they differ.
        """
        digest = hashlib.sha256(b"".join(value.tobytes() for value in checkpoint.variable_values(model))).digest()
        digests = [row.tobytes().hex() for row in self.gather(np.frombuffer(digest, np.int64))]
        if len(set(digests)) > 1:
            raise CommonError(f"the workers' models have drifted apart ({digests}); nothing more was saved")
        return digests

    def _gather_in_replicas(self, value: Any) -> Any:
        import tensorflow as tf

        def gather(value: Any) -> Any:
            # Only a tensor made in the replica has a device to gather to.
            return tf.distribute.get_replica_context().all_gather(tf.identity(value), axis=0)

        return self.strategy.run(gather, args=(value,))
