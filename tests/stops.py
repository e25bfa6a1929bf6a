"""Operations that are stopped at their file-system calls, and what must hold after each stop and after a rerun."""

from __future__ import annotations

import json
import pickle
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from faults import KINDS, DeathError, Fault, Place

from catdog import rng, storage
from catdog.data import catalog, datasets, packing
from catdog.data.catalog import Catalog
from catdog.errors import CatdogError
from catdog.inference import bundle, export
from catdog.inference.predictor import Predictions
from catdog.reporting import page
from catdog.run_directory import RunDirectory
from catdog.scoring import parts, results, score
from catdog.scoring.config import ScoreConfig

Files = dict[str, bytes]
# What a killed process may leave behind: files that no name without a dot in front, or a lease's, is given to.
_LEFT_OVER = re.compile(r"(.*/)?(\..+\.\d+-[0-9a-f]{8}\.tmp|(lease|preparing)\.json)")
# What a bundle says of its files, and not of what made them.
_MADE_ANEW = {"members", "onnx", "images_known", "checksums", "versions", "schema_version"}
_PAGE = "report.html"
# Times of day, and durations.
_TIMES = ("seconds", "written")


@dataclass(frozen=True)
class Operation:
    """What is stopped and run again.

    Attributes:
        name: for messages.
        run: makes its files below a URI.
        start: the files that are there before.
        vouched: the files that are whole as soon as one is there, by the pattern of their names and that file's name;
            all others are always.
    """

    name: str
    run: Callable[[str], object]
    start: Files = field(default_factory=dict)
    vouched: tuple[tuple[str, str], ...] = ()


def kept(files: Files) -> Files:
    """What must be equal: all files but those that a killed process may leave, without times."""
    return {path: _timeless(path, data) for path, data in files.items() if not _LEFT_OVER.fullmatch(path)}


def _timeless(path: str, data: bytes) -> bytes:
    if not path.endswith("meta.json"):
        return data
    try:
        content = json.loads(data)
    except ValueError:
        return data
    return json.dumps({name: value for name, value in content.items() if name not in _TIMES}).encode()


def _without_page(meta: bytes) -> bytes:
    content = json.loads(meta)
    content["sha256"].pop(_PAGE, None)
    return json.dumps(content).encode()


@dataclass
class Bench:
    """An operation at a place, and how it ends where nothing goes wrong.

    Attributes:
        operation: that is stopped.
        place: where it writes.
        expected: the files of an undisturbed run.
        calls: number of its file-system calls.
        divisible: the numbers of those that may be half done.
    """

    operation: Operation
    place: Place
    expected: Files = field(init=False)
    calls: int = field(init=False)
    divisible: set[int] = field(init=False)

    def __post_init__(self) -> None:
        """Runs the operation undisturbed."""
        self.place.reset(self.operation.start)
        with self.place.life() as calls:
            self.operation.run(self.place.uri)
        self.expected, self.calls, self.divisible = kept(self.place.files()), calls.count, calls.divisible
        assert self.expected.keys() == self.place.files().keys(), "it left something behind"
        self._before = kept(self.operation.start)

    def disturb(self, faults: list[Fault]) -> None:
        """Runs the operation once for each fault, which ends it or not, and then without one."""
        where = f"{self.operation.name} in {self.place.uri}, {faults}"
        self.place.reset(self.operation.start)
        for fault in faults:
            with self.place.life(fault) as calls, suppress(DeathError, KeyboardInterrupt, OSError, CatdogError):
                self.operation.run(self.place.uri)
            self._require_whole(f"{where}, {calls.names[-3:]}")
        with self.place.life():
            try:
                self.operation.run(self.place.uri)
            except Exception as error:
                raise AssertionError(f"the rerun failed: {where}") from error
        ended = kept(self.place.files())
        assert ended.keys() == self.expected.keys(), (where, ended.keys() ^ self.expected.keys())
        assert [path for path in ended if ended[path] != self.expected[path]] == [], where

    def _require_whole(self, where: str) -> None:
        """No file under a final name is half, nor does one vouch for others that are."""
        files = kept(self.place.files())
        for path, data in files.items():
            if not any(re.fullmatch(pattern, path) for pattern, _ in self.operation.vouched):
                whole = [version[path] for version in (self._before, self.expected) if path in version]
                if path.endswith("meta.json"):
                    # A report that could not be written costs nothing else, and is not vouched for.
                    whole += [_without_page(one) for one in whole]
                assert data in whole, f"{path} is half: {where}"
        for version in (self._before, self.expected):
            for pattern, voucher in self.operation.vouched:
                if voucher in version and files.get(voucher) == version[voucher]:
                    named = {path for path in version if re.fullmatch(pattern, path)}
                    wrong = [path for path in named if files.get(path) != version[path]]
                    assert not wrong, f"{voucher} vouches for {wrong}: {where}"

    def disturb_everywhere(self) -> int:
        """Each call once with each kind of fault; returns how many there were."""
        stops = [Fault(at, kind) for kind in KINDS for at in range(self.calls)]
        # Half of an indivisible call is none of it.
        stops = [stop for stop in stops if stop.kind not in ("half", "full") or stop.at in self.divisible]
        for stop in stops:
            self.disturb([stop])
        return len(stops)

    def disturb_at_random(self, seed: int) -> None:
        """One to four lives that end badly, drawn by a seed."""
        chance = random.Random(seed)
        lives = chance.choices((1, 2, 3, 4), (1, 4, 2, 1))[0]
        self.disturb([Fault(chance.randrange(self.calls), chance.choice(KINDS)) for _ in range(lives)])


