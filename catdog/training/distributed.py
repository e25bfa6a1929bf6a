"""The group of workers that train one model: arrays gathered from all of them, and replicas kept equal."""

from __future__ import annotations

import hashlib
import socket
from typing import Any

import numpy as np
import ray

from catdog.errors import CatdogError
from catdog.training import checkpoint, collectives
from catdog.training.collectives import Collectives


class CommonError(CatdogError):
    """An error that every worker finds at the same step: all of them return, and Ray need not start them again."""


class WorkerGroup:
    """All workers of a run, as one of them sees them; this class is a group of one.

    Attributes:
        rank: of this worker.
        size: how many there are.
    """

    rank, size = 0, 1

    def sum_gradients(self, gradients: list[Any]) -> list[Any]:
        """Adds up the workers' gradients, within a `tf.function`.

        Args:
            gradients: tensors, of the same shapes in all workers.
        """
        return gradients

    def gather(self, value: np.ndarray) -> np.ndarray:
        """Every worker's array, stacked by rank; the same on all workers.

        Args:
            value: int64 or float64, of one shape in all workers.

        Returns:
            The group's size × the shape of `value`.
        """
        return value[None]

    def all_true(self, value: bool) -> bool:
        """Tells whether something is so in every worker."""
        return bool(self.gather(np.array([value], np.int64)).all())

    def count_nodes(self) -> int:
        """How many nodes the workers are on."""
        node = np.frombuffer(bytes.fromhex(ray.get_runtime_context().get_node_id())[:8], np.int64)
        return len(np.unique(self.gather(node)))

    def average_moving_statistics(self, model: Any) -> None:
        """Averages batch-norm's statistics over the workers.

        They are the one thing that equal gradients do not keep equal, because each worker saw other images.

        Args:
            model: of Keras; its floating non-trainable variables are overwritten.
        """
        if _moving(model):
            assign_moving_statistics(model, self.gather_moving_statistics(model).mean(axis=0))

    def gather_moving_statistics(self, model: Any) -> np.ndarray:
        """Batch-norm's statistics of every worker: float64, the group's size × M.

        Args:
            model: of Keras.
        """
        flat = [np.asarray(variable).ravel() for variable in _moving(model)]
        return self.gather(np.concatenate(flat or [np.empty(0)], dtype=np.float64))

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


def _moving(model: Any) -> list[Any]:
    """The variables that a step changes other than by gradients."""
    return [variable for variable in model.non_trainable_variables if str(variable.dtype).startswith("float")]


def assign_moving_statistics(model: Any, values: np.ndarray) -> None:
    """Puts batch-norm's statistics into a model.

    Args:
        model: of Keras.
        values: float, M, in the order of `WorkerGroup.gather_moving_statistics`.
    """
    at = 0
    for variable in _moving(model):
        count = int(np.prod(variable.shape))
        variable.assign(values[at : at + count].astype(np.float32).reshape(variable.shape))
        at += count


class ConnectedGroup(WorkerGroup):
    """Workers that exchange arrays over connections of their own."""

    def __init__(self, collectives: Collectives) -> None:
        """Takes the connections.

        Args:
            collectives: this worker's.
        """
        self.rank, self.size, self._collectives = collectives.rank, collectives.size, collectives

    def sum_gradients(self, gradients: list[Any]) -> list[Any]:
        import tensorflow as tf

        flat = tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients], 0)
        total = tf.numpy_function(self._collectives.all_reduce, [flat], flat.dtype)
        total.set_shape(flat.shape)
        parts = tf.split(total, [gradient.shape.num_elements() for gradient in gradients])
        return [tf.reshape(part, gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]

    def gather(self, value: np.ndarray) -> np.ndarray:
        return self._collectives.all_gather(value)


class StrategyGroup(WorkerGroup):
    """Workers with GPUs, whose gradients TensorFlow's strategy adds up by NCCL.

    It does no more than that. Of models in its scope, Keras would look for infinite gradients before they are added up,
    so that one worker could skip a step that the others take.
    """

    def __init__(self, rank: int, size: int) -> None:
        """Joins the group that TF_CONFIG describes.

        Args:
            rank: of this worker.
            size: how many there are.
        """
        import tensorflow as tf

        self.rank, self.size = rank, size
        self._strategy = tf.distribute.MultiWorkerMirroredStrategy()
        # One signature for all that is gathered, or TensorFlow traces anew for each.
        numbers = tf.TensorSpec([1, None], tf.int64)
        self._gather = tf.function(self._gather_in_replicas, input_signature=[numbers], autograph=False)

    def sum_gradients(self, gradients: list[Any]) -> list[Any]:
        import tensorflow as tf

        def add(*parts: Any) -> list[Any]:
            # Only a tensor made in the replica has a device to add up on.
            own = [tf.identity(part) for part in parts]
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, own)

        return self._strategy.run(add, args=tuple(gradients))

    def gather(self, value: np.ndarray) -> np.ndarray:
        import tensorflow as tf

        bits = np.ascontiguousarray(value).reshape(1, -1).view(np.int64)
        return self._gather(tf.constant(bits)).numpy().view(value.dtype).reshape(-1, *value.shape)

    def _gather_in_replicas(self, value: Any) -> Any:
        import tensorflow as tf

        def gather(value: Any) -> Any:
            # Only a tensor made in the replica has a device to gather to.
            return tf.distribute.get_replica_context().all_gather(tf.identity(value), axis=0)

        return self._strategy.run(gather, args=(value,))


_listener: socket.socket | None = None
_connected: Collectives | CatdogError | None = None


def listen() -> tuple[str, int]:
    """Makes this process ready for the others to connect; returns host and port."""
    global _listener
    _listener = collectives.free_listener(ray.util.get_node_ip_address())
    return _listener.getsockname()[:2]


def connect(rank: int, addresses: list[tuple[str, int]], key: bytes) -> None:
    """Connects this process to the others; `join` raises what goes wrong.

    Args:
        rank: of this process.
        addresses: what `listen` returned, by rank.
        key: a secret that all processes were given.
    """
    global _connected
    assert _listener is not None
    try:
        _connected = Collectives(rank, addresses, _listener, key)
    except CatdogError as error:
        _connected = error


def join(rank: int, size: int, gpu: bool) -> WorkerGroup:
    """The group of this process's worker.

    Args:
        rank: of this worker.
        size: how many there are.
        gpu: whether each has a GPU.

    Raises:
        CatdogError: `connect` did not reach the others.
    """
    if size == 1:
        return WorkerGroup()
    if gpu:
        return StrategyGroup(rank, size)
    if isinstance(_connected, CatdogError):
        raise _connected
    assert _connected is not None
    return ConnectedGroup(_connected)
