"""Read vectors, ids and metadata from .npy, .npz, .parquet and ann-benchmarks .hdf5 files.

Files in, numpy out, a batch at a time: no network and no terminal here. The vectors of a .npy,
.parquet and .hdf5 file stay on disk until their batch is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from numpy.lib.npyio import NpzFile

from vectorshard.cli.damaged_files import FAULTS, fault_of
from vectorshard.cli.npz_files import CONFIGURATION
from vectorshard.cli.parquet_files import (
    NotInstalled,
    ParquetReader,
    ParquetTexts,
    ParquetVectors,
)
from vectorshard.shard.storage.json_records import InvalidRecord, from_json
from vectorshard.shard.types import CollectionConfig, IdArray, IdType, Metric, VectorArray

METRIC_BY_DISTANCE: Mapping[str, Metric] = {
    "angular": Metric.COSINE,
    "cosine": Metric.COSINE,
    "euclidean": Metric.L2,
    "dot": Metric.INNER_PRODUCT,
    "ip": Metric.INNER_PRODUCT,
}
"""The supported values of the `distance` attribute of an ann-benchmarks file."""


class UnreadableFile(ValueError):
    """A file without readable vectors; the message says why."""


class Column(Protocol):
    """What numpy arrays, memory maps and HDF5 datasets have in common."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of an element."""
        ...

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Return these rows, in memory."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorFile:
    """The vectors of an open file.

    `vectors` is (rows, dim) of any real type. `ids` is (rows,), or None if the row numbers are the
    ids. `metric` is None if the file does not state one. `texts` (rows,) is the metadata as JSON.
    An export has the `config` of its collection.
    """

    vectors: Column
    ids: IdArray | None
    metric: Metric | None
    texts: Column | None = None
    config: CollectionConfig | None = None

    @property
    def rows(self) -> int:
        """The number of vectors."""
        return self.vectors.shape[0]

    @property
    def dim(self) -> int:
        """Components of one vector."""
        return self.vectors.shape[1]

    @property
    def id_type(self) -> IdType:
        """STRING if the file contains string ids, else INT64."""
        strings = self.ids is not None and self.ids.dtype == object
        return IdType.STRING if strings else IdType.INT64

    def batches(self, batch_rows: int, first_row: int = 0) -> Iterator[tuple[IdArray, VectorArray]]:
        """Yield ids (rows,) and float16 or float32 vectors (rows, dim), in the file's order.

        The rows before `first_row` are left out.

        Every batch but the last has `batch_rows` rows. Float16 and float32 keep their type; every
        other type becomes float32.
        """
        for first in range(first_row, self.rows, batch_rows):
            span = slice(first, min(first + batch_rows, self.rows))
            ids = np.arange(span.start, span.stop) if self.ids is None else self.ids[span]
            try:
                block = self.vectors[span]
            except FAULTS as cause:  # a row of another length, or a damaged part of the file
                raise UnreadableFile(str(cause) or type(cause).__name__) from cause
            yield ids, as_vectors(block)

    def metadata(self, first: int, rows: int) -> list[dict[str, Any]] | None:
        """Return the metadata of some rows; None if the file has none.

        Raises UnreadableFile for text that is no JSON object.
        """
        if self.texts is None:
            return None
        texts = self.texts[slice(first, first + rows)]
        return [mapping_of(text, first + row) for row, text in enumerate(texts.tolist())]


def mapping_of(text: str | bytes | None, row: int) -> dict[str, Any]:
    """Return the metadata of a row from its JSON; empty for no text."""
    try:
        found = json.loads(text) if text else {}
    except ValueError as cause:
        raise UnreadableFile(f"row {row:,}: its metadata is not JSON: {cause}") from cause
    if not isinstance(found, dict):
        raise UnreadableFile(f"row {row:,}: its metadata must be a JSON object, not {text!r}")
    return found


def as_vectors(block: npt.NDArray[Any]) -> VectorArray:
    """Return a contiguous float16 or float32 copy or view of `block`, in native byte order."""
    if block.dtype.kind == "f" and block.dtype.itemsize == 2:
        return np.ascontiguousarray(block, dtype=np.float16)
    with np.errstate(over="ignore"):  # becomes Inf, and the server rejects the row
        return np.ascontiguousarray(block, dtype=np.float32)


