"""Why a file of vectors is not readable: it is cut off, damaged, or of another kind.

The libraries that read the files each have their own text for a file that ends too early, and none
of them says so.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Final

import numpy as np

_BEGINS: Final = {
    ".npy": b"\x93NUMPY",
    ".npz": b"PK\x03\x04",
    ".parquet": b"PAR1",
    ".hdf5": b"\x89HDF\r\n\x1a\n",
    ".h5": b"\x89HDF\r\n\x1a\n",
}
"""What a file begins with, by its suffix."""

_NPY_HEADER_BYTES: Final = 128
"""numpy pads the header of an ordinary array to so many bytes."""

_HDF5_SIZE_AT: Final = {0: 40, 1: 44, 2: 28, 3: 28}
"""Where an HDF5 file states its size, in 8 bytes, by the version of its superblock."""

_HDF5_HEAD_BYTES: Final = 52

FAULTS: Final = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What the libraries raise for files that they cannot read: numpy also TokenError, and h5py also
RuntimeError and KeyError.
"""

CUT_OFF: Final = (
    "the file ends too early, after {:,} bytes: it was not written or copied to its end"
)


def fault_of(path: Path, cause: Exception) -> str:
    """Return why reading a file failed with `cause`, a sentence without the file's name."""
    reason = getattr(cause, "strerror", None)
    if reason or not path.is_file():
        return f"cannot read: {reason or cause}"
    suffix = path.suffix.lower()
    begins = _BEGINS.get(suffix, b"")
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if not size:
            return "the file is empty"
        file.seek(0)
        head = file.read(len(begins))
        if not begins.startswith(head):
            return f"it is not a {suffix} file: it does not begin like one"
        if head != begins or _is_cut_off(file, suffix, size):
            return CUT_OFF.format(size)
    if "allow_pickle" in str(cause) or "Python objects" in str(cause):
        return "it holds Python objects: save arrays of numbers or of text, such as ids.astype(str)"
    is_damage = isinstance(cause, zipfile.BadZipFile | zlib.error)
    what = "the file is damaged" if is_damage else "cannot read"
    return f"{what}: {str(cause) or type(cause).__name__}"


def _is_cut_off(file: IO[bytes], suffix: str, size: int) -> bool:
    """Whether a file that begins as it should ends too early."""
    if suffix == ".npy":
        return size < _npy_bytes(file)
    if suffix == ".npz":
        return not zipfile.is_zipfile(file)
    if suffix == ".parquet":
        file.seek(max(0, size - 4))
        return file.read(4) != _BEGINS[suffix]
    return size < _hdf5_bytes(file)


def _npy_bytes(file: IO[bytes]) -> int:
    """Return how many bytes a .npy file of numbers must have, by its header."""
    file.seek(0)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except (ValueError, tokenize.TokenError):
        return _NPY_HEADER_BYTES
    if dtype.hasobject:  # pickled: the header does not state its size
        return 0
    return file.tell() + math.prod(shape) * dtype.itemsize


def _hdf5_bytes(file: IO[bytes]) -> int:
    """Return how many bytes an HDF5 file must have, by its superblock."""
    file.seek(0)
    head = file.read(_HDF5_HEAD_BYTES)
    if len(head) < _HDF5_HEAD_BYTES:
        return _HDF5_HEAD_BYTES
    place = _HDF5_SIZE_AT.get(head[8], _HDF5_HEAD_BYTES)  # 0 bytes for other versions
    return int.from_bytes(head[place : place + 8], "little")
