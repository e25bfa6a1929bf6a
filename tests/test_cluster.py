"""The cluster files, and the plan: what is asked of a cluster and what is refused."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from helpers import Outcome
from pydantic import ValidationError

from catdog import cluster, resources
from catdog.choices import EngineName
from catdog.errors import CatdogError, UsageError
from catdog.training.config import resolve
from catdog.training.request import TrainConfig

ROOT = Path(__file__).parents[1]


def prepared(name: str) -> dict[str, Any]:
    """What Ray makes of a cluster file: checked against its schema, with its defaults and merged commands."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((ROOT / name).read_text()))
    validate_config(config)
    return config


def test_cluster_yaml_has_a_cpu_head_and_gpu_workers_from_zero() -> None:
    config = prepared("cluster.yaml")
    types = config["available_node_types"]
    head, workers = types[config["head_node_type"]], types["gpu_worker"]
    assert "GPU" not in head["resources"]
    assert workers["resources"]["GPU"] == 1
    assert workers["min_workers"] == 0 < workers["max_workers"] <= config["max_workers"]
    # One image, to be filled in: an id is of one region and one day, and EC2 refuses what is none.
    assert head["node_config"]["ImageId"] == workers["node_config"]["ImageId"]
    assert not re.fullmatch("ami-[0-9a-f]+", head["node_config"]["ImageId"])
    # Ray makes the head's profile only where none is named, and gives workers none.
    assert "IamInstanceProfile" not in head["node_config"]
    assert workers["node_config"]["IamInstanceProfile"]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


def test_cluster_local_yaml_keeps_every_machine_that_it_names() -> None:
    config = prepared("cluster.local.yaml")
    (machines,) = config["available_node_types"].values()
    assert machines["min_workers"] == machines["max_workers"] == len(config["provider"]["worker_ips"]) == 2
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster.local.yaml"])
def test_cluster_files_copy_what_is_installed_and_no_more(name: str) -> None:
    config = prepared(name)
    mounts = {remote: local for remote, local in config["file_mounts"].items() if not local.startswith("~")}
    assert all((ROOT / local).exists() for local in mounts.values())
    # Ray reads every file below a mount; the folder itself holds data, runs and environments.
    assert all((ROOT / local).resolve() != ROOT for local in mounts.values())


@pytest.mark.parametrize(
    ("name", "kind", "installed"),
    [
        ("cluster.yaml", "head", ["/catdog", "boto3"]),
        ("cluster.yaml", "worker", ["/catdog", "/catdog[gpu]"]),
        ("cluster.local.yaml", "head", ["/catdog"]),
        ("cluster.local.yaml", "worker", ["/catdog"]),
    ],
)
def test_the_commands_of_cluster_files_run_and_run_again(
    name: str, kind: str, installed: list[str], tmp_path: Path
) -> None:
    """In a shell as Ray's; uv, which would go to the internet, and ray only note how they were called."""
    log, uv = tmp_path / "log", tmp_path / ".local" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    note = f'#!/bin/sh\necho "$(basename $0) $@" >> {log}\n'
    ray_ = f"printf '%s' '{note}' > ~/catdog-env/bin/ray; chmod +x ~/catdog-env/bin/ray"
    uv.write_text(f'{note}if [ "$1" = venv ]; then mkdir -p ~/catdog-env/bin; {ray_}; fi\n')
    uv.chmod(0o755)
    config = prepared(name)
    # A node type's own commands would stand in place of all others (ray.autoscaler._private.autoscaler).
    assert not any("worker_setup_commands" in node for node in config["available_node_types"].values())
    for command in [*config[f"{kind}_setup_commands"], *config[f"{kind}_start_ray_commands"]] * 2:
        subprocess.run(
            ["bash", "-c", f"export OMP_NUM_THREADS=1 && ({command})"],
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "RAY_HEAD_IP": "10.0.0.1"},
            check=True,
        )
    called = log.read_text().splitlines()
    half = len(called) // 2
    assert called[:half] == called[half:]
    venv, *installs, stop, start = called[:half]
    assert re.search(r"--allow-existing --python 3\.1[123] ", venv)
    assert all(f"--python {tmp_path}/catdog-env/bin/python" in install for install in installs)
    assert [install.split()[-1].removeprefix(str(tmp_path)) for install in installs] == installed
    # A second `ray start` on a node would be a second Ray.
    assert stop == "ray stop"
    assert start.startswith("ray start --head" if kind == "head" else "ray start --address=10.0.0.1:6379")
    assert (tmp_path / ".bashrc").read_text().count("RAY_AUTH_MODE=token") == 1