@contextmanager
def open_vectors(path: Path, *, vectors_key: str = "", ids_key: str = "") -> Iterator[VectorFile]:
    """Open a file of vectors; it is closed when the context ends.

    Parameters
    ----------
    path
        A .npy with one matrix; a .npz with named arrays; an .hdf5 or .h5 with named datasets; a
        .parquet with a column of lists.
    vectors_key
        The array of vectors. Default: ``vectors`` in a .npz, ``train`` in an .hdf5, ``vector`` in a
        .parquet.
    ids_key
        The array of ids. Default: ``ids`` if there is one, ``id`` in a .parquet, else no ids.

    Metadata is the array ``metadata`` of a .npz or .parquet, if there is one: JSON objects.

    Raises
    ------
    UnreadableFile
        If the file is missing, damaged, or of another type; if it lacks the array; if the vectors
        are not a matrix of real numbers; or if the number of ids differs from the number of rows.
    """
    with ExitStack() as stack:
        try:
            vector_file = load(path, vectors_key, ids_key, stack)
        except (UnreadableFile, NotInstalled) as cause:
            raise UnreadableFile(f"{path}: {cause}") from cause
        except FAULTS as cause:
            raise UnreadableFile(f"{path}: {fault_of(path, cause)}") from cause
        yield vector_file


