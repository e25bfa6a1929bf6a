"""Ingest of training's images: how fast batches are made ready from each store, and the memory of a large data set.

    python benchmarks/ingest.py rates --data data/kaggle
    python benchmarks/ingest.py memory --data data/kaggle

`rates` makes batches without a model, in one process, with 1, 2 and 4 threads. `memory` trains on many times more
images than Ray's shared memory has room for, packed and not, and prints the peaks. Each prints Markdown.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

import measuring
import numpy as np
import psutil
import pyarrow as pa
import ray
import typer

from catdog import rng
from catdog.choices import StoreName
from catdog.data import catalog, images, packing
from catdog.data.catalog import Catalog
from catdog.training import ingest, orders, stores
from catdog.training.config import resolve
from catdog.training.request import TrainConfig

app = typer.Typer(pretty_exceptions_enable=False)
Data = Annotated[str, typer.Option(help="A prepared data set.")]
# What a GPU may ask for, in images a second at 224 pixels.
_WANTED = 3_000
_STORE_BYTES = 80_000_000
_SMALL = ["--arch", "workshop_cnn", "--image-size", "64", "--epochs", "1", "--batch-size", "64"]


def batches(data: Catalog, store: StoreName, size: int, threads: int) -> ingest.Batches:
    """The batches of a data set's training images from a store."""
    rows = data.split("train")
    loaded = stores.load_images({"train": rows}, size, store, lambda _: None)["train"]
    shuffle = "blocks" if data.root.endswith("packed") and store == "files" else "full"
    config = resolve(TrainConfig(data=data.root, image_size=size, arch="workshop_cnn", shuffle=shuffle))
    labels = rows["label"].to_numpy().astype(np.int64)
    opened = stores.open_store(loaded.blocks, rows.num_rows, size)
    at = np.arange(rows.num_rows) + data.table["key"].to_pylist().index(rows["key"][0].as_py())
    hashes = rng.key_hash(rows["key"].to_pylist())
    return ingest.Batches(config, opened, labels, hashes, orders.block_of(at), 0, 1, threads)


@app.command()
def rates(
    data: Data, size: Annotated[int, typer.Option(help="In pixels.")] = 224, rounds: measuring.Rounds = 3
) -> None:
    """Images a second that are made ready, by store and threads."""
    source = catalog.read_catalog(data)
    root = measuring.workplace(None)
    packed, _ = packing.pack_dataset(data, str(root / "packed"))
    os.environ[catalog.ALLOW_OUTSIDE] = "1"
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
    kinds: list[tuple[str, StoreName, Catalog]] = [
        ("decoded in shared memory", "decoded", source),
        ("encoded in shared memory", "encoded", source),
        ("files", "files", source),
        ("packed files, by blocks", "files", packed),
    ]
    found: dict[tuple[str, int], list[float]] = {}
    images.use_one_thread()
    for name, store, made in kinds:
        ready = batches(made, store, size, 1)
        for _ in range(rounds):
            for threads in (1, 2, 4):
                ready.threads = threads
                started, count = time.perf_counter(), 0
                for pixels, *_ in ready.epoch(0):
                    count += len(pixels)
                found.setdefault((name, threads), []).append(count / (time.perf_counter() - started))
    print(f"\n| images/s at {size} px, augmented | 1 thread | 2 threads | 4 threads | CPUs for {_WANTED:,} images/s |")
    print("|---|---|---|---|---|")
    for name, _, _ in kinds:
        each = [measuring.spread(found[name, threads], 0) for threads in (1, 2, 4)]
        print(f"| {name} | {' | '.join(each)} | {_WANTED / statistics.median(found[name, 1]):.1f} |")
    shutil.rmtree(root)


def repeat(data: Catalog, count: int, root: Path) -> Catalog:
    """A data set that names a set's training files again and again, and its validation files once."""
    train, valid = data.split("train"), data.split("valid")
    rows = train.take(np.sort(np.arange(count) % train.num_rows))
    names = [f"{number}/{key}" for number, key in enumerate(rows["key"].to_pylist())]
    for at, column in ((0, "key"), (1, "id")):
        rows = rows.set_column(at, catalog.SCHEMA.field(column), pa.array(names))
    made = dataclasses.replace(data, table=pa.concat_tables([rows, valid]), root=str(root))
    made.write()
    return made


class Peaks(threading.Thread):
    """Peak memory of a process and of Ray's workers under it, in MiB, without what they share."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.driver, self.worker, self.early = pid, 0.0, 0.0, 0.0
        self.over = threading.Event()

    def run(self) -> None:
        started = 0.0
        while not self.over.wait(0.3):
            for one in [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]:
                try:
                    name, memory = one.name(), one.memory_info()
                except psutil.Error:
                    continue
                own = (memory.rss - memory.shared) / 2**20
                if one.pid == self.pid:
                    self.driver = max(self.driver, own)
                elif "RayTrainWorker" in name:
                    started = started or time.monotonic()
                    self.worker = max(self.worker, own)
                    if time.monotonic() < started + 30:
                        self.early = self.worker


DRIVE = """
import os, ray
ray.init(
    address="local", object_store_memory=STORE, include_dashboard=False, log_to_driver=False, logging_level="error"
)
os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
from catdog.cli import main
main.main()
"""


@app.command()
def memory(
    data: Data, times: Annotated[float, typer.Option(help="Bytes of all files, in object stores.")] = 10.0
) -> None:
    """Peak memory of training on files that need many times the object store, packed and not."""
    os.environ[catalog.ALLOW_OUTSIDE] = "1"
    source = catalog.read_catalog(data)
    root = measuring.workplace(None)
    mean = np.mean([Path(uri).stat().st_size for uri in source.split("train")["uri"].to_pylist()])
    count = int(times * _STORE_BYTES / mean)
    print("\n| images | GB of files | object store GB | kept | order | driver MiB | worker MiB | in its first 30 s | "
          "images/s | s |\n|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for kind, number in (("files", count // 10), ("files", count), ("packed", count)):
        place = repeat(source, number, root / f"{kind}-{number}").root
        if kind == "packed":
            place = packing.pack_dataset(place, str(root / "shards"))[0].root
        name, runs = f"{kind}-{number}", root / "runs"
        words = ["train", "--data", place, *_SMALL, "--workers", "1", "--name", name, "--runs", str(runs)]
        words += ["--store", "files"] if number < count else []
        started = time.perf_counter()
        script = DRIVE.replace("STORE", str(_STORE_BYTES))
        process = subprocess.Popen([sys.executable, "-c", script, *words], stdout=subprocess.PIPE, text=True)
        peaks = Peaks(process.pid)
        peaks.start()
        said, _ = process.communicate()
        peaks.over.set()
        if process.returncode:
            raise RuntimeError(said)
        training = json.loads((runs / name / "model/bundle.json").read_text())["training"]
        print(
            f"| {number:,} | {number * mean / 1e9:.2f} | {_STORE_BYTES / 1e9:.2f} | {kind} | "
            f"{training['options']['shuffle']} | {peaks.driver:.0f} | {peaks.worker:.0f} | {peaks.early:.0f} | "
            f"{training['history'][0]['images_per_second']:.0f} | {time.perf_counter() - started:.0f} |",
            flush=True,
        )
    shutil.rmtree(root)


if __name__ == "__main__":
    app()
