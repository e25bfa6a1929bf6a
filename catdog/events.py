"""Events that training and scoring emit while they run. The library prints nothing; its caller shows the events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Stage = Literal[
    "copying", "packing", "features", "fitting", "decoding", "starting", "validating", "saving", "quantising", "judging"
]


@dataclass(frozen=True)
class Waiting:
    """Waiting for CPUs or GPUs of the cluster.

    Attributes:
        seconds: waiting time so far.
        why: one line on what is needed and who may hold it.
        limit: seconds after which nobody waits any longer, or None.
    """

    seconds: float
    why: str
    limit: float | None = None


@dataclass(frozen=True)
class RunOpened:
    """The folder of a run was created or reopened.

    Attributes:
        run: URI of the folder.
        strangers: names of files in it that catdog did not write and therefore kept.
    """

    run: str
    strangers: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FoldStarted:
    """Start of a fold of a cross-validation, counted from 1."""

    fold: int
    folds: int


@dataclass(frozen=True)
class MemberStarted:
    """Start of the training of a bundle's member, counted from 1."""

    member: int
    members: int


@dataclass(frozen=True)
class DecodingStarted:
    """Start of decoding images into shared memory, before the workers start.

    Attributes:
        images: number of images.
        run: URI of the run.
        store: where they are kept, and why, if they are not kept decoded; else "".
    """

    images: int
    run: str
    store: str = ""


@dataclass(frozen=True)
class PortsExposed:
    """Workers with GPUs are about to listen on public addresses, where they obey whoever reaches them.

    Attributes:
        addresses: of their nodes.
    """

    addresses: list[str]


@dataclass(frozen=True)
class FeaturesStarted:
    """Start of computing features of the frozen backbone.

    Attributes:
        images: number of images to compute.
        kept: number of images that are already in the cache.
    """

    images: int
    kept: int


@dataclass(frozen=True)
class Progress:
    """How far a stage is; the first one, with nothing done, is its start.

    Attributes:
        stage: "copying" images into a new data set, "packing" them into shards, computing "features", "fitting" the
            head to them, "decoding" images, "starting" the workers, "validating" an epoch, "saving" the model,
            "quantising" its members, "judging" what that changed.
        done: number of images (when starting, of workers).
        total: likewise, of the whole stage.
    """

    stage: Stage
    done: int
    total: int


@dataclass(frozen=True)
class TrainingStarted:
    """The workers are ready, at the start or after a restart.

    Attributes:
        workers: number of workers.
        nodes: number of nodes with workers.
        epoch: number of finished epochs.
        rejected: one line for each image that cannot be used.
        epochs: number of epochs, if the run does not stop early.
        batch_size: images of a step, of all workers.
        step: number of finished steps of the next epoch.
        precision: of the matrix products in training.
        rates: images per second of all workers by precision, of which the faster one was taken; else empty.
    """

    workers: int
    nodes: int
    epoch: int
    rejected: list[str]
    epochs: int
    batch_size: int
    step: int = 0
    precision: str = "float32"
    rates: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StepDone:
    """Progress within an epoch; emitted a few times a second at most.

    Attributes:
        epoch: counted from 1.
        step: counted from 1.
        steps: steps of an epoch.
        loss: mean of the epoch so far, in nats, estimated from the images of one worker.
    """

    epoch: int
    step: int
    steps: int
    loss: float


@dataclass(frozen=True)
class EpochDone:
    """An epoch was trained, validated and saved as a checkpoint.

    Attributes:
        epoch: counted from 1.
        loss: mean training loss, in nats.
        valid_log_loss: validation log loss of the uncalibrated logits, in nats.
        valid_accuracy: validation accuracy at a threshold of 0.5.
        learning_rate: learning rate at the end of the epoch.
        seconds: duration of the epoch, including validation.
        images_per_second: training images per second of all workers.
        variables_sha256: digest of all variables, for each worker.
        best: whether it is the best epoch so far; False if the last epoch is kept in any case.
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
class RunWritten:
    """The model was written, and the workers have only to end."""


@dataclass(frozen=True)
class ScoringPlanned:
    """The plan of a scoring run is ready.

    Attributes:
        actors: number of actors.
        parts: number of parts to score.
        kept: number of existing parts.
        images: number of images in the parts to score.
    """

    actors: int
    parts: int
    kept: int
    images: int


@dataclass(frozen=True)
class PartDone:
    """A part was written.

    Attributes:
        node: id of the node that scored it.
        images: number of images.
        seconds: duration.
        ended: end time by the node's clock, in seconds since 1970.
    """

    node: str
    images: int
    seconds: float
    ended: float


@dataclass(frozen=True)
class SearchProgress:
    """A trial of a search finished an epoch, or ended.

    Attributes:
        trials: number of trials.
        finished: number of trials that ended well.
        failed: number of trials that failed.
        running: number of trials in progress.
        best: the lowest validation log loss so far, in nats, or None.
        best_trial: name of the trial that has it, or "".
    """

    trials: int
    finished: int
    failed: int
    running: int
    best: float | None
    best_trial: str


TrainingEvent = (
    Waiting
    | RunOpened
    | FoldStarted
    | MemberStarted
    | DecodingStarted
    | PortsExposed
    | FeaturesStarted
    | Progress
    | TrainingStarted
    | StepDone
    | EpochDone
    | RunWritten
)
ScoringEvent = Waiting | ScoringPlanned | PartDone
Event = TrainingEvent | ScoringEvent | SearchProgress
EventHandler = Callable[[Event], None]


def describe_event(event: Event) -> str:
    """What an event tells of, in a few words."""
    match event:
        case Progress():
            return f"{event.stage} {event.done:,} of {event.total:,}"
        case TrainingStarted():
            return f"the start of {event.workers} workers"
        case StepDone():
            return f"step {event.step} of {event.steps} in epoch {event.epoch}"
        case EpochDone():
            return f"epoch {event.epoch}"
        case ScoringPlanned():
            return f"the start of scoring {event.parts} parts"
        case PartDone():
            return f"a part of {event.images} images"
        case SearchProgress():
            return f"{event.finished + event.failed} of {event.trials} trials"
    return {
        Waiting: "waiting",
        RunOpened: "the start of the run",
        FoldStarted: "the start of a fold",
        MemberStarted: "the start of a member",
        DecodingStarted: "the start of decoding",
        PortsExposed: "a warning of public addresses",
        FeaturesStarted: "the start of computing features",
        RunWritten: "the model was written",
    }[type(event)]