def load(path: Path, vectors_key: str, ids_key: str, stack: ExitStack) -> VectorFile:
    """Open `path` by its suffix; `stack` closes what must stay open."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        if vectors_key or ids_key:
            raise UnreadableFile("a .npy file has no named arrays; use a .npz file")
        return checked(np.lib.format.open_memmap(path, mode="r"), None, None)
    if suffix == ".npz":
        file = stack.enter_context(path.open("rb"))
        arrays = np.load(file, allow_pickle=False)
        if not isinstance(arrays, NpzFile):
            raise UnreadableFile("the file contains one unnamed array; rename it to .npy")
        stack.enter_context(arrays)
        vectors = arrays[existing_key(arrays, vectors_key or "vectors")]
        ids_key = default_ids_key(arrays, ids_key)
        config = stated_config(str(arrays[CONFIGURATION])) if CONFIGURATION in arrays else None
        return checked(
            vectors,
            arrays[ids_key] if ids_key else None,
            config.metric if config else None,
            arrays.get("metadata"),
            config,
        )
    if suffix == ".parquet":
        return load_parquet(stack.enter_context(closing(ParquetReader(path))), vectors_key, ids_key)
    if suffix in {".hdf5", ".h5"}:
        datasets = stack.enter_context(open_hdf5(path))
        vectors = datasets[existing_key(datasets, vectors_key or "train")]
        if not getattr(vectors, "shape", None):
            raise UnreadableFile(f"{vectors.name[1:]!r} is not an array, but {_what(vectors)}")
        ids_key = default_ids_key(datasets, ids_key)
        ids = hdf5_column(datasets[ids_key]) if ids_key else None
        return checked(vectors, ids, stated_metric(datasets.attrs.get("distance")))
    raise UnreadableFile("the suffix must be .npy, .npz, .parquet, .hdf5 or .h5")


def load_parquet(reader: ParquetReader, vectors_key: str, ids_key: str) -> VectorFile:
    """Return the columns of an open Parquet file."""
    names = dict.fromkeys(reader.names)
    for key in (vectors_key or "vector", ids_key or "id", "metadata"):
        if reader.names.count(key) > 1:
            raise UnreadableFile(f"column {key!r} occurs twice")
    vectors = ParquetVectors(reader, existing_key(names, vectors_key or "vector"))
    ids_key = existing_key(names, ids_key) if ids_key else ("id" if "id" in names else "")
    texts = ParquetTexts(reader, "metadata") if "metadata" in names else None
    config = stated_config(reader.configuration) if reader.configuration else None
    ids = reader.ids(ids_key) if ids_key else None
    return checked(vectors, ids, config.metric if config else None, texts, config)


def stated_config(text: str) -> CollectionConfig:
    """Return the configuration that an export states."""
    try:
        return from_json(CollectionConfig, text, "configuration")
    except InvalidRecord as cause:
        raise UnreadableFile(str(cause)) from cause


def open_hdf5(path: Path) -> Any:
    """Open an HDF5 file for reading."""
    try:
        import h5py
    except ImportError as cause:
        raise UnreadableFile("h5py is required: pip install 'vectorshard[bench]'") from cause
    return h5py.File(path, "r")


def _what(found: Any) -> str:
    """Return what is in the place of an array: a group of arrays, or a single value or none."""
    if hasattr(found, "keys"):
        inside = ", ".join(f"{found.name[1:]}/{name}" for name in sorted(found))
        return f"a group; it contains: {inside or 'nothing'}"
    return "a single value or none"


def hdf5_column(dataset: Any) -> npt.NDArray[Any]:
    """Return a dataset in memory, with strings as `str`."""
    import h5py

    strings = h5py.check_string_dtype(dataset.dtype) is not None
    column: npt.NDArray[Any] = dataset.asstr()[:] if strings else dataset[:]
    return column


def existing_key(arrays: Mapping[str, Any], key: str) -> str:
    """Return `key`; raise UnreadableFile with the existing names if it is not one of them."""
    if key not in arrays:
        names = ", ".join(sorted(arrays)) or "nothing"
        raise UnreadableFile(f"no array {key!r}; the file contains: {names}")
    return key


def default_ids_key(arrays: Mapping[str, Any], key: str) -> str:
    """Return `key`, else ``ids`` if the file contains it; empty if it does not."""
    return existing_key(arrays, key) if key else ("ids" if "ids" in arrays else "")


def stated_metric(distance: Any) -> Metric | None:
    """Return the metric of an ann-benchmarks `distance` attribute; None if it is absent."""
    if distance is None:
        return None
    name = distance.decode() if isinstance(distance, bytes) else str(distance)
    if name not in METRIC_BY_DISTANCE:
        known = ", ".join(METRIC_BY_DISTANCE)
        raise UnreadableFile(f"distance {name!r} is not supported; supported: {known}")
    return METRIC_BY_DISTANCE[name]


def checked(
    vectors: Column,
    ids: npt.NDArray[Any] | None,
    metric: Metric | None,
    texts: Column | None = None,
    config: CollectionConfig | None = None,
) -> VectorFile:
    """Return the file's content; raise UnreadableFile if a shape or type is wrong."""
    if len(vectors.shape) != 2 or vectors.dtype.kind not in "fiu":
        raise UnreadableFile(
            f"vectors must be a (rows, dim) matrix of real numbers, not "
            f"{vectors.dtype} of shape {vectors.shape}"
        )
    if not vectors.shape[1]:
        none = "have no components" if vectors.shape[0] else "have no dim: there are no rows"
        raise UnreadableFile(f"the vectors {none}")
    if ids is not None and ids.shape != vectors.shape[:1]:
        raise UnreadableFile(f"ids must have shape {vectors.shape[:1]}, not {ids.shape}")
    if texts is not None and (texts.shape != vectors.shape[:1] or texts.dtype.kind not in "OSU"):
        raise UnreadableFile(
            f"metadata must be {vectors.shape[:1]} texts, not {texts.dtype} of shape {texts.shape}"
        )
    return VectorFile(
        vectors=vectors,
        ids=None if ids is None else as_ids(ids),
        metric=metric,
        texts=texts,
        config=config,
    )


def as_ids(column: npt.NDArray[Any]) -> IdArray:
    """Return ids (rows,) as int64, or as objects of `str`.

    Raises UnreadableFile if they are neither strings nor integers within int64.
    """
    if column.dtype.kind == "S":
        column = np.char.decode(column, "utf-8")
    if column.dtype.kind == "U":
        return column.astype(object)
    if column.dtype == object and all(isinstance(id_, str) for id_ in column):
        return column
    if column.dtype.kind not in "iu" or (
        column.dtype.kind == "u" and column.size and column.max() > np.iinfo(np.int64).max
    ):
        raise UnreadableFile(f"ids must be int64 or strings, not {column.dtype}")
    return column.astype(np.int64)
