"""Every line of what would hold a run back, from made-up nodes; and the command that shows them."""

from __future__ import annotations

import dataclasses
import json
import socket
from typing import Any

import psutil
import pytest
from helpers import Outcome

from catdog.doctor import examine
from catdog.doctor.examine import Diagnosis, find_problems
from catdog.doctor.facts import (
    Cluster,
    Disk,
    Gpu,
    Images,
    Model,
    Node,
    NodeFacts,
    OnnxRuntime,
    Place,
    TensorFlow,
)
from catdog.doctor.node import ending, parse_gpus, reachable_addresses, sources_digest
from catdog.doctor.plan import Plans
from catdog.doctor.problems import node_names, size_text
from catdog.resources import ScorePlan, TrainPlan

GIB = 2**30
FACTS = NodeFacts(
    cpu="A CPU", usable_cpus=8, instructions=["AVX2"], bfloat16=True, memory=32 * GIB, memory_free=24 * GIB, gpus=[],
    shared_memory=Disk("/dev/shm", 16 * GIB, 16 * GIB), store_folder="/dev/shm",
    ray_disk=Disk("/tmp/ray", 100 * GIB, 50 * GIB), runs_disk=Disk("/w/runs", 100 * GIB, 50 * GIB),
    runs=Place("/w/runs", 7, 1000.0), data_error=None, environment={},
    versions={"python": "3.11.7", "ray": "2.60.0", "catdog": "0.1.0", "catdog's sources": "aa", "numpy": "2.3"},
    reachable=["10.0.0.1"], tensorflow=TensorFlow("2.21.0", True, "12.5.1", []), tensorflow_error=None,
    onnxruntime=OnnxRuntime("1.31", ["CPUExecutionProvider"]), onnxruntime_error=None,
)  # fmt: skip
PLANS = Plans(64, TrainPlan(8, 1, False), ScorePlan("onnx", 8, 1, False), [], None, None, None)
GPU = Gpu("NVIDIA L4", 24 * GIB, "550.1")


def node(name: str = "a", cpus: int = 8, counted: int = 0, silent: bool = False, error: str = "", **facts: Any) -> Node:
    told = None if silent or error else dataclasses.replace(FACTS, **facts)
    return Node(name, f"{name}0", name == "a", cpus, counted, 8 * GIB, 8 * GIB, told, silent, error or None)


def problems(*nodes: Node, token: bool | None = True, plans: Plans = PLANS, **cluster: Any) -> list[tuple[str, bool]]:
    """The lines that are found, and whether each stops a run."""
    rest: dict[str, Any] = {"temporary": False, "may_grow": False} | cluster
    found = Cluster(address="10.0.0.1:6379", token=token, nodes=list(nodes), wait_seconds=9, **rest)
    return [(problem.text, problem.stops) for problem in find_problems(found, plans)]


def with_plans(**values: Any) -> Plans:
    return dataclasses.replace(PLANS, **values)


def test_nothing_holds_back_nodes_that_are_well() -> None:
    assert problems(node(), node("b")) == []


ANEW = "unset it, and start Ray anew"
SEES = TensorFlow("2.21.0", True, "12.5.1", ["NVIDIA L4"])
OTHER = {**FACTS.versions, "numpy": "2.1"}
NEWER = {**FACTS.versions, "catdog": "0.2.0", "catdog's sources": "bb"}


