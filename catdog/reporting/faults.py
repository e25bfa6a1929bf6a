"""Faults in the text of a submission: the usual mistakes, each in one line that says how to mend it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

COLUMNS = ("id", "label")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_BLANK = "a blank line; remove empty lines"


def in_file(content: bytes) -> str | None:
    """Says what is wrong with a file as a whole.

    Args:
        content: its bytes.

    Returns:
        The fault, or None.
    """
    if not content.strip():
        return "is empty, expected the header id,label and a row for each test image"
    if content.startswith(b"PK"):
        return "is a zip or an Excel workbook, expected text: unpack it, or save it as CSV UTF-8"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:1000]:
        return "is UTF-16, as Excel's 'Unicode text' is, expected UTF-8: save it as CSV UTF-8"
    if b"\r" in content and b"\n" not in content:
        return "ends its lines with CR alone, as Macs once did, expected LF: save it as CSV UTF-8"
    return None


def in_header(fields: list[str]) -> str | None:
    """Says what is wrong with the first row.

    Args:
        fields: the row's.

    Returns:
        The fault, or None for `id,label`.
    """
    if tuple(fields) == COLUMNS:
        return None
    if len(fields) < 2 and (fault := _one_field(fields)):
        return fault
    shown = ",".join(fields)
    if all(_NUMBER.fullmatch(field.strip()) for field in fields[-2:]):
        return f"{shown} is data, expected the header id,label above it"
    if tuple(fields[1:]) == COLUMNS and fields[0] in ("", "Unnamed: 0", "index"):
        return "an unnamed first column, such as pandas writes its index, expected id,label: use to_csv(index=False)"
    if tuple(field.strip().lower() for field in fields) == COLUMNS:
        return f"columns {shown}, expected id,label in small letters and without spaces"
    missing = [name for name in COLUMNS if name not in fields]
    extra = [name for name in fields if name not in COLUMNS]
    what = f"missing {', '.join(missing)}" if missing else f"extra {', '.join(extra)}" if extra else "in another order"
    return f"columns {shown} ({what}), expected id,label"


def in_fields(fields: list[str], ids: Collection[str]) -> str | None:
    """Says why a row does not have two fields.

    Args:
        fields: the row's.
        ids: valid ids.

    Returns:
        The fault, or None where it has two.
    """
    if not any(field.strip() for field in fields):
        return _BLANK
    if len(fields) == len(COLUMNS):
        return None
    if len(fields) == 1 and (fault := _one_field(fields)):
        return fault
    shown = ",".join(fields)
    if len(fields) == 3:
        first, second, third = (field.strip() for field in fields)
        if first in ids and second in ("0", "1") and third.isdecimal():
            return f"{shown} has a decimal comma, expected {first},{second}.{third}"
        if re.fullmatch(r"\d{3}", second) and first + second in ids:
            return f"{shown} has a thousands separator, expected {first}{second},{third}"
    return f"{len(fields)} fields, expected 2 (id,label)"


def _one_field(fields: list[str]) -> str | None:
    text = "".join(fields)
    if not text.strip():
        return _BLANK
    for separator, name in _SEPARATORS.items():
        if separator in text:
            return f"fields are separated by {name}, expected commas (id,label)"
    if "," in text:
        return f'"{text}" is quoted as a whole, expected {text}'
    return "fields are separated by spaces, expected commas (id,label)" if len(text.split()) == 2 else None


def in_id(name: str, ids: Collection[str], origin: str) -> str | None:
    """Says what is wrong with an id.

    Args:
        name: the field.
        ids: valid ids, at least one.
        origin: where the valid ids are from, for the message.

    Returns:
        The fault, or None.
    """
    if name in ids:
        return None
    if not name.strip():
        return "no id before the comma"
    for meant, why in _intended(name.strip()):
        if meant in ids:
            return f"id {name!r} {why}, expected {meant}"
    if name == "0" and "1" in ids:
        return f"id '0' is not an id of {origin}, which counts from 1: is it an index that counts from 0?"
    return f"id {name!r} is not an id of {origin}, expected one such as {next(iter(ids))}"


def _intended(name: str) -> Iterator[tuple[str, str]]:
    yield name, "has spaces around it"
    yield name.strip("'\""), "has quotes of its own"
    if name.isdecimal():
        yield name.lstrip("0"), "has leading zeros"
    if _NUMBER.fullmatch(name) and float(name) == int(min(float(name), 1e18)):
        yield str(int(float(name))), "is not written as a whole number, as pandas does after a missing value"
    yield re.sub(r"[,.' _]", "", name), "has thousands separators"
    yield name.replace("\\", "/").rpartition("/")[2].rpartition(".")[0], "is the name of a file"


def read_label(text: str, class_names: tuple[str, str]) -> float:
    """Reads a label.

    Args:
        text: the field.
        class_names: the names of labels 0 and 1.

    Returns:
        A probability in [0, 1].

    Raises:
        ValueError: it is not a probability; says what it is instead.
    """
    bare = text.strip()
    if _NUMBER.fullmatch(bare):
        if 0 <= (value := float(bare)) <= 1:
            return value
        raise ValueError(f"label {text} is outside [0, 1], expected a probability, not a percentage or a logit")
    inner = bare.strip("[]() ")
    if bare.lower() in {name.lower() for name in class_names} | {"true", "false"}:
        what = f"is an answer, expected the probability of {class_names[1]} in [0, 1]"
    elif bare.endswith("%") and _NUMBER.fullmatch(bare[:-1].strip()):
        what = f"is a percentage, expected {float(bare[:-1]) / 100:.12g}"
    elif re.fullmatch(r"[+-]?\d*,\d+(e[+-]?\d+)?", bare, re.ASCII | re.IGNORECASE):
        what = f"has a decimal comma, expected {bare.replace(',', '.')}"
    elif inner != bare and _NUMBER.fullmatch(inner):
        what = f"is a list, expected {inner}: flatten the predictions first"
    else:
        what = "is not a number, expected a probability in [0, 1]"
    raise ValueError(f"label {text!r} {what}")
