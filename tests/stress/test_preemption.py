"""Nodes that are taken away: training leaves a checkpoint at the notice, and goes on elsewhere from it with all images.

The notice is Ray's own, by which the autoscaler tells of a spot instance's end: the DrainNode call of the head.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from helpers import bundle_json, in_process

from catdog.data import synthetic

ROOT = Path(__file__).parents[2]
# Training asks every two seconds whether there is a notice, which is nearly as long as these runs.
ASK_OFTEN = """
def _ask_often(checkpoint_clock):
    checkpoint_clock._ASK_SECONDS = 0.2

PATCHES["catdog.training.checkpoint_clock"] = _ask_often
"""
SPOT = """
import json, os, ray, tempfile, threading, time
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from catdog.events import StepDone, TrainingStarted
from catdog.training import train
from catdog.training.train import TrainConfig

os.makedirs(os.path.join(tempfile.gettempdir(), "ray"), exist_ok=True)  # where Cluster leaves a note of its address
# Of the driver, which no cloud takes away.
head = dict(num_cpus=0, object_store_memory=200_000_000, include_dashboard=False, temp_dir=TEMPORARY)
cluster = Cluster(initialize_head=True, head_node_args=head)
nodes = [cluster.add_node(num_cpus=1, object_store_memory=200_000_000) for _ in range(WORKERS + 1)]
cluster.wait_for_nodes()
os.environ["RAY_ADDRESS"] = cluster.address
starts, seen = [], {}

def checkpoints():
    return {one for one in os.listdir(FOLDER) if one.startswith("checkpoint_2")} if os.path.isdir(FOLDER) else set()

def announce():
    actors = [one for one in ray._private.state.actors().values() if one["State"] == "ALIVE"]
    where = [one["Address"]["NodeID"] for one in actors if one["ActorClassName"].startswith("RayTrainWorker")][-1]
    before, deadline = checkpoints(), int(1000 * (time.time() + 600))
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    assert ray._raylet.GcsClient(address=cluster.address).drain_node(where, reason, "spot", deadline)[0]
    while True:  # the end of an epoch also leaves one
        for one in checkpoints() - before:
            try:
                with open(os.path.join(FOLDER, one, "progress.json")) as file:
                    progress = json.load(file)
            except (OSError, ValueError):  # is being written
                continue
            if progress["step"]:
                seen.update(name=one, epoch=progress["epoch"], step=progress["step"])
        if "name" in seen:
            break
        time.sleep(0.02)
    while seen["name"] not in open(os.path.join(FOLDER, "checkpoint_manager_snapshot.json")).read():
        time.sleep(0.02)  # until Ray Train has noted it
    cluster.remove_node(next(node for node in nodes if node.node_id == where), allow_graceful=False)
    seen["taken"] = True

def tell(event):
    if isinstance(event, TrainingStarted):
        starts.append([event.epoch, event.step, event.workers])
    if isinstance(event, StepDone) and event.epoch == 2 and event.step > 10 and "thread" not in seen:
        seen["thread"] = threading.Thread(target=announce, daemon=True)
        seen["thread"].start()

train.train_model(TrainConfig(**OPTIONS, name="spot"), tell)
train.train_model(TrainConfig(**OPTIONS, name="whole"))
print(json.dumps({"starts": starts, "checkpoint": [seen["epoch"], seen["step"]], "taken": seen["taken"]}))
cluster.shutdown()
"""
LOST = """
import json, os, tempfile
import numpy as np, ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from catdog.data import catalog, images
from catdog.training import stores

os.makedirs(os.path.join(tempfile.gettempdir(), "ray"), exist_ok=True)  # where Cluster leaves a note of its address
head = dict(num_cpus=0, object_store_memory=200_000_000, include_dashboard=False, temp_dir=TEMPORARY)
cluster = Cluster(initialize_head=True, head_node_args=head)
nodes = {node.node_id: node for node in (cluster.add_node(num_cpus=1, object_store_memory=200_000_000) for _ in "12")}
cluster.wait_for_nodes()
ray.init(address=cluster.address)
rows = catalog.read_catalog(DATA).split("train")
loaded = {store: stores.load_images({"train": rows}, 64, store, lambda event: None)["train"] for store in STORES}
blocks = {store: one.blocks for store, one in loaded.items()}
lost = ray.experimental.get_object_locations(blocks["decoded"][:1])[blocks["decoded"][0]]["node_ids"][0]
kept = next(node for node in nodes if node != lost)

