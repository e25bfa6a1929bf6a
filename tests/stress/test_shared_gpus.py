"""GPUs that several processes share, on two nodes and in a search; Ray only counts them, and TensorFlow has none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import in_process

from catdog.data.catalog import Catalog

ROOT = Path(__file__).parents[2]
TWO_NODES = """
import json, os, tempfile
from ray.cluster_utils import Cluster
from catdog.events import PartDone, ScoringPlanned
from catdog.scoring import parts, score

os.makedirs(os.path.join(tempfile.gettempdir(), "ray"), exist_ok=True)  # where Cluster leaves a note of its address
node = dict(num_cpus=1, num_gpus=2, object_store_memory=200_000_000)
cluster = Cluster(initialize_head=True, head_node_args=dict(node, include_dashboard=False, temp_dir=TEMPORARY))
cluster.add_node(**node)
cluster.wait_for_nodes()
os.environ["RAY_ADDRESS"] = cluster.address
parts.PART_ROWS = 2
for name, part in (("whole", 1.0), ("shared", 0.5)):
    events = []
    config = score.ScoreConfig(model=MODEL, data=DATA, out=f"{OUT}/{name}/results.csv", gpus_per_actor=part)
    score.score_dataset(config, events.append)
    plan = next(event for event in events if isinstance(event, ScoringPlanned))
    print(json.dumps([plan.actors, len({event.node for event in events if isinstance(event, PartDone)})]))
cluster.shutdown()
"""
ROOM = """
import json, os, ray, tempfile
from ray.cluster_utils import Cluster
from catdog import resources

os.makedirs(os.path.join(tempfile.gettempdir(), "ray"), exist_ok=True)  # where Cluster leaves a note of its address
store = dict(object_store_memory=100_000_000)
head = dict(store, num_cpus=2, num_gpus=2, include_dashboard=False, temp_dir=TEMPORARY)
cluster = Cluster(initialize_head=True, head_node_args=head)
ray.init(address=cluster.address, log_to_driver=False)
found = []

def is_placed(bundles):
    group = ray.util.placement_group(bundles)
    placed = group.wait(100 if len(bundles) <= found[-1] else 0.3)
    ray.util.remove_placement_group(group)
    return placed

for cpus, gpus in ((2, 2), (1, 4)):
    cluster.add_node(num_cpus=cpus, num_gpus=gpus, **store)
    for part in (1.0, 0.3):
        plan = resources.plan_scoring({"tensorflow": 999}, gpus_per_actor=part)
        found.append(plan.actors)
        assert is_placed([plan.actor_resources] * plan.actors)
        assert not is_placed([plan.actor_resources] * (plan.actors + 1))
    plan = resources.plan_training(999)
    found.append(plan.workers)
    assert is_placed([plan.worker_resources] * plan.workers)
    assert not is_placed([plan.worker_resources] * (plan.workers + 1))
print(json.dumps(found))
ray.shutdown()
cluster.shutdown()
"""
SEARCH = """
import ray
from catdog.events import SearchProgress
from catdog.experiments import tuning
from catdog.training.request import TrainConfig

ray.init(address="local", num_cpus=3, num_gpus=1, include_dashboard=False, log_to_driver=False)
most = 0

def tell(event):
    global most
    if isinstance(event, SearchProgress):
        most = max(most, event.running)

config = TrainConfig(data=DATA, name="search", runs=RUNS, recipe="gray-cnn", image_size=32, epochs=3, **OPTIONS)
trials = tuning.run_search(config, {"units": [4, 8, 16]}, on_event=tell)
print([trial.error for trial in trials], most)
ray.shutdown()
"""


def test_eight_actors_on_four_gpus_of_two_nodes(
    drawn: Catalog, untrained: str, tmp_path: Path, short_tmp: Path
) -> None:
    values = {"TEMPORARY": str(short_tmp / "g"), "MODEL": untrained, "DATA": drawn.root, "OUT": str(tmp_path)}
    script = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + TWO_NODES
    whole, shared = map(json.loads, in_process(script, timeout=900, PYTHONPATH=str(ROOT)).splitlines()[-2:])
    assert (whole, shared) == ([4, 2], [8, 2])
    written = [(tmp_path / name / "results.csv").read_bytes() for name in ("whole", "shared")]
    assert written[0] == written[1]


@pytest.mark.parametrize(("part", "most"), [(None, 1), (0.5, 2)])
def test_the_trials_of_a_search_share_a_gpu(drawn: Catalog, tmp_path: Path, part: float | None, most: int) -> None:
    values = {"DATA": drawn.root, "RUNS": str(tmp_path), "OPTIONS": {"gpus_per_worker": part} if part else {}}
    script = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + SEARCH
    assert in_process(script, timeout=900, PYTHONPATH=str(ROOT)).splitlines()[-1] == f"['', '', ''] {most}"


def test_ray_places_as_many_as_are_planned_and_no_more(short_tmp: Path) -> None:
    """Two nodes of two GPUs each, and then one more with fewer CPUs than GPUs; Ray only counts them."""
    printed = in_process(f"TEMPORARY = {str(short_tmp / 'room')!r}\n{ROOM}", timeout=400, PYTHONPATH=str(ROOT))
    assert json.loads(printed.splitlines()[-1]) == [4, 12, 4, 8, 24, 5]
