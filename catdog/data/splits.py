"""Assignment of images to splits: once, by a hash of the key, with copies of an image in the same split.

Images that are already in the data set keep their splits when others are added.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from catdog.choices import Duplicates
from catdog.data.layouts import Row
from catdog.errors import CatdogError

_NAMED = 3


@dataclass(frozen=True)
class Remark:
    """A remark on a data set for the user who prepares it.

    Attributes:
        text: one line.
        warning: whether it may distort measured figures.
    """

    text: str
    warning: bool = False


@dataclass
class Copies:
    """Byte-equal images; each entry is the key of a copy and the key of the original."""

    dropped: list[tuple[str, str]] = field(default_factory=list)
    kept: list[tuple[str, str]] = field(default_factory=list)
    two_labels: list[tuple[str, str]] = field(default_factory=list)
    in_test: list[tuple[str, str]] = field(default_factory=list)
    in_two_splits: list[tuple[str, str]] = field(default_factory=list)


def _hash(key: str, split_seed: int) -> int:
    """Hash below 2**64 of a key and a seed; it does not depend on other images, so adding images moves none."""
    return int.from_bytes(hashlib.blake2b(f"{split_seed}:{key}".encode(), digest_size=8).digest(), "big")


def assign_splits(
    rows: list[Row],
    own_valid: bool,
    valid_fraction: float,
    split_seed: int,
    duplicates: Duplicates | None,
    known: Mapping[str, str],
    on_remark: Callable[[Remark], None],
) -> list[Row]:
    """Assigns a split to every image and handles copies.

    Args:
        rows: images with digests. Without `own_valid`, labelled images outside test are all in train.
        own_valid: whether the source has a validation folder, which is then kept.
        valid_fraction: share of each class for validation, in (0, 1).
        split_seed: seed of the hash.
        duplicates: "keep" keeps copies, in the split of the original; "drop" keeps only the shortest path, and drops
            labelled copies of test images; "refuse" rejects a source with copies. None drops copies of labelled images
            and reports labelled copies of test images.
        known: split of each image that is already in the data set, by key; these are kept.
        on_remark: called with remarks on copies and moved images.

    Returns:
        The remaining rows, with their splits.

    Raises:
        CatdogError: there are copies and `duplicates` is "refuse", or fewer than two images of a class remain.
    """
    copies, left, leader, training_only = _judge_copies(rows, duplicates, known)
    if duplicates == "refuse" and (found := copies.dropped + copies.two_labels + copies.in_test):
        raise CatdogError(
            f"--duplicates refuse: {len(found)} images are copies of others, {_examples(found)}; remove them, or use "
            "--duplicates drop"
        )
    own_split = {row.key: row.split for row in left}
    placed: dict[str, Row] = {}
    for row in left:
        first = leader.get(row.key, row.key)
        if row.key in known:
            split = known[row.key]
        elif row.split == "test" or row.label is None:
            split = row.split
        elif row.key in training_only:
            split = "train"
        elif first in known:
            split = known[first]
        elif own_valid:
            split = own_split[first]
        else:
            split = "valid" if _hash(first, split_seed) < valid_fraction * 2**64 else "train"
        placed[row.key] = dataclasses.replace(row, split=split)
    if own_valid:
        _require_both_splits(placed)
    else:
        movable = [key for key in placed if key not in known and key not in training_only and key not in leader]
        _fill_empty(placed, movable, split_seed, on_remark)
    for remark in _remarks(copies, duplicates):
        on_remark(remark)
    return list(placed.values())


def _judge_copies(
    rows: list[Row], duplicates: Duplicates | None, known: Mapping[str, str]
) -> tuple[Copies, list[Row], dict[str, str], set[str]]:
    """Finds byte-equal images.

    Returns:
        The copies; the rows to keep; for each kept copy, the key of the original whose split it shares; and the keys
        that may only be in training, because the same image also has the other label.
    """
    groups: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        if row.digest is not None:
            groups[row.digest].append(row)
    copies, dropped = Copies(), set[str]()
    leader: dict[str, str] = {}
    training_only: set[str] = set()
    for group in groups.values():
        if len(group) == 1:
            continue
        group.sort(key=lambda row: (row.key not in known, len(row.key), row.key))
        labelled, test = ([row for row in group if (row.split == "test") == is_test] for is_test in (False, True))
        if not labelled:
            continue  # every test image needs its own prediction
        first = labelled[0]
        two_labels = len({row.label for row in group if row.label is not None}) > 1
        if test:
            copies.in_test += [(test[0].key, row.key) for row in labelled]
            if duplicates == "drop":
                dropped |= {row.key for row in labelled if row.key not in known}
        if len({known[row.key] for row in labelled if row.key in known}) > 1:
            copies.in_two_splits += [(row.key, first.key) for row in labelled[1:] if row.key in known]
        if two_labels:
            other = next(row for row in group if row.label is not None and row.label != first.label)
            copies.two_labels.append((other.key, first.key))
            training_only |= {row.key for row in labelled}
        seen = {first.label}
        for row in labelled[1:]:
            if row.key in known or row.key in dropped:
                continue
            # Of an image with two labels, one copy with each label is kept, unless the data set already has a copy.
            other_label = row.label not in seen and first.key not in known
            if duplicates == "keep" or (two_labels and other_label):
                seen.add(row.label)
                leader[row.key] = first.key
                if duplicates == "keep" and not two_labels:
                    copies.kept.append((row.key, first.key))
            else:
                dropped.add(row.key)
                if not (two_labels and row.label != first.label):
                    copies.dropped.append((row.key, first.key))
    return copies, [row for row in rows if row.key not in dropped], leader, training_only


def _fill_empty(
    placed: dict[str, Row], movable: list[str], split_seed: int, on_remark: Callable[[Remark], None]
) -> None:
    """Ensures that training and validation have images of each class, by moving the image with the nearest hash."""
    labelled = [row for row in placed.values() if row.split != "test" and row.label is not None]
    for label in sorted({row.label for row in labelled if row.label is not None}):
        mine = [row for row in labelled if row.label == label]
        for empty, full, choose in (("valid", "train", min), ("train", "valid", max)):
            there = [placed[row.key] for row in mine]
            if any(row.split == empty for row in there):
                continue
            candidates = [row.key for row in there if row.split == full and row.key in movable]
            if len(there) < 2 or not candidates:
                raise CatdogError(
                    f"only {len(there)} image{'s' * (len(there) != 1)} of {there[0].key}'s class can be assigned "
                    "when copies are counted once; expected at least 2, one to train on and one for validation"
                )
            key = choose(candidates, key=lambda key: _hash(key, split_seed))
            placed[key] = dataclasses.replace(placed[key], split=empty)
            on_remark(Remark(f"{key} was moved to {empty}, which had no other image of its class"))


def _require_both_splits(placed: dict[str, Row]) -> None:
    """Checks that the source's training and validation folders still have images of each class without copies."""
    labelled = [row for row in placed.values() if row.split != "test" and row.label is not None]
    there = {(row.split, row.label) for row in labelled}
    for split in ("train", "valid"):
        for label in {row.label for row in labelled}:
            if (split, label) not in there:
                named = next(row.key for row in labelled if row.label == label)
                raise CatdogError(
                    f"the class of {named} has no image in {split} when copies are counted once; add other "
                    "images there, or remove the validation folder"
                )


