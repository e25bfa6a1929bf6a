"""A block without progress ends; one with progress, or with a limit of its own, does not."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from catdog import stall
from catdog.errors import CatdogError
from catdog.events import Event, EventHandler, Progress, StepDone, Waiting

ROOT = Path(__file__).parents[1]


def ignore(_event: Event) -> None:
    pass


def work(tell: EventHandler, event: Event, seconds: float) -> None:
    """Sends an event now and then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        tell(event)
        time.sleep(0.05)


def hang_after(tell: EventHandler, event: Event) -> None:
    tell(event)
    time.sleep(60)


def test_what_was_done_last_is_said() -> None:
    seen: list[Event] = []
    started = time.monotonic()
    step = StepDone(2, 3, 40, 0.1)
    with pytest.raises(CatdogError) as ended, stall.watching(seen.append, 0.5, "do it again") as watch:
        hang_after(watch.event, step)
    assert str(ended.value) == (
        "no progress for 0.5 s after step 3 of 40 in epoch 2 (--stall-timeout): a process may hang or its node be "
        "gone; do it again"
    )
    assert seen == [step]
    assert time.monotonic() - started < 20


def test_progress_is_no_stall() -> None:
    with stall.watching(ignore, 0.4, "") as watch:
        work(watch.event, Progress("decoding", 1, 2), 1.2)
    with stall.watching(ignore, 0, ""):
        time.sleep(0.3)


def test_waiting_is_a_stall_unless_it_has_a_limit() -> None:
    with pytest.raises(CatdogError) as ended, stall.watching(ignore, 0.4, "later") as watch:
        work(watch.event, Waiting(1.0, "waiting for 1 CPU"), 60)
    assert str(ended.value) == "gave up after 0.4 s (--stall-timeout): waiting for 1 CPU; later"
    with stall.watching(ignore, 0.4, "") as watch:
        work(watch.event, Waiting(1.0, "waiting for 1 CPU", limit=9.0), 1.2)


def test_an_error_of_the_block_is_its_own() -> None:
    with pytest.raises(ValueError, match="mine"), stall.watching(ignore, 5, ""):
        raise ValueError("mine")


STUCK = """
import contextlib, time
from catdog import interruption, stall
from catdog.cli import main

def command():
    with stall.watching(lambda event: None, 0.3, "do it again"):
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                time.sleep(60)

interruption.GRACE_SECONDS = 2
main.run(command)
"""


def test_a_command_that_cannot_be_interrupted_ends_all_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STUCK], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "catdog: no progress for 0.3 s (--stall-timeout): a process may hang or its node be gone; do it again\n"
    )
