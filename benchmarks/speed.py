"""Speed comparisons: programs run in turn on this machine; figures are medians over rounds, and their ratios.

    python benchmarks/speed.py score --data data/kaggle --weights W25 [--weights W100] [--original original-size]
    python benchmarks/speed.py scale --data data/kaggle --weights W25
    python benchmarks/speed.py plumbing [--labelled] [--without-ray]
    python benchmarks/speed.py prepare
    python benchmarks/speed.py parts
    python benchmarks/speed.py train --data data/kaggle
    python benchmarks/speed.py nodes --data data/kaggle --weights W25

W25 and W100 are MobileNet weights without the top, of alpha 0.25 and 1.0, or `none`, since speed does not depend on
them. Each command prints Markdown. The machine should be idle otherwise.
"""

from __future__ import annotations

import heapq
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import typer

from catdog import storage
from catdog.data import catalog, datasets, images, layouts
from catdog.data.catalog import Catalog
from catdog.inference import bundle, export
from catdog.models import registry
from catdog.models.spec import register_architecture
from catdog.scoring import parts

app = typer.Typer(pretty_exceptions_enable=False)
RIVALS = Path(__file__).with_name("rivals.py")
SIZE = 192

Data = Annotated[str, typer.Option(help="A prepared data set with a test split.")]
Weights = Annotated[str, typer.Option(help="MobileNet 0.25's weights without the top, or none.")]
Rounds = Annotated[int, typer.Option(help="How often each is run, in turn.")]
Folder = Annotated[Path | None, typer.Option(help="Where to work; else a temporary folder.")]


def say(text: str) -> None:
    """Prints a line and flushes it."""
    print(text, flush=True)


def workplace(folder: Path | None) -> Path:
    """The working folder as an absolute path, because URIs in catalogs are relative to their data set."""
    return (folder or Path(tempfile.mkdtemp(prefix="catdog-speed-"))).absolute()


def sample_of(data: Catalog) -> np.ndarray:
    """Real images for the comparison of ONNX with Keras: uint8, 32×S×S×3."""
    return np.stack([images.read_image(uri, SIZE).pixels for uri in data.split("test")["uri"][:32].to_pylist()])


def timed(command: list[str]) -> tuple[float, str]:
    """Runs a process; returns its seconds and output."""
    started = time.perf_counter()
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return time.perf_counter() - started, done.stdout


def spread(values: list[float], digits: int = 1) -> str:
    """Median and range as text."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def repeat(data: Catalog, count: int, root: Path, split: str = "test") -> Catalog:
    """A data set of `count` links to the files of a split, repeated; in one folder, for programs that read folders."""
    files = data.split(split)["uri"].to_pylist()
    shutil.rmtree(root, ignore_errors=True)
    (root / "images").mkdir(parents=True)
    for number in range(count):
        (root / "images" / f"{number + 1}.jpg").symlink_to(files[number % len(files)])
    rows = [layouts.Row(f"{number + 1}.jpg", "test", None) for number in range(count)]
    made = datasets.build_catalog(str(root), rows, data.class_names, {}, folder="images")
    made.write()
    return made


def save(folder: Path, alpha: float, weights: str, sample: np.ndarray) -> str:
    """Saves a bundle of MobileNet with an untrained head; returns its folder."""
    spec = registry.ModelSpec("mobilenet", sample.shape[1], alpha, pretrained=weights != "none")
    model = registry.build_model(spec, storage.read_bytes(weights) if weights != "none" else None)
    info = export.save_bundle(
        str(folder), [model], sample, architecture="mobilenet", image_size=sample.shape[1],
        **_PLAIN | {"training": {"options": {"alpha": alpha}}},
    )  # fmt: skip
    if info.onnx != bundle.VERIFIED:
        sys.exit(f"no ONNX: {info.onnx}")
    return str(folder)


_PLAIN: dict[str, Any] = {
    "class_names": ("cat", "dog"), "views": ["identity"], "calibration": "none", "temperature": 1.0, "clip": 1e-6,
    "prior": 0.5, "validation": {}, "chosen_on": "none", "catalog_fingerprint": "", "seed": 0, "training": {},
}  # fmt: skip


class Busy(threading.Thread):
    """Records the busy time of the machine's cores five times a second."""

    def __enter__(self) -> Busy:
        self.over, self.noted = threading.Event(), []
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()

    def run(self) -> None:
        """Records until the block ends."""
        while not self.over.wait(0.2):
            times = psutil.cpu_times()
            self.noted.append((time.time(), times.user + times.nice + times.system + times.irq + times.softirq))

    def share(self, start: float, end: float) -> float:
        """Busy share of the cores between two times, 0 to 1."""
        before, after = np.interp([start, end], *np.transpose(self.noted))
        return (after - before) / (end - start) / (os.cpu_count() or 1)


