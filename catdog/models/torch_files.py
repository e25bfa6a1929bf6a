"""PyTorch state files, read without PyTorch and without what makes them dangerous.

They are pickles, which may call any function of any module. Here a pickle may name four things, all of them replaced by
functions of this module, and what it says of its arrays is checked before memory is taken.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np

# `torch.save` until PyTorch 1.6, which is what unzipped files still have.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_HEAD = pickle.dumps(_MAGIC, 2)
_MOST_ARRAYS = 100_000


class _Storage(NamedTuple):
    """Numbers that a file holds one after the other."""

    key: str
    dtype: str
    length: int


class _View(NamedTuple):
    """An array, as a part of a storage: where it begins, and the steps of each axis, in numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    steps: tuple[int, ...]


def is_torch_file(data: bytes) -> bool:
    """Returns whether bytes begin as an unzipped PyTorch file."""
    return data.startswith(_HEAD)


def read_state(data: bytes) -> dict[str, np.ndarray]:
    """Reads the arrays of an unzipped PyTorch state file.

    Args:
        data: its bytes.

    Returns:
        float32 and int64 arrays by name.

    Raises:
        ValueError: the file holds something else, or is damaged.
    """
    stream = io.BytesIO(data)
    try:
        if (_Unpickler(stream).load(), _Unpickler(stream).load()) != (_MAGIC, _PROTOCOL):
            raise ValueError("no PyTorch file of the unzipped kind")
        if _Unpickler(stream).load().get("little_endian") is not True:
            raise ValueError("numbers in the order of another kind of machine")
        views, order = _Unpickler(stream).load(), _Unpickler(stream).load()
        # Only exact types: what a pickle builds may claim to be equal to anything.
        if type(views) is not OrderedDict or type(order) is not list or len(views) > _MOST_ARRAYS:
            raise ValueError("no table of arrays")
        if any(type(name) is not str or type(view) is not _View for name, view in views.items()):
            raise ValueError("something other than arrays")
        stored = _read_storages(stream, order, {view.storage.key: view.storage for view in views.values()})
        return {name: _array(view, stored[view.storage.key]) for name, view in views.items()}
    except ValueError:
        raise
    except Exception as error:  # a damaged pickle raises errors of many kinds
        raise ValueError(f"damaged ({type(error).__name__}: {error})") from error


class _Unpickler(pickle.Unpickler):
    """Knows four names, none of which does more than to keep what it is given."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return {
                ("collections", "OrderedDict"): OrderedDict,
                ("torch._utils", "_rebuild_tensor_v2"): _view,
                ("torch", "FloatStorage"): "<f4",
                ("torch", "LongStorage"): "<i8",
            }[module, name]
        except KeyError:
            raise ValueError(f"the file asks for {module}.{name}, which a table of arrays does not need") from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _place, count, _part = pid
        if kind != "storage" or dtype not in ("<f4", "<i8") or type(key) is not str or type(count) is not int:
            raise ValueError("a storage of an unknown kind")
        return _Storage(key, dtype, count)


def _view(storage: Any, offset: Any, shape: Any, steps: Any, *_: Any) -> _View:
    numbers = [offset, *shape, *steps]
    if type(storage) is not _Storage or len(shape) != len(steps):
        raise ValueError("an array without numbers")
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("an array of an impossible shape")
    return _View(storage, offset, tuple(shape), tuple(steps))


def _read_storages(stream: io.BytesIO, order: list[Any], storages: dict[str, _Storage]) -> dict[str, np.ndarray]:
    stored = {}
    for key in order:
        storage, head = storages[key], stream.read(8)
        size = storage.length * np.dtype(storage.dtype).itemsize
        body = stream.read(size) if size >= 0 else b""
        if int.from_bytes(head, "little") != storage.length or len(body) != size:
            raise ValueError("it ends too early")
        stored[key] = np.frombuffer(body, storage.dtype)
    return stored


def _array(view: _View, numbers: np.ndarray) -> np.ndarray:
    """Copies an array out of its storage, if it lies within."""
    last = view.offset + sum((length - 1) * step for length, step in zip(view.shape, view.steps, strict=True))
    # A step of 0 would make much of little.
    if 0 in view.shape or last >= len(numbers) or math.prod(view.shape) > len(numbers):
        raise ValueError("an array beyond the end of its numbers")
    strides = [step * numbers.itemsize for step in view.steps]
    return np.lib.stride_tricks.as_strided(numbers[view.offset :], view.shape, strides, writeable=False).copy()
