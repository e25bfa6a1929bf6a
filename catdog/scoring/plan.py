"""The plan of a scoring run: its options, read once and found to fit each other, and the parts that follow."""

from __future__ import annotations

import json
from dataclasses import dataclass

from catdog import storage
from catdog.choices import EngineName
from catdog.data.catalog import Catalog, read_catalog
from catdog.errors import CatdogError, UsageError
from catdog.inference import bundle
from catdog.inference.bundle import BundleInfo, SavedBundle
from catdog.inference.precision import INT8
from catdog.inference.provenance import Provenance
from catdog.inference.quantised_bundle import read_bundles
from catdog.prefetch import prefetch
from catdog.reporting import result_set
from catdog.scoring import parts
from catdog.scoring.config import ScoreConfig
from catdog.scoring.parts import Part
from catdog.versions import package_versions

_SCORED_SPLITS = ("valid", "test")


@dataclass(frozen=True)
class ScoringJob:
    """A scoring run: the data set, the models, and the parts.

    Attributes:
        config: the options.
        out: URI of the CSV.
        folder: URI of the folder of parts.
        bundles: the models.
        info: description of the bundles as one.
        fingerprint: of that description.
        provenance: the images that made the models.
        catalog: of the data set.
        splits: those to be scored.
        others: those that could be scored, but are not to be now.
        engines: what may predict, the fastest on a CPU first.
        batch_size: images in a batch: no more than a part has.
        parts: by engine that the models have, and then by split, its parts in catalog order.
    """

    config: ScoreConfig
    out: str
    folder: str
    bundles: list[SavedBundle]
    info: BundleInfo
    fingerprint: str
    provenance: Provenance
    catalog: Catalog
    splits: list[str]
    others: list[str]
    engines: tuple[EngineName, ...]
    batch_size: int
    parts: dict[EngineName, dict[str, list[Part]]]

    def parts_to_score(self, engine: EngineName) -> list[Part]:
        """The parts of all splits that are to be scored, as an engine makes them."""
        return [part for split in self.splits for part in self.parts[engine][split]]

    def find_missing(self) -> dict[EngineName, list[Part]]:
        """Finds the parts that are still to be made, by engine, up to the first engine that has none."""
        found: dict[EngineName, list[Part]] = {}
        # One listing: asking a bucket for each of thousands of parts takes minutes.
        there = set(storage.list_names(self.folder))

        def is_complete(part: Part) -> bool:
            return storage.name(part.uri) in there and parts.is_complete(part)

        for engine in self.engines:
            wanted = self.parts_to_score(engine)
            complete = prefetch(is_complete, wanted, parts.READERS)
            found[engine] = [part for part, is_done in zip(wanted, complete, strict=True) if not is_done]
            if not found[engine]:
                break
        return found


