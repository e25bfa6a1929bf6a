"""What catdog costs without pixels or networks: a million tiny images, parts on many actors, preparing.

Run by `benchmarks/speed.py plumbing`, `parts` and `prepare`.
"""

from __future__ import annotations

import heapq
import json
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import typer
from measuring import PLAIN, Folder, say, timed, workplace

from catdog.data import catalog
from catdog.data.catalog import Catalog
from catdog.inference import export
from catdog.models import registry
from catdog.models.spec import register_architecture
from catdog.scoring import parts

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
    export.save_bundle(str(root / "model"), [stub], sample, architecture="stub", image_size=16, **PLAIN)


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


def prepare(folder: Folder = None) -> None:
    """Memory that `data prepare` takes for an image, from zips and folders of 20,000 and 120,000 of them."""
    root = workplace(folder)
    root.mkdir(parents=True, exist_ok=True)
    for kind in ("zip", "folder"):
        peaks = []
        for count in (20_000, 120_000):
            with tempfile.TemporaryDirectory(dir=root) as place:
                source = Path(place) / f"source.{kind}"
                # No two are equal, and nothing decodes them.
                files = ((f"{('cat', 'dog')[n % 2]}.{n}.jpg", b"\xff\xd8\xff%d" % n) for n in range(count))
                if kind == "zip":
                    with zipfile.ZipFile(source, "w") as archive:
                        for name, data in files:
                            archive.writestr(f"train/{name}", data)
                else:
                    (source / "train").mkdir(parents=True)
                    for name, data in files:
                        (source / "train" / name).write_bytes(data)
                command = [sys.executable, "-c", _PREPARE, str(source), str(Path(place) / "set")]
                peaks.append(int(timed(command)[1]))
        say(f"`data prepare` of a {kind}: {(peaks[1] - peaks[0]) / 100_000:,.0f} bytes an image")


def balance(sizes: list[int], actors: int) -> float:
    """Busy share of equally fast actors, each of which takes the next part when it has done one."""
    done = [0] * actors
    for size in sizes:
        heapq.heappush(done, heapq.heappop(done) + size)
    return sum(sizes) / actors / max(done)


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
