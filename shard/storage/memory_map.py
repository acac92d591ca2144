"""Memory maps of files, without a descriptor each.

Python's mmap keeps a duplicate of the file's descriptor for as long as the map lives, and a server
of a thousand collections has more than a thousand maps. The C library needs none.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_FAILED: Final = ctypes.c_void_p(-1).value
_MADV_POPULATE_READ: Final = 22  # madvise(2)


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    off_t = ctypes.c_long  # of 64 bits on every system that has 64-bit addresses
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = (
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
        off_t,
    )
    library.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return library


_LIBRARY: Final = _library()


class MemoryMap:
    """The first `size` bytes of an open file, mapped to be read.

    It lives as long as an array of it does: nothing unmaps it under a reader. The descriptor may be
    closed. Raises OSError if the system has no room for it.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._size = size
        self._address: int = _LIBRARY.mmap(
            None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0
        )
        if self._address == _FAILED:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        unmap = weakref.finalize(self, _LIBRARY.munmap, self._address, size)
        unmap.atexit = False  # arrays may outlive the interpreter's exit functions

    def __len__(self) -> int:
        return self._size

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """What numpy makes an array of, which keeps this object alive."""
        return {
            "version": 3,
            "shape": (self._size,),
            "typestr": "|u1",
            "data": (self._address, True),  # read-only
        }

    def bytes(self) -> npt.NDArray[np.uint8]:
        """Return its bytes, uint8 (size,), read-only, without reading them."""
        return np.asarray(self)


def require_readable(mapped: npt.NDArray[Any]) -> None:
    """Read a contiguous array of a map from the disk, as far as it is not in memory.

    Raises OSError if the disk fails: reading the array then would end the process by SIGBUS. Linux
    before 5.14 cannot tell, and reads nothing.
    """
    address, size = mapped.ctypes.data, mapped.nbytes
    begin = address - address % mmap.PAGESIZE
    if size and _LIBRARY.madvise(begin, address + size - begin, _MADV_POPULATE_READ):
        code = ctypes.get_errno()
        if code == errno.EFAULT:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if code != errno.EINVAL:
            raise OSError(code, os.strerror(code))
