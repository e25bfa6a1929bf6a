"""What would hold a run back in nodes that do not answer, in packages, settings, data sets and models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from catdog.doctor.facts import Cluster
from catdog.doctor.plan import Plans
from catdog.doctor.problems import Problem, node_names

# Nodes that differ in one of them do not work together: Ray refuses them, or what one sends the other cannot read.
_MUST_AGREE = ("python", "ray", "catdog", "catdog's sources")


def silent_nodes(cluster: Cluster, _plans: Plans) -> Iterator[Problem]:
    """A node did not answer in time."""
    for node in cluster.nodes:
        if node.silent:
            yield Problem(
                "no-answer",
                f"node {node.name} gave no answer within {cluster.wait_seconds:g} s; look at its load and its Ray (ray "
                "status), and start Ray anew there or take the node out",
                stops=True,
            )


def failed_nodes(cluster: Cluster, _plans: Plans) -> Iterator[Problem]:
    """A node could not answer, mostly because another catdog or none is installed there."""
    for node in cluster.nodes:
        if node.error is not None:
            yield Problem(
                "node",
                f"node {node.name} could not run catdog: {node.error}; make install there, the same version as here",
                stops=True,
            )


def different_versions(cluster: Cluster, _plans: Plans) -> Iterator[Problem]:
    """Nodes have different versions of something."""
    names = dict.fromkeys(name for _, facts in cluster.known for name in facts.versions)
    for name in names:
        having = _nodes_by((facts.versions.get(name, "none"), node.name) for node, facts in cluster.known)
        if len(having) == 1 or (name == "catdog's sources" and _differs(cluster, "catdog")):
            continue
        listed = ", ".join(f"{version} on {node_names(nodes)}" for version, nodes in having.items())
        if name in _MUST_AGREE:
            yield Problem("versions", f"{name}: {listed}; make install on each, from one checkout", stops=True)
        else:
            yield Problem(
                "versions", f"{name}: {listed}, so results depend on the node; make install on each, from one checkout"
            )


def _nodes_by(said: Iterable[tuple[str | None, str]]) -> dict[str, list[str]]:
    """Names of nodes by what they say, from pairs of both; without those that say None."""
    having: dict[str, list[str]] = defaultdict(list)
    for value, name in said:
        if value is not None:
            having[value].append(name)
    return having


def _differs(cluster: Cluster, name: str) -> bool:
    return len({facts.versions.get(name) for _, facts in cluster.known}) > 1


def failed_imports(cluster: Cluster, plans: Plans) -> Iterator[Problem]:
    """TensorFlow or ONNX Runtime cannot be imported."""
    for what, attribute in (("TensorFlow", "tensorflow_error"), ("ONNX Runtime", "onnxruntime_error")):
        for error, nodes in _nodes_by((getattr(facts, attribute), node.name) for node, facts in cluster.known).items():
            needed = what == "TensorFlow" or (plans.scoring is not None and plans.scoring.engine == "onnx")
            yield Problem(
                "import", f"{what} cannot be imported on {node_names(nodes)}: {error}; make install there", stops=needed
            )


def unreadable_data(cluster: Cluster, _plans: Plans) -> Iterator[Problem]:
    """The data set's files are not where a node looks."""
    for error, nodes in _nodes_by((facts.data_error, node.name) for node, facts in cluster.known).items():
        yield Problem(
            "data",
            f"the data set's first image cannot be read on {node_names(nodes)}: {error}; the same path on every node, "
            "or a bucket",
            stops=True,
        )


def model_without_onnx(_cluster: Cluster, plans: Plans) -> Iterator[Problem]:
    """A model that only TensorFlow can predict with is slower on CPUs."""
    model = plans.model
    if model is not None and model.no_onnx is not None and plans.scoring is not None and not plans.scoring.gpu:
        yield Problem(
            "onnx",
            f"{model.uri} has no verified ONNX file ({model.no_onnx}), so TensorFlow scores with it, which is slower; "
            "train it anew, if the reason is gone",
        )


def odd_settings(cluster: Cluster, _plans: Plans) -> Iterator[Problem]:
    """Variables of the environment that make TensorFlow slower."""
    slow = [node.name for node, facts in cluster.known if facts.environment.get("TF_ENABLE_ONEDNN_OPTS") == "0"]
    if slow:
        yield Problem(
            "environment",
            f"TF_ENABLE_ONEDNN_OPTS is 0 on {node_names(slow)}, which takes the fast kernels for CPUs from TensorFlow; "
            f"unset it{'' if cluster.temporary else ', and start Ray anew'}",
        )


CHECKS = (
    silent_nodes, failed_nodes, different_versions, failed_imports, unreadable_data, model_without_onnx, odd_settings,
)  # fmt: skip
