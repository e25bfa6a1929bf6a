"""Whole commands whose processes hang, crash again and again, or lose a node: each goes on, or ends with one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from helpers import in_process, weights

from catdog.data import catalog, synthetic
from catdog.data.catalog import Catalog

ROOT = Path(__file__).parents[2]
POISON = ROOT / "tests" / "poison"
TRAIN = ["--arch", "workshop_cnn", "--image-size", 32, "--batch-size", 16, "--workers", 1, "--cpus-per-worker", 1]
# Of whatever loads a model.
CRASH = """
def _crash(predictor):
    predictor.Predictor.load = lambda *_: os.kill(os.getpid(), signal.SIGSEGV)

PATCHES["catdog.inference.predictor"] = _crash
"""


@contextmanager
def running(*words: object, poison: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Runs the `catdog` command; kills it, and what it started, in the end."""
    path = [*([str(poison)] if poison else []), str(ROOT)]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "catdog", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
    )  # fmt: skip
    try:
        yield process
    finally:
        for one in [*started_by(process), process]:
            with suppress(psutil.Error):
                one.kill()
        process.communicate()


def started_by(process: subprocess.Popen[str]) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def find(process: subprocess.Popen[str], title: str) -> psutil.Process:
    """Waits for a process of Ray's with a word in its title."""
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        for one in started_by(process):
            with suppress(psutil.Error):
                if any(title in word for word in one.cmdline()[:1]):
                    return one
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"no {title}: {process.communicate()}")


