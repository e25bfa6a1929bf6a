"""The options of a training run as a user asks for them: each one described once, here.

The command line takes its help from the descriptions, and recipes are named sets of these options. What is left out is
decided by `catdog.training.config.resolve`. Importing this module loads no numerical library.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from catdog.choices import Keep, Shuffle, StoreName, View

# A resumed run takes the workers it had, unless told otherwise: with others it differs by float noise and by
# batch-norm's share of the batch.
SHAPE_FIELDS = frozenset({"workers", "cpus_per_worker", "gpu", "gpus_per_worker"})
# Options that may differ when a run is resumed. The data set is compared by its fingerprint, wherever it lies.
PLACE_FIELDS = SHAPE_FIELDS | {
    *("data", "runs", "features", "resume", "overwrite", "address", "wait", "stall_timeout", "debug"),
    *("store", "checkpoint_minutes"),
}

_Share = Annotated[float, Field(ge=0, le=1)]
_LessThanOne = Annotated[float, Field(ge=0, lt=1)]


def _check_workers(value: Any) -> int | str:
    fewest, colon, most = str(value).partition(":")
    most = most if colon else fewest
    if not (fewest.isdecimal() and most.isdecimal() and 1 <= int(fewest) <= int(most)):
        raise ValueError("expected a number from 1, or MIN:MAX")
    return f"{int(fewest)}:{int(most)}" if colon else int(fewest)


class Augmentation(pydantic.BaseModel):
    """Limits of the random changes to a training image; the defaults change nothing."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    mirror: bool = Field(False, description="Flip left and right, half of the time.")
    crop: tuple[_Share, _Share] = Field(
        (1.0, 1.0), description="Least and greatest side of a random crop, as a share of the image's."
    )
    aspect: float = Field(1.0, ge=1, le=4, description="Greatest ratio of a crop's sides; 1 is square.")
    rotation: float = Field(0.0, ge=0, le=180, description="Greatest rotation either way, in degrees.")
    shear: float = Field(0.0, ge=0, lt=90, description="Greatest shear along x either way, in degrees.")
    zoom: float = Field(0.0, ge=0, lt=1, description="Greatest zoom in or out, as a share.")
    shift: _Share = Field(0.0, description="Greatest shift along each axis, as a share.")
    fill: Literal["reflect", "nearest"] = Field(
        "reflect", description="What is seen beyond the image's edge: its mirror image, or its last pixels."
    )
    brightness: float = Field(0.0, ge=0, le=255, description="Greatest change, of 255.")
    contrast: _Share = Field(0.0, description="Greatest change, as a share, about the image's mean.")
    erase: _Share = Field(
        0.0, description="Probability of a grey rectangle over 2 to 20 % of the image (Zhong et al., 2020)."
    )

    @pydantic.model_validator(mode="after")
    def _check_crop(self) -> Augmentation:
        if not 0 < self.crop[0] <= self.crop[1]:
            raise ValueError(f"crop received {self.crop}, expected two shares, the lesser first, above 0")
        return self


