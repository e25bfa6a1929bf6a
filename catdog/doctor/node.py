"""What a node says of itself: runs in a Ray task on that node.

Everything is read from the system, not from Ray's view of it, so that both can be compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import psutil

import catdog
from catdog import storage
from catdog.doctor.facts import Disk, Gpu, NodeFacts, OnnxRuntime, Place, TensorFlow
from catdog.errors import first_line
from catdog.models.batch_norm import has_bfloat16
from catdog.versions import package_versions

Record = TypeVar("Record")

SHARED_MEMORY = "/dev/shm"
# By name, the flags of /proc/cpuinfo of which one is enough. What TensorFlow and ONNX Runtime have kernels for.
_INSTRUCTIONS = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "AVX-512 BF16": ("avx512_bf16",),
    "AMX": ("amx_tile",),
}
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "TF_ENABLE_ONEDNN_OPTS")
# Of a slow disk, or on a machine whose CPUs others take: Ray's processes have a low priority.
_IMPORT_SECONDS = 100.0
_DRIVER_SECONDS = 15.0

_TENSORFLOW = """
import json, tensorflow as tf
build, gpus = tf.sysconfig.get_build_info(), tf.config.list_physical_devices("GPU")
names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
gpu_build = bool(build.get("is_cuda_build") or build.get("is_rocm_build"))
print(json.dumps(dict(version=tf.__version__, gpu_build=gpu_build, cuda=build.get("cuda_version"), gpus=names)))
"""
_ONNX_RUNTIME = """
import json, onnxruntime
print(json.dumps(dict(version=onnxruntime.__version__, providers=onnxruntime.get_available_providers())))
"""


def look_at_node(ports: list[int], runs: str, image: str | None) -> NodeFacts:
    """Finds out what this node has.

    Args:
        ports: of Ray on this node.
        runs: URI of the folder of runs.
        image: URI of an image that every node must be able to read, or None.
    """
    options = _raylet_options()
    temporary = options.get("temp_dir", "/tmp/ray")
    memory, free = _memory()
    cpu, flags = _cpu()
    with ThreadPoolExecutor() as pool:  # both mostly wait for the disk
        tensorflow = pool.submit(_import, _TENSORFLOW, TensorFlow)
        onnxruntime = pool.submit(_import, _ONNX_RUNTIME, OnnxRuntime)
    return NodeFacts(
        cpu=cpu,
        usable_cpus=_usable_cpus(),
        instructions=[name for name, any_of in _INSTRUCTIONS.items() if not flags.isdisjoint(any_of)],
        bfloat16=has_bfloat16(),
        memory=memory,
        memory_free=free,
        gpus=_gpus(),
        shared_memory=_disk(SHARED_MEMORY) if Path(SHARED_MEMORY).is_dir() else None,
        store_folder=options.get("plasma_directory"),
        ray_disk=_disk(temporary),
        runs_disk=_disk(storage.absolute(runs)) if storage.is_local(runs) else None,
        runs=_place(Path(storage.absolute(runs))) if storage.is_local(runs) else None,
        data_error=None if image is None else _reading_error(image),
        environment={name: os.environ[name] for name in _VARIABLES if name in os.environ},
        versions=package_versions() | {"catdog's sources": sources_digest()},
        reachable=reachable_addresses(ports),
        tensorflow=tensorflow.result()[0],
        tensorflow_error=tensorflow.result()[1],
        onnxruntime=onnxruntime.result()[0],
        onnxruntime_error=onnxruntime.result()[1],
    )


def sources_digest() -> str:
    """Eight hex digits of catdog's source files: two checkouts may have one version."""
    root = Path(catdog.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def reachable_addresses(ports: Iterable[int]) -> list[str]:
    """Addresses of this machine, other than the loopback's, at which something listens on some of the ports."""
    wanted = set(ports)
    try:
        sockets = psutil.net_connections("tcp")
    except psutil.Error:  # another user's, outside Linux
        return []
    listening = {s.laddr.ip for s in sockets if s.status == psutil.CONN_LISTEN and s.laddr and s.laddr.port in wanted}
    everywhere = not listening.isdisjoint(("::", "0.0.0.0"))
    own = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family.name == "AF_INET" and not address.address.startswith("127.")
    ]
    return [address for address in own if everywhere or address in listening]


def _raylet_options() -> dict[str, str]:
    """The options of the raylet that started this process."""
    try:
        words = psutil.Process(int(os.environ.get("RAY_RAYLET_PID", os.getppid()))).cmdline()
    except (psutil.Error, ValueError):
        return {}
    pairs = (word[2:].partition("=") for word in words if word.startswith("--"))
    return {name: value for name, _, value in pairs if value}


