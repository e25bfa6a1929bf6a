"""What predicts with one member: TensorFlow, or ONNX Runtime, which on a CPU is faster and starts sooner.

An ONNX file is a translation, and translations have gone wrong: one is trusted only after it gave what Keras gives on
real images (`export_onnx`).
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from catdog.data import images
from catdog.errors import CatdogError, first_line

if TYPE_CHECKING:
    import keras

# Between logits; float32 alone makes differences of 1e-5.
TOLERANCE = 1e-3
# So few images at a time that what one layer gives the next stays in the core's cache.
CHUNK = 4


class Engine(Protocol):
    """What predicts with one member: uint8 N×S×S×3 in, float32 logits N out."""

    def logits(self, batch: np.ndarray) -> np.ndarray:
        """Predicts one batch."""


class TensorFlowEngine:
    """A member run by TensorFlow."""

    def __init__(self, model: keras.Model) -> None:
        import tensorflow as tf

        self._predict = tf.function(lambda batch: model(batch, training=False), autograph=False)

    def logits(self, batch: np.ndarray) -> np.ndarray:
        """Predicts one batch; a new batch size costs a new trace."""
        return self._predict(batch).numpy()[:, 0]


class OnnxEngine:
    """A member run by ONNX Runtime on the CPU."""

    def __init__(self, data: bytes, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that wait in a loop take the cores from other actors.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def logits(self, batch: np.ndarray) -> np.ndarray:
        """Predicts one batch of at least one image."""
        batch = np.ascontiguousarray(batch)
        chunks = [batch[start : start + CHUNK] for start in range(0, len(batch), CHUNK)]
        return np.concatenate([self._session.run(None, {self._input: chunk})[0][:, 0] for chunk in chunks])


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


def export_onnx(model: keras.Model, sample: np.ndarray) -> bytes:
    """Translates a Keras model to ONNX, and makes sure that it predicts what Keras does.

    Args:
        model: from uint8 N×S×S×3 to one logit, built outside of any distribution strategy.
        sample: uint8, N×S×S×3: real images, N at least 1.

    Returns:
        The ONNX file, its batch size left open.

    Raises:
        CatdogError: there is no translation, or a logit differs by more than `TOLERANCE`; says so in a few words.
    """
    import keras
    import tensorflow as tf

    with tf.device("/CPU:0"):  # a GPU rounds to TF32, which is no fault of the translation
        expected = TensorFlowEngine(model).logits(sample)
    signature = [keras.InputSpec(shape=(None, *sample.shape[1:]), dtype="uint8", name="image")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)  # tf2onnx tells of each optimisation that it gives up
        try:
            model.export(path, format="onnx", verbose=False, input_signature=signature)
            data = path.read_bytes()
            found = OnnxEngine(data, threads=1).logits(sample)
        except Exception as error:  # Keras, tf2onnx and ONNX Runtime each have their own
            reason = first_line(error)
            raise CatdogError(f"no ONNX translation: {reason[:200]}") from error
        finally:
            logging.disable(before)
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE:
        raise CatdogError(f"the ONNX translation's logits differ by {difference:.2g} from Keras's, expected 0.001")
    return data
