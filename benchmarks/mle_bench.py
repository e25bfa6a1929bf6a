"""MLE-bench's task of the Redux competition: its split of the labelled photos, and its figure.

    python benchmarks/log_loss.py mle-bench --source KAGGLE_ZIP --folder runs/mle-bench [--recipe NAME] [--arch NAME]

MLE-bench (Chan et al., 2024, github.com/openai/mle-bench) gives agents 90 % of the competition's labelled photos, and
grades them by the log loss of the other 10 %. The rule, as its `prepare.py` has it: the paths of the labelled photos
are sorted, scikit-learn's `train_test_split` holds out a tenth with random state 0, the photos left are counted anew
for each class, and those held out are numbered from 1. The figure is scikit-learn's log loss of the CSV.

The split is made of one's own copy of the competition, and lies with the answers in the folder given. A copy with fewer
labelled photos than 25,000 has another split, so that its figure is not one of MLE-bench's; the table says so.
"""

from __future__ import annotations

import csv
import io
import shutil
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from catdog import storage
from catdog.cli.display import out
from catdog.data import datasets
from catdog.errors import UsageError
from catdog.evaluation import metrics
from catdog.run_directory import RunDirectory
from catdog.scoring import score
from catdog.scoring.config import ScoreConfig
from catdog.training import train
from catdog.training.request import TrainConfig

_ALL = 25_000
# Lines of the table to compare with: what was said to have been reached, and by what.
_PUBLISHED = (
    ("frozen modern embeddings and a logistic head, on CPUs", "0.0098"),
    ("fine-tuned networks, on GPUs", "0.0060"),
    ("gold line of the benchmark", "0.0388"),
)


@dataclass(frozen=True)
class Split:
    """A split on disk.

    Attributes:
        source: folder in Kaggle's layout, for `catdog data prepare`.
        answers: label by id of the photos held out.
        labelled: number of labelled photos in the copy.
    """

    source: Path
    answers: dict[str, int]
    labelled: int


def make_split(archive: Path, folder: Path) -> Split:
    """Splits the labelled photos of a competition's zip as MLE-bench does.

    Args:
        archive: Kaggle's zip, with `train.zip` or the photos themselves in it.
        folder: where `source` and `answers.csv` are written; they are made anew.

    Raises:
        UsageError: it is not such a zip.
    """
    from sklearn.model_selection import train_test_split

    source = folder / "source"
    shutil.rmtree(source, ignore_errors=True)
    for name in ("train", "test"):
        (source / name).mkdir(parents=True)
    try:
        opened = zipfile.ZipFile(archive)
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"--source received {archive}, expected the competition's zip ({error})") from error
    with opened as outer, _photos(outer) as photos:
        names = sorted(name for name in photos.namelist() if name.startswith("train/") and name.endswith(".jpg"))
        if len(names) < 20:
            raise UsageError(f"--source received {archive}, which has {len(names)} photos train/*.jpg; expected 25,000")
        kept, held_out = train_test_split(names, test_size=0.1, random_state=0)
        seen = {"cat": 0, "dog": 0}
        for name in kept:
            kind = "cat" if "cat" in Path(name).name else "dog"
            (source / "train" / f"{kind}.{seen[kind]}.jpg").write_bytes(photos.read(name))
            seen[kind] += 1
        answers = {}
        for number, name in enumerate(held_out, 1):
            (source / "test" / f"{number}.jpg").write_bytes(photos.read(name))
            answers[str(number)] = int("dog" in Path(name).name)
    with (folder / "answers.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "label"), *answers.items()])
    with (source / "sample_submission.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "label"), *((number, 0.5) for number in answers)])
    return Split(source, answers, len(names))


def _photos(outer: zipfile.ZipFile) -> zipfile.ZipFile:
    """The zip with the labelled photos: `train.zip` in the outer one, or the outer one itself."""
    inner = [name for name in outer.namelist() if Path(name).name == "train.zip"]
    return zipfile.ZipFile(io.BytesIO(outer.read(inner[0]))) if inner else outer


def grade(submission: Path, answers: dict[str, int]) -> tuple[float, tuple[float, float]]:
    """Grades a CSV by the benchmark's rule.

    Args:
        submission: columns id and label.
        answers: label by id.

    Returns:
        scikit-learn's log loss, and its 95 % interval.

    Raises:
        UsageError: the ids are others, or a probability is none.
    """
    from sklearn.metrics import log_loss

    with submission.open(newline="") as file:
        found = {row["id"]: float(row["label"]) for row in csv.DictReader(file)}
    if found.keys() != answers.keys() or not all(0 <= value <= 1 for value in found.values()):
        raise UsageError(f"received {submission}, expected a probability from 0 to 1 for each of {len(answers)} ids")
    labels = np.array(list(answers.values()))
    probabilities = np.array([found[number] for number in answers])
    return float(log_loss(labels, probabilities)), metrics.loss_interval(labels, probabilities)


def main(
    source: Annotated[Path, typer.Option(help="The competition's zip.")],
    folder: Annotated[Path, typer.Option(help="Folder of the split, the run and the CSV.")] = Path("runs/mle-bench"),
    recipe: Annotated[str | None, typer.Option(help="Recipe. Default: what `catdog train` takes.")] = None,
    arch: Annotated[str | None, typer.Option(help="Architecture. Default: what `catdog train` takes.")] = None,
    weights: Annotated[str | None, typer.Option(help="As of `catdog train`.")] = None,
) -> None:
    """Trains on MLE-bench's split of the competition, grades by its rule, and prints the row."""
    started = time.perf_counter()
    split = make_split(source, folder)
    data = datasets.prepare_dataset(str(split.source), str(folder / "data"))
    name = recipe or "default"
    config = TrainConfig(data=data.root, recipe=recipe, arch=arch, weights=weights, runs=str(folder), name=name)
    begun = RunDirectory(storage.absolute(str(folder / name))).exists
    result = train.train_model(config.model_copy(update={"resume": begun}))
    submission = folder / f"{name}.csv"
    score.score_dataset(ScoreConfig(model=[result.run], data=data.root, split="test", out=str(submission)))
    log_loss, (low, high) = grade(submission, split.answers)
    whole = "" if split.labelled == _ALL else f", of {split.labelled:,} instead of {_ALL:,} labelled ones"
    out.print("| | log loss (95 % interval) | photos held out | minutes |", markup=False)
    out.print("|---|---|---|---|")
    minutes = (time.perf_counter() - started) / 60
    held_out = f"{len(split.answers)}{whole}"
    out.print(f"| catdog, {name} | **{log_loss:.4f}** ({low:.4f} to {high:.4f}) | {held_out} | {minutes:.1f} |")
    for what, figure in _PUBLISHED:
        out.print(f"| {what} | {figure} | 2,500, original sizes | |")
