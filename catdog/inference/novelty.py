"""Novelty: whether a photo is unlike those that a model was trained on, and so perhaps of neither class.

A model gives a photo of anything one of its two classes, often with confidence. What it knows is seen in its features,
the input of its last layer. The score is their Mahalanobis distance from the nearer class of the training photos (Lee
et al., 2018), with a covariance of few directions and the same variance in all others (Tipping and Bishop, 1999), in
units of the distance that 99 % of the validation photos do not exceed.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from catdog import stall
from catdog.data import images
from catdog.errors import CatdogError
from catdog.inference.bundle import VERIFIED, SavedBundle, read_file, read_onnx, statistics_name
from catdog.inference.engines import CHUNK, OnnxEngine

# More than these make the score little better, and the end of a training run longer.
TRAIN_IMAGES, VALID_IMAGES = 1000, 500
_FEWEST = 20
_DIRECTIONS = 128
_QUANTILE = 0.99
# Of the file, unpacked; the widest features, VGG16's, take a fifth.
_MOST_BYTES = 64 << 20


class KnownImages(NamedTuple):
    """Images that a model knows, or should.

    Attributes:
        train: uint8 S×S×3 each: training images.
        labels: of them, int, 0 or 1.
        valid: uint8 S×S×3 each: validation images.
    """

    train: Sequence[np.ndarray]
    labels: np.ndarray
    valid: Sequence[np.ndarray]


@dataclass(frozen=True)
class FeatureStatistics:
    """Where the features of one member's training images lie.

    Attributes:
        means: float32, 2×D: of each class.
        directions: float32, D×K: orthonormal, those of the greatest variance within the classes.
        variances: float32, K: along them, descending.
        rest: variance along every other direction.
        limit: the squared distance that 99 % of the validation images do not exceed.
    """

    means: np.ndarray
    directions: np.ndarray
    variances: np.ndarray
    rest: float
    limit: float

    @classmethod
    def fit(cls, train: np.ndarray, labels: np.ndarray, valid: np.ndarray) -> FeatureStatistics | None:
        """Fits statistics; None where there are too few images, or features that do not vary.

        Args:
            train: float, N×D: features of training images.
            labels: int, N, 0 or 1.
            valid: float, M×D: features of validation images.
        """
        counts = np.bincount(labels, minlength=2)
        if counts.min() < _FEWEST or len(valid) < _FEWEST or not np.isfinite(train).all():
            return None
        train = train.astype(np.float64)
        means = np.stack([train[labels == label].mean(axis=0) for label in (0, 1)])
        within = train - means[labels]
        _, values, vectors = np.linalg.svd(within, full_matrices=False)
        variances = values**2 / len(train)
        # A direction for eight images at most: of fewer images none is sure.
        kept = min(_DIRECTIONS, len(train) // 8, int((variances > 1e-9 * variances[0]).sum()))
        others = train.shape[1] - kept
        rest = variances[kept:].sum() / others if others else 0.0
        if not kept or (others and not rest > 0):
            return None
        fitted = cls(
            means.astype(np.float32),
            vectors[:kept].T.astype(np.float32),
            variances[:kept].astype(np.float32),
            float(rest),
            1.0,
        )
        limit = float(np.quantile(fitted.scores(valid) ** 2, _QUANTILE))
        return cls(fitted.means, fitted.directions, fitted.variances, fitted.rest, limit) if limit > 0 else None

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Distance of features from the nearer class, in units of the limit.

        Args:
            features: float, N×D.

        Returns:
            float64, N; above 1 for what is farther than 99 % of the validation images.
        """
        squared = []
        for mean in self.means.astype(np.float64):
            offset = features - mean
            along = offset @ self.directions.astype(np.float64)
            distance = (along**2 / self.variances).sum(axis=1)
            if self.rest:
                distance += np.maximum((offset**2).sum(axis=1) - (along**2).sum(axis=1), 0) / self.rest
            squared.append(distance)
        return np.asarray(np.sqrt(np.min(squared, axis=0) / self.limit))

    def to_bytes(self) -> bytes:
        """Writes a NumPy archive."""
        out = io.BytesIO()
        np.savez(
            out, means=self.means, directions=self.directions, variances=self.variances, rest=self.rest,
            limit=self.limit,
        )  # fmt: skip
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> FeatureStatistics:
        """Reads what `to_bytes` wrote.

        Raises:
            CatdogError: it is something else.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if sum(info.file_size for info in archive.infolist()) > _MOST_BYTES:
                    raise ValueError(f"more than {_MOST_BYTES:,} bytes")
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                read = cls(
                    file["means"], file["directions"], file["variances"], float(file["rest"]), float(file["limit"])
                )
            width, kept = read.directions.shape
            if read.means.shape != (2, width) or read.variances.shape != (kept,):
                raise ValueError("shapes that do not fit each other")
            return read
        except (OSError, ValueError, KeyError, EOFError, TypeError, MemoryError, zipfile.BadZipFile) as error:
            raise CatdogError("the bundle's statistics of features are damaged; train the model again") from error


class FeatureExtractor:
    """The features of one member: the input of its last layer, computed by ONNX Runtime."""

    def __init__(self, onnx: bytes, threads: int = 1) -> None:
        """Loads a member's ONNX file, asked for the tensor that its last matrix multiplication takes.

        Raises:
            CatdogError: it has no such layer.
        """
        import onnx as onnx_format

        model = onnx_format.load_from_string(onnx)
        makers = {output: node for node in model.graph.node for output in node.output}
        tensor = model.graph.output[0].name
        while (node := makers.get(tensor)) is not None:
            tensor = node.input[0]
            if node.op_type in ("MatMul", "Gemm"):
                break
        else:
            raise CatdogError("the ONNX model does not end with a dense layer")
        del model.graph.output[:]
        model.graph.output.append(
            onnx_format.helper.make_tensor_value_info(tensor, onnx_format.TensorProto.FLOAT, None)
        )
        self._engine = OnnxEngine(model.SerializeToString(), threads)

    def features(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Computes features.

        Args:
            pixels: N images, uint8 S×S×3.

        Returns:
            float32, N×D.
        """
        found = []
        for start in range(0, len(pixels), CHUNK):
            stall.beat()
            found.append(self._engine.run(np.stack(pixels[start : start + CHUNK])))
        return np.concatenate(found)


