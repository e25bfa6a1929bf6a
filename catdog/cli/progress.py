"""The live view of a long operation: stage, progress bar, time left and figures; plain lines where nobody watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from catdog import interruption
from catdog.cli.display import clock, count, err, out, show_event
from catdog.events import (
    EpochDone,
    Event,
    FeaturesStarted,
    FoldStarted,
    MemberStarted,
    PartDone,
    Progress,
    RunOpened,
    ScoringPlanned,
    SearchProgress,
    StepDone,
    TrainingStarted,
    Waiting,
)

if TYPE_CHECKING:
    from catdog.data.splits import Remark

# Without a terminal, a line in so many seconds.
_LINE_SECONDS = 5.0
_STORE_SECONDS = 2.0
_STAGES = {
    "copying": "Copying",
    "packing": "Packing",
    "features": "Computing features",
    "fitting": "Fitting the head",
    "decoding": "Decoding",
    "starting": "Starting workers",
    "saving": "Saving the model",
    "quantising": "Quantising",
    "judging": "Judging",
}

# Stages that tell how many images are done.
_COUNTED = ("copying", "packing", "features", "decoding", "judging")


class ProgressView:
    """Shows how far an operation is: up to three live lines in a terminal, else a plain line every few seconds.

    What is worth keeping, such as the line of an epoch, is printed above the live lines. While Ray's log is shown
    (--debug) there are plain lines only.

    Attributes:
        opened: URIs of the runs that were opened; `--resume` continues them.
        epochs: number of whole epochs of the run that is being trained.
    """

    def __init__(self, stage: str, debug: bool = False) -> None:
        """Shows nothing yet.

        Args:
            stage: the first stage, such as "Scoring".
            debug: Ray's log is shown.
        """
        self.opened: list[str] = []
        self.epochs = 0
        # Whatever FORCE_COLOR says: a file is no place for what is drawn over again and again.
        self._live = Live(self, console=out, refresh_per_second=4, transient=True) if _watched(debug) else None
        self._stack = ExitStack()
        self._closed = False
        self._part = ""  # which fold or member
        self._stage = stage
        self._pace = Pace(0)
        self._facts: list[str] = []
        self._workers = ""
        self._store: tuple[int, int] | None = None
        self._stored = 0.0
        self._said = time.monotonic()
        self._training = _Training()
        self._nodes: set[str] = set()

    def __enter__(self) -> ProgressView:
        self._stack.enter_context(interruption.clearing(self.close))
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
        self._stack.close()

    def close(self) -> None:
        """Removes the live lines; later events are not shown."""
        self._closed = True
        if self._live is not None:
            self._live.stop()

    def stage(self, name: str) -> None:
        """Shows a stage that no event tells of."""
        self._enter(name)

    def warn(self, text: str) -> None:
        """Prints a warning, above the live lines if they are on the same terminal."""
        (out if self._live is not None and err.is_terminal else err).print(f"Warning: {text}")

    def remark(self, remark: Remark) -> None:
        """Shows a remark on a data set."""
        if remark.warning:
            self.warn(remark.text)
        else:
            out.print(remark.text)

    def event(self, event: Event) -> None:
        """Shows one event."""
        if self._closed:
            return
        self._take(event)
        self._look_at_store()
        show_event(event)
        if self._live is None and time.monotonic() - self._said >= _LINE_SECONDS:
            self._said = time.monotonic()
            out.print("  ".join(self._line()))

    def _take(self, event: Event) -> None:
        """Remembers what an event says."""
        match event:
            case RunOpened():
                self.opened.append(event.run)
                self.epochs, self._workers = 0, ""
                self._enter("Starting")
            case FoldStarted():
                self._part = f"Fold {event.fold} of {event.folds}: "
            case MemberStarted():
                self._part = f"Member {event.member} of {event.members}: "
            case Waiting():
                self._enter("Waiting")
            case FeaturesStarted():
                self._enter(_STAGES["features"], event.images, "images")
            case Progress() if event.stage == "validating":
                self._facts = self._training.facts(validating=event.total)
            case Progress():
                if self._stage != _STAGES[event.stage] or not event.done:
                    self._enter(_STAGES[event.stage], event.total if event.stage in _COUNTED else 0, "images")
                self._pace.reach(event.done)
                self._facts = self._pace.facts()
            case TrainingStarted():
                self.epochs = event.epoch
                self._workers = f"{count(event.workers, 'worker')} on {count(event.nodes, 'node')}"
                self._training = _Training(event)
                self._enter("Training", 0)
                self._pace, self._facts = self._training.pace, self._training.facts()
            case StepDone() | EpochDone():
                self._stage = "Training"
                self._training.take(event)
                self._facts = self._training.facts()
                self.epochs = self._training.epoch
            case ScoringPlanned():
                self._enter("Scoring", event.images, "images")
                self._workers = count(event.actors, "actor")
                self._nodes = set()
            case PartDone():
                self._nodes.add(event.node)
                self._workers = f"{self._workers.partition(' on ')[0]} on {count(len(self._nodes), 'node')}"
                self._pace.reach(self._pace.done + event.images, event.seconds)
                self._facts = self._pace.facts()
            case SearchProgress():
                if self._pace.total != event.trials:
                    self._enter("Searching", event.trials)
                self._pace.reach(event.finished + event.failed)
                failed = [f"{event.failed} failed"] if event.failed else []
                best = [] if event.best is None else [f"best {event.best:.4f}", event.best_trial]
                done = f"{event.finished} of {event.trials} trials done"
                self._facts = [done, f"{event.running} running", *failed, *best]

    def _enter(self, stage: str, total: int = 0, noun: str = "") -> None:
        self._stage, self._pace, self._facts = stage, Pace(total, noun), []

    def _look_at_store(self) -> None:
        """Asks Ray how full its shared memory is: here, since events come only while this process is connected."""
        ray = sys.modules.get("ray")
        if ray is None or time.monotonic() - self._stored < _STORE_SECONDS:
            return
        from catdog import resources

        self._stored = time.monotonic()
        try:
            self._store = resources.object_store_use()
        except Exception:  # of a cluster that is going down, which is told elsewhere
            self._store = None

    def _line(self) -> list[str]:
        """The plain line, in pieces."""
        share = [f"{100 * self._pace.share:.0f} %"] if self._pace.total else []
        left = self._pace.left()
        return [self._part + self._stage, *share, *self._facts, *([f"{clock(left)} left"] if left is not None else [])]

    def _resources(self) -> list[str]:
        store = (
            [] if self._store is None else [f"object store {self._store[0] / 1e9:.2f} of {self._store[1] / 1e9:.2f} GB"]
        )
        return [*([self._workers] if self._workers else []), *store]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draws the live lines, none of them longer than the terminal is wide."""
        width = options.max_width
        yield from self._bar(console, options, width)
        for facts in (self._facts, self._resources()):
            if facts:
                yield Segment.line()
                yield Segment(fit(facts, width), Style(dim=facts is not self._facts))

    def _bar(self, console: Console, options: ConsoleOptions, width: int) -> Iterator[Segment]:
        left = self._pace.left()
        if not self._pace.total:
            yield Segment(fit([f"{self._part}{self._stage}", clock(self._pace.elapsed())], width))
            return
        title = f"{self._part}{self._stage}  "
        rest = f"  {100 * self._pace.share:3.0f} %  " + (f"{clock(left):>7} left" if left is not None else " " * 12)
        room = min(60, width - len(title) - len(rest))
        if room < 5:
            yield Segment(fit([title.strip(), *rest.split("  ")], width))
            return
        yield Segment(title)
        bar = list(console.render(ProgressBar(1.0, self._pace.share, room), options.update(width=room)))
        yield from bar
        yield Segment(" " * (room - sum(segment.cell_length for segment in bar)) + rest)