def _remarks(copies: Copies, duplicates: Duplicates | None) -> list[Remark]:
    remarks = []
    if copies.dropped:
        remarks.append(Remark(f"Copies of other images, dropped: {len(copies.dropped)}, {_examples(copies.dropped)}"))
    if copies.kept:
        remarks.append(Remark(f"Copies of other images, kept: {len(copies.kept)}, {_examples(copies.kept)}"))
    if copies.two_labels:
        remarks.append(
            Remark(
                f"Images with both labels: {len(copies.two_labels)}, {_examples(copies.two_labels)}; one label of each "
                "must be wrong. They are not used for validation; correct them and prepare into a new folder",
                warning=True,
            )
        )
    if copies.in_test:
        what = "were dropped" if duplicates == "drop" else "are kept (--duplicates drop removes them)"
        remarks.append(
            Remark(
                f"Test images that are labelled elsewhere: {len(copies.in_test)}, {_examples(copies.in_test)}; the "
                f"labelled copies {what}. A model that is trained on them has seen the answers",
                warning=duplicates != "drop",
            )
        )
    if copies.in_two_splits:
        remarks.append(
            Remark(
                f"Copies in two splits of this data set: {len(copies.in_two_splits)}, "
                f"{_examples(copies.in_two_splits)}; no image is moved: prepare into a new folder",
                warning=True,
            )
        )
    return remarks


def _examples(pairs: list[tuple[str, str]]) -> str:
    named = ", ".join(f"{key} = {other}" for key, other in pairs[:_NAMED])
    return f"e.g. {named}" if len(pairs) > _NAMED else named
