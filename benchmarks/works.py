"""The commands that `reliability.py` disturbs: small ones, with small data, and what each of them makes."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

# Small parts, so that there are many of which a kill can hit one.
PART_ROWS = 16
# Pictures drawn, and rows that name them.
DRAWN, ROWS = 64, 1600
EPOCHS = 8


@dataclass
class Work:
    """A command that is run again and again, and what it makes.

    Attributes:
        command: without the place of the outputs.
        folder: of all outputs.
        seconds: that an undisturbed run took.
        expected: what that made.
        spans: for how many seconds that run had processes of a kind.
    """

    command: list[str]
    folder: Path
    seconds: float = 0.0
    expected: Any = None
    spans: dict[str, float] = field(default_factory=dict)

    @property
    def scores(self) -> bool:
        return self.command[0] == "score"

    def arguments(self, name: str, again: bool) -> list[str]:
        place = self.folder / name
        if self.scores:
            return [*self.command, "--out", str(place / "results.csv")]
        if again and (place / "run" / "config.json").exists():
            return ["train", "--resume", "--name", "run", "--runs", str(place)]
        return [*self.command, "--name", "run", "--runs", str(place)]

    def made(self, name: str) -> Any:
        """The bytes of the CSV; or the digests of all variables, by worker, of the model and after each epoch."""
        made = self.folder / name / ("results.csv" if self.scores else "run/model/bundle.json")
        if not made.exists():
            return None
        if self.scores:
            return made.read_bytes()
        training = json.loads(made.read_text())["training"]
        return training["variables_sha256"], [entry["variables_sha256"] for entry in training["history"]]

    def beside(self, name: str) -> dict[str, bytes]:
        """What lies beside the CSV, by name; only the report and the list of unreadable images follow from it alone."""
        found = {str(path.relative_to(self.folder / name)): path for path in (self.folder / name).rglob("[!.]*")}
        told = ("results.report.json", "results.rejected.csv")
        return {inner: path.read_bytes() if inner in told else b"" for inner, path in found.items()}

    def done(self, name: str) -> set[tuple[str, int, int]]:
        """Every part that is there: name, inode and time of its file, so that one written again is another one."""
        found = set()
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self.folder / name / "results.parts"):
                if entry.name.endswith(".parquet"):
                    with contextlib.suppress(FileNotFoundError):
                        found.add((entry.name, entry.inode(), entry.stat().st_mtime_ns))
        return found


def make_works(folder: Path) -> dict[str, Work]:
    """A drawn data set, an untrained bundle, and the commands."""
    import keras
    import numpy as np

    from catdog.data import synthetic
    from catdog.data.catalog import Catalog
    from catdog.evaluation import calibration
    from catdog.inference import export
    from catdog.models import registry

    drawn = synthetic.synthesize(str(folder / "drawn"), DRAWN, DRAWN, seed=1, valid_fraction=0.25)
    rows = drawn.table.to_pylist()
    test = [row for row in rows if row["split"] == "test"]
    many = [test[number % len(test)] | {"key": f"test/{number}.jpg", "id": str(number)}
            for number in range(1, ROWS + 1)]  # fmt: skip
    kept = [row for row in rows if row["split"] != "test"]
    data = Catalog(pa.Table.from_pylist(kept + many, schema=drawn.table.schema), drawn.class_names,
                   str(folder / "many"), drawn.options)  # fmt: skip
    data.write()
    keras.utils.set_random_seed(0)
    model = registry.build_model(registry.ModelSpec("small_resnet", 64))
    sample = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    export.save_bundle(
        str(folder / "model"), [model], sample, architecture="small_resnet", image_size=64,
        class_names=data.class_names, views=["identity"], calibration="none", temperature=1.0,
        clip=calibration.DEFAULT_CLIP, prior=0.5, validation={"log_loss": 0.7}, chosen_on="none",
        catalog_fingerprint=data.fingerprint, seed=0, training={},
    )  # fmt: skip
    train = ["train", "--data", drawn.root, "--arch", "small_resnet", "--image-size", "32", "--epochs", str(EPOCHS),
             "--batch-size", "16", "--patience", str(EPOCHS), "--cpus-per-worker", "1"]  # fmt: skip
    return {
        "score": Work(["score", "--model", str(folder / "model"), "--data", data.root, "--split", "all",
                       "--batch-size", "8"], folder / "score"),
        "train": Work([*train, "--workers", "1"], folder / "train"),
        "train-two": Work([*train, "--workers", "2"], folder / "train-two"),
    }  # fmt: skip
