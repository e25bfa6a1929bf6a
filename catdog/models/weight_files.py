"""Weights read out of Keras files that anybody may have made: numbers only, and only those that a model has.

A `.keras` file describes its layers in a JSON that Keras turns into calls of Python functions. Its safe mode has been
bypassed again and again (CVE-2025-1550, 8747, 9905, 9906, 12058, 12060, 49655), so catdog never reads that description:
the registry builds the layers, and only the numbers are taken. They are in HDF5, a format in which a small file can
name other files and declare arrays of any size (CVE-2026-0897, 1669); of it only plain arrays are accepted.
"""

from __future__ import annotations

import io
import math
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import h5py
    import keras

# Bytes of the arrays in a zip to its own: it may be compressed, which weights hardly are.
_MOST_GROWTH = 10
_WEIGHTS_NAME = "model.weights.h5"
# What HDF5 needs besides the numbers: for each array and its groups, and for the file.
_OVERHEAD_EACH, _OVERHEAD = 8 << 10, 64 << 10
# Groups and arrays of a file; the largest of the architectures has about 3,000.
_MOST_OBJECTS = 20_000


def load_saved_model(build: Callable[[], keras.Model], data: bytes) -> keras.Model:
    """Builds a model and loads the weights of a `.keras` file into it; nothing else in the file is read.

    Args:
        build: builds it. Its arrays are allocated only once the file is known to hold them.
        data: the bytes of the file.

    Raises:
        ValueError: the file is damaged, or holds anything but the arrays that the model has.
        Exception: as `build`.
    """
    import keras

    try:
        with keras.StatelessScope(initialize_variables=False):
            model = build()
        weights = _read_weights(data, model.weights)
    except BaseException:
        keras.utils.clear_session()  # or the next such scope of this process would allocate the arrays
        raise
    with keras.StatelessScope():
        pass  # its end allocates them
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _WEIGHTS_NAME
        path.write_bytes(weights)
        model.load_weights(path)
    return model


def _read_weights(data: bytes, weights: list[keras.Variable]) -> bytes:
    """The HDF5 file in a `.keras` file, which holds the arrays of these weights."""
    import h5py

    expected = Counter((tuple(variable.shape), np.dtype(variable.dtype)) for variable in weights)
    need = sum(_bytes_of(*each) * count for each, count in expected.items())
    if need > _MOST_GROWTH * len(data):
        raise ValueError(f"its weights take {need:,} bytes, of which the file has {len(data):,}")
    stored = _unzip(data, need + _OVERHEAD_EACH * len(weights) + _OVERHEAD)
    with h5py.File(io.BytesIO(stored)) as file:
        found = Counter((each.shape, each.dtype) for each in plain_arrays(file, need + _OVERHEAD))
    for what, others in (("lacks", expected - found), ("has too many", found - expected)):
        if others:
            shape, dtype = next(iter(others))
            raise ValueError(f"{what} arrays: {others.total()}, such as {dtype} of shape {shape}")
    return stored


def plain_arrays(file: h5py.File, most_bytes: int) -> list[h5py.Dataset]:
    """Lists the arrays of an HDF5 file, before any is read.

    Args:
        file: opened for reading.
        most_bytes: that they may declare together.

    Returns:
        All arrays, each of numbers that lie in this file.

    Raises:
        ValueError: the file has a link to elsewhere, an array whose numbers are not stored in it, one of anything but
            numbers, too many of them, or too large ones.
    """
    import h5py

    arrays, left, count, total = [], [("", file)], 0, 0
    while left:
        path, group = left.pop()
        for name in group:
            count += 1
            where = f"{path}/{name}"
            if count > _MOST_OBJECTS:  # also where a group holds itself
                raise ValueError(f"holds more than {_MOST_OBJECTS:,} groups and arrays")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{where} is a link to another place, expected an array")
            found = group[name]
            if isinstance(found, h5py.Group):
                left.append((where, found))
                continue
            if not isinstance(found, h5py.Dataset) or found.shape is None or found.dtype.kind not in "fiub":
                raise ValueError(f"{where} is not an array of numbers")
            if found.external or found.is_virtual:
                raise ValueError(f"{where} has its numbers in another file, expected them in this one")
            if found.chunks:  # a compressed one may hold any number of bytes
                raise ValueError(f"{where} is in chunks or compressed, as Keras writes none")
            size = _bytes_of(found.shape, found.dtype)
            if size > found.id.get_storage_size():
                raise ValueError(f"{where} declares {size:,} bytes and stores {found.id.get_storage_size():,}")
            total += size
            if total > most_bytes:
                raise ValueError(f"{where} and the arrays before it take {total:,} bytes, expected {most_bytes:,}")
            arrays.append(found)
    return arrays


def _unzip(data: bytes, most_bytes: int) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(_WEIGHTS_NAME) as stream:
            weights = stream.read(most_bytes + 1)
    except KeyError as error:
        raise ValueError(f"holds no {_WEIGHTS_NAME}") from error
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
        raise ValueError(f"is no Keras file, or damaged ({error})") from error
    if len(weights) > most_bytes:
        raise ValueError(f"its {_WEIGHTS_NAME} is larger than {most_bytes:,} bytes, which the architecture needs")
    return weights


def _bytes_of(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize
