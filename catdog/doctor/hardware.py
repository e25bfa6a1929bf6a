"""What would hold a run back in memory, disks, CPUs, GPUs and the network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from catdog.doctor.facts import Cluster, Disk
from catdog.doctor.node import SHARED_MEMORY
from catdog.doctor.plan import Plans
from catdog.doctor.problems import Problem, node_names, size_text

# A process that has imported TensorFlow and trains or scores with MobileNet.
_WORKER_BYTES = 2**30
# A bundle of MobileNet and its checkpoints take 0.1 GB, of VGG16 2 GB.
_LITTLE_DISK, _NO_DISK = 5 * 2**30, 2**29
# From this share on, Ray writes no objects to a disk (RAY_local_fs_capacity_threshold).
_RAY_FULL = 0.95


def no_resources(cluster: Cluster, plans: Plans) -> Iterator[Problem]:
    """The cluster has nothing to run on."""
    for why in plans.refused:
        grows = "; an autoscaler adds some only when a run asks for them" * cluster.may_grow
        yield Problem("no-resources", f"{why}{grows}", stops=True)


def resources_in_use(_cluster: Cluster, plans: Plans) -> Iterator[Problem]:
    """Others hold CPUs or GPUs."""
    if plans.waiting is not None:
        yield Problem("in-use", f"a training that begins now is {plans.waiting}; end that, or --wait SECONDS for it")


def images_not_decoded(cluster: Cluster, plans: Plans) -> Iterator[Problem]:
    """The decoded images do not fit into an object store, so that they are decoded in each epoch anew."""
    images = plans.images
    if images is not None and images.store != "decoded":
        more = "a larger machine" if cluster.temporary else "larger nodes, or ray start --object-store-memory"
        yield Problem(
            "object-store",
            f"{images.count:,} images at {images.size} px would be {images.why}, and decoded anew in each epoch; to "
            f"keep them decoded, use a smaller --image-size, {more}",
        )


def object_store_on_disk(cluster: Cluster, _plans: Plans) -> Iterator[Problem]:
    """Ray keeps its object store elsewhere than in shared memory, as it does where that is small."""
    slow = [
        (node, facts)
        for node, facts in cluster.known
        if facts.shared_memory is not None and facts.store_folder not in (None, SHARED_MEMORY)
    ]
    if slow:
        sizes = [facts.shared_memory.size for _, facts in slow if facts.shared_memory is not None]
        room = max(node.store for node, _ in slow)
        yield Problem(
            "shared-memory",
            f"{SHARED_MEMORY} has {size_text(min(sizes))} on {node_names(node.name for node, _ in slow)}, so Ray keeps "
            f"decoded images in {slow[0][1].store_folder}, which is slower on a real disk; in containers docker run "
            f"--shm-size={room * 1.1 / 2**30:.0f}g, or a larger {SHARED_MEMORY}",
        )


def little_memory(cluster: Cluster, plans: Plans) -> Iterator[Problem]:
    """A node's memory may not hold its workers."""
    plan = plans.training
    if plan is None:
        return
    for node, facts in cluster.known:
        room = node.cpus // plan.cpus_per_worker
        room = min(node.gpus, room) if plan.gpu else room
        workers = min(plan.workers, room)
        images = 0 if plans.images is None or facts.store_folder != SHARED_MEMORY else plans.images.held
        needed = workers * _WORKER_BYTES + images
        if workers and facts.memory_free < needed:
            yield Problem(
                "memory",
                f"node {node.name} has {size_text(facts.memory_free)} of memory left, and training there takes about "
                f"{size_text(needed)} (workers {workers}), so Linux or Ray may kill them; free some, or take fewer "
                "with --workers",
            )


def full_disks(cluster: Cluster, _plans: Plans) -> Iterator[Problem]:
    """A disk that runs or Ray's temporary files go to is nearly full."""
    for node, facts in cluster.known:
        option = "RAY_TMPDIR" if cluster.temporary else "ray start --temp-dir"
        disks: list[tuple[str, Disk, str]] = [("Ray's temporary files", facts.ray_disk, option)]
        if facts.runs_disk is not None:
            disks.append(("runs", facts.runs_disk, "--runs"))
        for what, disk, option in disks:
            used = 1 - disk.free / max(1, disk.size)
            place = f"the disk of {what} ({disk.path}) on node {node.name}"
            advice = f"free some, or give another with {option}"
            if disk.free < _NO_DISK:
                yield Problem("disk", f"{place} has only {size_text(disk.free)} left; {advice}", stops=True)
            elif disk is facts.ray_disk and used > _RAY_FULL:
                yield Problem(
                    "disk",
                    f"{place} is {used:.0%} full, and Ray writes no objects there from {_RAY_FULL:.0%}; {advice}",
                )
            elif disk.free < _LITTLE_DISK:
                yield Problem("disk", f"{place} has {size_text(disk.free)} left; {advice}")


def separate_runs(cluster: Cluster, _plans: Plans) -> Iterator[Problem]:
    """The folder of runs is not one folder that all nodes see."""
    places: dict[tuple[str, int], list[float]] = defaultdict(list)
    paths = set()
    for _, facts in cluster.known:
        if facts.runs is not None and facts.runs_disk is not None:
            places[facts.runs.folder, facts.runs.inode].append(facts.runs.modified)
            paths.add(facts.runs_disk.path)
    # A network file system may tell of a change a minute later.
    if len(places) > 1 or any(max(times) - min(times) > 120 for times in places.values()):
        names = node_names(node.name for node, _ in cluster.known)
        yield Problem(
            "runs",
            f"{', '.join(paths)} is not the same folder on {names}; give --runs a folder on storage that all see, or a "
            "bucket",
            stops=True,
        )


def no_token(cluster: Cluster, _plans: Plans) -> Iterator[Problem]:
    """Whoever reaches the cluster may run anything on it."""
    exposed = [(node, address) for node, facts in cluster.known for address in facts.reachable[:1]]
    if cluster.token is False and exposed:
        yield Problem(
            "token",
            f"Ray asks for no token and other machines reach it at {exposed[0][1]}: whoever does may run anything "
            f"there, on {node_names(node.name for node, _ in exposed)}; RAY_AUTH_MODE=token and ray get-auth-token "
            "--generate before ray start (docs/cluster.md)",
        )


def mixed_bfloat16(cluster: Cluster, plans: Plans) -> Iterator[Problem]:
    """Some CPUs have bfloat16 and others have not, and all workers must compute alike."""
    without = [node.name for node, facts in cluster.known if node.cpus and not facts.bfloat16]
    having = [node.name for node, facts in cluster.known if node.cpus and facts.bfloat16]
    if without and having and plans.training is not None and not plans.training.gpu:
        yield Problem(
            "bfloat16",
            f"{node_names(without)} cannot multiply in bfloat16, so fine-tuning takes float32 also on "
            f"{node_names(having)}; nodes that all have it train faster",
        )


def more_cpus_than_there_are(cluster: Cluster, _plans: Plans) -> Iterator[Problem]:
    """Ray was told of more CPUs than its processes may use."""
    for node, facts in cluster.known:
        if node.cpus > facts.usable_cpus:
            fewer = "--workers takes fewer" if cluster.temporary else f"ray start --num-cpus={facts.usable_cpus}"
            yield Problem(
                "cpus",
                f"Ray counts {node.cpus} CPUs on node {node.name}, and its processes may use {facts.usable_cpus}; "
                f"{fewer}, or give the container more of the machine",
            )


def fewer_cpus_than_gpus(cluster: Cluster, plans: Plans) -> Iterator[Problem]:
    """Some GPUs of a node have no CPU beside them, which a training worker takes."""
    plan = plans.training
    for node, facts in cluster.known:
        idle = node.gpus - node.cpus
        if plan is not None and plan.gpu and idle > 0:
            more = f"ray start --num-cpus={min(node.gpus, facts.usable_cpus)}"
            advice = more if facts.usable_cpus > node.cpus and not cluster.temporary else "a machine needs one for each"
            yield Problem(
                "idle-gpus",
                f"node {node.name} has fewer CPUs ({node.cpus}) than GPUs ({node.gpus}), and a training worker takes "
                f"one of each, so training would leave {idle} GPU{'s' * (idle > 1)} idle; {advice}",
            )


def _anew(cluster: Cluster) -> str:
    """A Ray that stays keeps the environment that it was started in."""
    return "" if cluster.temporary else ", and start Ray anew"


def uncounted_gpus(cluster: Cluster, _plans: Plans) -> Iterator[Problem]:
    """The driver knows more GPUs than Ray counts, so nothing would use them."""
    for node, facts in cluster.known:
        if len(facts.gpus) > node.gpus:
            visible = facts.environment.get("CUDA_VISIBLE_DEVICES")
            advice = (
                "give ray start --num-gpus, or a container docker run --gpus=all"
                if visible is None
                else f"CUDA_VISIBLE_DEVICES is {visible!r} there: unset it to use all{_anew(cluster)}"
            )
            yield Problem(
                "gpus-not-counted",
                f"node {node.name} has {len(facts.gpus)} × {facts.gpus[0].name}, of which Ray counts {node.gpus}; "
                f"{advice}",
            )


def unseen_gpus(cluster: Cluster, _plans: Plans) -> Iterator[Problem]:
    """Ray hands out more GPUs than TensorFlow sees, so workers would compute on a CPU each."""
    for node, facts in cluster.known:
        tensorflow = facts.tensorflow
        if tensorflow is None or len(tensorflow.gpus) >= node.gpus:
            continue
        if not facts.gpus:
            advice = "no driver of NVIDIA is there: install it, or start Ray with --num-gpus=0"
        elif facts.environment.get("CUDA_VISIBLE_DEVICES") == "":
            advice = f"CUDA_VISIBLE_DEVICES is '' there: unset it{_anew(cluster)}"
        elif not tensorflow.gpu_build:
            advice = "its build has no GPU support: pip install 'catdog[gpu]' there"
        else:
            advice = (
                f"it needs CUDA {tensorflow.cuda} (pip install 'catdog[gpu]' there), and the driver is "
                f"{facts.gpus[0].driver}"
            )
        yield Problem(
            "gpus-not-seen",
            f"Ray counts {node.gpus} GPU{'s' * (node.gpus != 1)} on node {node.name}, of which TensorFlow sees "
            f"{len(tensorflow.gpus)}, so workers would compute on CPUs; {advice}, or --cpu",
        )


CHECKS = (
    no_resources, images_not_decoded, separate_runs, full_disks, no_token, uncounted_gpus, unseen_gpus,
    object_store_on_disk, little_memory, more_cpus_than_there_are, fewer_cpus_than_gpus, mixed_bfloat16,
    resources_in_use,
)  # fmt: skip
