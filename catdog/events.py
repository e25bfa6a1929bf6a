"""Events: what training and scoring tell while they run. The library prints nothing; whoever calls it shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Waiting:
    """The cluster has no room yet.

    Attributes:
        seconds: how long it has been waited.
        why: a line that says for what, and who may hold it.
    """

    seconds: float
    why: str


@dataclass(frozen=True)
class RunOpened:
    """The folder of a run was made, or opened again.

    Attributes:
        run: URI of the folder.
        strangers: names of files in it that are not catdog's and were left alone.
    """

    run: str
    strangers: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FoldStarted:
    """A fold of a cross-validation began; folds are counted from 1."""

    fold: int
    folds: int


@dataclass(frozen=True)
class MemberStarted:
    """A member of a bundle began to train; members are counted from 1."""

    member: int
    members: int


@dataclass(frozen=True)
class DecodingStarted:
    """Images are being decoded into shared memory, before workers start.

    Attributes:
        images: how many.
        run: URI of the run.
    """

    images: int
    run: str


@dataclass(frozen=True)
class FeaturesStarted:
    """Features of the frozen backbone are being computed.

    Attributes:
        images: how many are to be computed.
        kept: how many are in the cache already.
    """

    images: int
    kept: int


@dataclass(frozen=True)
class TrainingStarted:
    """The workers are ready, for the first time or again.

    Attributes:
        workers: how many.
        nodes: on how many nodes.
        epoch: how many epochs are done already.
        rejected: a line for each image that could not be used.
    """

    workers: int
    nodes: int
    epoch: int
    rejected: list[str]


@dataclass(frozen=True)
class StepDone:
    """Training is so far within an epoch; told a few times a second at most.

    Attributes:
        epoch: counted from 1.
        step: counted from 1.
        steps: in an epoch.
        loss: in nats, the mean of the epoch so far, estimated from one worker's images.
    """

    epoch: int
    step: int
    steps: int
    loss: float


@dataclass(frozen=True)
class EpochDone:
    """An epoch was trained, validated, and kept as a checkpoint.

    Attributes:
        epoch: counted from 1.
        loss: mean training loss, in nats.
        valid_log_loss: of the plain logits, in nats.
        valid_accuracy: share of validation images on the right side of 0.5.
        learning_rate: at the epoch's end.
        seconds: the epoch took, validation included.
        images_per_second: trained on, over all workers.
        variables_sha256: digest of all variables, by worker.
        best: whether it is the best epoch so far; False where the last one is kept whatever it is worth.
    """

    epoch: int
    loss: float
    valid_log_loss: float
    valid_accuracy: float
    learning_rate: float
    seconds: float
    images_per_second: float
    variables_sha256: list[str]
    best: bool


@dataclass(frozen=True)
class ScoringPlanned:
    """It is decided how a scoring run uses the cluster.

    Attributes:
        actors: how many predict.
        parts: how many are to be made.
        kept: how many are there from before.
    """

    actors: int
    parts: int
    kept: int


@dataclass(frozen=True)
class PartDone:
    """A part was written.

    Attributes:
        node: id of the node that made it.
        images: in it.
        seconds: it took.
        ended: by the node's clock, in seconds since 1970.
    """

    node: str
    images: int
    seconds: float
    ended: float


TrainingEvent = (
    Waiting
    | RunOpened
    | FoldStarted
    | MemberStarted
    | DecodingStarted
    | FeaturesStarted
    | TrainingStarted
    | StepDone
    | EpochDone
)
ScoringEvent = Waiting | ScoringPlanned | PartDone
Event = TrainingEvent | ScoringEvent
EventHandler = Callable[[Event], None]
