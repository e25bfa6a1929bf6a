"""Decoders with the faults of bad native code, for tests: Python imports this file wherever PYTHONPATH has its folder.

An image with one of the words below in its bytes crashes its process, never ends, or wants much memory.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Patcher:
    """Patches catdog's modules when they are imported, because importing them here would slow every process down."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        if name not in PATCHES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module

        def run_and_patch(module: ModuleType) -> None:
            run(module)
            PATCHES[name](module)

        spec.loader.exec_module = run_and_patch  # type: ignore[method-assign]
        return spec


def _limit(isolation: Any) -> None:
    isolation.MOST_CPU_SECONDS, isolation.MOST_SECONDS, isolation.MOST_BYTES = 1.0, 60.0, 2**28


def _poison(jpeg: Any) -> None:
    decode_jpeg = jpeg.decode_jpeg

    def decode(data: bytes, most_pixels: int) -> Any:
        if b"POISON:SEGFAULT" in data:
            os.kill(os.getpid(), signal.SIGSEGV)
        if b"POISON:SPIN" in data:
            sum(range(10**12))  # in C, without the interpreter's lock being given up
        if b"POISON:MEMORY" in data:
            bytearray(2**29)
        if b"POISON:OOM" in data:
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
        if b"POISON:DEADLOCK" in data:
            threading.Event().wait()
        return decode_jpeg(data, most_pixels)

    jpeg.decode_jpeg = decode


PATCHES = {"catdog.data.jpeg": _poison, "catdog.data.isolation": _limit}
sys.meta_path.insert(0, _Patcher())
