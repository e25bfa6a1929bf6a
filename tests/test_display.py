"""What the commands print for the events and results of the library."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from helpers import in_process

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
    PortsExposed,
    Progress,
    RunOpened,
    RunWritten,
    ScoringPlanned,
    SearchProgress,
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
    (
        PortsExposed(["192.0.2.1"]),
        [
            "Warning: the addresses 192.0.2.1 are public, and workers with GPUs obey whoever reaches their ports; let "
            "only the cluster's machines reach each other (docs/cluster.md)"
        ],
    ),
    (FeaturesStarted(10, 86), []),
    (Progress("features", 5, 10), []),
    (TrainingStarted(1, 1, 0, [], 10, 64), ["Training on 1 worker"]),
    (TrainingStarted(2, 1, 0, [], 10, 64, 24), ["Training on 2 workers after step 24"]),
    (TrainingStarted(2, 1, 1, [], 10, 64, 24), ["Training on 2 workers after epoch 1, step 24"]),
    (
        DecodingStarted(96, "/runs/a", "encoded, 0.20 GB of shared memory a node (as asked for)"),
        ["Run: /runs/a", "Images: encoded, 0.20 GB of shared memory a node (as asked for)"],
    ),
    (
        TrainingStarted(4, 2, 3, ["cat.1.jpg: no image"], 10, 64),
        ["Training on 4 workers on 2 nodes after epoch 3", "Left out: cat.1.jpg: no image"],
    ),
    (
        TrainingStarted(2, 1, 0, [], 10, 64, 0, "float32", {"float32": 58.64, "bfloat16": 50.5}),
        ["Training on 2 workers", "Precision: float32, 58.6 images/s (bfloat16 50.5)"],
    ),
    (TrainingStarted(2, 1, 0, [], 10, 64, 0, "float16"), ["Training on 2 workers", "Precision: float16"]),
    (StepDone(1, 2, 3, 0.5), []),
    (RunWritten(), []),
    (EPOCH, ["epoch   2  loss 0.4321  valid log loss 0.2109  accuracy 0.9375  12.3 s  best"]),
    (ScoringPlanned(1, 3, 0, 1200), ["Scoring 3 parts on 1 actor"]),
    (ScoringPlanned(2, 1, 1, 512), ["Scoring 1 part on 2 actors, 1 part reused"]),
    (PartDone("node", 512, 1.0, 0.0), []),
    (SearchProgress(4, 1, 0, 2, 0.5, "units=4"), []),
]


def test_every_kind_of_event_is_among_those_shown_here() -> None:
    assert {type(event) for event, _ in LINES} == set(get_args(events.Event))


@pytest.mark.parametrize(("event", "lines"), LINES)
def test_an_event_prints_its_lines(event: Event, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    display.show_event(event)
    assert capsys.readouterr().out.splitlines() == lines


def test_a_page_opens_in_the_browser_of_a_terminal_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "a #1 page.html"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    script = (
        "from rich.console import Console\n"
        "from catdog.cli import display\n"
        "display.out = Console(force_terminal=True)\n"
        f"display.open_page({str(page)!r})\n"
    )
    in_process(script, timeout=60, BROWSER=f"{browser} %s")
    assert (tmp_path / "opened").read_text() == page.as_uri()
    for uri in (str(page), "s3://bucket/page.html"):
        display.open_page(uri)
        assert capsys.readouterr().err == f"--open needs a terminal and a local file; open {uri} in a browser\n"
