"""A cluster of three nodes on one machine, each with a network, an address and a /tmp of its own; links that fail.

    head 10.77.0.2, workers 10.77.0.3 and 10.77.0.4, an S3 server 10.77.0.1 at the switch between them

Nothing leaves these namespaces: none has a way out. Tokens are on, all data is on the S3 server, and a supervisor
starts a node again that ended, as systemd or Kubernetes would.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import S3Server

ROOT = Path(__file__).parents[2]
SWITCH, NODES = "cds", {"cdh": "10.77.0.2", "cdw1": "10.77.0.3", "cdw2": "10.77.0.4"}
HEAD = f"{NODES['cdh']}:6379"
TMP = "/tmp/cd-nodes"
RAY = Path(sys.executable).with_name("ray")
# Each node's is a tmpfs of its own, mounted there.
NODE = f"mount -t tmpfs tmpfs {TMP} && while true; do {RAY} start {{}} --node-ip-address={{}} --num-cpus=1 \
--object-store-memory=150000000 --disable-usage-stats --block; sleep 2; done"
DATA, RUNS, OUT = "s3://bucket/set", "s3://bucket/runs", "s3://bucket/sub/results.csv"
TRAIN = ("--arch", "workshop_cnn", "--image-size", "32", "--epochs", "20", "--batch-size", "18", "--workers", "3")

pytestmark = pytest.mark.skipif(os.getuid() != 0 or not shutil.which("ip"), reason="only root may make namespaces")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class Network:
    """The namespaces, the S3 server, and Ray's nodes.

    Attributes:
        store: the S3 server.
        environment: of every process in the namespaces.
    """

    def __init__(self, folder: Path) -> None:
        self.log = folder / "nodes.log"
        self._ray: dict[str, subprocess.Popen[bytes]] = {}
        ip("netns", "add", SWITCH)
        ip("-n", SWITCH, "link", "add", "bridge", "type", "bridge")
        ip("-n", SWITCH, "address", "add", "10.77.0.1/24", "dev", "bridge")
        for link in ("lo", "bridge"):
            ip("-n", SWITCH, "link", "set", link, "up")
        for name, address in NODES.items():
            ip("netns", "add", name)
            ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", SWITCH)
            ip("-n", SWITCH, "link", "set", name, "master", "bridge", "up")
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                ip("-n", name, "link", "set", link, "up")
            # Ray finds its own address by the way that a packet would take; the switch forwards none.
            ip("-n", name, "route", "add", "default", "via", "10.77.0.1")
        self.store = S3Server("10.77.0.1", ["ip", "netns", "exec", SWITCH])
        (folder / "token").write_text("a" * 64)
        self.environment = {
            **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
            **self.store.environment,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "RAY_TMPDIR": TMP,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
            "HOME": str(folder),
            # A node that is out of reach is given up after some 15 s, not a minute.
            "RAY_health_check_timeout_ms": "3000",
            "RAY_health_check_period_ms": "2000",
            "RAY_health_check_failure_threshold": "3",
        }

    def start_ray(self) -> None:
        """Starts the head and, once it answers, the workers."""
        Path(TMP).mkdir(exist_ok=True)
        for name, address in NODES.items():
            options = "--head --port=6379 --include-dashboard=false" if name == "cdh" else f"--address={HEAD}"
            # In a process group of its own, and in a mount namespace, which `nsenter` below enters as well.
            words = ["ip", "netns", "exec", name, "unshare", "--mount", "sh", "-c", NODE.format(options, address)]
            with open(self.log, "ab") as log:
                self._ray[name] = subprocess.Popen(
                    words, env=self.environment, stdout=log, stderr=log, start_new_session=True
                )
            if name == "cdh":
                time.sleep(2)
        end = time.monotonic() + 180
        while self.python(f"import ray; ray.init('{HEAD}', log_to_driver=False); print(len(ray.nodes()))")[1] != "3":
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(1)

    def inside(self, *words: str) -> list[str]:
        """A command on the head."""
        return ["nsenter", "--target", str(self._ray["cdh"].pid), "--net", "--mount", *words]

    def python(self, code: str) -> tuple[int, str]:
        """Runs Python code on the head; exit code and last line."""
        words = self.inside(sys.executable, "-c", code)
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False, cwd="/")
        return done.returncode, (done.stdout.strip().splitlines() or [""])[-1]

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Starts a `catdog` command on the head."""
        command = self.inside(sys.executable, "-m", "catdog", *words)
        say(f"$ catdog {shlex.join(words)}")
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/"
        )

    def run(self, *words: str) -> str:
        """Runs a `catdog` command on the head to its end; its output."""
        code, text = finish(self.begin(*words))
        assert code == 0, text
        return text

    def link(self, name: str, state: str) -> None:
        """Takes a node's link down, or up again."""
        say(f"link of {name} {state}")
        ip("-n", SWITCH, "link", "set", name, state)

    def wait_for(self, uri: str) -> None:
        """Waits until a file is on the S3 server."""
        code = f"""
import time
from catdog import storage
end = time.monotonic() + 180
while not storage.exists({uri!r}):
    assert time.monotonic() < end
    time.sleep(0.2)
"""
        assert self.python(code)[0] == 0, f"no {uri}"

    def stop(self) -> None:
        """Ends what runs in the namespaces, and deletes them."""
        for name in (*NODES, SWITCH):
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            for pid in found.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)  # only what was started here is in these namespaces
            subprocess.run(["ip", "netns", "delete", name], check=False)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def finish(process: subprocess.Popen[str], limit: float = 400) -> tuple[int, str]:
    """Waits for a command; exit code and output."""
    try:
        text, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=60)
        raise AssertionError(f"no end within {limit:.0f} s:\n{text[-3000:]}") from None
    last = [line for line in text.splitlines() if line.strip()][-1:]
    say(f"exit code {process.returncode}: {' '.join(last)}")
    return process.returncode, text


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    made = Network(tmp_path)
    try:
        made.start_ray()
        yield made
    finally:
        made.stop()


