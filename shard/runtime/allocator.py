"""Tune the C library's allocator: few arenas, and unused memory returned. glibc only.

By default it keeps one arena for each of a server's many threads, and in each the memory that a
bulk load or a training once took.
"""

from __future__ import annotations

import ctypes
from typing import Final

ARENAS: Final = 2  # fewer retain less memory, and make more threads wait for each other
_M_ARENA_MAX: Final = -8  # of malloc.h


def _function(name: str) -> ctypes._NamedFuncPointer | None:
    return getattr(ctypes.CDLL(None), name, None)


def keep_few_arenas() -> None:
    """Make the threads that start from now on share ARENAS arenas."""
    mallopt = _function("mallopt")
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Return unused pages to the system. It takes milliseconds and blocks malloc."""
    malloc_trim = _function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))