def window(out: Path, actors: int) -> tuple[float, float, int]:
    """Start, end and images of the steady state: from the first part of each actor (on average) to the last part."""
    found = sorted((path.stat().st_mtime, path.name) for path in out.with_suffix(".parts").glob("*.parquet"))
    counts = [int(name.split("-")[2]) - int(name.split("-")[1]) for _, name in found]
    if len(found) <= actors:
        sys.exit(f"{len(found)} parts for {actors} actors are too few to measure; give more --images")
    return statistics.mean(time for time, _ in found[:actors]), found[-1][0], sum(counts[actors:])


def steady(out: Path, actors: int) -> float:
    """Images per second in the steady state."""
    start, end, count = window(out, actors)
    return count / (end - start)


def score_command(model: str, data: Catalog, out: Path) -> list[str]:
    """The command that is measured; deletes earlier output."""
    shutil.rmtree(out.parent, ignore_errors=True)
    return [sys.executable, "-m", "catdog", "score", "--model", model, "--data", data.root, "--out", str(out)]


@app.command()
def score(
    data: Data,
    weights: Annotated[list[str], typer.Option(help="MobileNet 0.25's and 1.0's weights, in this order, or none.")],
    original: Annotated[str | None, typer.Option(help="A prepared set of larger photos.")] = None,
    images_: Annotated[int, typer.Option("--images", help="How many, by repeating the test split.")] = 12_500,
    rounds: Rounds = 5,
    folder: Folder = None,
) -> None:
    """Whole-process scoring against plain Keras, tf.data, Ray's recipe, Daft's where it is installed, and the floor."""
    root = workplace(folder)
    size = str(SIZE)
    others = [("Keras", "keras-predict"), ("tf.data", "tf-data", size), ("Ray", "ray-recipe", size)]
    if importlib.util.find_spec("daft") is not None:
        others.append(("Daft", "daft", size))
    source = catalog.read_catalog(data)
    sets = {"200×200": repeat(source, images_, root / "small")}
    if original is not None:
        sets["original size"] = repeat(catalog.read_catalog(original), images_, root / "large", "train")
    sample = sample_of(source)
    say(f"\n{images_} images at {SIZE} px, {rounds} rounds, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}\n")
    columns = ("catdog s", *(f"{name} s" for name, *_ in others), *(f"÷ {name}" for name, *_ in others))
    say(f"| model | files | {' | '.join(columns)} | steady/s | busy | floor/s | ÷ floor |")
    say("|---" * (len(columns) + 6) + "|")
    for alpha, path in zip((0.25, 1.0), weights, strict=False):
        model = save(root / f"model-{alpha}", alpha, path, sample)
        for name, made in sets.items():
            keras_file, folder_ = f"{model}/model.keras", f"{made.root}/images"
            keys = ("ours", *(name for name, *_ in others), "steady", "busy", "floor")
            found: dict[str, list[float]] = {key: [] for key in keys}
            for _ in range(rounds):
                out = root / "out" / "results.csv"
                with Busy() as busy:
                    found["ours"].append(timed(score_command(model, made, out))[0])
                start, end, count = window(out, os.cpu_count() or 1)
                found["steady"].append(count / (end - start))
                found["busy"].append(busy.share(start, end))
                for key, rival, *more in others:
                    command = [sys.executable, str(RIVALS), rival, keras_file, folder_, str(root / f"{rival}.csv")]
                    found[key].append(timed([*command, *more])[0])
                floor = json.loads(timed([sys.executable, str(RIVALS), "floor", f"{model}/model.onnx", folder_])[1])
                found["floor"].append(floor["both"])
            middle = {key: statistics.median(values) for key, values in found.items()}
            seconds = " | ".join(spread(found[key]) for key in keys[:-3])
            ratios = " | ".join(f"**{middle['ours'] / middle[key]:.2f}**" for key in keys[1:-3])
            say(
                f"| MobileNet {alpha} | {name} | {seconds} | {ratios} | {spread(found['steady'], 0)} | "
                f"{middle['busy']:.0%} | {spread(found['floor'], 0)} | **{middle['steady'] / middle['floor']:.3f}** |"
            )


