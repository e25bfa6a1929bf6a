"""The live view of long operations: what it draws, in which width, what stays, and what it does without a terminal."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from helpers import jpeg
from rich.console import Console

from catdog.cli import display, progress
from catdog.cli.progress import ProgressView
from catdog.data.splits import Remark
from catdog.events import (
    DecodingStarted,
    EpochDone,
    Event,
    FoldStarted,
    PartDone,
    Progress,
    RunOpened,
    ScoringPlanned,
    SearchProgress,
    StepDone,
    TrainingStarted,
)

ROOT = Path(__file__).parents[1]
EPOCH = EpochDone(2, 0.4321, 0.2109, 0.9375, 1e-4, 10.0, 100.0, ["a", "a"], best=True)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the view sees, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def drawn(view: ProgressView, width: int = 80) -> list[str]:
    """The live lines at some width."""
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None).print(view)
    return out.getvalue().splitlines()


def test_training_shows_how_far_it_is_and_how_long_it_takes(clock: list[float]) -> None:
    with ProgressView("Starting") as view:
        assert drawn(view) == ["Starting  0:00"]
        view.event(FoldStarted(2, 5))
        view.event(TrainingStarted(2, 1, 0, [], epochs=4, batch_size=64))
        for _ in range(2):  # the second epoch starts where the first left off
            clock[0] += 5
            view.event(StepDone(1, 10, 39, 0.7))
        clock[0] += 5
        view.event(StepDone(1, 20, 39, 0.6))
        first, facts, workers = drawn(view)
        # A quarter of an epoch took ten seconds, so the 3.5 that are left take 140.
        assert re.fullmatch(r"Fold 2 of 5: Training  ━+╸? +12 %     2:20 left", first)
        assert facts == "epoch 1 of 4  step 20 of 39  loss 0.6000  64 images/s"
        assert workers == "2 workers on 1 node"
        clock[0] += 5
        view.event(EPOCH)
        first, facts, _ = drawn(view)
        assert first.endswith("50 %     0:20 left")
        assert facts == "epoch 3 of 4  loss 0.4321  best 0.2109 in epoch 2  100 images/s"
        clock[0] += 7
        view.event(Progress("validating", 0, 991))
        assert drawn(view)[0].endswith("0:13 left")
        assert drawn(view)[1].startswith("epoch 3 of 4  validating 991 images")
        view.event(Progress("saving", 0, 991))
        assert drawn(view)[0] == "Fold 2 of 5: Saving the model  0:00"


def test_other_stages_tell_images_and_trials(clock: list[float]) -> None:
    with ProgressView("Starting") as view:
        view.event(DecodingStarted(4000, "/runs/a"))
        view.event(Progress("decoding", 0, 4000))
        clock[0] += 2
        view.event(Progress("decoding", 1000, 4000))  # processes have started by now
        assert drawn(view)[0].rstrip().endswith("25 %")
        assert drawn(view)[1] == "1,000 of 4,000 images"
        clock[0] += 2
        view.event(Progress("decoding", 2000, 4000))
        assert drawn(view)[0].endswith("50 %     0:04 left")
        assert drawn(view)[1] == "2,000 of 4,000 images  500 images/s"
        view.event(ScoringPlanned(2, 4, 0, 2000))
        clock[0] += 30  # the models are loaded, which says nothing about the images
        view.event(PartDone("one", 500, 5.0, 0.0))
        view.event(PartDone("two", 500, 5.0, 0.0))
        assert drawn(view) == [drawn(view)[0], "1,000 of 2,000 images  200 images/s", "2 actors on 2 nodes"]
        assert drawn(view)[0].endswith("50 %     0:05 left")
        view.event(SearchProgress(27, 8, 1, 2, 0.5123, "units=64"))
        assert drawn(view)[1] == "8 of 27 trials done  2 running  1 failed  best 0.5123  units=64"


@pytest.mark.parametrize("width", range(1, 121, 7))
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    with ProgressView("Reading dogs-vs-cats-redux-kernels-edition.zip") as view:
        assert all(len(line) <= width for line in drawn(view, width))
        view.event(TrainingStarted(2, 1, 0, [], epochs=4, batch_size=64))
        view.event(StepDone(1, 10, 39, 0.7))
        view.event(EPOCH)
        assert len(drawn(view, width)) == 3
        assert all(len(line) <= width for line in drawn(view, width))


def test_without_a_terminal_there_is_a_line_every_few_seconds(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    events: list[Event] = [RunOpened("/runs/a"), TrainingStarted(1, 1, 0, [], 3, 64)]
    events += [StepDone(1, step, 100, 0.7) for step in range(1, 101)]
    with ProgressView("Starting") as view:
        for event in events:
            clock[0] += 0.25
            view.event(event)
        view.event(EPOCH)
        view.remark(Remark("odd", warning=True))
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert "\x1b" not in printed.out
    assert [line.split()[0] for line in lines] == ["Training"] * 6 + ["epoch"]
    assert re.fullmatch(r"Training  6 %  epoch 1 of 3  step 18 of 100  loss 0.7000  256 images/s  1:1. left", lines[1])
    assert printed.err == "Warning: odd\n"


def test_the_view_knows_what_an_interruption_leaves() -> None:
    with ProgressView("Starting") as view:
        for event in (RunOpened("/runs/a"), TrainingStarted(1, 1, 0, [], 9, 8), StepDone(1, 1, 9, 0.7)):
            view.event(event)
        assert (view.opened, view.epochs) == (["/runs/a"], 0)
        view.event(EPOCH)
        assert view.epochs == 2
        view.event(RunOpened("/runs/b"))
        assert (view.opened, view.epochs) == (["/runs/a", "/runs/b"], 0)
        view.event(TrainingStarted(1, 1, 3, [], 9, 8))  # resumed
        assert view.epochs == 3


SCRIPT = """
import time
from catdog.cli.progress import ProgressView
from catdog.events import EpochDone, StepDone, TrainingStarted
with ProgressView("Starting") as view:
    view.event(TrainingStarted(2, 1, 0, [], 3, 64))
    view.event(StepDone(1, 5, 30, 0.7))
    time.sleep(0.6)
    view.event(EpochDone(1, 0.5, 0.4, 0.9, 1e-4, 2.5, 900.0, ["a"], True))
    time.sleep(0.3)
