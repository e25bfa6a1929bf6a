"""What the commands print for the events and results of the library."""

from __future__ import annotations

from typing import get_args

import pytest

from catdog import events
from catdog.cli import display
from catdog.events import (
    DecodingStarted,
    EpochDone,
    Event,
    FeaturesStarted,
    FoldStarted,
    MemberStarted,
    PartDone,
    RunOpened,
    ScoringPlanned,
    StepDone,
    TrainingStarted,
    Waiting,
)

EPOCH = EpochDone(2, 0.4321, 0.2109, 0.9375, 1e-4, 12.34, 100.0, ["a", "a"], best=True)
# What each event prints, in a log as in a terminal.
LINES: list[tuple[Event, list[str]]] = [
    (Waiting(5.0, "waiting for 1 CPU"), ["waiting for 1 CPU"]),
    (RunOpened("/runs/[a]"), []),
    (RunOpened("/runs/[a]", ["notes.txt", "x"]), ["Kept files in /runs/[a] that are not catdog's: notes.txt, x"]),
    (FoldStarted(2, 5), ["Fold 2 of 5"]),
    (MemberStarted(1, 3), ["Member 1 of 3"]),
    (DecodingStarted(96, "/runs/[a]"), ["Run: /runs/[a]"]),
    (FeaturesStarted(10, 86), []),
    (TrainingStarted(1, 1, 0, []), ["Training on 1 worker"]),
    (
        TrainingStarted(4, 2, 3, ["cat.1.jpg: no image"]),
        ["Training on 4 workers on 2 nodes after epoch 3", "Left out: cat.1.jpg: no image"],
    ),
    (StepDone(1, 2, 3, 0.5), []),
    (EPOCH, ["epoch   2  loss 0.4321  valid log loss 0.2109  accuracy 0.9375  12.3 s  best"]),
    (ScoringPlanned(1, 3, 0), ["Scoring 3 parts on 1 actor"]),
    (ScoringPlanned(2, 1, 1), ["Scoring 1 part on 2 actors, 1 part reused"]),
    (PartDone("node", 512, 1.0, 0.0), []),
]


def test_every_kind_of_event_is_among_those_shown_here() -> None:
    assert {type(event) for event, _ in LINES} == set(get_args(events.Event))


@pytest.mark.parametrize(("event", "lines"), LINES)
def test_an_event_prints_its_lines(event: Event, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    display.show_event(event)
    assert capsys.readouterr().out.splitlines() == lines


def test_training_shows_lines_and_knows_what_an_interruption_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    with display.TrainView() as view:
        for event in (RunOpened("/runs/a"), TrainingStarted(1, 1, 0, []), StepDone(1, 1, 9, 0.7)):
            view.event(event)
        assert (view.opened, view.epochs) == (["/runs/a"], 0)
        view.event(EPOCH)
        assert view.epochs == 2
        view.event(RunOpened("/runs/b"))
        assert (view.opened, view.epochs) == (["/runs/a", "/runs/b"], 0)
        view.event(TrainingStarted(1, 1, 3, []))  # resumed
        assert view.epochs == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["Training", "epoch", "Training"]


def test_scoring_counts_parts_in_the_live_line(capsys: pytest.CaptureFixture[str]) -> None:
    live: list[str] = []
    view = display.ScoreView(live.append)
    for event in (Waiting(5.0, "waiting"), ScoringPlanned(2, 2, 7), *[PartDone("n", 512, 1.0, 0.0)] * 2):
        view.event(event)
    assert live == ["1 of 2 parts", "2 of 2 parts"]
    assert capsys.readouterr().out.splitlines() == ["waiting", "Scoring 2 parts on 2 actors, 7 parts reused"]
