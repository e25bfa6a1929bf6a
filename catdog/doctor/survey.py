"""Asks each node of a cluster what it has, in a task that runs there and needs no CPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from catdog import cluster
from catdog.doctor.facts import Cluster, Node, NodeFacts
from catdog.doctor.node import look_at_node

# Longer than a node takes at most to say that TensorFlow cannot be imported (`node`).
ANSWER_SECONDS = 120.0
_HEAD = "node:__internal_head__"


def survey_cluster(temporary: bool, may_grow: bool, runs: str, image: str | None) -> Cluster:
    """Asks all nodes at once; one that does not answer in time is named, and not waited for any longer.

    Args:
        temporary: the cluster was started for this command alone.
        may_grow: it may have an autoscaler.
        runs: URI of the folder of runs.
        image: URI of an image that every node must be able to read, or None.
    """
    address = ray.get_runtime_context().gcs_address
    alive = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: _HEAD not in node["Resources"])
    refs = [_ask(node, address, runs, image) for node in alive]
    answered, pending = ray.wait(refs, num_returns=len(refs), timeout=ANSWER_SECONDS)
    for ref in pending:
        ray.cancel(ref, force=True)
    times = Counter(node["NodeManagerAddress"] for node in alive)
    free = ray._private.state.available_resources_per_node()
    nodes = []
    for node, ref in zip(alive, refs, strict=True):
        facts, error = _answer(ref) if ref in answered else (None, None)
        name, counted = node["NodeManagerAddress"], node["Resources"]
        nodes.append(
            Node(
                name=name if times[name] == 1 else f"{name} ({node['NodeID'][:6]})",
                id=node["NodeID"],
                head=_HEAD in counted,
                cpus=int(counted.get("CPU", 0)),
                gpus=int(counted.get("GPU", 0)),
                store=int(counted.get("object_store_memory", 0)),
                store_free=int(free.get(node["NodeID"], {}).get("object_store_memory", 0)),
                facts=facts,
                silent=ref not in answered,
                error=error,
            )
        )
    return Cluster(address, temporary, may_grow, cluster.asks_for_token(address), nodes, ANSWER_SECONDS)


def _ask(node: dict[str, Any], head: str, runs: str, image: str | None) -> ray.ObjectRef:
    ports = [node["NodeManagerPort"], node["ObjectManagerPort"]]
    if _HEAD in node["Resources"]:
        ports.append(int(head.rpartition(":")[2]))
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    # A process of its own, so that nothing that it imports stays in a worker that is used again.
    task = ray.remote(num_cpus=0, max_calls=1, max_retries=0, scheduling_strategy=there)(look_at_node)
    return task.remote(ports, runs, image)


def _answer(ref: ray.ObjectRef) -> tuple[NodeFacts | None, str | None]:
    """What a node said, or why it could not."""
    try:
        return ray.get(ref), None
    except Exception as error:  # of Ray, or whatever the task raised
        return None, cluster.cause(error)
