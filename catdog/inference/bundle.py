"""The model bundle: Keras models, how to read their output, and what they were trained on, in one folder.

`model.keras` (and `model-2.keras` … for further members) are plain Keras files, of which catdog reads the weights only;
`model.onnx` … the same for ONNX Runtime; `model.features.npz` … say where the features of known photos lie, for
`inference.novelty`; `images.parquet` names the images that made it; `bundle.json` says the rest and holds a checksum
for each. It is written last: a folder without it is not a bundle.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pydantic

from catdog import run_directory, storage
from catdog.choices import EngineName, View
from catdog.errors import CatdogError, UsageError, did_you_mean, first_line
from catdog.evaluation import metrics
from catdog.inference import engines, members
from catdog.inference.engines import Engine
from catdog.inference.precision import Quantisation
from catdog.inference.provenance import Provenance
from catdog.inference.views import apply_view
from catdog.models.spec import ModelSpec
from catdog.run_directory import RunDirectory

if TYPE_CHECKING:
    import keras

FILE_NAME = run_directory.BUNDLE
IMAGES_NAME = "images.parquet"
SCHEMA_VERSION = 3
# Version 2 names no images.
_READABLE = (2, 3)
VERIFIED = "verified"
# Of one file; a VGG16 has half a gigabyte.
_MOST_BYTES = 2 << 30


class BundleInfo(pydantic.BaseModel):
    """Content of `bundle.json`.

    Attributes:
        schema_version: of this file's shape.
        architecture: name in the registry; of members of several, all of them, joined by " + ".
        image_size: S, in pixels.
        class_names: of labels 0 and 1; probabilities are of the second.
        members: file names of the models, averaged in logit space.
        onnx: "verified" where each member has an ONNX file beside it, or why not.
        quantisation: how these files were made int8, and what that changed; None where they are float32.
        views: how each image is shown to each member, averaged likewise.
        calibration: what temperature and clip were fitted on.
        temperature: what the averaged logit is divided by.
        clip: how far probabilities stay away from 0 and 1.
        prior: share of label 1 in the training split; what an unreadable image gets.
        validation: figures of the validation split with the kept weights, from plain logits. `log_loss_cross_chosen`
            and `log_loss_cross_searched`: each half of it judged by the epoch, or the trial, that is best on the other.
        chosen_on: what chose the kept epoch, or this model among others.
        catalog_fingerprint: of the data set it was trained on.
        seed: of the run.
        training: the run's options and its history.
        versions: of the packages that made it.
        images_known: `images.parquet` names all the images that it was trained, chosen and calibrated on.
        checksums: SHA-256 (hex) of each member's files, and of `images.parquet` where there is one.
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=False)

    schema_version: int = SCHEMA_VERSION
    architecture: str
    image_size: Annotated[int, pydantic.Field(gt=0, le=4096)]
    class_names: tuple[str, str]
    members: Annotated[list[str], pydantic.Field(min_length=1)]
    onnx: str
    quantisation: Quantisation | None = None
    views: Annotated[list[View], pydantic.Field(min_length=1)]
    calibration: Literal["none", "validation"]
    temperature: Annotated[float, pydantic.Field(gt=0)]
    clip: Annotated[float, pydantic.Field(gt=0, lt=0.5)]
    prior: Annotated[float, pydantic.Field(gt=0, lt=1)]
    validation: dict[str, float | int]
    chosen_on: Literal["none", "validation"]
    catalog_fingerprint: str
    seed: int
    training: dict[str, Any]
    versions: dict[str, str]
    images_known: bool
    checksums: dict[str, str]

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_version_2(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("schema_version") != 2:
            return values
        training = values.get("training")
        options = training.get("options") if isinstance(training, dict) else None
        best = isinstance(options, dict) and options.get("keep") == "best"
        return {"chosen_on": "validation" if best else "none", "images_known": False} | values

    @pydantic.model_serializer(mode="wrap")
    def _without_absent(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        # So that a float32 bundle has the bytes and the fingerprint that it had before there were others.
        written: dict[str, Any] = handler(self)
        if self.quantisation is None:
            written.pop("quantisation", None)
        return written

    @property
    def engines(self) -> tuple[EngineName, ...]:
        """Engines that can predict with it, the fastest on a CPU first."""
        return ("onnx", "tensorflow") if self.onnx == VERIFIED else ("tensorflow",)

    def spec(self, member: str) -> ModelSpec:
        """What one of `members` is built from; raises CatdogError as `members.spec_of`."""
        trained = self.training.get("members")
        own = dict(zip(self.members, trained, strict=False)).get(member) if isinstance(trained, list) else None
        # Without an entry of its own, one run made it and all others.
        return members.spec_of(self.architecture, self.image_size, own if isinstance(own, dict) else self.training)


class SavedBundle(NamedTuple):
    """A bundle that is not loaded.

    Attributes:
        uri: its folder.
        info: what `bundle.json` holds.
    """

    uri: str
    info: BundleInfo


class ModelBundle:
    """A loaded bundle.

    Attributes:
        info: what `bundle.json` holds.
        uri: its folder.
    """

    def __init__(self, info: BundleInfo, engines: list[Engine], uri: str) -> None:
        self.info = info
        self.uri = uri
        self._engines = engines

    @classmethod
    def load(cls, model: str, engine: EngineName | None = None, threads: int = 1) -> ModelBundle:
        """Loads a bundle and its members, checksums verified; of a Keras file, the weights only.

        Args:
            model: URI of a run or of a bundle.
            engine: what predicts; None is the fastest on a CPU that the bundle has.
            threads: of ONNX Runtime; TensorFlow's are the whole process's (`engines.set_up`).

        Raises:
            UsageError: there is none.
            CatdogError: it is of another version, incomplete or damaged.
        """
        return cls.load_saved(read_info(model), engine, threads)

    @classmethod
    def load_saved(cls, saved: SavedBundle, engine: EngineName | None = None, threads: int = 1) -> ModelBundle:
        """Loads a bundle whose description was read already; else as `load`.

        Args:
            saved: from `read_info`, perhaps of another process.
            engine: as for `load`.
            threads: as for `load`.

        Raises:
            UsageError: it lacks the engine.
            CatdogError: a file is absent, or not the one that the description was written for.
        """
        uri, info = saved
        engine = engine or info.engines[0]
        if engine not in info.engines:
            raise UsageError(f"--engine received {engine}, but {uri} has no ONNX model: {info.onnx}")
        if engine == "onnx":
            files = [read_onnx(uri, info, member) for member in info.members]
            return cls(info, [engines.OnnxEngine(data, threads) for data in files], uri)
        return cls(info, [engines.TensorFlowEngine(load_member(uri, info, member)) for member in info.members], uri)

    def logits(self, batch: np.ndarray) -> np.ndarray:
        """Predicts the plain logit of each image: the mean over members and views, before temperature and clip.

        Args:
            batch: uint8, N×S×S×3, RGB.

        Returns:
            float32, N.
        """
        views = [apply_view(batch, view) for view in self.info.views]
        return np.stack([engine.logits(view) for engine in self._engines for view in views]).mean(axis=0)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Turns plain logits into calibrated, clipped probabilities of the second class.

        Args:
            logits: float32, N.

        Returns:
            float64 in [clip, 1 - clip], N.
        """
        return metrics.calibrated(logits, self.info.temperature, self.info.clip)


def read_info(model: str, option: str = "--model") -> SavedBundle:
    """Finds a bundle and reads what `bundle.json` says, without loading a model.

    Args:
        model: URI of a run (with the bundle in `model/`) or of a bundle.
        option: that it was given to.

    Returns:
        Where the bundle is, and what it says.

    Raises:
        UsageError: there is no bundle.
        CatdogError: another schema version, a field missing or out of range.
    """
    model = storage.absolute(model)
    for uri in (model, RunDirectory(model).model):
        path = storage.join(uri, FILE_NAME)
        if storage.kind(path) == "file":
            break
    else:
        unfinished = RunDirectory(model).exists
        near = did_you_mean(storage.name(model), storage.names_beside(model))
        hint = "the run is not finished: continue it with `catdog train --resume`" if unfinished else "train one first"
        raise UsageError(
            f"{option} received {model}, which holds no {FILE_NAME}, nor does its model/ folder; {hint}{near}"
        )
    try:
        raw = storage.read_bytes(path, _MOST_BYTES)
    except OSError as error:
        raise CatdogError(f"could not read {path}: {error.strerror or error}") from error
    try:
        header = pydantic.TypeAdapter(dict[str, Any]).validate_json(raw)
        version = header.get("schema_version")
        if version not in _READABLE:
            raise CatdogError(f"{path} has schema version {version}, expected {SCHEMA_VERSION}; train the model again")
        info = BundleInfo.model_validate_json(raw)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise CatdogError(f"{path} is not a valid bundle: {field}: {first['msg']}; train the model again") from error
    for member in info.members:
        files = [member, onnx_name(member)] if info.onnx == VERIFIED else [member]
        if "/" in member or "\\" in member or not info.checksums.keys() >= set(files):
            raise CatdogError(f"{path} names the member {member!r} without a checksum or outside its folder")
    return SavedBundle(uri, info)


def read_provenance(uri: str, info: BundleInfo) -> Provenance:
    """Reads which images made a bundle; of a bundle that names none, nothing is known.

    Args:
        uri: of the bundle, from `read_info`.
        info: likewise.

    Raises:
        CatdogError: the file is absent or damaged.
    """
    if IMAGES_NAME not in info.checksums:
        return Provenance()
    data = read_file(uri, info, IMAGES_NAME)
    try:
        return Provenance.from_bytes(data, info.images_known)
    except (pa.ArrowException, KeyError) as error:
        path = storage.join(uri, IMAGES_NAME)
        raise CatdogError(f"{path} is no list of images that catdog wrote ({first_line(error)})") from error


def onnx_name(member: str) -> str:
    """The name of a member's ONNX file."""
    return f"{member.removesuffix('.keras')}.onnx"


def statistics_name(member: str) -> str:
    """The name of the file with the statistics of a member's features, which a bundle may lack."""
    return f"{member.removesuffix('.keras')}.features.npz"


def merge_infos(infos: list[BundleInfo]) -> BundleInfo:
    """Describes several bundles as one whose logit is the mean of theirs.

    Args:
        infos: of bundles that tell the same classes apart; one is given back as it is.

    Returns:
        Members of all, named by their bundle's number; temperature, clip and prior are means.

    Raises:
        UsageError: their classes differ.
    """
    first = infos[0]
    if len(infos) == 1:
        return first
    for info in infos[1:]:
        if info.class_names != first.class_names:
            raise UsageError(
                f"--model received models of {first.class_names} and of {info.class_names}; expected the same classes"
            )
    named = {
        f"{number}/{member}": info.checksums[member] for number, info in enumerate(infos) for member in info.members
    }
    return first.model_copy(
        update={
            "architecture": merged_architecture(infos),
            "members": list(named),
            # Of each it is in its own description.
            "quantisation": None,
            "onnx": next((info.onnx for info in infos if info.onnx != VERIFIED), VERIFIED),
            "checksums": named,
            "views": list(dict.fromkeys(view for info in infos for view in info.views)),
            "calibration": "validation" if any(info.calibration == "validation" for info in infos) else "none",
            "temperature": float(np.exp(np.mean([np.log(info.temperature) for info in infos]))),
            "clip": float(np.mean([info.clip for info in infos])),
            "prior": float(np.mean([info.prior for info in infos])),
            "catalog_fingerprint": "+".join(dict.fromkeys(info.catalog_fingerprint for info in infos)),
            "chosen_on": "validation" if any(info.chosen_on == "validation" for info in infos) else "none",
            "images_known": all(info.images_known for info in infos),
            "validation": {},
            "training": {"bundles": [fingerprint_of(info) for info in infos]},
        }
    )


def merged_architecture(infos: list[BundleInfo]) -> str:
    """The architectures of several bundles as one name, each once.

    Args:
        infos: of the bundles.
    """
    return " + ".join(dict.fromkeys(info.architecture for info in infos))


def fingerprint_of(info: BundleInfo) -> str:
    """SHA-256 (hex) over everything a bundle says, its members' checksums included."""
    return hashlib.sha256(info.model_dump_json().encode()).hexdigest()


def require_intact(saved: SavedBundle, engine: EngineName) -> None:
    """Makes sure that all files that an engine will load are there and whole, before anybody waits for actors.

    What a Keras file holds is seen only when it is loaded, for which TensorFlow would have to be imported.

    Args:
        saved: the bundle, from `read_info`.
        engine: one of those that it has.

    Raises:
        CatdogError: a file is absent, not the one that was saved, or not a plain ONNX file.
    """
    uri, info = saved
    for member in info.members:
        if engine == "onnx":
            read_onnx(uri, info, member)
        else:
            read_file(uri, info, member)


def read_file(uri: str, info: BundleInfo, name: str) -> bytes:
    """Reads one of a bundle's files, and makes sure that it is the one that was saved.

    Args:
        uri: of the bundle.
        info: what `bundle.json` holds.
        name: of the file.

    Raises:
        CatdogError: it is absent or damaged.
    """
    path = storage.join(uri, name)
    try:
        data = storage.read_bytes(path, _MOST_BYTES)
    except OSError as error:
        raise CatdogError(f"could not read the bundle's {path}: {error.strerror or error}") from error
    if hashlib.sha256(data).hexdigest() != info.checksums[name]:
        raise CatdogError(f"{path} is not the file that bundle.json was written for (its checksum differs)")
    return data


def read_onnx(uri: str, info: BundleInfo, member: str) -> bytes:
    """Reads a member's ONNX file, and makes sure that it is no more than a model of images.

    Args:
        uri: of the bundle.
        info: what `bundle.json` holds.
        member: one of `info.members`.

    Raises:
        CatdogError: it is absent or damaged, or could reach beyond itself.
    """
    name = onnx_name(member)
    data = read_file(uri, info, name)
    try:
        members.require_plain_onnx(data, info.image_size)
    except ValueError as error:
        raise CatdogError(f"{storage.join(uri, name)} {error}") from error
    return data


def load_member(uri: str, info: BundleInfo, member: str) -> keras.Model:
    """Builds one of a bundle's Keras models from the registry, and loads its weights, checksum verified.

    Args:
        uri: of the bundle.
        info: what `bundle.json` holds.
        member: one of `info.members`.

    Raises:
        CatdogError: the file is absent or damaged, or holds another model.
    """
    data = read_file(uri, info, member)
    try:
        return members.rebuild_model(info.spec(member), data)
    except CatdogError as error:
        raise CatdogError(f"{storage.join(uri, member)}: {error}") from error