# --- the operations ----------------------------------------------------------------------------------------------


@contextmanager
def without_ray() -> Iterator[None]:
    """Scoring makes its parts here, of numbers that follow from the keys; how fast it was is not told."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_ROWS", 4)
        patch.setattr(score, "_make_missing", _make_parts)
        patch.setattr(results, "_speed", lambda *_: {})
        # Drawing takes a second; of the same figures it gives the same page.
        drawn_before: dict[bytes, str] = {}
        draw = page.render_page

        def render_page(source: page.Source) -> str:
            mark = pickle.dumps(source)
            if mark not in drawn_before:
                drawn_before[mark] = draw(source)
            return drawn_before[mark]

        patch.setattr(page, "render_page", render_page)
        # In order, so that a call has the same number each time.
        patch.setattr(datasets, "ThreadPoolExecutor", lambda _count: _OneThread())
        patch.setattr(packing, "ThreadPoolExecutor", lambda _count: _OneThread())
        yield


class _OneThread:
    """In place of a pool of threads: in this one, where Ctrl-C arrives."""

    map = staticmethod(map)

    def __enter__(self) -> _OneThread:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _make_parts(job: score.ScoringJob, missing: dict, *_: object) -> str:
    engine = list(missing)[-1]
    for part in missing[engine]:
        drawn = rng.uniform(0, 0, rng.key_hash(part.rows["key"].to_pylist()), 1)[:, 0]
        logits = np.where(drawn < 0.2, np.nan, drawn * 8 - 4).astype(np.float32)
        probabilities = np.where(np.isnan(logits), job.info.prior, 1 / (1 + np.exp(-logits / job.info.temperature)))
        statuses = ["unreadable" if np.isnan(logit) else "ok" for logit in logits]
        details = ["is empty (0 bytes)" if np.isnan(logit) else "" for logit in logits]
        parts.write_part(part.uri, part.rows, Predictions(logits, probabilities, statuses, details))
    return engine


def _scoring(name: str, data: Catalog, model: str, start: Files | None = None, **options: object) -> Operation:
    def run(uri: str) -> object:
        return score.score_dataset(
            ScoreConfig(model=model, data=data.root, out=storage.join(uri, "results.csv"), batch_size=1, **options)
        )

    return Operation(f"scoring, {name}", run, start or {})


def _train(model: str, uri: str, overwrite: bool) -> None:
    """What a training run writes, but for Ray's checkpoints: it goes on where it was, or replaces an old run."""
    run = RunDirectory(storage.join(uri, "run"))
    content = {"options": dict.fromkeys(("recipe", "arch", "image_size", "batch_size"), "") | {"seed": 1}}
    content |= {"catalog_fingerprint": "1"}
    resumes = run.exists and run.read() == content
    if not (resumes and run.finished):
        if not resumes:
            run.require_free(overwrite)
        with run.hold("training"):
            if not resumes:
                run.require_free(overwrite)
                run.open(content, overwrite)
            info = bundle.read_info(model).info
            storage.write_bytes(run.valid, b"the logits")
            export.assemble_bundle(run.model, [model], **info.model_dump(exclude=_MADE_ANEW))
    storage.write_text(run.page, "the report")