@pytest.mark.parametrize(
    ("nodes", "told", "stops", "rest"),
    [
        ([node(), node("b", silent=True)], "node b gave no answer within 9 s; look at its load", True, {}),
        ([node("b", error="No module x")], "node b could not run catdog: No module x; make install there", True, {}),
        ([node(), node("b", versions=NEWER)], "catdog: 0.1.0 on node a, 0.2.0 on node b; make install", True, {}),
        (
            [node(), node("b", versions={**FACTS.versions, "catdog's sources": "bb"})],
            "catdog's sources: aa on node a, bb on node b", True, {},
        ),
        ([node(), node("b", versions=OTHER)], "numpy: 2.3 on node a, 2.1 on node b, so results depend", False, {}),
        (
            [node(tensorflow=None, tensorflow_error="SIGILL")],
            "TensorFlow cannot be imported on node a: SIGILL; make install there", True, {},
        ),
        (
            [node(onnxruntime=None, onnxruntime_error="x")], "ONNX Runtime cannot be imported on node a: x", True, {},
        ),
        (
            [node(onnxruntime=None, onnxruntime_error="x")], "ONNX Runtime cannot be imported on node a: x", False,
            {"plans": with_plans(scoring=ScorePlan("tensorflow", 8, 1, False))},
        ),
        (
            [node(), node("b", data_error="no such file")],
            "first image cannot be read on node b: no such file; the same path on every node, or a bucket", True, {},
        ),
        (
            [node()], "runs/x has no verified ONNX file (a logit differs), so TensorFlow scores with it", False,
            {"plans": with_plans(model=Model("runs/x", "vgg16", 150, ["tensorflow"], "a logit differs"))},
        ),
        ([node(environment={"TF_ENABLE_ONEDNN_OPTS": "0"})], "TF_ENABLE_ONEDNN_OPTS is 0 on node a", False, {}),
        (
            [node(cpus=0)], "the cluster has no CPU to give; expected at least one; an autoscaler adds", True,
            {
                "plans": with_plans(training=None, refused=["the cluster has no CPU to give; expected at least one"]),
                "may_grow": True,
            },
        ),
        (
            [node()], "a training that begins now is waiting for 8 CPUs: held by X; end that, or --wait", False,
            {"plans": with_plans(waiting="waiting for 8 CPUs: held by X")},
        ),
        (
            [node()],
            "25,000 images at 224 px would be encoded, 0.20 GB a node, and decoded anew in each epoch;",
            False,
            {"plans": with_plans(images=Images("d", 25_000, 224, "encoded", "encoded, 0.20 GB a node", 2 * 10**8))},
        ),
        (
            [node(shared_memory=Disk("/dev/shm", 64 << 20, 0), store_folder="/tmp/ray")],
            "/dev/shm has 64 MiB on node a, so Ray keeps decoded images in /tmp/ray, which is slower on a real disk; "
            "in containers docker run --shm-size=9g", False, {},
        ),
        (
            [node(memory_free=5 * GIB)],
            "node a has 5.0 GiB of memory left, and training there takes about 8.0 GiB (workers 8)", False, {},
        ),
        (
            [node(memory_free=10 * GIB)], "training there takes about 11 GiB", False,
            {"plans": with_plans(images=Images("d", 9, 9, "decoded", "decoded", 3 * GIB))},
        ),
        (
            [node(runs_disk=Disk("/w/runs", 100 * GIB, 300 << 20))],
            "the disk of runs (/w/runs) on node a has only 300 MiB left; free some, or give another with --runs",
            True, {},
        ),
        ([node(runs_disk=Disk("/w/runs", 100 * GIB, 3 * GIB))], "(/w/runs) on node a has 3.0 GiB left", False, {}),
        (
            [node(ray_disk=Disk("/tmp/ray", 1000 * GIB, 40 * GIB))],
            "Ray's temporary files (/tmp/ray) on node a is 96% full, and Ray writes no objects there from 95%",
            False, {},
        ),
        (
            [node(), node("b", runs=Place("/w", 3, 1000.0))],
            "/w/runs is not the same folder on nodes a and b; give --runs a folder on storage that all see", True, {},
        ),
        (
            [node(), node("b", runs=Place("/w/runs", 7, 9000.0))], "/w/runs is not the same folder on nodes a and b",
            True, {},
        ),
        (
            [node(), node("b")],
            "Ray asks for no token and other machines reach it at 10.0.0.1: whoever does may run anything there, on "
            "nodes a and b; RAY_AUTH_MODE=token", False, {"token": False},
        ),
        (
            [node(), node("b", bfloat16=False)],
            "node b cannot multiply in bfloat16, so fine-tuning takes float32 also on node a", False, {},
        ),
        (
            [node(cpus=1, gpus=[GPU, GPU], counted=2, tensorflow=dataclasses.replace(SEES, gpus=["NVIDIA L4"] * 2))],
            "node a has fewer CPUs (1) than GPUs (2), and a training worker takes one of each, so training would leave "
            "1 GPU idle; ray start --num-cpus=2", False, {"plans": with_plans(training=TrainPlan(1, 1, True))},
        ),
        ([node(cpus=16)], "Ray counts 16 CPUs on node a, and its processes may use 8; ray start --num", False, {}),
        (
            [node(gpus=[GPU], environment={"CUDA_VISIBLE_DEVICES": ""})],
            "node a has 1 × NVIDIA L4, of which Ray counts 0; CUDA_VISIBLE_DEVICES is '' there: unset it to use all",
            False, {},
        ),
        (
            [node(gpus=[GPU, GPU], counted=1, tensorflow=SEES)],
            "node a has 2 × NVIDIA L4, of which Ray counts 1; give ray start --num-gpus", False, {},
        ),
        (
            [node(counted=1)],
            "Ray counts 1 GPU on node a, of which TensorFlow sees 0, so workers would compute on CPUs; no driver of",
            False, {},
        ),
        (
            [node(gpus=[GPU], counted=1, environment={"CUDA_VISIBLE_DEVICES": ""})],
            f"of which TensorFlow sees 0, so workers would compute on CPUs; CUDA_VISIBLE_DEVICES is '' there: {ANEW}",
            False, {},
        ),
        (
            [node(gpus=[GPU], counted=1, tensorflow=TensorFlow("2.21.0", False, None, []))],
            "its build has no GPU support: pip install 'catdog[gpu]' there, or --cpu", False, {},
        ),
        (
            [node(gpus=[GPU], counted=1)],
            "it needs CUDA 12.5.1 (pip install 'catdog[gpu]' there), and the driver is 550.1, or --cpu", False, {},
        ),
    ],
)  # fmt: skip
def test_each_problem_is_one_line(nodes: list[Node], told: str, stops: bool, rest: dict[str, Any]) -> None:
    ((text, stopping),) = problems(*nodes, **rest)
    assert told in text
    assert stopping is stops
    assert "\n" not in text