_DRIVER = """
import json, sys
from catdog.data import catalog
from catdog.scoring import score
model, data, out = sys.argv[1:]
score.score_dataset(score.ScoreConfig(model=model, data=data, out=out))
table = catalog.read_catalog(data).table
# getrusage would include the peak of the parent process.
peak = next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"peak": peak, "row": table.nbytes / table.num_rows}))
"""


def drive(model: str, data: Catalog, out: Path) -> tuple[float, float, float]:
    """Scores in a new process: seconds, peak memory of the driver in MiB, catalog bytes per image."""
    shutil.rmtree(out.parent, ignore_errors=True)
    seconds, printed = timed([sys.executable, "-c", _DRIVER, model, data.root, str(out)])
    said = json.loads(printed.splitlines()[-1])
    return seconds, said["peak"], said["row"]


@app.command()
def scale(data: Data, weights: Weights, rounds: Rounds = 1, folder: Folder = None) -> None:
    """Speed and memory for 12,500, 50,000 and 200,000 images."""
    root = workplace(folder)
    source = catalog.read_catalog(data)
    sample = sample_of(source)
    model = save(root / "model", 0.25, weights, sample)
    say("\n| images | s | steady/s | driver's peak MiB | catalog bytes an image |\n|---|---|---|---|---|")
    sets = {count: repeat(source, count, root / str(count)) for count in (12_500, 50_000, 200_000)}
    found: dict[int, list[tuple[float, ...]]] = {count: [] for count in sets}
    out = root / "out" / "results.csv"
    for _ in range(rounds):
        for count, made in sets.items():
            found[count].append((*drive(model, made, out), steady(out, os.cpu_count() or 1)))
    for count, rows in found.items():
        seconds, peak, row, rate = (statistics.median(each[at] for each in rows) for at in range(4))
        say(f"| {count} | {seconds:.1f} | {rate:.0f} | {peak:.0f} | {row:.0f} |")


