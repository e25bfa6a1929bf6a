"""Two nodes of one CPU each: a training worker and a scoring actor on both, in the most unfriendly of surroundings."""

from __future__ import annotations

import json
from pathlib import Path

from helpers import in_process

from catdog.data import synthetic
from catdog.reporting import submission

ROOT = Path(__file__).parents[2]
KERAS = {"backend": "jax", "floatx": "float16", "epsilon": 0.1, "image_data_format": "channels_first"}
SCRIPT = """
import json, os, ray, tempfile
from ray.cluster_utils import Cluster
from catdog.events import PartDone, ScoringPlanned, TrainingStarted
from catdog.scoring import parts, score
from catdog.training import train

node = dict(num_cpus=1, object_store_memory=200_000_000)
os.makedirs(os.path.join(tempfile.gettempdir(), "ray"), exist_ok=True)  # where Cluster leaves a note of its address
cluster = Cluster(initialize_head=True, head_node_args=dict(node, include_dashboard=False, temp_dir=TEMPORARY))
cluster.add_node(**node)
cluster.wait_for_nodes()
os.environ["RAY_ADDRESS"] = cluster.address
events = []
config = train.TrainConfig(data=DATA, arch="workshop_cnn", image_size=32, epochs=40, patience=2, learning_rate=0.003,
                              batch_size=16, name="two", runs=RUNS)
result = train.train_model(config, events.append)
parts.PART_ROWS = 2
score.score_dataset(score.ScoreConfig(model=result.run, data=DATA, out=OUT), events.append)
start = next(event for event in events if isinstance(event, TrainingStarted))
plan = next(event for event in events if isinstance(event, ScoringPlanned))
nodes = {event.node for event in events if isinstance(event, PartDone)}
print(json.dumps([start.workers, start.nodes, plan.actors, len(nodes), result.epochs]))
print(result.validation["epoch"])
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
    # Files of the user's named like packages; a proxy that nothing answers behind; another backend and another layout.
    for name in ("keras", "tensorflow", "ray", "cv2", "numpy", "random"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('this is not {name}')")
    (tmp_path / "keras.json").write_text(json.dumps(KERAS))
    hostile = {
        "PYTHONSAFEPATH": "1",  # as for the `catdog` command, on whose path the working folder is not
        "PYTHONPATH": str(ROOT),
        "KERAS_HOME": str(tmp_path),
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY"), "http://127.0.0.1:9"),
    }
    script = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + SCRIPT
    printed, best_epoch = in_process(script, timeout=240, cwd=tmp_path, **hostile).splitlines()[-2:]
    workers, nodes, actors, scored_on, epochs = json.loads(printed)
    assert (workers, nodes, actors, scored_on) == (2, 2, 2, 2)
    # And patience ended the training: two epochs after the best one.
    assert epochs == int(best_epoch) + 2 < 40
    assert submission.check_submission(values["OUT"], data).rows == 24