def left(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that are still there a moment later."""
    return [one for one in psutil.wait_procs(processes, timeout=10)[1] if one.status() != psutil.STATUS_ZOMBIE]


def test_a_model_that_crashes_every_actor_ends_scoring(drawn: Catalog, untrained: str, tmp_path: Path) -> None:
    poison = tmp_path / "poison"
    poison.mkdir()
    (poison / "sitecustomize.py").write_text((POISON / "sitecustomize.py").read_text() + CRASH)
    out = tmp_path / "results.csv"
    with running("score", "--model", untrained, "--data", drawn.root, "--out", out, poison=poison) as process:
        _, err = process.communicate(timeout=240)
    assert (process.returncode, err.count("\n")) == (1, 1), err
    assert "scoring failed (loading the model ends its process with SIGSEGV, on node " in err
    assert not out.exists()


def test_an_actor_that_hangs_ends_scoring(drawn: Catalog, untrained: str, tmp_path: Path) -> None:
    words = ["score", "--model", untrained, "--data", drawn.root, "--out", tmp_path / "results.csv"]
    with running(*words, "--stall-timeout", 45) as process:
        find(process, "PartScorer")
        started = set()
        # All of them, as the parts of one that never started are scored by the others.
        while process.poll() is None:
            started.update(started_by(process))
            for one in started:
                with suppress(psutil.Error):
                    if any("PartScorer" in word for word in one.cmdline()[:1]):
                        one.suspend()
            time.sleep(0.1)
        _, err = process.communicate()
        assert not left(list(started))
    assert (process.returncode, err.count("\n")) == (1, 1), err
    assert err.startswith("catdog: no progress for 45 s after ")
    assert err.endswith("; finished parts stay, and the same command goes on from them\n")


def test_a_worker_that_hangs_ends_training(drawn: Catalog, tmp_path: Path) -> None:
    words = ["train", "--data", drawn.root, *TRAIN, "--runs", tmp_path, "--name", "hangs"]
    with running(*words, "--epochs", 500, "--patience", 500, "--stall-timeout", 45) as process:
        while not list((tmp_path / "hangs" / "checkpoints").glob("checkpoint_*")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        worker = find(process, "TrainWorker")
        started = started_by(process)
        worker.suspend()
        _, err = process.communicate(timeout=240)
    assert (process.returncode, err.count("\n")) == (1, 1), err
    assert "catdog: no progress for 45 s after " in err
    assert err.endswith("finished epochs are kept: run it again, with --resume --name hangs if it had begun\n")
    assert not left(started)


def test_a_controller_that_hangs_at_its_end_does_not_hold_the_prompt(drawn: Catalog, tmp_path: Path) -> None:
    words = ["train", "--data", drawn.root, *TRAIN, "--runs", tmp_path, "--name", "hangs", "--epochs", 2]
    with running(*words, "--stall-timeout", 45) as process:
        controller = find(process, "TrainController")
        end = time.monotonic() + 240
        while not (tmp_path / "hangs" / "model" / "bundle.json").exists():
            assert time.monotonic() < end
            time.sleep(0.005)
        controller.suspend()
        out, err = process.communicate(timeout=240)
        assert not controller.is_running() or controller.status() == psutil.STATUS_ZOMBIE
    assert (process.returncode, err) == (0, "")
    assert f"Model: {tmp_path / 'hangs' / 'model'}" in out


def test_deadly_images_in_training_cost_themselves_only(drawn: Catalog, tmp_path: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(drawn.root, root)
    data = catalog.read_catalog(str(root))
    deadly = {("train", 3): "SEGFAULT", ("train", 9): "SPIN", ("valid", 2): "SEGFAULT"}
    for (split, row), word in deadly.items():
        with open(data.split(split)["uri"][row].as_py(), "ab") as file:
            file.write(b"POISON:" + word.encode())
    words = ["train", "--data", root, *TRAIN, "--runs", tmp_path, "--name", "run", "--epochs", 1]
    with running(*words, poison=POISON) as process:
        out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    for (split, row), word in deadly.items():
        reason = "crashed while decoding" if word == "SEGFAULT" else "timed out while decoding (1 s)"
        assert f"Left out: {data.split(split)['key'][row].as_py()}: {reason}\n" in out


NODES = """
import json, os, ray, signal, tempfile, time
from ray.cluster_utils import Cluster
from catdog.errors import CatdogError
from catdog.events import EpochDone, TrainingStarted, Waiting
from catdog.training import train

node = dict(num_cpus=1, object_store_memory=200_000_000)
os.makedirs(os.path.join(tempfile.gettempdir(), "ray"), exist_ok=True)  # where Cluster leaves a note of its address
cluster = Cluster(initialize_head=True, head_node_args=dict(node, include_dashboard=False, temp_dir=TEMPORARY))
second = cluster.add_node(**node)
cluster.wait_for_nodes()
os.environ["RAY_ADDRESS"] = cluster.address
events = []

def tell(event):
    global second
    events.append(event)
    if isinstance(event, EpochDone) and event.epoch == 1 and second:
        cluster.remove_node(second, allow_graceful=False)
        second = None

config = train.TrainConfig(data=DATA, arch="workshop_cnn", image_size=32, epochs=4, patience=9, learning_rate=0.003,
                           batch_size=16, name="lost", runs=RUNS, **OPTIONS)
try:
    train.train_model(config, tell)
    error = ""
except CatdogError as failed:
    error = str(failed)
print(json.dumps({
    "error": error,
    "workers": [[event.workers, event.epoch] for event in events if isinstance(event, TrainingStarted)],
    "epochs": [event.epoch for event in events if isinstance(event, EpochDone)],
    "waiting": [event.why for event in events if isinstance(event, Waiting)],
}))
cluster.shutdown()
"""


@pytest.mark.parametrize(("workers", "wait"), [("2", 15.0), ("1:2", None)])
def test_a_lost_node(workers: str, wait: float | None, tmp_path: Path, short_tmp: Path) -> None:
    data = synthetic.synthesize(str(tmp_path / "set"), 96, 24, seed=5)
    values: dict[str, object] = {
        "TEMPORARY": str(short_tmp / workers.replace(":", "")), "DATA": data.root, "RUNS": str(tmp_path),
        "OPTIONS": {"workers": int(workers) if workers == "2" else workers, "wait": wait},
    }  # fmt: skip
    script = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + NODES
    found = json.loads(in_process(script, timeout=500, PYTHONPATH=str(ROOT)).splitlines()[-1])
    assert found["workers"][0] == [2, 0]
    if workers == "2":
        needed = "waiting for 2 CPUs: the cluster has 1 CPU, 1 of them free"
        assert found["error"] == (
            f"a worker was lost; gave up after 15 s (--wait) of {needed}; --resume --name lost continues from the last "
            "epoch"
        )
        assert found["waiting"][0] == f"a worker was lost; {needed}"
    else:
        assert (found["error"], found["workers"][-1][0]) == ("", 1)
        assert found["epochs"][-1] == 4
        assert all(abs(value).max() < 1e6 for value in weights(str(tmp_path / "lost")))


JOINING = """
import json, os, psutil, ray, subprocess, tempfile
from ray.cluster_utils import Cluster
from catdog.events import EpochDone, TrainingStarted
from catdog.training import train

node = dict(num_cpus=1, object_store_memory=200_000_000)
os.makedirs(os.path.join(tempfile.gettempdir(), "ray"), exist_ok=True)  # where Cluster leaves a note of its address
cluster = Cluster(initialize_head=True, head_node_args=dict(node, include_dashboard=False, temp_dir=TEMPORARY))
os.environ["RAY_ADDRESS"] = cluster.address
events, joined = [], []

def tell(event):
    events.append(event)
    if isinstance(event, EpochDone) and event.epoch == 2:
        words = [RAY, "start", "--address", cluster.address, "--num-cpus=1", "--object-store-memory=200000000"]
        joined.append(subprocess.Popen([*words, "--block"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

config = train.TrainConfig(data=DATA, arch="small_resnet", image_size=64, epochs=150, patience=150, batch_size=16,
                           name="joined", runs=RUNS, workers="1:2")
train.train_model(config, tell)
print(json.dumps({
    "workers": [[event.workers, event.nodes, event.epoch] for event in events if isinstance(event, TrainingStarted)],
    "epochs": [event.epoch for event in events if isinstance(event, EpochDone)],
}))
for process in [*psutil.Process(joined[0].pid).children(recursive=True), joined[0]]:
    process.kill()
cluster.shutdown()
"""


def test_a_node_that_joins_is_used(tmp_path: Path, short_tmp: Path) -> None:
    data = synthetic.synthesize(str(tmp_path / "set"), 256, 8, seed=5)
    values = {"TEMPORARY": str(short_tmp / "j"), "DATA": data.root, "RUNS": str(tmp_path)}
    values["RAY"] = str(Path(sys.executable).with_name("ray"))
    script = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + JOINING
    found = json.loads(in_process(script, timeout=550, PYTHONPATH=str(ROOT)).splitlines()[-1])
    # Ray Train looks once a minute.
    assert found["workers"][0] == [1, 1, 0]
    workers, nodes, epoch = found["workers"][-1]
    assert (workers, nodes) == (2, 2)
    assert 2 <= epoch < 150
    assert sorted(set(found["epochs"])) == list(range(1, 151))


BEATS = """
import time, ray
from catdog import cluster, stall
from catdog.errors import CatdogError

@ray.remote
def work(seconds):
    stall._BEAT_SECONDS = 1.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        stall.beat()
        time.sleep(0.1)

with cluster.connect():
    ray.get(work.remote(0))
    started = time.monotonic()
    try:
        with stall.watching(lambda event: None, 15, "bye"):
            ray.get(work.remote(40))
            worked = time.monotonic() - started
            time.sleep(600)
    except CatdogError as error:
        print(worked >= 40, 15 <= time.monotonic() - started - worked < 200, error)
"""


def test_a_beat_of_any_process_is_progress() -> None:
    printed = in_process(BEATS, timeout=300, PYTHONPATH=str(ROOT)).splitlines()[-1]
    assert printed == ("True True no progress for 15 s (--stall-timeout): a process may hang or its node be gone; bye")