def pretend(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float]) -> None:
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: [*alive, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}])


def test_training_takes_what_the_cluster_holds_and_the_batch_is_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"CPU": 2.0})
    assert resources.plan_training(64) == resources.TrainPlan(2, 1, False)
    assert resources.plan_training(64, workers=1) == resources.TrainPlan(1, 2, False)
    assert resources.plan_training(8) == resources.TrainPlan(1, 2, False)
    pretend(monkeypatch, {"CPU": 64.0})
    assert resources.plan_training(64) == resources.TrainPlan(8, 8, False)
    pretend(monkeypatch, {"CPU": 3.0}, {"CPU": 1.0})
    assert resources.plan_training(64) == resources.TrainPlan(4, 1, False)
    assert resources.plan_training(64, workers=2) == resources.TrainPlan(2, 1, False)
    pretend(monkeypatch, {"CPU": 8.0}, {"CPU": 8.0, "GPU": 2.0})
    assert resources.plan_training(64) == resources.TrainPlan(2, 1, True)
    assert resources.plan_training(64, gpu=False, workers=2) == resources.TrainPlan(2, 8, False)


def test_training_takes_any_number_of_workers_between_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"CPU": 2.0}, {"CPU": 1.0})
    assert resources.plan_training(64, workers="2:8") == resources.TrainPlan(3, 1, False, (2, 8))
    assert resources.plan_training(64, workers="1:2", cpus_per_worker=2) == resources.TrainPlan(1, 2, False, (1, 2))
    assert resources.plan_training(64, workers="1:1") == resources.TrainPlan(1, 2, False, (1, 1))
    with pytest.raises(UsageError, match="received --workers 4 with 1 CPU each, but the cluster holds 3"):
        resources.plan_training(64, workers="4:8")
    with pytest.raises(UsageError, match="received --batch-size 64 for up to 65 workers"):
        resources.plan_training(64, workers="1:65")


@pytest.mark.parametrize("workers", ["x", "0", "1:", "3:2", "0:2", "-1", "1:2:3"])
def test_numbers_of_workers_that_cannot_be(workers: str) -> None:
    assert TrainConfig(data="d", workers="2").workers == 2
    assert TrainConfig(data="d", workers="1:2").workers == "1:2"
    with pytest.raises(ValidationError, match="expected a number from 1, or MIN:MAX"):
        TrainConfig(data="d", workers=workers)


def test_what_training_cannot_have(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"CPU": 2.0})
    with pytest.raises(UsageError, match="received --workers 3 with 1 CPU each, but the cluster holds 2"):
        resources.plan_training(64, workers=3)
    with pytest.raises(UsageError, match="received --workers 1 with 4 CPUs each, but the cluster holds 0"):
        resources.plan_training(64, workers=1, cpus_per_worker=4)
    with pytest.raises(UsageError, match="--batch-size 1 for 2 workers"):
        resources.plan_training(1, workers=2)
    with pytest.raises(UsageError, match="the cluster has no GPU; expected at least one; use --cpu"):
        resources.plan_training(64, gpu=True)
    with pytest.raises(UsageError, match="--workers 2 with 1 CPU and a GPU each, but the cluster holds 0"):
        resources.plan_training(64, workers=2, gpu=True)
    # An autoscaler may bring GPUs to whoever says how many to wait for.
    with pytest.raises(UsageError, match="give --workers N to wait"):
        resources.plan_training(64, gpu=True, may_grow=True)
    assert resources.plan_training(64, workers=2, gpu=True, may_grow=True) == resources.TrainPlan(2, 1, True)
    pretend(monkeypatch, {"memory": 1e9})
    with pytest.raises(UsageError, match="CPU"):
        resources.plan_training(64)