@ray.remote(num_cpus=1, scheduling_strategy=NodeAffinitySchedulingStrategy(kept, soft=False))
class Worker:  # takes the CPU that is left
    def copy(self, blocks):
        ray.get(blocks)

    def look(self, loaded):
        told = []
        opened = stores.open_store(stores.find_blocks(loaded, 1, told.append), len(rows), 64)
        return opened.readable, opened.take(opened.readable), opened.rejected, [(one.done, one.total) for one in told]

worker = Worker.remote()
ray.get([worker.copy.remote(some[-2:]) for some in blocks.values()])
cluster.remove_node(nodes[lost], allow_graceful=False)
for one in loaded.values():
    places = ray.experimental.get_object_locations(one.blocks)
    there = [kept in place["node_ids"] for place in places.values()]
    readable, pixels, rejected, told = ray.get(worker.look.remote(one), timeout=120)
    expected = [images.read_image(uri.as_py(), 64).pixels for uri in rows["uri"].take(readable)]
    same = bool(np.array_equal(pixels, expected))
    print(json.dumps([len(there), sum(there), told, len(readable), [row for row, _ in rejected], same]))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_node_that_is_taken_away_after_a_notice(workers: int, tmp_path: Path, short_tmp: Path) -> None:
    # An epoch must be longer than it takes to tell of a checkpoint and to lose a node.
    data = synthetic.synthesize(str(tmp_path / "set"), 1000, 0, seed=2)
    options = {
        "data": data.root, "arch": "small_resnet", "image_size": 96, "epochs": 3, "batch_size": 2, "workers": workers,
        "cpus_per_worker": 1, "runs": str(tmp_path),
    }  # fmt: skip
    values: dict[str, object] = {
        "TEMPORARY": str(short_tmp / f"p{workers}"), "FOLDER": str(tmp_path / "spot" / "checkpoints"),
        "WORKERS": workers, "OPTIONS": options,
    }  # fmt: skip
    poison = tmp_path / "poison"
    poison.mkdir()
    shipped = (ROOT / "tests" / "poison" / "sitecustomize.py").read_text()
    (poison / "sitecustomize.py").write_text(shipped + ASK_OFTEN)
    found = json.loads(
        in_process(
            "".join(f"{name} = {value!r}\n" for name, value in values.items()) + SPOT,
            timeout=3000,
            PYTHONPATH=os.pathsep.join([str(poison), str(ROOT)]),
            RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="1",  # which the other tests do without
            RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="0.2",
        ).splitlines()[-1]
    )
    # By default a checkpoint within an epoch is due after ten minutes, or at a notice.
    assert found["taken"]
    assert found["checkpoint"][1] % 8 == 0 < found["checkpoint"][1]
    assert found["starts"] == [[0, 0, workers], [*found["checkpoint"], workers]]
    ours, theirs = (bundle_json(str(tmp_path / name))["training"] for name in ("spot", "whole"))
    assert ours["variables_sha256"] == theirs["variables_sha256"]
    for one, other in zip(ours["history"], theirs["history"], strict=True):
        for same in ("variables_sha256", "loss", "valid_log_loss"):
            assert one[same] == other[same]


def test_images_that_lay_on_a_lost_node(tmp_path: Path, short_tmp: Path) -> None:
    data = synthetic.synthesize(str(tmp_path / "set"), 1400, 0, seed=2)
    rows = data.split("train")
    broken = [3, 700, 1200]
    for row in broken:
        Path(rows["uri"][row].as_py()).write_bytes(b"no image")
    values: dict[str, Any] = {
        "TEMPORARY": str(short_tmp / "l"),
        "DATA": data.root,
        "STORES": ["decoded", "encoded", "files"],
    }
    printed = in_process("".join(f"{name} = {value!r}\n" for name, value in values.items()) + LOST, timeout=300)
    for store, line in zip(values["STORES"], printed.splitlines()[-3:], strict=True):
        blocks, there, told, readable, rejected, same = json.loads(line)
        assert (readable, rejected, same) == (len(rows) - len(broken), broken, True)
        if store == "files":  # where they are is so little that the driver holds it
            assert told == []
            continue
        assert 0 < there < blocks
        assert told[0][0] == 0 < told[0][1] < len(rows)
        assert told[-1] == [told[0][1]] * 2
