"""`catdog doctor`: what a cluster has, what runs would make of it, and what would hold them back."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from catdog.cli.completion import complete_run
from catdog.cli.display import count, out
from catdog.cli.options import Address, Debug, Runs
from catdog.cli.progress import ProgressView
from catdog.doctor.problems import size_text
from catdog.errors import UsageError

if TYPE_CHECKING:
    from catdog.doctor import Diagnosis
    from catdog.doctor.facts import Cluster, Node, NodeFacts
    from catdog.doctor.plan import Plans

_ROWS = (
    "CPUs", "instructions", "memory", "GPUs", "TensorFlow", "ONNX Runtime", "shared memory", "object store",
    "Ray's files", "runs", "versions", "environment",
)  # fmt: skip
_NAMES_WIDTH, _COLUMN_WIDTH = 16, 31


def doctor(
    data: Annotated[str | None, typer.Option(help="A prepared data set: where would training keep its images?")] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=16, max=2048, help="Size of the decoded images, in pixels. Default: the model's, else 224."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Run or bundle: what would score with it?", autocompletion=complete_run)
    ] = None,
    runs: Runs = "runs",
    json_: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Show what the cluster has, what would be done with it, and what would hold it back; exit 1 if a run would fail.

    Nothing is written. Exit code 0: a run could be made, if perhaps slower or less safe than it could be.
    """
    from catdog.doctor import examine_cluster

    if image_size is not None and data is None:
        raise UsageError("--image-size received without --data; say which images are to fit into memory at that size")
    with contextlib.nullcontext() if json_ else ProgressView("Asking each node what it has", debug):
        found = examine_cluster(data, model, image_size, runs, address, debug)
    if json_:
        print(json.dumps(found.as_json(), indent=2))
    else:
        _show(found)
    if found.stops:
        raise typer.Exit(1)


def _show(found: Diagnosis) -> None:
    _show_cluster(found.cluster)
    _show_nodes(found.cluster.nodes)
    out.print("\nWhat would be done, with default options:")
    for name, text in _plan_rows(found.plans):
        out.print(f"  {name:<9} {text}")
    out.print()
    if not found.problems:
        out.print("Nothing was found that would hold it back")
        return
    out.print("What would hold it back:")
    for problem in found.problems:
        out.print(f"- {'STOPS A RUN: ' * problem.stops}{problem.text}")


def _show_cluster(cluster: Cluster) -> None:
    kind = "started for this command, as each command does without --address" if cluster.temporary else ""
    grows = "may have an autoscaler" if cluster.may_grow else ""
    out.print("; ".join(filter(None, [f"Ray at {cluster.address}, {count(len(cluster.nodes), 'node')}", kind, grows])))
    reached = list(dict.fromkeys(facts.reachable[0] for _, facts in cluster.known if facts.reachable))
    places = f"{', '.join(reached[:4])}{' and others' * (len(reached) > 4)}"
    listens = f"Ray listens at {places}, for other machines too" if reached else "Ray listens for this machine only"
    tokens = {True: "a token is asked for", False: "no token is asked for", None: "whether a token is asked is unknown"}
    out.print(f"{listens}; {tokens[cluster.token]}")


def _show_nodes(nodes: list[Node]) -> None:
    """A column for each node, as many beside each other as there is room for."""
    columns = [(node.name + ", head" * node.head, _node_rows(node)) for node in nodes]
    beside = max(1, (out.width - _NAMES_WIDTH) // _COLUMN_WIDTH)
    for start in range(0, len(columns), beside):
        chosen = columns[start : start + beside]
        table = Table("")
        for name, _ in chosen:
            table.add_column(name, overflow="fold")
        for name in _ROWS:
            cells = [rows.get(name, "") for _, rows in chosen]
            if any(cells):
                table.add_row(name, *cells)
        out.print(table)


def _node_rows(node: Node) -> dict[str, str]:
    """What is shown of a node, by the name of the row."""
    facts = node.facts
    if facts is None:
        return {
            "CPUs": str(node.cpus),
            "GPUs": str(node.gpus),
            "object store": size_text(node.store),
            "versions": "no answer",
        }
    versions, shared, runs = facts.versions, facts.shared_memory, facts.runs_disk
    gpus = [
        f"{gpu.name}{'' if gpu.memory is None else f' {size_text(gpu.memory)}'}, driver {gpu.driver}"
        for gpu in facts.gpus
    ]
    counted = [f"Ray counts {node.gpus}"] * (node.gpus != len(gpus))
    place = "" if facts.store_folder is None else f" in {facts.store_folder}"
    return {
        "CPUs": f"{node.cpus} × {facts.cpu}",
        "instructions": ", ".join(facts.instructions) or "none of AVX2, AVX-512, AMX",
        "memory": _free(facts.memory_free, facts.memory),
        "GPUs": "\n".join([*gpus, *counted]) or "none",
        "TensorFlow": _tensorflow(facts),
        "ONNX Runtime": _onnxruntime(facts),
        "shared memory": f"{_free(shared.free, shared.size)} in {shared.path}" if shared else "none",
        "object store": f"{_free(node.store_free, node.store)}{place}",
        "Ray's files": f"{_free(facts.ray_disk.free, facts.ray_disk.size)} in {facts.ray_disk.path}",
        "runs": f"{_free(runs.free, runs.size)} in {runs.path}" if runs else "in a bucket",
        "versions": f"catdog {versions['catdog']}, Ray {versions['ray']}, Python {versions['python']}",
        "environment": "\n".join(f"{name}={value}" for name, value in facts.environment.items()),
    }


def _tensorflow(facts: NodeFacts) -> str:
    found = facts.tensorflow
    if found is None:
        return f"fails: {facts.tensorflow_error}"
    build = f"for CUDA {found.cuda}" if found.cuda else "with GPU support" if found.gpu_build else "for CPUs only"
    return f"{found.version}, built {build}, sees {', '.join(found.gpus) or 'no GPU'}"


def _onnxruntime(facts: NodeFacts) -> str:
    found = facts.onnxruntime
    if found is None:
        return f"fails: {facts.onnxruntime_error}"
    return f"{found.version}, {', '.join(name.removesuffix('ExecutionProvider') for name in found.providers)}"


def _plan_rows(plans: Plans) -> list[tuple[str, str]]:
    """The plans in words, by name."""
    from catdog.resources import in_words

    rows = []
    training, scoring, images, model = plans.training, plans.scoring, plans.images, plans.model
    if training is None:
        rows.append(("training", "none"))
    else:
        each = f"{in_words(training.worker_resources)} each"
        workers = count(training.workers, "worker")
        rows.append(("training", f"{workers} with {each}, {plans.batch_size} images a step"))
    if scoring is None:
        rows.append(("scoring", "none"))
    else:
        each = f"{in_words(scoring.actor_resources)} each"
        if scoring.gpu:
            each += ", and the CPUs read ahead; with --gpus-per-actor 0.25 four small models share one"
        why = "" if model else " (if the model has an ONNX file)" if scoring.engine == "onnx" else ""
        rows.append(("scoring", f"{scoring.engine}{why}, {count(scoring.actors, 'actor')} with {each}"))
    if model is not None:
        about = f"{model.architecture} at {model.image_size} px, for {' and '.join(model.engines)}"
        rows.append(("model", f"{model.uri}: {about}"))
    if images is not None:
        rows.append(("data", f"{images.count:,} training and validation images at {images.size} px: {images.why}"))
    return rows


def _free(free: int, size: int) -> str:
    return f"{size_text(free)} free of {size_text(size)}"
