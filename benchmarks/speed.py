"""Speed comparisons: programs run in turn on this machine; figures are medians over rounds, and their ratios.

    python benchmarks/speed.py score --data data/kaggle --weights W25 [--weights W100] [--original original-size]
    python benchmarks/speed.py int8 --data data/kaggle --model runs/first
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

import importlib.util
import json
import os
import shutil
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import plumbing
import psutil
import typer
from measuring import SIZE, Data, Folder, Rounds, Weights, repeat, sample_of, save, say, spread, timed, workplace

from catdog import rng
from catdog.data import catalog, images
from catdog.data.catalog import Catalog
from catdog.inference import bundle, export
from catdog.inference.quantise import Quantiser

app = typer.Typer(pretty_exceptions_enable=False)
app.command("plumbing")(plumbing.plumbing)
app.command("parts")(plumbing.parts_)
app.command("prepare")(plumbing.prepare)
RIVALS = Path(__file__).with_name("rivals.py")


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


@app.command()
def int8(
    data: Data,
    model: Annotated[str, typer.Option(help="A trained float32 bundle.")],
    images_: Annotated[int, typer.Option("--images", help="How many, by repeating the test split.")] = 12_500,
    keep_float: Annotated[int, typer.Option(help="7 bits, and so many convolutions in float32; 0 is 8 bits.")] = 0,
    rounds: Rounds = 2,
    folder: Folder = None,
) -> None:
    """Whole-process scoring in float32 and in int8, and by Ray's recipe; `int8_folds.py` judges the same int8.

    The recipe shows the model one view, and so it is left out for bundles with several.
    """

    def quantised(member: str) -> bytes:
        exact = bundle.read_onnx(uri, info, member)
        if not keep_float:
            return Quantiser(exact, known[:256]).quantise(127)
        quantiser = Quantiser(exact, known[:512])
        return quantiser.quantise(in_float=frozenset(quantiser.by_sensitivity(known[512:])[:keep_float]))

    root, source = workplace(folder), catalog.read_catalog(data)
    made = repeat(source, images_, root / "small")
    saved = bundle.read_info(model)
    uri, info = saved
    train = source.split("train")
    first = np.argsort(rng.key_hash(train["key"].to_pylist()), kind="stable")[:576]
    known = images.read_batch(train.take(first)["uri"].to_pylist(), [info.image_size]).pixels[info.image_size]
    files = [quantised(member) for member in info.members]
    provenance = bundle.read_provenance(uri, info)
    export.replace_onnx(saved, str(root / "int8"), files, [None] * len(files), provenance)
    commands = {"float32": (uri,), "int8": (str(root / "int8"),)}
    if len(info.views) == 1:
        commands["Ray"] = ()
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, ours in commands.items():
            rival = [sys.executable, str(RIVALS), "ray-recipe", f"{uri}/model.keras", f"{made.root}/images"]
            rival += [str(root / "ray.csv"), str(info.image_size)]
            found[name].append(timed(score_command(*ours, made, root / "out" / "results.csv") if ours else rival)[0])
    middle = {name: statistics.median(values) for name, values in found.items()}
    say(f"\n{images_} images, {info.architecture} at {info.image_size} px, {len(info.views)} views, {rounds} rounds, ")
    say(f"{os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}\n")
    say(f"| {' s | '.join(found)} s | int8 ÷ {' | int8 ÷ '.join(name for name in found if name != 'int8')} |")
    say("|---" * (2 * len(found) - 1) + "|")
    ratios = [f"**{middle['int8'] / middle[name]:.2f}**" for name in found if name != "int8"]
    say(f"| {' | '.join([*map(spread, found.values()), *ratios])} |")


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
