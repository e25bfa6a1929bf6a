"""The predictor: from files or decoded pixels to logit, probability and verdict, the same numbers for every use.

Images are predicted in batches of one shape, the last one padded with zeros: in a batch of another shape an engine may
compute a logit that differs in its last bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from catdog.choices import EngineName
from catdog.data import images
from catdog.data.images import Batch, Status
from catdog.data.isolation import Decode
from catdog.evaluation import metrics
from catdog.inference import engines
from catdog.inference.bundle import ModelBundle, SavedBundle, merge_infos, read_info
from catdog.prefetch import prefetch

Item = TypeVar("Item")
_ALONE = nullcontext()


@dataclass(frozen=True)
class Predictions:
    """Predictions of N images.

    Attributes:
        logits: float32, N: plain, before temperature and clip; NaN for an unreadable image.
        probabilities: float64, N: of the second class, calibrated and clipped; the prior for an unreadable image.
        statuses: N verdicts: "ok", "recovered" or "unreadable".
        details: N: what was odd about an image, in a few words; empty where nothing was.
    """

    logits: np.ndarray
    probabilities: np.ndarray
    statuses: list[Status]
    details: list[str]

    @property
    def unreadable(self) -> np.ndarray:
        """Whether each image is unreadable: bool, N."""
        return np.isnan(self.logits)


class Predictor:
    """One bundle, or several whose logits are averaged, ready to predict; for one thread at a time.

    ONNX Runtime gives an image the same bits alone and in a batch, for every `batch_size` that is a multiple of
    `engines.CHUNK`. TensorFlow does for one `batch_size` and number of threads; with others the last bits may differ.

    Attributes:
        info: description of the bundles as one.
        sizes: the sizes that images are decoded to, in pixels, ascending.
        batch_size: images that are predicted together.
    """

    def __init__(self, bundles: list[ModelBundle], batch_size: int = engines.CHUNK) -> None:
        self.info = merge_infos([bundle.info for bundle in bundles])
        self.sizes = sorted({bundle.info.image_size for bundle in bundles})
        self.batch_size = batch_size
        self._bundles = bundles
        # One for all batches: fresh memory for each made half of an actor's page faults.
        self._pixels = {size: np.empty((batch_size, size, size, 3), np.uint8) for size in self.sizes}

    @classmethod
    def load(
        cls,
        models: Iterable[str | SavedBundle],
        engine: EngineName | None = None,
        threads: int = 1,
        batch_size: int = engines.CHUNK,
    ) -> Predictor:
        """Loads bundles.

        Args:
            models: URIs of runs or of bundles, or bundles whose description was read already.
            engine: what predicts; None is the fastest on a CPU that all of them have.
            threads: of ONNX Runtime; TensorFlow's are the whole process's (`engines.set_up`).
            batch_size: images that are predicted together.

        Raises:
            UsageError: there is no such bundle, one lacks the engine, or their classes differ.
            CatdogError: a bundle is of another version, incomplete or damaged.
        """
        saved = [read_info(model) if isinstance(model, str) else model for model in models]
        engine = engine or merge_infos([each.info for each in saved]).engines[0]
        return cls([ModelBundle.load_saved(each, engine, threads) for each in saved], batch_size)

    def predict_files(self, files: list[bytes | str], decode: Decode = images.decode_batch) -> Predictions:
        """Predicts images from their files' bytes.

        Args:
            files: N, as of `images.fetch`: the bytes of each file, or why there are none.
            decode: decodes each batch.
        """
        return self._predict(decode(group, self._pixels) for group in self._groups(files))

    def predict_uris(
        self,
        uris: list[str],
        decode: Decode = images.decode_batch,
        turn: AbstractContextManager[object] = _ALONE,
    ) -> Predictions:
        """Reads and predicts images.

        The files of one batch are read ahead, in a thread, so that the model need not wait. They are decoded in the
        model's own thread: another one would take turns with it on the same core, and each would find the core's
        cache full of the other's.

        Args:
            uris: N files, all in one place.
            decode: decodes each batch.
            turn: held while the model is used, where several threads use it; the first batch is read before.
        """
        read = prefetch(lambda group: list(images.fetch_all(group)), self._groups(uris))
        with turn:
            return self._predict(decode(files, self._pixels) for files in read)

    def predict_decoded(self, decoded: Batch) -> Predictions:
        """Predicts images that are decoded already.

        Args:
            decoded: N images in each of `sizes`.
        """
        return self._predict(self._slices(decoded))

    def _predict(self, batches: Iterable[Batch]) -> Predictions:
        """Predicts batches of `batch_size` images, of which those without a verdict are padding."""
        logits = [np.empty(0, np.float32)]
        statuses: list[Status] = []
        details: list[str] = []
        for batch in batches:
            each = [bundle.logits(batch.pixels[bundle.info.image_size]) for bundle in self._bundles]
            logits.append(np.mean(each, axis=0)[: len(batch.statuses)])
            statuses += batch.statuses
            details += batch.details
        plain = np.concatenate(logits)
        unreadable = np.array([status == "unreadable" for status in statuses], bool)
        calibrated = metrics.calibrated(plain, self.info.temperature, self.info.clip)
        return Predictions(
            np.where(unreadable, np.float32(np.nan), plain),
            np.where(unreadable, self.info.prior, calibrated),
            statuses,
            details,
        )

    def _groups(self, items: list[Item]) -> Iterator[list[Item]]:
        return (items[start : start + self.batch_size] for start in range(0, len(items), self.batch_size))

    def _slices(self, decoded: Batch) -> Iterator[Batch]:
        """Cuts decoded images into batches, the last one padded with zeros."""
        count = len(decoded.statuses)
        for start in range(0, count, self.batch_size):
            cut = slice(start, start + self.batch_size)
            padding = ((0, max(0, start + self.batch_size - count)), (0, 0), (0, 0), (0, 0))
            pixels = {size: np.pad(decoded.pixels[size][cut], padding) for size in self.sizes}
            yield Batch(pixels, decoded.statuses[cut], decoded.details[cut])
