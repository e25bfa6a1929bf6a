"""An actor that dies of something other than an image ends the job, with one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from catdog.data.catalog import Catalog

ROOT = Path(__file__).parents[2]
# An actor that is killed while it writes any part, whatever decoded the images.
DEADLY = """
def _kill(parts):
    parts.write_part = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

PATCHES["catdog.scoring.parts"] = _kill
"""


def test_an_actor_that_always_dies_ends_the_job(drawn: Catalog, untrained: str, tmp_path: Path) -> None:
    poison = tmp_path / "poison"
    poison.mkdir()
    (poison / "sitecustomize.py").write_text((ROOT / "tests/poison/sitecustomize.py").read_text() + DEADLY)
    out = tmp_path / "results.csv"
    words = ["--model", untrained, "--data", drawn.root, "--out", str(out), "--split", "test"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "catdog", "score", *words],
        capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(poison), str(ROOT)])},
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "part 0-24 of test killed its process 4 times, though the images were decoded in isolation" in done.stderr
    assert not out.exists()
