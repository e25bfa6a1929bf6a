"""Real runs where there is little room or little right: a full disk, containers' /dev/shm, a user without a home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import NOBODY

from catdog.data.catalog import Catalog

ROOT = Path(__file__).parents[2]
TRAIN = ("--arch", "workshop_cnn", "--image-size", "32", "--epochs", "2", "--batch-size", "16", "--workers", "1")

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root may mount disks and become another user")


def run(*words: object, mounts: str = "true", user: str = "", **environment: str) -> tuple[int, list[str]]:
    """Runs the `catdog` command in a mount namespace of its own.

    Args:
        words: of the command.
        mounts: what a shell does before.
        user: what makes the command another user's.
        environment: variables beside those of this process.

    Returns:
        Exit code, and the lines of standard error.
    """
    command = f'{mounts} && exec {user} {sys.executable} -m catdog "$@"'
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command, "sh", *map(str, words)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True, text=True, timeout=400, check=False, cwd="/",
    )  # fmt: skip
    print(f"$ catdog {' '.join(map(str, words))}\n  exit {done.returncode}: {(done.stderr.splitlines() or [''])[-1]}")
    return done.returncode, done.stderr.splitlines()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Where a command may mount a small disk, which is gone with it; so its content is kept in a file."""
    (folder := tmp_path / "disk").mkdir()
    return folder


def small(disk: Path, size: str) -> str:
    """Shell commands that mount an image of a disk of a size, with what an earlier command left on it."""
    image = f"{disk}.img"
    made = f"test -f {image} || (truncate -s 64M {image} && mkfs.ext4 -q -m 0 {image})"
    filled = f"rm -f {disk}/filling && head -c {size} /dev/zero > {disk}/filling" if size else f"rm -f {disk}/filling"
    return f"{made} && mount -o loop {image} {disk} && {{ {filled} 2>/dev/null || true; }}"


def test_with_the_shm_of_a_container(drawn: Catalog, untrained: str, tmp_path: Path) -> None:
    shm = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    score = ("score", "--data", drawn.root, "--model", untrained, "--out")
    for name, mounts in (("small", shm), ("usual", "true")):
        assert run(*score, tmp_path / f"{name}.csv", mounts=mounts)[0] == 0
    assert (tmp_path / "small.csv").read_bytes() == (tmp_path / "usual.csv").read_bytes()
    code, lines = run("train", "--data", drawn.root, "--runs", tmp_path, "--name", "x", *TRAIN, mounts=shm)
    assert code == 0, lines


def test_as_a_user_without_a_home(drawn: Catalog, tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2], *Path(drawn.root).parents[:2]):
        folder.chmod(0o755)
    (mine := tmp_path / "mine").mkdir()
    mine.chmod(0o777)
    user = f"env -u HOME {NOBODY}"
    code, lines = run("train", "--data", drawn.root, "--runs", mine, "--name", "x", *TRAIN, user=user)
    assert code == 0, lines
    score = ("score", "--data", drawn.root, "--model", mine / "x", "--out")
    code, lines = run(*score, mine / "r.csv", user=user)
    assert code == 0, lines
    (tmp_path / "closed").mkdir()
    code, lines = run(*score, tmp_path / "closed" / "r.csv", user=user)
    assert code == 1
    assert lines == [f"catdog: could not write {tmp_path}/closed/r.parts/lease.json: Permission denied"]


@pytest.mark.parametrize("what", ["train", "score"])
def test_a_disk_that_gets_full_on_the_way(drawn: Catalog, untrained: str, disk: Path, what: str) -> None:
    words: tuple[object, ...] = ("score", "--data", drawn.root, "--model", untrained, "--out", disk / "r.csv")
    again = words
    if what == "train":
        words = ("train", "--data", drawn.root, "--runs", disk, "--name", "x", *TRAIN)
        again = ("train", "--resume", "--runs", disk, "--name", "x")
    codes = []
    for filled in ("60M", "53M", "51M", "45M", "20M", ""):
        code, lines = run(*words, mounts=small(disk, filled))
        codes.append(code)
        if code == 0:
            break
        assert lines[-1].startswith("catdog: "), lines
        assert "No space left on device" in lines[-1] or "--resume" in lines[-1], lines
        if "--resume" in lines[-1]:  # the run is there, and goes on
            words = again
    assert codes[0] == 1
    assert codes[-1] == 0, codes
