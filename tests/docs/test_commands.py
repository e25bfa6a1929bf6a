"""The commands of README and docs, run one after the other in an empty folder, on small drawn pictures.

Options that make a command small enough are added at its end; what cannot be run here is named, with the reason.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from test_docs import ROOT, blocks

PAGES = ("README.md", "docs/recipes.md", "docs/data.md", "docs/cluster.md")
CANNOT = {
    "catdog kaggle": "asks Kaggle; tests/e2e/test_kaggle_path.py runs it before a stand-in",
    "catdog data download": "asks Kaggle; tests/kaggle runs it before a stand-in",
    "catdog submit": "asks Kaggle; tests/kaggle runs it before a stand-in",
    "catdog serve": "runs until Ctrl-C; tests/e2e/test_serve.py and tests/browser run it",
    "catdog data review": "runs until Ctrl-C; tests/serving and tests/browser run it",
    "catdog tune --data data/kaggle --search gray-grid": "27 runs; tests/e2e/test_tuning.py runs a search",
    "ray job submit": "wants a head; tests/e2e/test_jobs.py runs both jobs on one",
    "ray start": "wants a machine for itself; tests/e2e/test_two_nodes.py starts two nodes",
    "ray drain-node": "wants a node to take away",
    "ray get-auth-token": "tests/e2e/test_jobs.py runs it",
    "catdog bundle quantise": "may be refused on so few pictures; tests/inference/test_quantise.py runs it",
    "catdog score --model runs/first --data data/kaggle --precision int8": "wants what that makes; likewise",
    "make": "continuous integration runs it",
    "curl": "wants a server; tests/browser sends the same requests",
    "export": "sets a variable of the shell",
    "source": "enters the environment that this test runs in",
    "catdog train --address": "wants a head; tests/e2e/test_two_nodes.py trains on two nodes",
    "catdog score --address": "wants a head; tests/e2e/test_path.py scores on a cluster of its own",
    "docker": "wants Docker",
    "kubectl": "wants Kubernetes; tests/test_docs.py reads the manifests",
}
# Added to a command that begins so: the first that fits.
SMALLER = {
    "catdog train --data data/kaggle --recipe linear-probe": "--image-size 48",
    "catdog train --data data/kaggle --folds": "--arch small_resnet --image-size 48 --epochs 1",
    "catdog train": "--image-size 48 --epochs 1",
    "catdog tune": "--set weights=none --set image_size=48 --set epochs=1 --set alpha=0.25",
    "catdog predict rex.jpg --imagenet": "--weights vgg.h5",
}
URL = "https://example.org/rex.jpg"


def lines() -> list[str]:
    """The command lines of the pages, in their order."""
    return [line for page in PAGES for line in blocks(ROOT / page) if re.match(r"[a-z]+ ", line)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, short_tmp: Path) -> Iterator[Path]:
    """A folder with what a reader has: Kaggle's zip, photos of their own, and lists that they made."""
    folder = tmp_path_factory.mktemp("docs")
    # One cluster for all commands, which would each start their own.
    ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=str(short_tmp / "r"), log_to_driver=False)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    run("catdog data synthesize drawn --train 120 --test 20", folder)
    (folder / "downloads").mkdir()
    pictures = sorted((folder / "drawn").rglob("*.jpg"))
    with zipfile.ZipFile(folder / "downloads" / "dogs-vs-cats-redux-kernels-edition.zip", "w") as archive:
        for path in pictures:
            archive.write(path, f"{path.parent.name}/{path.name}")
    (folder / "Pictures" / "pets").mkdir(parents=True)
    for name in ("rex.jpg", "tom.heic", "Pictures/pets/1.jpg"):
        shutil.copy(pictures[0], folder / name)
    yield folder
    monkeypatch.undo()
    ray.shutdown()


def run(line: str, folder: Path) -> str:
    words = shlex.split(line.replace("~/Pictures", "Pictures").replace("$PWD", str(folder)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_commands_do_what_the_pages_say(place: Path) -> None:
    for line in lines():
        if any(line.startswith(start) for start in CANNOT):
            continue
        assert line.startswith("catdog "), f"neither run nor named in CANNOT: {line}"
        prepare(line, place)
        smaller = next((more for start, more in SMALLER.items() if line.startswith(start)), "")
        if "--arch mobilenet" in line:
            smaller += " --weights none"
        if "--imagenet" in line:  # weights and class names of Keras are not here; tests/inference runs it with others
            continue
        run(f"{line.replace(URL, '')} {smaller}".strip(), place)


def prepare(line: str, place: Path) -> None:
    """Makes what a page takes for granted, and gives way to a run of the same name on an earlier page."""
    name = re.search(r"--name (\S+)", line)
    if line.startswith("catdog train") and name and (place / "runs" / name[1]).exists():
        shutil.rmtree(place / "runs" / name[1])
    if "runs/other" in line:
        shutil.copytree(place / "runs" / "cv", place / "runs" / "other")
    if "audit.reviewed.csv" in line:
        key = next((place / "data" / "kaggle").rglob("cat.*.jpg")).relative_to(place / "data" / "kaggle" / "images")
        (place / "audit.reviewed.csv").write_text(f"key,action\n{key},keep\n")


def test_what_cannot_be_run_is_still_there() -> None:
    assert [start for start in CANNOT if not any(line.startswith(start) for line in lines())] == []