class Pace:
    """How far something is that takes `total` steps, how fast, and how long it will still take.

    The speed counts from the first progress, because processes may have had to start before it.
    """

    def __init__(self, total: int, noun: str = "") -> None:
        """Starts the clock.

        Args:
            total: number of steps; 0 if nobody knows.
            noun: what the steps are, in the plural.
        """
        self.total, self.noun, self.done = total, noun, 0.0
        self.begun = self._reached = time.monotonic()
        self._from: tuple[float, float] | None = None

    def reach(self, done: float, seconds: float = 0.0) -> None:
        """Takes note of the steps done so far, which took `seconds` if that is known."""
        self.done, self._reached = done, time.monotonic()
        if done and self._from is None:
            self._from = (0.0, self._reached - seconds) if seconds else (done, self._reached)

    @property
    def share(self) -> float:
        """Share that is done, in [0, 1]."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def rate(self) -> float:
        """Steps per second, 0 if unknown."""
        done, since = self._from or (0.0, self._reached)
        return (self.done - done) / (self._reached - since) if self._reached - since >= 1 else 0.0

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.begun

    def left(self) -> float | None:
        """Seconds left, or None if unknown."""
        if not self.rate or not self.total:
            return None
        return max(0.0, (self.total - self.done) / self.rate - (time.monotonic() - self._reached))

    def facts(self) -> list[str]:
        """The same in words, without the time."""
        if not self.total or not self.done:
            return []
        speed = [f"{self.rate:,.0f} {self.noun}/s"] if self.rate else []
        return [f"{self.done:,.0f} of {self.total:,} {self.noun}", *speed]


class _TrainingPace(Pace):
    """The pace of a run, in epochs, which the last whole epoch tells best: the first takes longer."""

    def __init__(self, total: int, done: int) -> None:
        super().__init__(total)
        self._seconds = 0.0  # of the last whole epoch
        self.epoch_started = self._step_started = self.begun
        self._step_from = float(done)
        self.reach(done)

    def step(self, done: float) -> None:
        """Takes note of a step; the first one of an epoch may have waited for much."""
        if self.done == int(self.done):
            self._step_from, self._step_started = done, time.monotonic()
        self.reach(done)

    def epoch(self, done: int, seconds: float) -> None:
        """Takes note of a whole epoch, which took so long."""
        self._seconds, self.epoch_started = seconds, time.monotonic()
        self.reach(done)

    @property
    def rate(self) -> float:
        """Epochs per second, 0 if unknown."""
        if self._seconds:
            return 1 / self._seconds
        return (self.done - self._step_from) / max(1e-6, self._reached - self._step_started)

    def left(self) -> float | None:
        """Seconds left, or None if unknown."""
        if not self._seconds:
            return super().left()
        return max(0.0, (self.total - int(self.done)) / self.rate - (time.monotonic() - self.epoch_started))


class _Training:
    """What is shown of a run while it is trained."""

    def __init__(self, start: TrainingStarted | None = None) -> None:
        self.epoch = start.epoch if start else 0
        self._epochs = start.epochs if start else 0
        self._batch_size = start.batch_size if start else 0
        self.pace = _TrainingPace(self._epochs, self.epoch)
        self._loss = self._step = self._best = ""
        self._lowest = float("inf")
        self._speed = 0.0
        self._seen: tuple[int, float] | None = None

    def take(self, event: StepDone | EpochDone) -> None:
        """Remembers what an event says."""
        if isinstance(event, EpochDone):
            self.epoch, self._seen = event.epoch, None
            self._step, self._loss, self._speed = "", f"loss {event.loss:.4f}", event.images_per_second
            self.pace.epoch(event.epoch, event.seconds)
            if event.valid_log_loss < self._lowest:
                self._lowest = event.valid_log_loss
                self._best = f"best {event.valid_log_loss:.4f} in epoch {event.epoch}"
            return
        self._step, self._loss = f"step {event.step} of {event.steps}", f"loss {event.loss:.4f}"
        self.pace.step(event.epoch - 1 + event.step / (event.steps + 1))
        if self._seen is None:
            self._seen = event.step, time.monotonic()
        elif event.step > self._seen[0]:
            steps = (event.step - self._seen[0]) / max(1e-6, time.monotonic() - self._seen[1])
            self._speed = steps * self._batch_size

    def facts(self, validating: int = 0) -> list[str]:
        """The same in words; the most important first."""
        current = min(self._epochs, self.epoch + 1)
        doing = [f"validating {validating:,} images"] if validating else [self._step]
        speed = [f"{self._speed:,.0f} images/s"] if self._speed else []
        return [f"epoch {current} of {self._epochs}", *filter(None, [*doing, self._loss, self._best]), *speed]


def _watched(debug: bool) -> bool:
    return out.is_interactive and sys.stdout.isatty() and not debug


def fit(facts: list[str], width: int) -> str:
    """Joins as many facts as fit into a line, in their order; the first is cut if even it does not."""
    line = facts[0]
    for fact in facts[1:]:
        if fact and len(line) + 2 + len(fact) <= width:
            line += f"  {fact}"
    text = Text(line)
    text.truncate(width)
    return text.plain