def test_what_stops_a_run_comes_first() -> None:
    found = problems(node(environment={"TF_ENABLE_ONEDNN_OPTS": "0"}), node("b", silent=True), token=False)
    assert [stops for _, stops in found] == [True, False, False]


def test_a_ray_that_ends_with_the_command_need_not_be_started_anew() -> None:
    odd = node(cpus=9, environment={"TF_ENABLE_ONEDNN_OPTS": "0"}, ray_disk=Disk("/t", 9 * GIB, 9))
    images = with_plans(images=Images("d", 9, 9, "files", "read again in each epoch", 0))
    told = "".join(text for text, _ in problems(odd, temporary=True, plans=images))
    assert all(words in told for words in ("unset it", "RAY_TMPDIR", "--workers", "a larger machine"))
    assert "ray start" not in told.lower()
    assert problems(odd, plans=images) != problems(odd, temporary=True, plans=images)


@pytest.mark.parametrize(
    ("token", "facts"), [(True, {}), (None, {}), (False, {"reachable": []})], ids=["asked for", "unknown", "loopback"]
)
def test_an_open_cluster_is_one_that_others_reach(token: bool | None, facts: dict[str, Any]) -> None:
    assert problems(node(**facts), token=token) == []


def test_gpus_make_neither_bfloat16_nor_onnx_a_problem() -> None:
    plans = with_plans(
        training=TrainPlan(1, 1, True), scoring=ScorePlan("tensorflow", 1, 1, True), model=Model("m", "x", 9, [], "no")
    )
    assert problems(node(gpus=[GPU], counted=1, tensorflow=SEES, bfloat16=False), node("b"), plans=plans) == []


def test_runs_in_a_bucket_are_one_place() -> None:
    assert problems(node(runs=None, runs_disk=None), node("b", runs=None, runs_disk=None)) == []


