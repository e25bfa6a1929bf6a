"""Distillation: one model learns to give the probabilities of a bundle, its teacher, which may have several.

In each step the teacher predicts the very pixels that the model is trained on, changed as they are, in place of
probabilities that were written down once ("Knowledge distillation: a good teacher is patient and consistent", Beyer et
al., 2022). It is run by its Keras files, on each worker's own images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from catdog.data.catalog import Catalog
from catdog.errors import CatdogError, UsageError
from catdog.inference import bundle, engines, members
from catdog.inference.bundle import SavedBundle
from catdog.inference.provenance import Provenance
from catdog.models import batch_norm, mixed_precision, registry
from catdog.training.checkpoint import Precision
from catdog.training.config import ResolvedConfig


@dataclass(frozen=True)
class Teacher:
    """A bundle that teaches, as each worker is given it.

    Attributes:
        saved: where it is, and what it says.
        provenance: the images that made it.
        files: a reference to the bytes of its members' Keras files, in their order.
    """

    saved: SavedBundle
    provenance: Provenance
    files: ray.ObjectRef

    @property
    def record(self) -> dict[str, Any]:
        """What the bundle that learned from it says of it."""
        info = self.saved.info
        return {
            "fingerprint": bundle.fingerprint_of(info),
            "architecture": info.architecture,
            "members": len(info.members),
        }


def find_teacher(config: ResolvedConfig, data: Catalog) -> SavedBundle | None:
    """Finds a run's teacher, and makes sure that it can teach what the data set is about; nothing of it is loaded.

    Args:
        config: of the run.
        data: the catalog.

    Returns:
        The bundle, or None for a run without a teacher.

    Raises:
        UsageError: there is no such bundle, it is int8, or has other classes.
        CatdogError: it is of another version, incomplete or damaged.
    """
    if config.optimizer.teacher is None:
        return None
    uri, info = bundle.read_info(config.optimizer.teacher, "teacher")
    if info.quantisation is not None:
        raise UsageError(f"teacher received {uri}, which is int8; give the float32 bundle that it was made of")
    if info.class_names != data.class_names:
        raise UsageError(
            f"teacher received {uri}, which tells {info.class_names} apart, but the data set holds {data.class_names}"
        )
    for member in info.members:
        registry.get_architecture(info.spec(member).arch)
    return SavedBundle(uri, info)


def require_unseen(saved: SavedBundle | None, judging: pa.Table, must_know: bool = False) -> None:
    """Makes sure that a teacher was not trained on the images that are to judge the model that learns from it.

    Args:
        saved: from `find_teacher`.
        judging: rows of a catalog.
        must_know: where it cannot be told is as bad as where it was.

    Raises:
        UsageError: it was.
    """
    if saved is None:
        return
    provenance = bundle.read_provenance(*saved)
    if must_know and (not provenance.known or judging["digest"].null_count):
        raise UsageError(
            f"teacher received {saved.uri}, but it is not known which images it was trained on, or which these are; "
            "expected a bundle and a data set made since catdog writes that down"
        )
    seen = provenance.trained_on(judging["digest"])
    if seen.any():
        raise UsageError(
            f"teacher received {saved.uri}, which was trained on {int(seen.sum()):,} of the {len(judging):,} images "
            f"that judge this run, such as {judging['key'][int(seen.argmax())]}, so its figures would be too good; "
            "expected a teacher that was trained without them"
        )


def judging_rows(data: Catalog) -> pa.Table:
    """The images of a data set that a model trained on it is judged by: those with labels in its other splits."""
    return data.table.filter(pc.and_(pc.not_equal(data.table["split"], "train"), pc.is_valid(data.table["label"])))


def load_teacher(config: ResolvedConfig) -> Teacher | None:
    """Puts a run's teacher where every worker can read it, and makes sure that it takes images of training's size.

    Args:
        config: of the run.

    Raises:
        UsageError: there is no such bundle, or it does not take them.
        CatdogError: it is damaged.
    """
    if config.optimizer.teacher is None:
        return None
    saved = bundle.read_info(config.optimizer.teacher, "teacher")
    uri, info = saved
    files = ray.put([bundle.read_file(uri, info, member) for member in info.members])
    teacher, size = Teacher(saved, bundle.read_provenance(uri, info), files), config.train_size
    if size != info.image_size:
        # In a process of its own, so that later tasks can still set TensorFlow's number of threads.
        error = ray.get(ray.remote(max_calls=1)(_find_fault).remote(teacher, size))
        if error:
            raise UsageError(
                f"teacher received {uri}, which takes images of {info.image_size} pixels, and not of the {size} that "
                f"this run trains on ({error}); expected --image-size and train_scale that make {info.image_size}, or "
                "a teacher of convolutions and pooling only"
            )
    return teacher


def _find_fault(teacher: Teacher, size: int) -> str:
    """Runs on the cluster: why the members cannot be built for a size, or ""."""
    engines.set_up(1, gpu=False)
    try:
        _build_members(teacher, size)
    except CatdogError as error:
        return str(error)
    return ""


def _build_members(teacher: Teacher, size: int) -> list[Any]:
    """The Keras models of the members, for images of a size that need not be the bundle's."""
    info = teacher.saved.info
    return [
        members.rebuild_model(dataclasses.replace(info.spec(member), image_size=size), data)
        for member, data in zip(info.members, ray.get(teacher.files), strict=True)
    ]


def build_teacher(teacher: Teacher, size: int, mixed: Precision, gpu: bool) -> Callable[[Any, Precision], Any]:
    """Builds a teacher in a worker.

    It computes in the precision of the run: one that is not exact to the last bits teaches as well, in less time. Its
    logits are averaged over the members and divided by its temperature, as in scoring, but of one view, and without the
    clip, which guards a log loss against wrong labels.

    Args:
        teacher: the bundle.
        size: T, of training's images, in pixels.
        mixed: the precision in which the layers of the model that learns compute.
        gpu: whether the worker has a GPU.

    Returns:
        A function from uint8 N×T×T×3 and the precision of matrix products on CPUs to the probabilities of label 1,
        float32, N, in TensorFlow and without a gradient.

    Raises:
        CatdogError: a member cannot be built for this size.
    """
    import tensorflow as tf

    info, models = teacher.saved.info, _build_members(teacher, size)

    def run(number: int, pixels: Any, precision: Precision) -> Any:
        model = models[number]
        if folds[number]:
            return batch_norm.apply_folded(model, pixels, precision == "bfloat16", training=False)
        return model(pixels, training=False)

    folds = [
        not gpu
        and registry.get_architecture(info.spec(member).arch).has_backbone
        and batch_norm.can_fold_batch_norm(model)
        for member, model in zip(info.members, models, strict=True)
    ]
    if mixed != "float32":
        models = [mixed_precision.to_mixed_precision(model, mixed) for model in models]

    def teach(pixels: Any, precision: Precision) -> Any:
        logits = [run(number, pixels, precision)[:, 0] for number in range(len(models))]
        return tf.stop_gradient(tf.sigmoid(tf.reduce_mean(tf.stack(logits), axis=0) / info.temperature))

    return teach
