"""Two nodes of one CPU each: a training worker and a scoring actor on both."""

from __future__ import annotations

import json
from pathlib import Path

from helpers import in_process

from catdog import submission, synthetic

SCRIPT = """
import json, ray
from ray.cluster_utils import Cluster
from catdog import scoring, training

node = dict(num_cpus=1, object_store_memory=200_000_000)
cluster = Cluster(initialize_head=True, head_node_args=dict(node, include_dashboard=False, temp_dir=TEMPORARY))
cluster.add_node(**node)
ray.init(address=cluster.address, log_to_driver=False)
cluster.wait_for_nodes()
events = []
config = training.TrainConfig(data=DATA, arch="workshop_cnn", image_size=32, epochs=40, patience=2, learning_rate=0.003,
                              batch_size=16, name="two", runs=RUNS)
result = training.train(config, events.append)
scoring.PART_ROWS = 2
scoring.score(scoring.ScoreConfig(model=result.run, data=DATA, out=OUT), events.append)
start = next(event for event in events if event["kind"] == "start")
plan = next(event for event in events if event["kind"] == "plan")
nodes = {event["node"] for event in events if event["kind"] == "part"}
print(json.dumps([start["workers"], start["nodes"], plan["actors"], len(nodes), result.epochs]))
print(result.validation["epoch"])
ray.shutdown()
cluster.shutdown()
"""


def test_a_worker_and_an_actor_on_each_node(tmp_path: Path, short_tmp: Path) -> None:
    data = synthetic.synthesize(str(tmp_path / "set"), 96, 24, seed=5)
    values = {
        "TEMPORARY": str(short_tmp / "n"),
        "DATA": data.root,
        "RUNS": str(tmp_path),
        "OUT": str(tmp_path / "r.csv"),
    }
    script = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + SCRIPT
    printed, best_epoch = in_process(script, timeout=240).splitlines()[-2:]
    workers, nodes, actors, scored_on, epochs = json.loads(printed)
    assert (workers, nodes, actors, scored_on) == (2, 2, 2, 2)
    # And patience ended the training: two epochs after the best one.
    assert epochs == int(best_epoch) + 2 < 40
    assert submission.check(values["OUT"], data).rows == 24