def fit_statistics(onnx: bytes, known: KnownImages, threads: int = 1) -> FeatureStatistics | None:
    """Fits the statistics of one member's features; None where that is not possible.

    Args:
        onnx: its ONNX file.
        known: the images.
        threads: of ONNX Runtime.
    """
    if not len(known.train) or not len(known.valid):
        return None
    try:
        extractor = FeatureExtractor(onnx, threads)
    except CatdogError:
        return None
    return FeatureStatistics.fit(extractor.features(known.train), known.labels, extractor.features(known.valid))


class NoveltyScorer:
    """Scores of photos by one bundle or several, which must have statistics."""

    def __init__(self, bundles: Iterable[SavedBundle]) -> None:
        """Loads the bundles' statistics and ONNX files.

        Raises:
            CatdogError: one has no statistics, or a file is damaged.
        """
        self._members: list[tuple[int, FeatureExtractor, FeatureStatistics]] = []
        for uri, info in bundles:
            for member in info.members:
                if not has_statistics(SavedBundle(uri, info)):
                    raise CatdogError(f"{uri} has no statistics of its features; train the model again")
                statistics = FeatureStatistics.from_bytes(read_file(uri, info, statistics_name(member)))
                extractor = FeatureExtractor(read_onnx(uri, info, member))
                self._members.append((info.image_size, extractor, statistics))

    def scores(self, files: Sequence[bytes | str]) -> np.ndarray:
        """Scores photos; the mean of several members.

        Args:
            files: N, as of `images.fetch`: the bytes of each file, or why there are none.

        Returns:
            float64, N: above 1 for a photo that is farther from the training photos than 99 % of the validation photos;
            NaN for an unreadable photo.
        """
        found = np.full((len(self._members), len(files)), np.nan)
        for column, data in enumerate(files):
            for row, (size, extractor, statistics) in enumerate(self._members):
                decoded = None if isinstance(data, str) else images.decode_image(data, size)
                if decoded is not None and decoded.status != "unreadable":
                    found[row, column] = statistics.scores(extractor.features([decoded.pixels]))[0]
        return np.asarray(found.mean(axis=0))


def has_statistics(saved: SavedBundle) -> bool:
    """Tells whether a bundle can score novelty: all its members have statistics and ONNX files."""
    info = saved.info
    return info.onnx == VERIFIED and all(statistics_name(member) in info.checksums for member in info.members)