def test_scoring_takes_an_actor_a_cpu_or_gpu_but_none_without_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    both: dict[EngineName, int] = {"onnx": 25, "tensorflow": 30}
    pretend(monkeypatch, {"CPU": 2.0}, {"CPU": 4.0})
    assert resources.plan_scoring(both) == resources.ScorePlan("onnx", 6, 1, False)
    assert resources.plan_scoring({"tensorflow": 2}) == resources.ScorePlan("tensorflow", 2, 1, False)
    pretend(monkeypatch, {"CPU": 8.0, "GPU": 1.0})
    assert resources.plan_scoring(both) == resources.ScorePlan("tensorflow", 1, 1, True)
    assert resources.plan_scoring(both, gpu=False) == resources.ScorePlan("onnx", 8, 1, False)
    assert resources.plan_scoring({"onnx": 25}) == resources.ScorePlan("onnx", 8, 1, False)
    with pytest.raises(UsageError, match="--gpu received with --engine onnx, which runs on CPUs"):
        resources.plan_scoring({"onnx": 25}, gpu=True)
    pretend(monkeypatch, {"CPU": 8.0})
    with pytest.raises(UsageError, match="the cluster has no GPU"):
        resources.plan_scoring(both, gpu=True)
    assert resources.plan_scoring(both, gpu=True, may_grow=True) == resources.ScorePlan("tensorflow", 1, 1, True)
    pretend(monkeypatch, {"GPU": 1.0})
    with pytest.raises(UsageError, match="no CPU to read images with"):
        resources.plan_scoring(both)


@pytest.mark.parametrize(
    ("nodes", "workers", "actors"),
    [
        ([(8, 4)], 4, {1.0: 4, 0.5: 8, 0.3: 12, 0.25: 16}),
        ([(4, 2), (4, 2)], 4, {1.0: 4, 0.7: 4, 0.1: 40}),
        ([(16, 4), (2, 1), (8, 0)], 5, {1.0: 5, 0.5: 10}),
        # Scoring's actors take no CPU of a node, and a training worker takes one.
        ([(2, 4), (8, 0)], 2, {1.0: 4, 0.5: 8}),
        ([(0, 4), (8, 0)], None, {1.0: 4, 0.5: 8}),
    ],
)
def test_several_gpus_and_several_nodes(
    nodes: list[tuple[int, int]], workers: int | None, actors: dict[float, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, *({"CPU": float(cpus), "GPU": float(gpus)} for cpus, gpus in nodes))
    if workers is None:
        with pytest.raises(UsageError, match=r"no node has 1 CPU and a GPU for a worker \(GPUs of the nodes: 4\); use"):
            resources.plan_training(64)
    else:
        assert resources.plan_training(64) == resources.TrainPlan(workers, 1, True)
        part = resources.plan_training(64, gpus_per_worker=0.25)
        assert (part.workers, part.worker_resources) == (1, {"CPU": 1.0, "GPU": 0.25})
        with pytest.raises(
            UsageError, match=f"--workers 17 with 1 CPU and a GPU each, but the cluster holds {workers}"
        ):
            resources.plan_training(64, workers=17)
    for part_of_one, expected in actors.items():
        plan = resources.plan_scoring({"onnx": 99, "tensorflow": 99}, gpus_per_actor=part_of_one)
        assert (plan.engine, plan.actors) == ("tensorflow", expected)
        # Equal parts, so that nothing is left of a GPU that Ray could add to what is left of another.
        on_one = expected // sum(gpus for _, gpus in nodes)
        assert plan.actor_resources == {"GPU": pytest.approx(1 / on_one, abs=1e-4)}
        assert plan.actor_resources["GPU"] * on_one <= 1
        assert resources.plan_scoring({"tensorflow": 3}, gpus_per_actor=part_of_one).actors == 3


def test_the_plan_says_what_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0})
    plan = resources.plan_scoring({"tensorflow": 99}, gpus_per_actor=0.25)
    assert plan.why["actors"] == "16: up to 4 a GPU, with 0.25 of a GPU each (nodes have 2, 2), 99 parts"
    assert resources.plan_scoring({"tensorflow": 99}).why["actors"] == "4: one a GPU (nodes have 2, 2), 99 parts"
    # What an autoscaler brings has at least one.
    pretend(monkeypatch, {"CPU": 8.0})
    assert resources.plan_scoring({"tensorflow": 99}, may_grow=True, gpus_per_actor=0.25).actors == 4
    with pytest.raises(UsageError, match="the cluster has no GPU; expected at least one"):
        resources.plan_scoring({"tensorflow": 99}, gpus_per_actor=0.25)
    with pytest.raises(UsageError, match=r"gpus_per_worker=0.25 received, but the cluster has no GPU; .* use --cpu"):
        resources.plan_training(64, gpus_per_worker=0.25)


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "nan", "0.001"])
def test_parts_of_a_gpu_that_cannot_be(catdog: Callable[..., Outcome], value: str) -> None:
    for words in (["score", "--model", "m", "--gpus-per-actor", value], ["train", "--set", f"gpus_per_worker={value}"]):
        refused = catdog(*words, "--data", "d")
        assert (refused.code, refused.err.count("\n")) == (2, 1), refused.err
        assert value in refused.err
        assert "Traceback" not in refused.err


