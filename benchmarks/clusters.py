"""Clusters of this machine whose processes `reliability.py` kills: a head with a second node, and one for jobs."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil


class Machine:
    """A Ray cluster on this machine: a head, and perhaps a second node."""

    def __init__(self, cpus: int, second: int) -> None:
        from ray.cluster_utils import Cluster

        self._folder = tempfile.mkdtemp(prefix="cr-", dir="/tmp")
        # `Cluster` leaves a note of its address here, in a folder that only a cluster without `temp_dir` makes.
        (Path(tempfile.gettempdir()) / "ray").mkdir(exist_ok=True)
        node = {"num_cpus": cpus, "object_store_memory": 150_000_000, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=node | {"temp_dir": self._folder})
        self._second, self._nodes = second, list[Any]()
        self.address = self._cluster.address

    def refill(self) -> None:
        """Starts the second node, the first time and whenever it was lost."""
        if self._second and not self.raylets():
            for lost in self._nodes:
                self._cluster.remove_node(lost, allow_graceful=False)
            self._nodes = [self._cluster.add_node(num_cpus=self._second, object_store_memory=150_000_000)]
            self._cluster.wait_for_nodes()

    def raylets(self) -> list[int]:
        """The raylet of the second node."""
        started = [each.process for node in self._nodes for each in node.all_processes.get("raylet", [])]
        return [process.pid for process in started if process.poll() is None]

    def titled(self, *words: str) -> list[int]:
        """The processes of the cluster with one of these words in their titles."""
        found = []
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                title = " ".join(child.cmdline())
                if title.startswith("ray::") and any(word in title for word in words):
                    found.append(child.pid)
        return found

    def stop(self) -> None:
        self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)


class Head:
    """A head as `ray start` makes it, for a job; it can be killed with everything that it started."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="ch-", dir="/tmp")
        port, dashboard, *others = _free_ports(6)
        names = ("--dashboard-agent-listen-port", "--dashboard-agent-grpc-port", "--metrics-export-port",
                 "--ray-client-server-port")  # fmt: skip
        self._process = subprocess.Popen(
            [ray_command(), "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1",
             f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={self._folder}",
             *(f"{name}={value}" for name, value in zip(names, others, strict=True))],
            env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.address = f"http://127.0.0.1:{dashboard}"
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(f"{self.address}/api/version", timeout=2).close()
                return
            except urllib.error.HTTPError:  # it is there, and wants the token that `ray job submit` will show
                return
            except OSError:
                pass
            time.sleep(0.5)
        raise RuntimeError("the head did not come up")

    def kill(self) -> None:
        """Kills the head and everything on it, as a machine does that loses its power."""
        with contextlib.suppress(psutil.Error):
            for process in [*psutil.Process(self._process.pid).children(recursive=True), self._process]:
                with contextlib.suppress(psutil.Error, ProcessLookupError):
                    process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def ray_command() -> str:
    return str(Path(sys.executable).parent / "ray")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


# What may be killed, of a cluster and by the id of the command.


def actors(machine: Machine, _pid: int) -> list[int]:
    """The scoring actors."""
    return machine.titled("MapWorker")


def workers(machine: Machine, _pid: int) -> list[int]:
    """The training workers."""
    return machine.titled("RayTrainWorker")


def controller(machine: Machine, _pid: int) -> list[int]:
    """Ray Train's controller."""
    return machine.titled("TrainController")


def command(_machine: Machine, pid: int) -> list[int]:
    """The command itself."""
    return [pid]


def node(machine: Machine, pid: int) -> list[int]:
    """The raylet of the second node, while actors or workers are there: before, the run has not begun."""
    return machine.raylets() if actors(machine, pid) or workers(machine, pid) else []