print("over")
"""


def in_terminal(command: list[str], until: str = "", press: bytes = b"", **environment: str) -> tuple[int, str]:
    """Runs a command on a terminal of 60 columns; presses a key once some text was shown. Returns code and output."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "60", "LINES": "24"} | environment
    shown, deadline = "", time.monotonic() + 60
    with subprocess.Popen(
        [sys.executable, *command], stdin=child, stdout=child, stderr=child, env=environment, cwd=ROOT,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:  # fmt: skip
        os.close(child)
        while time.monotonic() < deadline:
            try:
                data = os.read(parent, 4096)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            shown += data.decode(errors="replace")
            if press and until in shown:
                os.write(parent, press)
                press = b""
    os.close(parent)
    return process.returncode, shown


@pytest.mark.parametrize(
    ("environment", "bar"),
    [
        ({}, "━"),
        ({"NO_COLOR": "1"}, "━"),
        ({"PYTHONIOENCODING": "ascii"}, "-"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "-"),
        ({"TERM": "dumb"}, ""),
    ],
)
def test_on_a_terminal_the_lines_are_drawn_over_and_leave_nothing(environment: dict[str, str], bar: str) -> None:
    code, shown = in_terminal(["-c", SCRIPT], **environment)
    assert code == 0, shown
    assert "epoch   1  loss 0.5000" in shown
    assert re.fullmatch("(\x1b\\[1A\x1b\\[2K)*over", shown.splitlines()[-1])
    assert ("step 5 of 30" in shown) == bool(bar)
    assert bar * 3 in shown
    if not bar:
        assert "\x1b" not in shown


def test_ctrl_c_on_a_terminal_leaves_the_message(tmp_path: Path) -> None:
    pictures = [jpeg(number) for number in (0, 1)]
    for number in range(6000):
        path = tmp_path / "source" / ("cats", "dogs")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pictures[number % 2])
    command = ["-m", "catdog", "data", "prepare", str(tmp_path / "source"), str(tmp_path / "set")]
    code, shown = in_terminal(command, until="Copying", press=b"\x03")
    assert code == 130, shown
    before, _, said = shown.partition("catdog: interrupted; no data set was written; to start again:")
    assert "catdog data prepare" in said
    # Nothing is drawn over it.
    assert "Copying" in before
    assert "Copying" not in said
    assert not re.search("\x1b\\[\\d*A", said)
    assert before.rfind("\x1b[?25h") > before.rfind("\x1b[?25l")  # the cursor is back


def test_a_name_that_the_terminal_cannot_show_is_no_error(tmp_path: Path) -> None:
    dest = tmp_path / "Kätzchen"
    command = [sys.executable, "-m", "catdog", "data", "synthesize", str(dest), "--train", "4", "--test", "1"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "K\\xe4tzchen" in done.stdout


def test_clock_and_fit() -> None:
    assert [display.clock(seconds) for seconds in (0.4, 59.6, 3599, 3661)] == ["0:00", "1:00", "59:59", "1:01:01"]
    assert progress.fit(["one", "twenty", "x"], 8) == "one  x"
