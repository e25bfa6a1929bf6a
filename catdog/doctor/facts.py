"""What is known of a cluster: records that a node fills in about itself, and the cluster about its nodes."""

from __future__ import annotations

from dataclasses import dataclass, field

from catdog.choices import StoreName


@dataclass(frozen=True)
class Disk:
    """A file system, by a folder in it; sizes in bytes."""

    path: str
    size: int
    free: int


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU as its driver describes it; memory in bytes, None if the driver does not say."""

    name: str
    memory: int | None
    driver: str


@dataclass(frozen=True)
class TensorFlow:
    """TensorFlow as it is imported on a node.

    Attributes:
        version: of the package.
        gpu_build: whether it was built with GPU support.
        cuda: version of CUDA that it was built for, or None.
        gpus: names of the GPUs that it sees.
    """

    version: str
    gpu_build: bool
    cuda: str | None
    gpus: list[str]


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime as it is imported on a node, with its execution providers."""

    version: str
    providers: list[str]


@dataclass(frozen=True)
class Place:
    """The folder of runs as a node sees it: what tells one shared folder from several of the same name.

    Attributes:
        folder: the nearest folder that exists, the folder of runs itself or one above it.
        inode: its number in its file system.
        modified: seconds since 1970.
    """

    folder: str
    inode: int
    modified: float


@dataclass(frozen=True)
class NodeFacts:
    """What a node says of itself; sizes in bytes.

    Attributes:
        cpu: model of the CPU.
        usable_cpus: how many CPUs the processes of Ray may use, by affinity and cgroup.
        instructions: of those that matter here, what the CPU has.
        bfloat16: whether it multiplies bfloat16 matrices in hardware.
        memory: RAM, or the cgroup's limit if that is less.
        memory_free: what is left of it.
        gpus: those that the driver knows.
        shared_memory: /dev/shm, or None.
        store_folder: where Ray keeps its object store, or None if that could not be found out.
        ray_disk: where Ray's temporary files go.
        runs_disk: where runs go; None in a bucket.
        runs: the folder of runs; None in a bucket.
        data_error: why an image of the data set could not be read there, or None.
        environment: the variables that matter here, if they are set.
        versions: of Python, catdog, its sources and the packages that affect what a model computes.
        reachable: addresses at which Ray listens for other machines.
        tensorflow: None if it cannot be imported.
        tensorflow_error: why it cannot be imported.
        onnxruntime: None if it cannot be imported.
        onnxruntime_error: why it cannot be imported.
    """

    cpu: str
    usable_cpus: int
    instructions: list[str]
    bfloat16: bool
    memory: int
    memory_free: int
    gpus: list[Gpu]
    shared_memory: Disk | None
    store_folder: str | None
    ray_disk: Disk
    runs_disk: Disk | None
    runs: Place | None
    data_error: str | None
    environment: dict[str, str]
    versions: dict[str, str]
    reachable: list[str]
    tensorflow: TensorFlow | None
    tensorflow_error: str | None
    onnxruntime: OnnxRuntime | None
    onnxruntime_error: str | None


@dataclass(frozen=True)
class Node:
    """A node as Ray counts it, and what it says of itself.

    Attributes:
        name: its address, with the beginning of its id where several nodes share one.
        id: Ray's, in hex.
        head: whether it is the head.
        cpus: as Ray counts them.
        gpus: as Ray counts them.
        store: size of its object store, in bytes.
        store_free: what is left of it.
        facts: None if it did not answer.
        silent: whether it did not answer in time.
        error: why it could not answer, or None.
    """

    name: str
    id: str
    head: bool
    cpus: int
    gpus: int
    store: int
    store_free: int
    facts: NodeFacts | None
    silent: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster.

    Attributes:
        address: HOST:PORT of its head.
        temporary: whether it was started for this command alone, as each command does without an address.
        may_grow: whether it may have an autoscaler.
        token: whether it refuses who has no token; None if that could not be found out.
        nodes: those that are alive, the head first.
        wait_seconds: how long each was waited for.
    """

    address: str
    temporary: bool
    may_grow: bool
    token: bool | None
    nodes: list[Node]
    wait_seconds: float = 0.0

    @property
    def known(self) -> list[tuple[Node, NodeFacts]]:
        """The nodes that answered, each with what it said."""
        return [(node, node.facts) for node in self.nodes if node.facts is not None]


@dataclass(frozen=True)
class Images:
    """A data set's images, and where training would keep them.

    Attributes:
        data: URI of the data set.
        count: training and validation images.
        size: S, in pixels.
        store: where they would be.
        why: for people, with the sizes.
        held: bytes of shared memory that this takes on each node.
    """

    data: str
    count: int
    size: int
    store: StoreName
    why: str
    held: int


@dataclass(frozen=True)
class Model:
    """A bundle: its URI, what it is, the engines that can predict with it, and why ONNX Runtime cannot, or None."""

    uri: str
    architecture: str
    image_size: int
    engines: list[str] = field(default_factory=list)
    no_onnx: str | None = None