def test_what_does_not_go_with_a_part_of_a_gpu(catdog: Callable[..., Outcome]) -> None:
    refused = catdog("score", "--model", "m", "--data", "d", "--gpus-per-actor", 0.5, "--cpu")
    assert (refused.code, refused.err) == (
        2, "catdog: --cpu received with --gpus-per-actor 0.5; leave one of them out\n"
    )  # fmt: skip
    for workers in ("2", "1:2"):
        with pytest.raises(
            UsageError, match=f"received with --workers {workers}, but NCCL does not connect workers on"
        ):
            resolve(TrainConfig(data="d", workers=workers, gpus_per_worker=0.5))
    with pytest.raises(UsageError, match="--cpu received with gpus_per_worker=0.5; leave one of them out"):
        resolve(TrainConfig(data="d", gpu=False, gpus_per_worker=0.5))
    assert resolve(TrainConfig(data="d", workers=1, gpus_per_worker=0.5)).resources.gpus_per_worker == 0.5
    # As a run on CPUs is read back to be resumed.
    whole = resolve(TrainConfig(data="d", gpu=False, workers=2))
    assert resolve(TrainConfig(**whole.options())) == whole


@pytest.mark.parametrize(
    ("address", "message"),
    [("http://127.0.0.1:8265", "that of the Jobs API"), ("ray://127.0.0.1:10001", "Ray Client's.*expected HOST:PORT")],
)
def test_addresses_of_other_services_are_told_apart(address: str, message: str) -> None:
    with pytest.raises(UsageError, match=message), cluster.connect(address):
        pass


def test_no_cluster_at_the_address_is_one_line() -> None:
    with (
        pytest.raises(CatdogError, match="could not reach the Ray cluster at 127.0.0.1:1"),
        cluster.connect("127.0.0.1:1"),
    ):
        pass


def test_an_address_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        expected = f"could not reach the Ray cluster at {address}: no answer within 1 s"
        with pytest.raises(CatdogError, match=expected), cluster.connect(address):
            pass


def test_the_cause_of_an_error_far_away_is_one_line() -> None:
    far = "ray::f() (pid=1)\nTraceback:\n  File x\ncatdog.errors.CatdogError: the disk is full\nA hint."
    assert cluster.cause(RuntimeError(far)) == "the disk is full"
    assert cluster.cause(RuntimeError("a\nValueError: bad\nmore")) == "ValueError: bad"
    assert cluster.cause(RuntimeError("")) == "RuntimeError"
