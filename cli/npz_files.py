"""The .npz files of `export`: ids, vectors, metadata as JSON, and the collection's configuration.

Nothing of it needs more than numpy. The vectors wait in a file next to it until their number is
known; ids and metadata wait in memory, and are as wide as the widest of them.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

import numpy as np
import numpy.typing as npt

from vectorshard.shard.types import Float32Array, IdArray, IdType

CONFIGURATION: Final = "configuration"
_SPOOL: Final = ".vectors"


class NpzWriter:
    """Writes rows into an .npz file."""

    def __init__(self, path: Path, dim: int, id_type: IdType, configuration: str) -> None:
        self._path = path
        self._dim = dim
        self._id_type = id_type
        self._configuration = configuration
        self._ids: list[int | str] = []
        self._metadata: list[bytes] = []
        self._spool_path = path.with_name(path.name + _SPOOL)
        self._spool = self._spool_path.open("w+b")

    def write(self, ids: IdArray, vectors: Float32Array, metadata: Sequence[str]) -> None:
        """Append rows. ValueError for an id that an array of numpy does not keep."""
        for id_ in ids.tolist():
            if isinstance(id_, str) and id_.endswith("\0"):
                raise ValueError(
                    f"id {id_!r} ends with NUL, which .npz does not keep: use .parquet"
                )
            self._ids.append(id_)
        self._metadata += [text.encode() for text in metadata]
        self._spool.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())

    def close(self) -> None:
        """Finish the file, and remove the other one."""
        kind = np.int64 if self._id_type is IdType.INT64 else np.str_
        try:
            with zipfile.ZipFile(self._path, "w", allowZip64=True) as file:
                self._write_vectors(file)
                self._write_array(file, "ids", np.array(self._ids, dtype=kind))
                self._write_array(file, "metadata", np.array(self._metadata, dtype=np.bytes_))
                self._write_array(file, CONFIGURATION, np.array(self._configuration))
        finally:
            self._spool.close()
            self._spool_path.unlink()

    def _write_vectors(self, file: zipfile.ZipFile) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(self._ids), self._dim)}
        self._spool.seek(0)
        with file.open("vectors.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            shutil.copyfileobj(self._spool, member, 1024 * 1024)

    @staticmethod
    def _write_array(file: zipfile.ZipFile, name: str, array: npt.NDArray[np.generic]) -> None:
        entry = zipfile.ZipInfo(f"{name}.npy")
        entry.compress_type = zipfile.ZIP_DEFLATED  # texts are padded to one width
        with file.open(entry, "w", force_zip64=True) as member:
            opened: IO[bytes] = member
            np.lib.format.write_array(opened, array, allow_pickle=False)
