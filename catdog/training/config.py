"""The options of a training run: what is asked for (`TrainConfig`), and what is decided (`ResolvedConfig`).

An option that was given stands; one that was left out is the recipe's, then the architecture's, then the default here.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import pydantic

from catdog import storage
from catdog.errors import UsageError
from catdog.inference.views import View
from catdog.models import registry
from catdog.training.augmentation import Augmentation
from catdog.training.recipes import get_recipe

# Options that may differ between the members of a bundle; all others, such as image size and views, it has once.
MEMBER_FIELDS = frozenset(
    {"seed", "epochs", "learning_rate", "layer_decay", "weight_decay", "warm_up", "dropout", "label_smoothing", "mixup"}
    | {"ema", "augment", "augmentation", "train_scale", "trainable_from", "batch_size", "freeze"}
)

_Share = Annotated[float, pydantic.Field(ge=0, lt=1)]


class TrainConfig(pydantic.BaseModel):
    """The options of `catdog train`; None means "decide for me", and `resolve` does.

    Attributes:
        data: URI of a prepared data set.
        recipe: name in `RECIPES`.
        arch: name in the registry.
        alpha: width multiplier of mobilenet.
        conv_layers: of gray_cnn.
        units: of each of gray_cnn's layers.
        dense_layers: of gray_cnn.
        weights: "imagenet", "none" or the URI of a Keras weights file without the top.
        image_size: S, in pixels.
        train_scale: training images come out of augmentation at this share of S. Random crops show things larger than
            whole images do, so a smaller size in training evens it out (Touvron et al., 2019), and is faster.
        freeze: keep the backbone's weights as they are.
        trainable_from: the backbone's first layer that is trained; "auto" is the architecture's own, None is all.
        head_first: fit the head on the frozen backbone's features before the first epoch.
        epochs: at most this many; 0 with `head_first` leaves it at that.
        batch_size: the global batch, in images, over all workers.
        optimizer: AdamW, Adam, RMSprop or SGD with Nesterov momentum 0.9.
        learning_rate: the peak rate.
        layer_decay: each layer's rate is this times that of the layer with weights after it, from the head down.
        schedule: "cosine" down to 0 or "constant", both after warm-up.
        warm_up: share of all steps over which the rate rises from 0.
        weight_decay: decoupled (Loshchilov and Hutter, 2019), of AdamW only.
        dropout: before the logit; None is the architecture's own.
        label_smoothing: in [0, 1).
        mixup: alpha of the Beta distribution (Zhang et al., 2018); 0 is none.
        ema: decay a step of the averaged weights that are validated and kept; 0 is none.
        balance: weigh both classes alike, whatever their shares.
        augmentation: what is done to the training images.
        augment: False switches it off.
        keep: the epoch of the "best" validation log loss, or the "last".
        patience: stop after this many epochs without a better one; for `keep` "best".
        views: how scoring shows each image to the model.
        calibrate: fit temperature and clip on the validation split.
        precision: of the frozen and fine-tuned backbone's matrix products while training.
        members: what each member of the bundle has differently, trained one after the other; empty is one model.
        leave_out: URI of a list of training images to leave out: a key a line, or a CSV with a column `key`.
        seed: of initial weights, order and augmentation.
        workers: Ray Train workers.
        cpus_per_worker: CPUs of each.
        gpu: a GPU for each.
        name: of the run.
        runs: URI of the folder of runs.
        features: URI of the folder of cached features; None is `.features` in `runs`.
        resume: continue the run of this name.
        overwrite: delete the run of this name first.
        address: of the Ray cluster.
        wait: seconds to wait for CPUs or GPUs that others hold; None is for as long as it takes.
        debug: show Ray's log and tracebacks.
    """

    model_config = pydantic.ConfigDict(extra="forbid")

    data: str
    recipe: str | None = None
    arch: str | None = None
    alpha: Annotated[float, pydantic.Field(gt=0)] = 1.0
    conv_layers: Annotated[int, pydantic.Field(ge=1, le=6)] = 3
    units: Annotated[int, pydantic.Field(ge=1)] = 64
    dense_layers: Annotated[int, pydantic.Field(ge=0, le=6)] = 0
    weights: str | None = None
    image_size: Annotated[int, pydantic.Field(ge=16, le=2048)] | None = None
    train_scale: Annotated[float, pydantic.Field(ge=0.25, le=1)] = 1.0
    freeze: bool | None = None
    trainable_from: str | None = None
    head_first: bool = False
    epochs: Annotated[int, pydantic.Field(ge=0)] = 10
    batch_size: Annotated[int, pydantic.Field(ge=1)] = 64
    optimizer: Literal["adamw", "adam", "rmsprop", "sgd"] = "adamw"
    learning_rate: Annotated[float, pydantic.Field(gt=0)] | None = None
    layer_decay: Annotated[float, pydantic.Field(gt=0, le=1)] = 1.0
    schedule: Literal["cosine", "constant"] = "cosine"
    warm_up: _Share = 0.05
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 1e-4
    dropout: _Share | None = None
    label_smoothing: _Share = 0.0
    mixup: Annotated[float, pydantic.Field(ge=0)] = 0.0
    ema: _Share = 0.0
    balance: bool = False
    augmentation: Augmentation = Augmentation(mirror=True, shift=0.08, rotation=12, zoom=0.12)
    augment: bool = True
    keep: Literal["best", "last"] = "best"
    patience: Annotated[int, pydantic.Field(ge=1)] = 5
    views: Annotated[list[View], pydantic.Field(min_length=1)] = ["identity"]
    calibrate: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    members: list[dict[str, Any]] = []
    leave_out: str | None = None
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**31)] = 0
    workers: Annotated[int, pydantic.Field(ge=1)] | None = None
    cpus_per_worker: Annotated[int, pydantic.Field(ge=1)] | None = None
    gpu: bool | None = None
    name: str | None = None
    runs: str = "runs"
    features: str | None = None
    resume: bool = False
    overwrite: bool = False
    address: str | None = None
    wait: Annotated[float, pydantic.Field(ge=0)] | None = None
    debug: bool = False

    @property
    def run(self) -> str:
        """URI of the run's folder."""
        return storage.join(self.runs, self.name or "")

    def resolve(self) -> ResolvedConfig:
        """Fills in what was left open, and checks what was given against the registry.

        Returns:
            All options, decided. Only what the cluster gives may still be None, until its plan is made.

        Raises:
            UsageError: options that contradict each other, or an unknown recipe.
        """
        recipe = get_recipe(self.recipe or _default_recipe(self))
        given = {name: getattr(self, name) for name in self.model_fields_set if getattr(self, name) is not None}
        if "augmentation" in given and "augmentation" in recipe.options:
            # The fields that were given stand; the others are the recipe's.
            said = {name: getattr(self.augmentation, name) for name in self.augmentation.model_fields_set}
            given["augmentation"] = recipe.options["augmentation"].model_copy(update=said)
        return _decide(TrainConfig(**(recipe.options | given | {"recipe": recipe.name})))