def _cpu() -> tuple[str, set[str]]:
    """Model and flags of the first CPU."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), set()
    found = dict(re.findall(r"^([^\t:]+)\s*: ?(.*)$", text.partition("\n\n")[0], re.MULTILINE))
    return found.get("model name", platform.machine()), set(found.get("flags", "").split())


def _cgroup_folders() -> list[Path]:
    """The folder of this process's cgroup (version 2), and those above it, each of which may limit it."""
    root = Path("/sys/fs/cgroup")
    try:
        own = re.search(r"^0::/(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    except OSError:
        return []
    folder = root / own[1] if own else root
    return [folder, *(each for each in folder.parents if each.is_relative_to(root))]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):  # "max" is no limit
        return None


def _memory() -> tuple[int, int]:
    """Bytes that the processes here may use, and what is left of them."""
    machine = psutil.virtual_memory()
    size, free = machine.total, machine.available
    first_version = Path("/sys/fs/cgroup/memory")
    files = [(folder / "memory.max", folder / "memory.current") for folder in _cgroup_folders()]
    for limit_file, used_file in [
        *files,
        (first_version / "memory.limit_in_bytes", first_version / "memory.usage_in_bytes"),
    ]:
        limit = _number(limit_file)
        if limit is not None and limit < machine.total:
            size, free = min(size, limit), min(free, max(0, limit - (_number(used_file) or 0)))
    return size, free


def _usable_cpus() -> int:
    """CPUs that this process may use: by affinity, and by the quota of a container."""
    count = float(
        len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1
    )
    for folder in _cgroup_folders():
        try:
            quota, period = map(int, (folder / "cpu.max").read_text().split())
        except (OSError, ValueError):
            continue
        count = min(count, quota / period)
    return max(1, round(count))


def _gpus() -> list[Gpu]:
    """NVIDIA's GPUs, as its tool lists them, or else as its driver does."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_DRIVER_SECONDS, check=True)
        return parse_gpus(done.stdout)
    except (OSError, subprocess.SubprocessError):
        pass
    driver = Path("/proc/driver/nvidia")
    try:
        version = re.search(r"\s(\d+\.[\d.]+)\s", (driver / "version").read_text())
        texts = [path.read_text() for path in sorted(driver.glob("gpus/*/information"))]
    except OSError:
        return []
    models = [re.search(r"^Model:\s*(.+)$", text, re.MULTILINE) for text in texts]
    return [Gpu(model[1] if model else "NVIDIA", None, version[1] if version else "unknown") for model in models]


def parse_gpus(text: str) -> list[Gpu]:
    """Reads what nvidia-smi prints of name, memory in MiB and driver; lines of another form are left out."""
    rows = [[cell.strip() for cell in line.rsplit(",", 2)] for line in text.splitlines()]
    return [Gpu(row[0], int(row[1]) << 20 if row[1].isdecimal() else None, row[2]) for row in rows if len(row) == 3]


def _disk(path: str) -> Disk:
    """The file system in which a folder is or would be made."""
    usage = shutil.disk_usage(_nearest(Path(path)))
    return Disk(path, usage.total, usage.free)


def _nearest(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(each for each in (path, *path.parents) if each.is_dir())


def _place(path: Path) -> Place:
    folder = _nearest(path)
    found = folder.stat()
    return Place(str(folder), found.st_ino, found.st_mtime)


def _reading_error(image: str) -> str | None:
    try:
        storage.read_bytes(image)
    except Exception as error:  # of a file system, a bucket, a shard
        return first_line(error)
    return None


def _import(script: str, record: Callable[..., Record]) -> tuple[Record | None, str | None]:
    """Imports a package in a process of its own, because it may crash or hang, and takes memory of GPUs.

    Args:
        script: prints the fields of the record as JSON.
        record: is made of them.

    Returns:
        The record, or why there is none.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", script],
            capture_output=True,
            text=True,
            timeout=_IMPORT_SECONDS,
            check=False,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer within {_IMPORT_SECONDS:g} s"
    if done.returncode:
        return None, ending(done.returncode, done.stderr)
    fields: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record(**fields), None


def ending(code: int, output: str) -> str:
    """How a process ended that failed: the signal, or the last line of its traceback.

    Args:
        code: of `subprocess`, negative for a signal.
        output: on standard error.
    """
    if code < 0:
        name = signal.Signals(-code).name
        # As of a build with AVX on a CPU without it.
        return f"{name}, an instruction that this CPU lacks" if -code == signal.SIGILL else name
    return ([line for line in output.splitlines() if line.strip()] or [f"exit code {code}"])[-1]
