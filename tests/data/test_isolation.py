"""Images that crash, spin or eat memory: each costs itself, in a process of its own; and within limits, its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers import jpeg

from catdog.data import images, isolation
from catdog.data.isolation import IsolatedDecoder
from catdog.errors import CatdogError

POISON = Path(__file__).parents[1] / "poison"
ROOT = Path(__file__).parents[2]


def arrays(count: int) -> dict[int, np.ndarray]:
    return {size: np.full((count, size, size, 3), 7, np.uint8) for size in (16, 48)}


def poisoned(word: str) -> bytes:
    return jpeg(9) + b"POISON:" + word.encode()


def children() -> set[psutil.Process]:
    """The processes that this one started; a cluster of other tests may be among them."""
    return set(psutil.Process().children())


def test_each_image_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    before = children()
    # The process of the decoder has this one's path, and there the faults and lower limits.
    monkeypatch.syspath_prepend(str(POISON))
    files: list[bytes | str] = [
        *(jpeg(0), poisoned("SEGFAULT"), b"", "is a folder", poisoned("SPIN"), jpeg(1), b"text"),
        *(poisoned("MEMORY"), jpeg(2, (300, 200)), poisoned("OOM")),
    ]
    deadly = {1: "crashed while decoding", 4: "timed out while decoding (60 s)"}
    deadly |= dict.fromkeys((7, 9), "needs too much memory to decode")
    expected = images.decode_batch(files, arrays(len(files) + 2))
    with IsolatedDecoder([16, 48]) as decoder:
        found = decoder.decode_batch(files, arrays(len(files) + 2))
    for at in range(len(files)):
        if at in deadly:
            assert (found.statuses[at], found.details[at]) == ("unreadable", deadly[at])
            assert not any(array[at].any() for array in found.pixels.values())
        else:
            assert (found.statuses[at], found.details[at]) == (expected.statuses[at], expected.details[at])
            assert all(np.array_equal(array[at], expected.pixels[size][at]) for size, array in found.pixels.items())
    assert not any(array[len(files) :].any() for array in found.pixels.values())
    assert children() == before


def test_an_image_that_takes_longer_than_it_may_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    before = children()
    monkeypatch.syspath_prepend(str(POISON))
    with IsolatedDecoder([16, 48], seconds=1.0) as decoder:
        decoder.start()
        found = decoder.decode_batch([jpeg(0), poisoned("DEADLOCK"), jpeg(1)], arrays(3))
    assert found.statuses == ["ok", "unreadable", "ok"]
    assert found.details[1] == "timed out while decoding (1 s)"
    assert children() == before


def test_a_process_that_was_killed_from_outside_blames_no_image() -> None:
    before = children()
    with IsolatedDecoder([16, 48]) as decoder:
        decoder.decode_batch([jpeg(0)], arrays(1))
        (child,) = children() - before
        child.kill()
        child.wait()
        assert decoder.decode_batch([jpeg(1)], arrays(1)).statuses == ["ok"]


def test_a_decoder_that_cannot_start_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('this is not OpenCV')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with (
        IsolatedDecoder([16, 48]) as decoder,
        pytest.raises(CatdogError, match=r"could not start a process to decode images in isolation \(exit code 1\)"),
    ):
        decoder.decode_batch([jpeg(0)], arrays(1))


@pytest.mark.parametrize(("word", "code"), [("SPIN", -signal.SIGPROF), ("DEADLOCK", -signal.SIGALRM), ("MEMORY", 0)])
def test_limits_of_time_end_the_process_and_those_of_memory_do_not(word: str, code: int, tmp_path: Path) -> None:
    for name, data in (("first", jpeg(0)), ("second", poisoned(word)), ("third", jpeg(1))):
        (tmp_path / name).write_bytes(data)
    script = f"""
import numpy as np
from pathlib import Path
from catdog.data import isolation
isolation.MOST_SECONDS = {2.0 if word == "DEADLOCK" else 60.0}
files = [Path({str(tmp_path)!r}, name).read_bytes() for name in ("first", "second", "third")]
print(isolation.decode_batch(files, {{16: np.empty((3, 16, 16, 3), np.uint8)}})[1:])
bytearray(2**29), sum(range(2 * 10**8))  # after it there is no limit
"""
    path = os.pathsep.join([str(POISON), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path},
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    if code == 0:
        assert done.stdout.strip() == "(['ok', 'unreadable', 'ok'], ['', 'needs too much memory to decode', ''])"


def test_within_limits_the_pixels_are_the_same() -> None:
    files: list[bytes | str] = [jpeg(0), "is a folder", b"", jpeg(1, (90, 70))]
    expected, found = images.decode_batch(files, arrays(5)), isolation.decode_batch(files, arrays(5))
    assert found[1:] == expected[1:]
    assert all(np.array_equal(array, expected.pixels[size]) for size, array in found.pixels.items())
    assert signal.getitimer(signal.ITIMER_REAL) == signal.getitimer(signal.ITIMER_PROF) == (0, 0)
