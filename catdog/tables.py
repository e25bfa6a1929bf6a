"""Parquet files: tables read and written whole, and damage of any kind told by one error."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from catdog import storage
from catdog.errors import first_line

# Rows of a table to the bytes of its file: of columns without content, a small file declares billions.
_MOST_ROWS_A_BYTE = 8


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Reads a Parquet file.

    Args:
        uri: of the file.
        columns: the names of those that are wanted; None is all.

    Raises:
        OSError: as by `storage.read_bytes`.
        pyarrow.ArrowInvalid: it is damaged, or lacks a column.
    """
    return table_from_bytes(storage.read_bytes(uri), columns)


def write_table(uri: str, table: pa.Table, compression: str = "zstd") -> None:
    """Writes a Parquet file atomically, as `storage.write_bytes` does."""
    storage.write_bytes(uri, table_to_bytes(table, compression))


def table_from_bytes(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """Reads the bytes of a Parquet file; arguments and errors as for `read_table`."""
    try:
        # `pq.read_table` would import pandas first.
        file = pq.ParquetFile(pa.BufferReader(data))
        if file.metadata.num_rows > _MOST_ROWS_A_BYTE * len(data):  # each of ours has a row's own key or digest
            raise ValueError(f"{file.metadata.num_rows:,} rows in {len(data):,} bytes")
        require_whole_groups(file.metadata)
        if absent := set(columns or ()) - set(file.schema_arrow.names):
            raise ValueError(f"no column {', '.join(sorted(absent))}")
        table = file.read(columns)
        table.validate(full=True)  # else text that is no UTF-8 would be an error wherever it is looked at
        return table
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # pyarrow has one for each kind of damage
        raise pa.ArrowInvalid(first_line(error)) from error


def require_whole_groups(metadata: pq.FileMetaData) -> None:
    """Makes sure that the groups of a Parquet file have its rows, since Arrow takes memory for those that they claim.

    Raises:
        ValueError: they have not.
    """
    groups = [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)]
    if min(groups, default=0) < 0 or sum(groups) != metadata.num_rows:
        raise ValueError(f"{metadata.num_rows:,} rows, of which its groups have {sum(groups):,}")


def table_to_bytes(table: pa.Table, compression: str = "zstd") -> bytes:
    """The bytes of a table's Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression=compression)
    return sink.getvalue().to_pybytes()
