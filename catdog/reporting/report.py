"""The validation report: how good the model is on labelled images that it was not trained on.

A report is an object; `render` makes JSON and the text table of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from catdog import rng
from catdog.data.catalog import Catalog
from catdog.evaluation import calibration, metrics
from catdog.evaluation.calibration import Applied
from catdog.evaluation.metrics import Figures
from catdog.inference import bundle, provenance
from catdog.inference.bundle import BundleInfo
from catdog.inference.precision import FLOAT32
from catdog.inference.provenance import Provenance

# Of a split; more would make the figures no better, but take gigabytes. Of so many, the log loss of a good model has a
# standard error of about 0.0002.
MOST_JUDGED = 1 << 21
_IMAGE_COLUMNS = ["key", "label", "logit", "probability", "status"]


@dataclass(frozen=True)
class LeftOut:
    """Images of a split that were not judged, because the model was trained on them.

    Attributes:
        n: how many.
        log_loss: of them, in nats; None without images.
        accuracy: of them; None without images.
    """

    n: int
    log_loss: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Choice:
    """The images that chose the model, or its epoch, and its log loss where they did not.

    Attributes:
        chosen_on: which images, in words.
        log_loss_cross_chosen: in nats, each half of the images judged by the epoch that is best on the other half; None
            where it was not computed, or not for exactly these images.
        log_loss_cross_searched: the same of the trials of a search.
    """

    chosen_on: str
    log_loss_cross_chosen: float | None = None
    log_loss_cross_searched: float | None = None


@dataclass(frozen=True)
class Judgement:
    """Quality of the model on the images of a split that it was not trained on.

    Attributes:
        figures: metrics of the judged probabilities, which are cross-fitted for images that calibrated the model.
        calibration: what the judged probabilities were calibrated on, in words.
        choice: what chose the model.
        log_loss_as_written: in nats, of the very probabilities that were written, whatever they were fitted on.
        log_loss_plain: in nats, before temperature and clip; the training loop reports it too, so the two compare.
    """

    figures: Figures
    calibration: str
    choice: Choice
    log_loss_as_written: float
    log_loss_plain: float


@dataclass(frozen=True)
class Section:
    """Report on one split.

    Attributes:
        split: "valid" or "test".
        judgement: None where the model was trained on every image of the split.
        trained_on: images left out of the judgement; None where it is not known which images the model was trained on.
        unreadable: number of images that could not be read; each counts with the probability it has in a submission.
        recovered: number of damaged images that were read as far as they go.
        clip: distance of the probabilities from 0 and 1.
        temperature: divisor of the logits.
        precision: that the logits were computed in, in words.
        class_names: of labels 0 and 1; probabilities are of the second.
        bundle_fingerprint: of the model.
        catalog_fingerprint: of the data set.
        split_n: number of images of the split; of more than `MOST_JUDGED` the figures are of a sample of so many.
        images: a row for each image of the split, or of the sample, in catalog order: key, label, logit (null if
            unreadable), probability as written, status, and `judged`, the probability that the figures are of (null if
            trained on). For pictures and tables of single images; the JSON has none of it.
        rows: the rows of the split that `images` are, int64, ascending.
    """

    split: str
    judgement: Judgement | None
    trained_on: LeftOut | None
    unreadable: int
    recovered: int
    clip: float
    temperature: float
    precision: str
    class_names: tuple[str, str]
    bundle_fingerprint: str
    catalog_fingerprint: str
    split_n: int
    images: pa.Table = field(repr=False, compare=False)
    rows: np.ndarray = field(repr=False, compare=False)

    @property
    def n(self) -> int:
        """Number of judged images."""
        return self.judgement.figures.n if self.judgement else 0

    @property
    def is_sampled(self) -> bool:
        """Whether the figures are of a sample of the split."""
        return len(self.images) < self.split_n

    @property
    def positive_class(self) -> str:
        """Class that the probabilities are of."""
        return self.class_names[1]


@dataclass(frozen=True)
class Report:
    """Report on the scored splits that have labels.

    Attributes:
        valid: the validation split; None where it was not scored or has no labels.
        test: the test split, likewise.
    """

    valid: Section | None = None
    test: Section | None = None

    @property
    def sections(self) -> list[Section]:
        """Sections that there are, validation first."""
        return [section for section in (self.valid, self.test) if section is not None]


@dataclass(frozen=True)
class Subject:
    """A model that is judged on a data set.

    Attributes:
        info: of the bundle, or of several as one.
        provenance: the images that made it.
        data: the catalog that was scored.
        applied: the temperature and the clip of the probabilities.
        precision: that the logits were computed in, in words.
    """

    info: BundleInfo
    provenance: Provenance
    data: Catalog
    applied: Applied
    precision: str = FLOAT32

    @property
    def is_own_set(self) -> bool:
        """The model was trained on this very data set."""
        return self.data.fingerprint in self.info.catalog_fingerprint.split("+")

    def known(self, table: pa.Table) -> bool:
        """Tells whether it is known which images of a split made the model."""
        return self.provenance.known and table["digest"].null_count < len(table)

    def calibrated_on(self, split: str, table: pa.Table) -> np.ndarray:
        """Tells of each image whether temperature and clip were fitted to it: bool, N.

        Where digests are unknown, as `chosen_on`.
        """
        if self.applied.origin == "none":
            return np.zeros(len(table), bool)
        if self.applied.digests is not None:
            known = self.applied.digests.drop_null().to_numpy()
            return np.full(len(table), split == "valid") | provenance.among(table["digest"], known)
        return self._own(split, table)

    def chosen_on(self, split: str, table: pa.Table) -> np.ndarray:
        """Tells of each image whether it chose the model, or its epoch: bool, N.

        Where digests are unknown, these are the validation split of the data set that the model was trained on.
        """
        return self._own(split, table) if self.info.chosen_on == "validation" else np.zeros(len(table), bool)

    def _own(self, split: str, table: pa.Table) -> np.ndarray:
        if self.known(table):
            return self.provenance.chosen_on(table["digest"])
        return np.full(len(table), split == "valid" and self.is_own_set)


def judged_rows(count: int) -> np.ndarray:
    """The rows of a split of so many images that a report judges: all, or one at random of each of equal stretches.

    They are always the same ones. A catalog lists one class after the other, so each has its share.

    Args:
        count: N.

    Returns:
        int64, ascending, N or `MOST_JUDGED`.
    """
    if count <= MOST_JUDGED:
        return np.arange(count)
    edges = np.arange(MOST_JUDGED + 1) * count // MOST_JUDGED
    drawn = rng.uniform(rng.Stream.JUDGED, 0, np.arange(MOST_JUDGED, dtype=np.uint64), 1)[:, 0]
    return edges[:-1] + (drawn * np.diff(edges)).astype(np.int64)


def build_report(
    tables: dict[str, pa.Table],
    counts: dict[str, dict[str, int]],
    subject: Subject,
    rows: Mapping[str, np.ndarray] | None = None,
) -> Report:
    """Judges the scored splits that have labels, each without the images that the model was trained on.

    Args:
        tables: by split ("valid", "test"), a row for each image: key, label, logit, probability, status and digest.
        counts: by split, number of images by status.
        subject: the model and the data set.
        rows: by split, the rows of it that its table has (`judged_rows`); None is all.
    """
    sections = {}
    for split, table in tables.items():
        at = np.arange(len(table)) if rows is None else rows[split]
        total = len(table) if rows is None else sum(counts[split].values())
        sections[split] = _section(split, table, counts[split], subject, at, total)
    return Report(**sections)


def _section(
    split: str, table: pa.Table, counts: dict[str, int], subject: Subject, rows: np.ndarray, split_n: int
) -> Section:
    trained_on = subject.provenance.trained_on(table["digest"])
    seen, rest = table.filter(pa.array(trained_on)), table.filter(pa.array(~trained_on))
    own = subject.calibrated_on(split, rest)
    judged = np.zeros(len(table))
    judged[~trained_on] = _judged_probabilities(rest, own, subject)
    return Section(
        split=split,
        judgement=_judge(split, rest, judged[~trained_on], own, subject) if len(rest) else None,
        trained_on=_left_out(seen) if subject.known(table) or len(seen) else None,
        unreadable=counts["unreadable"],
        recovered=counts["recovered"],
        clip=subject.applied.clip,
        temperature=subject.applied.temperature,
        precision=subject.precision,
        class_names=subject.info.class_names,
        bundle_fingerprint=bundle.fingerprint_of(subject.info),
        catalog_fingerprint=subject.data.fingerprint,
        split_n=split_n,
        rows=rows,
        images=table.select(_IMAGE_COLUMNS).append_column("judged", pa.array(judged, mask=trained_on)),
    )


def _left_out(seen: pa.Table) -> LeftOut:
    if not len(seen):
        return LeftOut(0)
    labels, probabilities = seen["label"].to_numpy(), seen["probability"].to_numpy()
    log_loss = float(metrics.losses(labels, probabilities).mean())
    return LeftOut(len(seen), log_loss, float(((probabilities > 0.5) == (labels == 1)).mean()))


def _judged_probabilities(table: pa.Table, own: np.ndarray, subject: Subject) -> np.ndarray:
    """Probabilities as written, but cross-fitted where temperature and clip were fitted on the very same images.

    Args:
        table: the images that the model was not trained on, N.
        own: which of them temperature and clip were fitted to: bool, N.
        subject: the model and the data set.

    Returns:
        float64, N.
    """
    probabilities = table["probability"].to_numpy()
    if not _is_cross_fitted(own, subject):
        return probabilities
    readable = own & table["logit"].is_valid().to_numpy()
    labels, logits = table["label"].to_numpy(), _logits(table, subject)
    halves = np.zeros(len(table), np.int64)
    halves[own] = calibration.halves(table["key"].filter(pa.array(own)))
    probabilities = probabilities.copy()
    probabilities[readable] = calibration.cross_fitted(labels[readable], logits[readable], halves[readable])
    return probabilities


def _judge(split: str, table: pa.Table, judged: np.ndarray, own: np.ndarray, subject: Subject) -> Judgement:
    labels = table["label"].to_numpy()
    return Judgement(
        figures=metrics.summarise(labels, judged),
        calibration=_calibration(split, table, own, subject),
        choice=_choice(split, table, subject),
        log_loss_as_written=float(metrics.losses(labels, table["probability"].to_numpy()).mean()),
        log_loss_plain=float(metrics.losses_from_logits(labels, _logits(table, subject)).mean()),
    )


def _logits(table: pa.Table, subject: Subject) -> np.ndarray:
    """Plain logits; an unreadable image has the prior's."""
    prior = subject.info.prior
    return table["logit"].fill_null(metrics.logit(prior)).to_numpy()