_STAGES = """
import json, os, sys, time
import numpy as np
from catdog import rng, storage
from catdog.data import catalog
from catdog.evaluation import metrics
from catdog.experiments import duplicates
from catdog.inference.predictor import Predictions
from catdog.reporting import submission
from catdog.scoring import parts, plan, score
model, data, out, split, how = sys.argv[1:]
random = np.random.default_rng(0)
stages = []
def stage(name, function):
    # Of this process: getrusage would include the peak of the parent process.
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    started, used = time.perf_counter(), time.process_time()
    found = function()
    seconds, used = time.perf_counter() - started, time.process_time() - used
    peak = next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
    stages.append([name, seconds, used, peak])
    return found
prepared = stage("read the catalog", lambda: catalog.read_catalog(data))
stage("its fingerprint", lambda: prepared.fingerprint)
stage("hash the keys, for training", lambda: rng.key_hash(prepared.table["key"]))
config = score.ScoreConfig(model=model, data=data, out=out, split=split)
def write_parts():
    job = plan.open_job(config, prepared)
    for part in job.parts_to_score(job.engines[0]):
        logits = random.normal(0, 3, part.count).astype(np.float32)
        made = Predictions(logits, metrics.calibrated(logits, 1.0, 1e-6), ["ok"] * part.count, [""] * part.count)
        parts.write_part(part.uri, part.rows, made)
if how == "ray":
    done = stage("score, with all that follows", lambda: score.score_dataset(config, data=prepared))
    stages.append(["of it: merge, CSV, report", done.seconds["merge"], None, None])
else:
    stage("write the parts, as actors do", write_parts)
folder = out.removesuffix("csv") + "parts"
names = stage("list the parts", lambda: [each for each in storage.list_names(folder) if each.endswith(".parquet")])
again = stage("the command with every part there", lambda: score.score_dataset(config, data=prepared))
stages.append(["of it: merge, CSV, report", again.seconds["merge"], None, None])
if split == "test":
    stage("check the CSV", lambda: submission.check_submission(out, prepared))
hashes = random.integers(0, 2**64, prepared.table.num_rows, np.uint64)
stage("near-duplicates of random hashes", lambda: duplicates.near_duplicates(hashes, 4))
print(json.dumps({"stages": stages, "parts": len(names), "row": prepared.table.nbytes / prepared.table.num_rows,
    "bytes": sum(os.path.getsize(os.path.join(folder, each)) for each in names)}))
"""


def save_trivial(root: Path) -> None:
    """Saves a tiny image, and a bundle that looks at its mean."""
    import keras
    from PIL import Image

    Image.fromarray(np.full((16, 16, 3), 128, np.uint8)).save(root / "tiny.jpg")

    def pool(inputs: Any, spec: registry.ModelSpec) -> Any:  # noqa: ARG001
        pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
        return keras.layers.Dense(1)(pooled)

    register_architecture(registry.Architecture("stub", pool, 16, 1, None, ""))
    stub = registry.build_model(registry.ModelSpec("stub", 16))
    sample = np.zeros((4, 16, 16, 3), np.uint8)
    export.save_bundle(str(root / "model"), [stub], sample, architecture="stub", image_size=16, **_PLAIN)


@app.command()
def plumbing(
    images_: Annotated[int, typer.Option("--images")] = 1_000_000,
    labelled: Annotated[bool, typer.Option("--labelled", help="As validation images, which are judged.")] = False,
    without_ray: Annotated[bool, typer.Option("--without-ray", help="The driver alone, with random parts.")] = False,
    folder: Folder = None,
) -> None:
    """Overhead: a million tiny images with a trivial model, stage by stage of the driver."""
    root = workplace(folder)
    root.mkdir(exist_ok=True)
    if not (root / "model").exists():
        save_trivial(root)
    split = "valid" if labelled else "test"
    numbers = np.arange(1, images_ + 1)
    ids = pa.array(numbers).cast(pa.string())
    keys = pc.binary_join_element_wise(ids, ".jpg", "")
    labels = pa.array(numbers * 2 > images_).cast(pa.int8()) if labelled else pa.nulls(images_, pa.int8())
    digests = pa.array(np.random.default_rng(1).integers(0, 2**64, images_, np.uint64))
    # First with a file for each image, for the size of the catalog's own file.
    sizes = []
    for uris in (pc.binary_join_element_wise(f"{root}/images/", keys, ""), pa.array([f"{root}/tiny.jpg"] * images_)):
        columns = [keys, ids, uris, labels, pa.array([split] * images_), digests]
        Catalog(pa.table(columns, schema=catalog.SCHEMA), ("cat", "dog"), str(root), {}).write()
        sizes.append((root / catalog.FILE_NAME).stat().st_size)
    out = root / "out" / "results.csv"
    shutil.rmtree(out.parent, ignore_errors=True)
    command = [sys.executable, "-c", _STAGES, str(root / "model"), str(root), str(out), split]
    command.append("none" if without_ray else "ray")
    found = json.loads(timed(command)[1].splitlines()[-1])
    each = f"{found['bytes'] / images_:.1f} bytes an image"
    say(
        f"\n{images_:,} tiny {'labelled ' * labelled}images: catalog {found['row']:.0f} bytes an image in memory, "
        f"{sizes[0] / images_:.1f} in its file; {found['parts']:,} parts, {each}\n"
    )
    say("| stage | s | driver's CPU s | peak of its memory, MiB |\n|---|---|---|---|")
    for name, seconds, used, peak in found["stages"]:
        more = [f"{used:.1f}", f"{peak:.0f}"] if used is not None else ["", ""]
        say(f"| {name} | {seconds:.1f} | {' | '.join(more)} |")