class ResolvedConfig(TrainConfig):
    """Decided options of a training run, as `TrainConfig.resolve` returns them; nothing changes them any more.

    None is left where it says something: no limit, no list, the architecture's own; and for workers, CPUs and GPUs
    before the cluster's plan. It is written to `config.json` and `bundle.json` as the same fields as `TrainConfig`.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    recipe: str
    arch: str
    weights: str
    image_size: Annotated[int, pydantic.Field(ge=16, le=2048)]
    freeze: bool
    learning_rate: Annotated[float, pydantic.Field(gt=0)]
    name: str
    features: str

    @property
    def train_size(self) -> int:
        """The side of the images that the model is trained on, in pixels."""
        return round(self.image_size * self.train_scale)

    @property
    def spec(self) -> registry.ModelSpec:
        """The description that the model is built from."""
        return registry.ModelSpec(
            self.arch,
            self.image_size,
            self.alpha,
            self.freeze,
            pretrained=self.weights != "none",
            trainable_from=self.trainable_from,
            dropout=self.dropout,
            conv_layers=self.conv_layers,
            units=self.units,
            dense_layers=self.dense_layers,
        )


def _default_recipe(config: TrainConfig) -> str:
    """The recipe where none is named: fine-tune for pretrained weights that are not frozen, else plain."""
    pretrained = (
        config.arch is not None and registry.get_architecture(config.arch).has_backbone and config.weights != "none"
    )
    return "fine-tune" if pretrained and not config.freeze else "plain"


def _decide_weights(config: TrainConfig, arch: registry.Architecture) -> str:
    """Decides where the backbone's weights come from, and checks what goes with them."""
    weights = config.weights or ("imagenet" if arch.has_backbone else "none")
    pretrained = weights != "none"
    if not arch.has_backbone and (pretrained or config.freeze or config.head_first):
        option = f"--weights {weights}" if pretrained else "--freeze" if config.freeze else f"--recipe {config.recipe}"
        raise UsageError(
            f"{option} received, but {arch.name} has no backbone: it trains from scratch; expected --arch, one of "
            f"{_with_backbone()}"
        )
    if config.alpha != 1.0 and arch.name != "mobilenet":
        raise UsageError(f"--alpha {config.alpha} received, but only mobilenet has a width multiplier")
    if weights == "imagenet" and arch.name == "mobilenet" and config.alpha not in registry.MOBILENET_ALPHAS:
        raise UsageError(
            f"--alpha received {config.alpha}; ImageNet weights exist for "
            f"{', '.join(map(str, registry.MOBILENET_ALPHAS))}"
        )
    if pretrained and weights != "imagenet":
        weights = storage.absolute(weights)
        if storage.kind(weights) != "file":
            raise UsageError(f"--weights received {weights!r}, expected imagenet, none or an existing weights file")
    return weights