def _choice(split: str, table: pa.Table, subject: Subject) -> Choice:
    info = subject.info
    if info.chosen_on == "none":
        return Choice("nothing")
    count = int(subject.chosen_on(split, table).sum())
    if count == len(table):
        crossed = [info.validation.get(name) for name in ("log_loss_cross_chosen", "log_loss_cross_searched")]
        return Choice("these images", *crossed)
    if count:
        return Choice(f"{count} of these {len(table)} images")
    if subject.known(table) or (subject.is_own_set and split != "valid"):
        return Choice("other photos")
    return Choice("photos that are not known; these may be among them")


def _is_cross_fitted(own: np.ndarray, subject: Subject) -> bool:
    # Halves fit something to the mean of several models' logits, which is not what was written if that is a mean.
    return own.sum() >= calibration.MIN_IMAGES and subject.applied.origin != "mean"


def _calibration(split: str, table: pa.Table, own: np.ndarray, subject: Subject) -> str:
    """Says what the judged probabilities were fitted on."""
    count, origin = int(own.sum()), subject.applied.origin
    if origin == "none":
        return "none"
    crossed = _is_cross_fitted(own, subject)
    if count == len(own):
        several = "the mean of the models' own, " if origin == "mean" else ""
        return "cross-fitted on halves" if crossed else f"{several}fitted on these images"
    if crossed:
        return f"cross-fitted on halves for {count} of {len(own)} images, fitted on other photos for the rest"
    if count:
        return f"fitted on other photos, and on {count} of these {len(own)}"
    if subject.known(table):
        return "fitted on other photos"
    if split != "valid" and (subject.is_own_set or origin == "refitted"):
        return "fitted on the validation split"
    return "fitted on photos that are not known; these may be among them"
