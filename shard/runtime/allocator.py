"""The C library's allocator: fewer arenas, and memory that nobody uses given back. glibc alone.

Left alone it keeps an arena for each of the many threads of a server, and in each what a bulk load
or a training once took.
"""

from __future__ import annotations

import ctypes
from typing import Final

ARENAS: Final = 2
"""Fewer keep less, and let more threads wait for each other."""

_M_ARENA_MAX: Final = -8  # of malloc.h


def _function(name: str) -> ctypes._NamedFuncPointer | None:
    return getattr(ctypes.CDLL(None), name, None)


def keep_few_arenas() -> None:
    """Let threads that start from now on share arenas."""
    mallopt = _function("mallopt")
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Give pages that nobody uses back to the system. Takes milliseconds, and holds malloc up."""
    malloc_trim = _function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))
