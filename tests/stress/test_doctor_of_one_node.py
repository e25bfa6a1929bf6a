"""`catdog doctor` on a real cluster of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from catdog.data import synthetic

ROOT = Path(__file__).parents[2]


def test_without_a_cluster_it_starts_one_and_finds_what_is_broken(untrained: str, tmp_path: Path) -> None:
    data = synthetic.synthesize(str(tmp_path / "set"), 8, 2, seed=3)
    Path(data.table["uri"][0].as_py()).unlink()
    broken = tmp_path / "broken"
    (broken / "tensorflow").mkdir(parents=True)
    (broken / "tensorflow" / "__init__.py").write_text("raise ImportError('libfirst.so: no such file')")
    done = subprocess.run(
        [sys.executable, "-m", "catdog", "doctor", "--data", data.root, "--model", untrained, "--image-size", "48"],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{broken}", "TF_ENABLE_ONEDNN_OPTS": "0", "COLUMNS": "200"},
        capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    for expected in (
        "1 node; started for this command",
        "a token is asked for",
        "8 training and validation images at 48 px: decoded, 0.00 GB of ",
        "small_resnet at 32 px, for onnx and tensorflow",
        "scoring   onnx, ",
        "STOPS A RUN: the data set's first image cannot be read on node ",
        ": ImportError: libfirst.so: no such file; make install there",
        "TF_ENABLE_ONEDNN_OPTS is 0 on node ",
    ):
        assert expected in done.stdout, expected
    assert not (tmp_path / "runs").exists()