def _check(config: TrainConfig) -> None:
    """Makes sure that options which go neither with each other nor with members were not given."""
    for member in config.members:
        if wrong := sorted(member.keys() - MEMBER_FIELDS):
            raise UsageError(f"members received {wrong[0]!r}, expected only {', '.join(sorted(MEMBER_FIELDS))}")
    if config.resume and config.overwrite:
        raise UsageError("--resume and --overwrite received together; give one of them")
    if not config.epochs and not config.head_first:
        raise UsageError("--epochs received 0, expected at least 1; only a recipe that fits the head first takes 0")


def _decide(config: TrainConfig) -> ResolvedConfig:
    if config.arch is None and config.weights not in (None, "none"):
        raise UsageError(f"--weights received without --arch; say which one they are for: {_with_backbone()}")
    arch = registry.get_architecture(config.arch or registry.DEFAULT_ARCHITECTURE)
    weights = _decide_weights(config, arch)
    _check(config)
    freeze = bool(config.freeze)
    fine_tuning = weights != "none" and not freeze
    name = config.name or f"{config.recipe}-{arch.name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    if "/" in name or name in ("", ".", ".."):
        raise UsageError(f"--name received {name!r}, expected a plain folder name")
    runs = storage.absolute_output(config.runs, "--runs")
    decided = {
        "data": storage.absolute(config.data),
        "arch": arch.name,
        "weights": weights,
        "image_size": config.image_size or arch.image_size,
        "freeze": freeze,
        "trainable_from": arch.trainable_from if config.trainable_from == "auto" else config.trainable_from,
        "learning_rate": config.learning_rate or (arch.fine_tuning_rate if fine_tuning else arch.learning_rate),
        "augmentation": config.augmentation if config.augment else Augmentation(),
        "leave_out": storage.absolute(config.leave_out) if config.leave_out else None,
        "name": name,
        "runs": runs,
        "features": config.features or storage.join(runs, ".features"),
    }
    return ResolvedConfig(**(dict(config) | decided))


def _with_backbone() -> str:
    """Names of the architectures that have a backbone, to be shown."""
    return ", ".join(arch.name for arch in registry.get_architectures().values() if arch.has_backbone)
