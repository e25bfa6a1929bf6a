"""Writing a model bundle: the members as Keras files, their ONNX translations, a model card, and `bundle.json` last.

A translation may go wrong: one is trusted only after it gave what Keras gives on real images.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catdog import stall, storage
from catdog.errors import CatdogError, first_line
from catdog.inference import card, novelty
from catdog.inference.bundle import (
    FILE_NAME,
    IMAGES_NAME,
    VERIFIED,
    BundleInfo,
    SavedBundle,
    onnx_name,
    read_file,
    read_info,
    read_provenance,
    statistics_name,
)
from catdog.inference.engines import OnnxEngine, TensorFlowEngine
from catdog.inference.members import rebuild_model, require_plain_onnx, spec_of
from catdog.inference.novelty import FeatureStatistics, KnownImages
from catdog.inference.provenance import Provenance
from catdog.versions import package_versions

if TYPE_CHECKING:
    import keras

# Between logits; float32 alone makes differences of 1e-5.
TOLERANCE = 1e-3
# Fields of `BundleInfo` that are of the files that are written.
_WRITTEN = {"schema_version", "members", "onnx", "images_known", "checksums", "versions"}


def save_bundle(
    uri: str,
    models: list[keras.Model],
    sample: np.ndarray | None = None,
    provenance: Provenance | None = None,
    known: KnownImages | None = None,
    threads: int = 1,
    **fields: Any,
) -> BundleInfo:
    """Writes a bundle: the members first, `bundle.json` last.

    Args:
        uri: its folder.
        models: the members, from uint8 N×S×S×3 to one logit.
        sample: uint8, N×S×S×3: real images to verify the members' ONNX files with; without them none are made.
        provenance: the images that made it, where they are known.
        known: images to fit the statistics of the features on; without them or ONNX files there are none.
        threads: of ONNX Runtime, for that.
        **fields: what `BundleInfo` holds beyond members, ONNX, images, checksums and versions.

    Returns:
        What was written to `bundle.json`.

    Raises:
        CatdogError: a model is not the one that the registry builds for these fields.
    """
    spec = spec_of(fields["architecture"], fields["image_size"], fields["training"])
    files: list[bytes] = []
    onnx: list[bytes] = []
    why_not = "" if sample is not None and len(sample) else "no image to verify it with"
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.keras"
            model.save(path)
            files.append(path.read_bytes())
            if sample is None or why_not:
                continue
            # As it will be loaded; and a model built for several workers cannot be translated.
            rebuilt = rebuild_model(spec, files[-1])
            stall.beat()  # a translation takes long
            try:
                onnx.append(export_onnx(rebuilt, sample))
            except CatdogError as error:
                why_not = str(error)
    statistics = [] if known is None or why_not else [novelty.fit_statistics(data, known, threads) for data in onnx]
    written = [b"" if one is None else one.to_bytes() for one in statistics]
    return _write(uri, files, onnx, why_not, written, provenance or Provenance(), fields)


def assemble_bundle(uri: str, bundles: list[str], **fields: Any) -> BundleInfo:
    """Writes a bundle whose members are those of others, of one image size; what made them made it.

    Args:
        uri: its folder.
        bundles: URIs of the others.
        **fields: as for `save_bundle`.

    Returns:
        What was written to `bundle.json`.

    Raises:
        CatdogError: their image sizes differ, or one is damaged.
    """
    files: list[bytes] = []
    onnx: list[bytes] = []
    statistics: list[bytes] = []
    why_not = ""
    provenances = []
    for one in bundles:
        place, info = read_info(one)
        provenances.append(read_provenance(place, info))
        if info.image_size != fields["image_size"]:
            raise CatdogError(f"{place} takes {info.image_size} pixels, expected {fields['image_size']} as the others")
        files += [read_file(place, info, member) for member in info.members]
        for name in map(statistics_name, info.members):
            statistics.append(read_file(place, info, name) if name in info.checksums else b"")
        if info.onnx == VERIFIED:
            onnx += [read_file(place, info, onnx_name(member)) for member in info.members]
        else:
            why_not = info.onnx
    return _write(uri, files, onnx, why_not, statistics, Provenance.union(provenances), fields)


def replace_onnx(
    saved: SavedBundle,
    uri: str,
    onnx: list[bytes],
    statistics: list[FeatureStatistics | None],
    provenance: Provenance,
    **fields: Any,
) -> BundleInfo:
    """Writes a bundle with the Keras files of another, and ONNX files of its own.

    Args:
        saved: the other bundle.
        uri: folder of the new one.
        onnx: the ONNX file of each member.
        statistics: of each member's features by that file, or None.
        provenance: the images that made the new one.
        **fields: what `BundleInfo` holds that is not the same.

    Returns:
        What was written to `bundle.json`.

    Raises:
        CatdogError: a file of the other bundle is damaged.
    """
    files = [read_file(saved.uri, saved.info, member) for member in saved.info.members]
    for data in onnx:
        require_plain_onnx(data, saved.info.image_size)
    written = [b"" if one is None else one.to_bytes() for one in statistics]
    same = {name: getattr(saved.info, name) for name in BundleInfo.model_fields if name not in _WRITTEN}
    return _write(uri, files, onnx, "", written, provenance, same | fields)


def _write(
    uri: str,
    files: list[bytes],
    onnx: list[bytes],
    why_not: str,
    statistics: list[bytes],
    provenance: Provenance,
    fields: dict[str, Any],
) -> BundleInfo:
    members = ["model.keras", *(f"model-{number}.keras" for number in range(2, len(files) + 1))]
    content = dict(zip(members, files, strict=True))
    if not why_not:
        content |= {onnx_name(member): data for member, data in zip(members, onnx, strict=True)}
    for member, data in zip(members, statistics, strict=False):
        if data:
            content[statistics_name(member)] = data
    if len(provenance.train) or len(provenance.valid):
        content[IMAGES_NAME] = provenance.to_bytes()
    for name, data in content.items():
        storage.write_bytes(storage.join(uri, name), data)
    checksums = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    info = BundleInfo(
        members=members,
        onnx=why_not or VERIFIED,
        images_known=provenance.known,
        checksums=checksums,
        versions=package_versions(),
        **fields,
    )
    _describe(uri, info, provenance)
    return info


def _describe(uri: str, info: BundleInfo, provenance: Provenance) -> None:
    """Writes the model card, then `bundle.json`."""
    storage.write_text(storage.join(uri, card.NAME), card.write_card(info, provenance))
    storage.write_text(storage.join(uri, FILE_NAME), info.model_dump_json(indent=2) + "\n")


def mark_chosen(model: str, **figures: float) -> None:
    """Writes into a bundle that it was chosen among others on its validation images.

    Args:
        model: URI of a run or of a bundle.
        **figures: of the choice, for `BundleInfo.validation`.
    """
    uri, info = read_info(model)
    marked = info.model_copy(update={"chosen_on": "validation", "validation": info.validation | figures})
    if marked != info:
        _describe(uri, marked, read_provenance(uri, info))


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
            require_plain_onnx(data, sample.shape[1])
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