def _old_run(model: str) -> Files:
    """A finished run with another seed, of files that a run of today has, and one of the user's."""
    files = {path.name: path.read_bytes() for path in Path(model).iterdir()}
    content = {"options": dict.fromkeys(("recipe", "arch", "image_size", "batch_size", "seed"), 0)}
    run = {"config.json": json.dumps(content | {"catalog_fingerprint": "0"}).encode(), "notes.txt": b"the user's"}
    run |= {"valid.parquet": b"old logits", "report.html": b"an old report", "checkpoints/a/x.npz": b"x"}
    run |= {"tensorboard/events.out": b"x", "checkpoints/b/x.npz": b"x"}
    run |= {f"model/{name}": data for name, data in files.items()}
    return {f"run/{name}": data for name, data in run.items()}


def make_benches(drawn: Catalog, untrained: str, folder: Path, labelled: bool = True) -> Iterator[Bench]:
    """All operations, on a disk, on one without hard links where a lease is taken, and on a bucket.

    Args:
        drawn: a data set, of which some images are taken.
        untrained: a bundle for it.
        folder: an empty one.
        labelled: with those that score images with labels, whose report takes a second to draw.
    """
    rows = drawn.table.to_pylist()
    found: dict[tuple[str, int | None], list[int]] = {}
    for at, row in enumerate(rows):
        found.setdefault((row["split"], row["label"]), []).append(at)
    chosen = np.concatenate([places[: 6 if split == "test" else 4] for (split, _), places in found.items()])
    whole = catalog.read_catalog(str(shutil.copytree(drawn.root, folder / "few")))
    few = Catalog(whole.table.take(chosen), whole.class_names, whole.root, whole.options)
    few.write()
    other = folder / "other"
    saved = bundle.read_info(untrained)
    fields = saved.info.model_dump(exclude=_MADE_ANEW)
    export.assemble_bundle(str(other), [untrained], **(fields | {"temperature": 3.0}))
    sources = {}
    for name, split in (("more", ("train", "test")), ("less", ("train",))):
        source = sources[name] = folder / name
        for row in few.table.to_pylist():
            if row["split"] in split or row["split"] == "train":
                target = source / row["key"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(Path(row["uri"]).read_bytes())

    def prepare(source: Path) -> Callable[[str], object]:
        return lambda uri: datasets.prepare_dataset(str(source), storage.join(uri, "set"), 0.25)

    images = (("set/images/.*", "set/catalog.parquet"),)
    shards = (("set/shards/.*", "set/catalog.parquet"),)
    model = (("run/model/.*", "run/model/bundle.json"),)
    places = {"disk": lambda: Place(folder / "disk"), "bucket": lambda: Place(None)}

    def files_of(run: Callable[[str], object], place: Place) -> Files:
        place.reset({})
        with place.life():
            run(place.uri)
        return place.files()

    for where in places.values():
        if labelled:
            yield Bench(_scoring("anew", few, untrained), where())
            old = files_of(_scoring("", few, str(other)).run, where())
            yield Bench(_scoring("another model's files there", few, untrained, old), where())
            half = files_of(_scoring("", few, untrained, split="test").run, where())
            yield Bench(_scoring("the other split", few, untrained, half, split="valid"), where())
        yield Bench(_scoring("the test split alone", few, untrained, split="test"), where())
        yield Bench(Operation("preparing", prepare(sources["more"]), {}, images), where())
        less = files_of(prepare(sources["less"]), where())
        yield Bench(Operation("adding images", prepare(sources["more"]), less, images), where())
        lost = {path: data for path, data in less.items() if not path.endswith(("cat.1.jpg", "dog.2.jpg"))}
        yield Bench(Operation("adding images where some were lost", prepare(sources["more"]), lost, images), where())
        yield Bench(
            Operation("packing", lambda uri: packing.pack_dataset(few.root, storage.join(uri, "set")), {}, shards),
            where(),
        )
        yield Bench(Operation("training", lambda uri: _train(untrained, uri, False), {}, model), where())
        yield Bench(
            Operation("replacing a run", lambda uri: _train(untrained, uri, True), _old_run(str(other)), model),
            where(),
        )
    alone = _scoring("on a disk without hard links", few, untrained, split="test")
    yield Bench(alone, Place(folder / "disk", links=False))
