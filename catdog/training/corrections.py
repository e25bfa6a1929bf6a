"""The changes of a list to the training images: some left out, others with the other label."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from catdog import storage
from catdog.data import key_list
from catdog.data.catalog import Catalog
from catdog.data.key_list import Corrections
from catdog.errors import UsageError


def read_corrections(listed: str | None, data: Catalog) -> Corrections:
    """What a list changes about the training images.

    Args:
        listed: URI of the list, or None.
        data: the catalog.

    Raises:
        UsageError: there is no such list, or it names what the data set does not hold.
    """
    if listed is None:
        return Corrections(set(), set())
    known = set(data.table["key"].to_pylist())
    try:
        found = key_list.parse_corrections(storage.read_bytes(listed).decode("utf-8-sig"), known)
    except (OSError, ValueError) as error:
        raise UsageError(f"--leave-out received {listed}, which could not be read ({error})") from error
    unknown = (found.left_out | found.flipped) - known
    if unknown:
        raise UsageError(
            f"--leave-out received {listed} with {len(unknown)} unknown keys such as {min(unknown)!r}; "
            f"expected keys of {data.root} such as {data.table['key'][0].as_py()!r}, one a line, or a CSV with a "
            "column key"
        )
    return found


def correct_rows(rows: pa.Table, changes: Corrections) -> pa.Table:
    """Leaves images out, and gives others the other label.

    Args:
        rows: columns key and label, no label null.
        changes: keys of other rows may be among them.
    """
    rows = rows.filter(pc.invert(pc.is_in(rows["key"], pa.array(list(changes.left_out), pa.string()))))
    flipped = pc.is_in(rows["key"], pa.array(list(changes.flipped), pa.string()))
    labels = pc.if_else(flipped, pc.subtract(pa.scalar(1, pa.int8()), rows["label"]), rows["label"])
    return rows.set_column(rows.column_names.index("label"), rows.schema.field("label"), labels)
