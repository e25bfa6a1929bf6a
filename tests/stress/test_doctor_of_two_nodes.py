"""`catdog doctor` on a cluster of two nodes that differ, of which one stops answering."""

from __future__ import annotations

import json
from pathlib import Path

from helpers import in_process

ROOT = Path(__file__).parents[2]
TWO_NODES = """
import json, os, signal, sys, tempfile
from ray.cluster_utils import Cluster
from catdog.cli import main
from catdog.doctor import survey

os.makedirs(os.path.join(tempfile.gettempdir(), "ray"), exist_ok=True)  # where Cluster leaves a note of its address
head = dict(num_cpus=1, include_dashboard=False, temp_dir=TEMPORARY, object_store_memory=100_000_000)
cluster = Cluster(initialize_head=True, head_node_args=head)
other = cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=200_000_000)
cluster.wait_for_nodes()
sys.argv = ["catdog", "doctor", "--json", "--address", cluster.address, "--runs", TEMPORARY + "-runs"]

def doctor():
    try:
        main.main()
    except SystemExit as stop:
        print(f"exit {stop.code}")

doctor()
raylet = other.all_processes["raylet"][0].process.pid
os.kill(raylet, signal.SIGSTOP)
survey.ANSWER_SECONDS = 2.0
doctor()
os.kill(raylet, signal.SIGCONT)
cluster.shutdown()
"""


def test_two_nodes_that_differ_one_with_a_gpu_that_only_ray_counts(short_tmp: Path) -> None:
    script = f"TEMPORARY = {str(short_tmp / 'd')!r}\n{TWO_NODES}"
    printed = in_process(script, timeout=300, RAY_AUTH_MODE="disabled", PYTHONPATH=str(ROOT))
    first, second = (text[text.index("{\n") :] for text in printed.split("exit ")[:2])
    assert [line for line in printed.splitlines() if line.startswith("exit")] == ["exit 0", "exit 1"]

    found = json.loads(first)
    nodes, kinds = found["cluster"]["nodes"], {problem["kind"] for problem in found["problems"]}
    assert [(node["head"], node["cpus"], node["gpus"], node["store"]) for node in nodes] == [
        (True, 1, 0, 100_000_000), (False, 2, 1, 200_000_000),
    ]  # fmt: skip
    assert len({node["name"] for node in nodes}) == 2
    for node in nodes:
        facts = node["facts"]
        assert facts["tensorflow"]["version"] == facts["versions"]["tensorflow"]
        assert "CPUExecutionProvider" in facts["onnxruntime"]["providers"]
        assert 0 < facts["memory_free"] <= facts["memory"]
        assert 0 < facts["ray_disk"]["free"] <= facts["ray_disk"]["size"]
        assert facts["tensorflow"]["gpus"] == facts["gpus"] == []
    assert found["plans"]["training"] == {
        "workers": 1, "cpus_per_worker": 1, "gpu": True, "bounds": None, "gpus_per_worker": 1.0,
    }  # fmt: skip
    assert (found["plans"]["scoring"]["engine"], found["plans"]["scoring"]["actors"]) == ("tensorflow", 1)
    assert "gpus-not-seen" in kinds
    # Both nodes are this machine, and the folder of runs one.
    assert not kinds & {"versions", "runs", "bfloat16", "no-answer", "node", "import"}
    assert found["cluster"]["token"] is False
    assert ("token" in kinds) == any(node["facts"]["reachable"] for node in nodes)

    silent = [problem["text"] for problem in json.loads(second)["problems"] if problem["kind"] == "no-answer"]
    assert any(f"node {nodes[1]['name']} gave no answer within 2 s" in text for text in silent)