_PREPARE = """
import sys
from catdog.data import datasets
datasets.prepare_dataset(*sys.argv[1:])
print(next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@app.command()
def prepare(folder: Folder = None) -> None:
    """Memory that `data prepare` takes for an image, from zips of 2,000 and 22,000 of them."""
    root, peaks = workplace(folder), []
    root.mkdir(exist_ok=True)
    for count in (2_000, 22_000):
        source, dest = root / f"{count}.zip", root / str(count)
        with zipfile.ZipFile(source, "w") as file:
            for number in range(count):  # no two are equal, and nothing decodes them
                file.writestr(f"train/{('cat', 'dog')[number % 2]}.{number}.jpg", b"\xff\xd8\xff%d" % number)
        shutil.rmtree(dest, ignore_errors=True)
        peaks.append(int(timed([sys.executable, "-c", _PREPARE, str(source), str(dest)])[1]))
    say(f"\n`data prepare` of a zip: {(peaks[1] - peaks[0]) / 20_000:,.0f} bytes an image")


def balance(sizes: list[int], actors: int) -> float:
    """Busy share of equally fast actors, each of which takes the next part when it has done one."""
    done = [0] * actors
    for size in sizes:
        heapq.heappush(done, heapq.heappop(done) + size)
    return sum(sizes) / actors / max(done)


@app.command(name="parts")
def parts_() -> None:
    """Parts of 1, 10 and 100 million images, and how busy they keep 1, 10 and 100 nodes of 16 CPUs; a simulation."""
    say("\n| images | engine, pixels | parts | largest | busy: 16 actors | 160 | 1,600 | 1,600, parts of 512 |")
    say("|---|---|---|---|---|---|---|---|")
    for count in (10**6, 10**7, 10**8):
        small = balance([stop - start for start, stop in parts.ranges(count, 64)], 1600)
        for engine, size in (("onnx", 192), ("tensorflow", 192), ("tensorflow", 224)):
            growth = parts.most_growth(engine, [size])
            sizes = [stop - start for start, stop in parts.ranges(count, 64, growth)]
            shares = " | ".join(f"{balance(sizes, actors):.1%}" for actors in (16, 160, 1600))
            say(f"| {count:,} | {engine}, {size} | {len(sizes):,} | {max(sizes):,} | {shares} | {small:.1%} |")


@app.command()
def train(
    data: Data,
    size: Annotated[int, typer.Option(help="Of the images, in pixels.")] = 128,
    epochs: Annotated[int, typer.Option(help="Of which the first is left out.")] = 3,
    rounds: Rounds = 5,
    folder: Folder = None,
) -> None:
    """MobileNet 0.25 from scratch: one worker, two workers, and Keras's own `fit`, with and without `.cache()`."""
    root = workplace(folder)
    options = f"--arch mobilenet --alpha 0.25 --weights none --image-size {size} --epochs {epochs} --name speed".split()
    found: dict[str, list[float]] = {}

    def ours(workers: int) -> list[float]:
        cpus = str((os.cpu_count() or 1) // workers)
        shutil.rmtree(root / "speed", ignore_errors=True)
        command = [sys.executable, "-m", "catdog", "train", "--data", data, *options, "--runs", str(root)]
        timed([*command, "--workers", str(workers), "--cpus-per-worker", cpus])
        history = bundle.read_info(str(root / "speed"))[1].training["history"]
        return [entry["images_per_second"] for entry in history[1:]]

    def theirs(*more: str) -> list[float]:
        command = [sys.executable, str(RIVALS), "keras-fit", data, "--size", str(size), "--epochs", str(epochs), *more]
        return json.loads(timed(command)[1])["images_per_second"]

    for _ in range(rounds):
        for name, rates in (
            ("two workers", ours(2)), ("one worker", ours(1)), ("fit", theirs()), ("fit, cached", theirs("--cache")),
        ):  # fmt: skip
            found.setdefault(name, []).append(statistics.median(rates))
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    say(f"\nMobileNet 0.25 at {size} px, {rounds} rounds\n\n| | images/s | two workers ÷ it |\n|---|---|---|")
    for name, rate in medians.items():
        say(f"| {name} | {spread(found[name], 0)} | **{medians['two workers'] / rate:.2f}** |")


_NODES = """
import dataclasses, json, os, sys
import ray
from ray.cluster_utils import Cluster
from catdog.events import PartDone
from catdog.scoring import score
count, model, data, out = int(sys.argv[1]), *sys.argv[2:]
cluster = Cluster()
for core in range(count):
    os.sched_setaffinity(0, {core})  # what the node starts inherits it
    cluster.add_node(num_cpus=1, include_dashboard=False) if core == 0 else cluster.add_node(num_cpus=1)
os.sched_setaffinity(0, set(range(os.cpu_count())))
ray.init(address=cluster.address, log_to_driver=False)
told = []
score.score_dataset(score.ScoreConfig(model=model, data=data, out=out), told.append)
ray.shutdown()
cluster.shutdown()
print(json.dumps([dataclasses.asdict(event) for event in told if isinstance(event, PartDone)]))
"""


def together(parts: list[dict[str, Any]]) -> float:
    """Images per second after the first part of every node; a part counts in proportion to its time in that window."""
    first: dict[str, float] = {}
    for part in parts:
        first[part["node"]] = min(part["ended"], first.get(part["node"], np.inf))
    start, end = max(first.values()), max(part["ended"] for part in parts)
    inside = [max(0, part["ended"] - max(start, part["ended"] - part["seconds"])) / part["seconds"] for part in parts]
    return sum(part["images"] * share for part, share in zip(parts, inside, strict=True)) / (end - start)


@app.command()
def nodes(data: Data, weights: Weights, rounds: Rounds = 5, folder: Folder = None) -> None:
    """Two nodes against one; each has one CPU and is pinned to one core."""
    root = workplace(folder)
    source = catalog.read_catalog(data)
    sample = sample_of(source)
    model = save(root / "model", 0.25, weights, sample)
    made = repeat(source, 12_500, root / "set")
    found: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for count, rates in found.items():
            out = root / "out" / "results.csv"
            shutil.rmtree(out.parent, ignore_errors=True)
            printed = timed([sys.executable, "-c", _NODES, str(count), model, made.root, str(out)])[1]
            parts = json.loads(printed.splitlines()[-1])
            if len({part["node"] for part in parts}) != count:
                sys.exit(f"not every one of {count} nodes scored a part; give the machine some rest and try again")
            rates.append(together(parts))
    one, two = (statistics.median(rates) for rates in found.values())
    say(f"\none node {one:.0f} images/s, two nodes {two:.0f}: **{two / one:.2f}** times, {rounds} rounds")


if __name__ == "__main__":
    app()