def open_job(config: ScoreConfig, data: Catalog | None = None) -> ScoringJob:
    """Reads what the options name, and makes sure that it fits together; nothing is written.

    Args:
        config: what to score.
        data: its data set's catalog, if it was read or made already.

    Raises:
        UsageError: no such model or data, or an option that cannot be.
        CatdogError: a file is damaged, or there is nothing to score.
    """
    out = storage.absolute_output(config.out, "--out")
    if not storage.name(out).endswith(".csv") or storage.kind(out) == "folder":
        raise UsageError(f"--out received {config.out!r}, expected the name of a .csv file")
    if config.precision == INT8 and (config.gpu or config.engine == "tensorflow"):
        other = "--gpu" if config.gpu else "--engine tensorflow"
        raise UsageError(f"--precision received int8 with {other}, which computes in float32; leave one of them out")
    bundles = read_bundles(config.model, config.precision)
    info = bundle.merge_infos([saved.info for saved in bundles])
    provenance = Provenance.union([bundle.read_provenance(*saved) for saved in bundles])
    for saved in bundles:
        if config.engine == "onnx" and "onnx" not in saved.info.engines:
            raise UsageError(
                f"--engine received onnx, but {saved.uri} has no ONNX model ({saved.info.onnx}); use tensorflow"
            )
    catalog = data or read_catalog(config.data)
    if catalog.class_names != info.class_names:
        raise UsageError(f"the model tells {info.class_names} apart, but the data set holds {catalog.class_names}")
    splits = _splits(config.split, catalog)
    others = [split for split in _SCORED_SPLITS if split not in splits and catalog.count(split)]
    folder = result_set.sidecar(out, "parts")
    fingerprint = bundle.fingerprint_of(info)
    batch_size = min(config.batch_size, parts.PART_ROWS)
    rows = {split: catalog.split(split) for split in [*splits, *others]}
    versions = json.dumps(package_versions(), sort_keys=True)
    cut: dict[EngineName, dict[str, list[Part]]] = {}
    for engine in info.engines:
        origin = [catalog.fingerprint, fingerprint, engine, str(batch_size), versions]
        growth = parts.most_growth(engine, sorted({saved.info.image_size for saved in bundles}))
        cut[engine] = {
            split: parts.cut_split(split, table, batch_size, origin, folder, growth) for split, table in rows.items()
        }
    job = ScoringJob(
        config, out, folder, bundles, info, fingerprint, provenance, catalog, splits, others, _engines(config, info),
        batch_size, cut,
    )  # fmt: skip
    _refuse_mixed_set(job)
    return job


def _engines(config: ScoreConfig, info: BundleInfo) -> tuple[EngineName, ...]:
    if config.engine != "auto":
        return (config.engine,)
    if config.precision == INT8:
        return ("onnx",)
    if config.gpu is None:
        return info.engines
    return ("tensorflow",) if config.gpu else info.engines[:1]


def _splits(split: str, catalog: Catalog) -> list[str]:
    if split != "all":
        catalog.split(split)
        return [split]
    found = [name for name in _SCORED_SPLITS if catalog.count(name)]
    if not found:
        raise CatdogError(f"{catalog.root} has neither validation nor test images to score")
    return found


def is_scored(config: ScoreConfig) -> bool:
    """Tells whether a scoring run has nothing left to do: its CSV and every sidecar are there, and are its own.

    Raises:
        UsageError, CatdogError: as `open_job`.
    """
    job = open_job(config)
    digests = result_set.read_digests(job.out)
    wanted = {"csv"} if "test" in job.splits else set()
    wanted |= {"report.json"} if any(job.catalog.is_labelled(split) for split in job.splits) else set()
    return _is_same(job) and wanted <= digests.keys() and all(result_set.is_intact(job.out, each) for each in digests)


def _is_same(job: ScoringJob) -> bool:
    """Whether the files that are there are of the same model, data set, batch size and versions."""
    meta = result_set.read_meta(job.out)
    try:
        before = (meta["bundle_fingerprint"], meta["catalog_fingerprint"], meta["options"]["batch_size"])
        return (before, meta["versions"]) == (
            (job.fingerprint, job.catalog.fingerprint, job.config.batch_size),
            package_versions(),
        )
    except (KeyError, TypeError):
        return False


def _refuse_mixed_set(job: ScoringJob) -> None:
    """A CSV and its sidecars speak of one model and one data set; what this run leaves in place must be of the same."""
    is_same = _is_same(job)
    kept = {
        "csv": "test" not in job.splits,
        "report.json": not any(job.catalog.is_labelled(split) for split in job.splits),
    }
    for ending, stays in kept.items():
        uri = result_set.sidecar(job.out, ending)
        if stays and storage.exists(uri) and not (is_same and result_set.is_intact(job.out, ending)):
            raise UsageError(
                f"{uri} is of another model, data set or --batch-size, of other versions of packages or of a run that "
                "was killed, and this run would not replace it; give another --out, or --split all"
            )