def test_many_nodes_are_not_all_named() -> None:
    assert node_names("a") == "node a"
    assert node_names("abc") == "nodes a, b and c"
    assert node_names("abcdef") == "nodes a, b, c and 3 others"


@pytest.mark.parametrize(
    ("size", "text"), [(2048, "2 KiB"), (64 << 20, "64 MiB"), (3 * GIB // 2, "1.5 GiB"), (24 * GIB, "24 GiB")]
)
def test_sizes_in_words(size: int, text: str) -> None:
    assert size_text(size) == text


def test_what_a_node_reads() -> None:
    listed = "NVIDIA L4, 23034, 550.54\nTesla, with a comma, [N/A], 470.1\nNo devices were found\n"
    assert parse_gpus(listed) == [Gpu("NVIDIA L4", 23034 << 20, "550.54"), Gpu("Tesla, with a comma", None, "470.1")]
    assert ending(-4, "") == "SIGILL, an instruction that this CPU lacks"
    assert ending(-9, "") == "SIGKILL"
    assert ending(1, "Traceback\nImportError: no libcudart\n\n") == "ImportError: no libcudart"
    assert ending(3, "") == "exit code 3"
    assert sources_digest() == sources_digest()


def test_only_what_listens_for_other_machines_is_reachable() -> None:
    own = {
        each.address
        for addresses in psutil.net_if_addrs().values()
        for each in addresses
        if each.family == socket.AF_INET
    }
    with socket.socket() as here, socket.socket() as everywhere:
        for listener, host in ((here, "127.0.0.1"), (everywhere, "0.0.0.0")):
            listener.bind((host, 0))
            listener.listen()
        assert reachable_addresses([here.getsockname()[1]]) == []
        others = {address for address in own if not address.startswith("127.")}
        assert set(reachable_addresses([everywhere.getsockname()[1]])) == others


def shown(
    catdog, monkeypatch: pytest.MonkeyPatch, *nodes: Node, words: tuple[str, ...] = (), plans: Plans = PLANS
) -> Outcome:
    """What the command says of a cluster that is made up."""
    found = Cluster("10.0.0.1:6379", False, False, False, list(nodes), 9)
    diagnosis = Diagnosis(found, plans, find_problems(found, plans))
    monkeypatch.setattr(examine, "examine_cluster", lambda *_: diagnosis)
    return catdog("doctor", *words)


def test_the_command_shows_a_column_for_each_node(catdog, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = shown(catdog, monkeypatch, node(), node("b", gpus=[GPU]), node("c", silent=True))
    assert outcome.code == 1
    for expected in (
        "Ray at 10.0.0.1:6379, 3 nodes", "no token is asked for", "a, head", "NVIDIA L4 24 GiB, driver",
        "no answer", "training  8 workers with 1 CPU each", "- STOPS A RUN: node c gave no answer within 9 s",
        "- Ray asks for no token",
    ):  # fmt: skip
        assert expected in outcome.out, outcome.out


def test_the_command_says_how_gpus_are_shared_out(catdog, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = with_plans(training=TrainPlan(4, 1, True), scoring=ScorePlan("tensorflow", 4, 1, True))
    told = " ".join(shown(catdog, monkeypatch, node(), plans=plans).out.split())
    assert "4 workers with 1 CPU and a GPU each, 64 images a step" in told
    assert "tensorflow, 4 actors with a GPU each, and the CPUs read ahead; with --gpus-per-actor" in told


def test_scripts_get_the_same_as_json(catdog, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = shown(catdog, monkeypatch, node(), words=("--json",))
    found = json.loads(outcome.out)
    assert (outcome.code, found["stops"]) == (0, False)
    assert found["cluster"]["nodes"][0]["facts"]["tensorflow"]["version"] == "2.21.0"
    assert [problem["kind"] for problem in found["problems"]] == ["token"]
    assert found["plans"]["training"]["workers"] == 8


def test_an_image_size_of_no_data_set_is_refused(catdog) -> None:
    refused = catdog("doctor", "--image-size", "64")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "--image-size received without --data" in refused.err