class TrainConfig(pydantic.BaseModel):
    """The options of `catdog train`; None leaves one to the recipe, the architecture, the cluster or the default."""

    model_config = pydantic.ConfigDict(extra="forbid")

    # --- data
    data: str = Field(description="Folder or bucket of a prepared data set. With --resume: the run's own.")
    leave_out: str | None = Field(
        None,
        description="Training images to leave out: keys, or an audit's CSV; or a review's, which also turns labels.",
    )
    batch_size: int | None = Field(None, ge=1, description="Images per step, over all workers.")
    shuffle: Shuffle | None = Field(
        None,
        description="The order of an epoch: a shuffle of all images, or of blocks that lie together, so that a packed "
        "data set is read in pieces. Default: blocks where a packed data set is not kept in memory, else full.",
    )
    train_scale: float | None = Field(
        None,
        ge=0.25,
        le=1,
        description="Size of augmented training images, as a share of the image size. Random crops show things larger "
        "than whole images do, so a smaller size in training evens it out (Touvron et al., 2019), and is faster.",
    )
    mixup: float | None = Field(
        None, ge=0, description="Alpha of MixUp's Beta distribution (Zhang et al., 2018); 0 is none."
    )
    balance: bool | None = Field(None, description="Weigh both classes alike, whatever their shares.")
    augment: bool | None = Field(None, description="Augment the training images.")
    augmentation: Augmentation | None = Field(None, description="Limits of the random changes to training images.")

    # --- model
    arch: str | None = Field(
        None,
        description="Architecture; see `catdog models`. Default: efficientnet_lite2, or from scratch small_resnet.",
    )
    alpha: float | None = Field(None, gt=0, description="Width multiplier of mobilenet.")
    conv_layers: int | None = Field(None, ge=1, le=6, description="Convolutions of gray_cnn.")
    units: int | None = Field(None, ge=1, description="Units of each of gray_cnn's layers.")
    dense_layers: int | None = Field(None, ge=0, le=6, description="Dense layers of gray_cnn.")
    weights: str | None = Field(
        None,
        description="imagenet, none, or a Keras weights file without the top. Default: imagenet for a backbone.",
    )
    image_size: int | None = Field(
        None, ge=16, le=2048, description="Side of the square images, in pixels. Default: the architecture's own."
    )
    freeze: bool | None = Field(None, description="Train the head only.")
    trainable_from: str | None = Field(
        None, description="The backbone's first layer that is trained; auto is the architecture's own. Default: all."
    )
    dropout: _LessThanOne | None = Field(None, description="Dropout before the logit. Default: the architecture's own.")

    # --- optimizer
    epochs: int | None = Field(
        None, ge=0, description="Maximum number of epochs; 0 with head_first trains the head alone."
    )
    head_first: bool | None = Field(
        None, description="Fit the head to the frozen backbone's features before the first epoch."
    )
    optimizer: Literal["adamw", "adam", "rmsprop", "sgd"] | None = Field(
        None, description="AdamW, Adam, RMSprop, or SGD with Nesterov momentum 0.9."
    )
    learning_rate: float | None = Field(None, gt=0, description="Peak rate. Default: the architecture's own.")
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="Each layer's rate is this times that of the layer after it, from the head down."
    )
    schedule: Literal["cosine", "constant"] | None = Field(
        None, description="Learning rate after warm-up: a cosine down to 0, or constant."
    )
    warm_up: _LessThanOne | None = Field(None, description="Share of all steps over which the rate rises from 0.")
    weight_decay: float | None = Field(
        None, ge=0, description="Decoupled weight decay (Loshchilov and Hutter, 2019), of AdamW only."
    )
    label_smoothing: _LessThanOne | None = Field(None, description="Share of each label that is spread over both.")
    teacher: str | None = Field(
        None,
        description="Folder or bucket of a bundle to distil: its probabilities of the augmented images of each step "
        "take the place of their labels (Beyer et al., 2022).",
    )
    teacher_share: _Share | None = Field(
        None, description="Weight of the teacher's probabilities; the labels have the rest. Default: 1."
    )
    ema: _LessThanOne | None = Field(
        None, description="Decay per step of the averaged weights that are validated and kept; 0 is none."
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] | None = Field(
        None,
        description="Precision of the matrix products while training; on CPUs float32, or bfloat16 for the frozen and "
        "fine-tuned backbones that have it. Default: auto, on GPUs the lowest that every one of them has tensor cores "
        "for; on CPUs the faster one as measured at the start, so the same command may take another one at another "
        "time.",
    )
    xla: bool | None = Field(
        None,
        description="Compile the training step by XLA. Default: no. It rounds differently, and draws other dropout.",
    )

    # --- validation
    keep: Keep | None = Field(None, description="The epoch to keep: that of the best validation log loss, or the last.")
    patience: int | None = Field(
        None, ge=1, description="Stop after this many epochs without improvement; for keep=best."
    )
    views: Annotated[list[View], Field(min_length=1)] | None = Field(
        None, description="How scoring shows each image to the model: identity, mirror, crop-88, crop-88-mirror."
    )
    calibrate: bool | None = Field(None, description="Fit temperature and clip on the validation split.")
    int8: bool | None = Field(
        None,
        description="Make an int8 version of the model at the end, for faster scoring on CPUs; it is kept only if the "
        "validation photos say that it is as good. Default: no; `catdog bundle quantise` makes it later.",
    )

    # --- resources
    workers: Annotated[int | str, pydantic.BeforeValidator(_check_workers)] | None = Field(
        None,
        description="Number of Ray Train workers; MIN:MAX for as many as there is room for at a time. Default: as many "
        "as fit at the start.",
    )
    cpus_per_worker: int | None = Field(None, ge=1, description="CPUs per worker. Default: an equal share.")
    gpu: bool | None = Field(None, description="A GPU for each worker. Default: where there are any.")
    gpus_per_worker: float | None = Field(
        None,
        ge=0.01,
        le=1,
        description="How much of a GPU the worker takes; below 1, runs of one worker share it, such as the trials of a "
        "search. Default: 1.",
    )
    store: StoreName | None = Field(
        None,
        description="Where the images are during training: decoded or encoded in shared memory, or in their files. "
        "Default: the first of them that every node has room for.",
    )
    checkpoint_minutes: float | None = Field(
        None, ge=0, description="Minutes between checkpoints within an epoch; 0 is after every few steps. Default: 10."
    )
    address: str | None = Field(
        None, description="Address of a Ray cluster. Default: RAY_ADDRESS, else a new one on this machine."
    )
    wait: float | None = Field(
        None, ge=0, description="Seconds to wait for CPUs or GPUs that others use. Default: no limit of its own."
    )
    stall_timeout: float | None = Field(
        None, ge=0, description="Seconds without progress after which the command ends; 0 is no limit. Default: 900."
    )
    debug: bool = Field(False, description="Show Ray's log, and a traceback if the command fails.")

    # --- run
    recipe: str | None = Field(
        None,
        description="Named set of options; see `catdog recipes`. Default: fine-tune if pretrained, else plain.",
    )
    seed: int | None = Field(None, ge=0, lt=2**31, description="Seed of initial weights, order and augmentation.")
    members: list[dict[str, Any]] | None = Field(
        None, description="What each model of a bundle has differently, trained one after the other."
    )
    name: str | None = Field(None, description="Name of the run. Default: recipe, architecture and time.")
    runs: str = Field("runs", description="Folder or bucket of runs.")
    features: str | None = Field(
        None, description="Folder or bucket of cached features. Default: .features in the folder of runs."
    )
    resume: bool = Field(False, description="Continue the run of this name.")
    overwrite: bool = Field(False, description="Delete the run of this name first.")