def test_training_and_scoring_outlast_a_link(network: Network) -> None:
    network.run("data", "synthesize", DATA, "--train", "120", "--test", "500")
    score = ("score", "--address", HEAD, "--data", DATA, "--model", f"{RUNS}/calm", "--out")
    train = ("train", "--address", HEAD, "--data", DATA, "--runs", RUNS, *TRAIN)
    # Undisturbed.
    calm = network.run(*train, "--name", "calm")
    assert re.search(r"3 workers\D+3 nodes", calm), calm
    calm = network.run(*score, "s3://bucket/sub/calm.csv")
    assert "3 actors" in calm, calm
    for name, seconds in (("short", 5), ("long", 45)):
        running = network.begin(*train, "--name", name)
        network.wait_for(f"{RUNS}/{name}/checkpoints/checkpoint_manager_snapshot.json")
        network.link("cdw2", "down")
        time.sleep(seconds)
        network.link("cdw2", "up")
        code, text = finish(running)
        while code != 0:
            assert "\ncatdog: " in f"\n{text}", text
            code, text = finish(network.begin("train", "--address", HEAD, "--runs", RUNS, "--name", name, "--resume"))
        network.run("runs", "--runs", RUNS)
        running = network.begin(*score, f"s3://bucket/sub/{name}.csv")
        network.wait_for(f"s3://bucket/sub/{name}.parts/lease.json")
        network.link("cdw1", "down")
        time.sleep(seconds)
        network.link("cdw1", "up")
        while (end := finish(running))[0] != 0:
            assert "\ncatdog: " in f"\n{end[1]}", end[1]
            running = network.begin(*score, f"s3://bucket/sub/{name}.csv")
        same = (
            f"print(storage.read_bytes('s3://bucket/sub/{name}.csv') == storage.read_bytes('s3://bucket/sub/calm.csv'))"
        )
        assert network.python(f"from catdog import storage; {same}") == (0, "True")
        say(f"{name}: the CSV is byte-equal to the undisturbed run's")
