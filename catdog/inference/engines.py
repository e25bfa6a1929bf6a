"""The engines that predict with one member: TensorFlow, and ONNX Runtime, which is faster on a CPU and starts sooner.

An ONNX file is a translation, which `catdog.inference.export` has compared with Keras on real images.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

import numpy as np

from catdog.data import images
from catdog.errors import CatdogError, first_line

if TYPE_CHECKING:
    import keras

# So few images at a time that what one layer gives the next stays in the core's cache.
CHUNK = 4


class Engine(Protocol):
    """An engine that predicts with one member: uint8 N×S×S×3 in, float32 logits N out."""

    def logits(self, batch: np.ndarray) -> np.ndarray:
        """Predicts one batch."""


class TensorFlowEngine:
    """A member run by TensorFlow; in smaller batches from the first one on that the memory of a GPU does not hold."""

    def __init__(self, model: keras.Model) -> None:
        import tensorflow as tf

        self._predict = tf.function(lambda batch: model(batch, training=False), autograph=False)
        self._most: int | None = None

    def logits(self, batch: np.ndarray) -> np.ndarray:
        """Predicts one batch; a new batch size costs a new trace.

        Raises:
            CatdogError: there is not enough memory for one image.
        """
        import tensorflow as tf

        most = self._most or max(1, len(batch))
        chunks = [batch[start : start + most] for start in range(0, max(1, len(batch)), most)]
        try:
            return np.concatenate([self._predict(chunk).numpy()[:, 0] for chunk in chunks])
        except tf.errors.ResourceExhaustedError as error:
            largest = max(map(len, chunks))
            if largest == 1:
                raise CatdogError(
                    f"there is not enough memory to predict one image ({first_line(error)[:200]}); free some, or use "
                    "--cpu"
                ) from error
            self._most = (largest + 1) // 2
        return self.logits(batch)


class OnnxEngine:
    """A member run by ONNX Runtime on the CPU; raises CatdogError where that cannot load or run it."""

    def __init__(self, data: bytes, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that wait in a loop take the cores from other actors.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has many
            raise CatdogError(f"ONNX Runtime cannot load the model: {first_line(error)[:300]}") from error
        self._input = self._session.get_inputs()[0].name

    def logits(self, batch: np.ndarray) -> np.ndarray:
        """Predicts one batch of at least one image."""
        batch = np.ascontiguousarray(batch)
        chunks = [batch[start : start + CHUNK] for start in range(0, len(batch), CHUNK)]
        return np.concatenate([self.run(chunk)[:, 0] for chunk in chunks])

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The model's output as it is, for a batch of `CHUNK` images at most."""
        return self.outputs(batch)[0]

    def outputs(self, batch: np.ndarray) -> list[np.ndarray]:
        """All outputs of a model that has several, in its order."""
        try:
            return self._session.run(None, {self._input: batch})
        except Exception as error:  # as above
            raise CatdogError(f"ONNX Runtime cannot run the model: {first_line(error)[:300]}") from error


def set_up(threads: int, gpu: bool) -> None:
    """Keeps TensorFlow and OpenCV in this process to the CPUs and GPUs it was given; before anything is computed.

    Args:
        threads: CPUs.
        gpu: whether it was given one. If not, it must see none: TensorFlow takes all memory of those it sees, and Ray
            hides them only from who has others.
    """
    if not gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before CUDA looks for them, which takes memory of each
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    if gpu:
        for device in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(device, True)
    else:
        tf.config.set_visible_devices([], "GPU")
    images.use_one_thread()
