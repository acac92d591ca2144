"""Parquet files of rows: read a group of rows at a time, and written a page at a time.

pyarrow is the extra `parquet`, and is imported when such a file is opened. Nothing else is known
of collections here but their columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vectorshard.shard.texts import counted
from vectorshard.shard.types import Float32Array, IdArray, IdType

INSTALL: Final = "pyarrow is required: pip install 'vectorshard[parquet]'"
CONFIGURATION: Final = b"vectorshard.configuration"
"""The key of the collection's configuration in the metadata of the schema."""
ID, VECTOR, METADATA = "id", "vector", "metadata"


class NotInstalled(Exception):
    """pyarrow is not installed."""


def pyarrow() -> Any:
    """Return pyarrow, with its module `parquet`; raises NotInstalled."""
    try:
        import pyarrow as library
        import pyarrow.parquet
    except ImportError as cause:
        raise NotInstalled(INSTALL) from cause
    assert pyarrow.parquet
    return library


class ParquetReader:
    """The columns of an open Parquet file. Of its groups of rows, the last one read is kept."""

    def __init__(self, path: Path) -> None:
        library = pyarrow()
        try:
            self.file = library.parquet.ParquetFile(path)
        except library.ArrowException as cause:
            raise ValueError(str(cause)) from cause
        schema = self.file.schema_arrow
        self.names: list[str] = list(schema.names)
        self.configuration: str = (schema.metadata or {}).get(CONFIGURATION, b"").decode()
        groups = self.file.metadata
        sizes = [groups.row_group(group).num_rows for group in range(groups.num_row_groups)]
        self.ends: Final = np.cumsum([0, *sizes]).tolist()
        self._kept: tuple[int, Any] | None = None

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return int(self.ends[-1])

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def ids(self, key: str) -> npt.NDArray[Any]:
        """Return a whole column of integers or strings."""
        column = self.file.read(columns=[key]).column(key)
        if column.null_count:
            raise ValueError(f"row {first_true(column.is_null()):,}: its id is null")
        return np.asarray(column.to_numpy())

    def parts(self, key: str, rows: slice) -> list[Any]:
        """Return a column of some rows, as the arrays of the groups that hold them."""
        found = []
        for group, (first, last) in enumerate(zip(self.ends, self.ends[1:], strict=False)):
            begin, end = max(first, rows.start), min(last, rows.stop)
            if begin < end:
                table = self._group(group)
                column = table.column(key).slice(begin - first, end - begin)
                found.append(column.combine_chunks())
        return found

    def _group(self, group: int) -> Any:
        if self._kept is None or self._kept[0] != group:
            self._kept = (group, self.file.read_row_group(group))
        return self._kept[1]


def first_true(flags: Any) -> int:
    """Return the place of the first true value of an array of Arrow that has one."""
    return int(flags.to_numpy(zero_copy_only=False).argmax())


class ParquetVectors:
    """A column of lists of numbers as a matrix (rows, dim)."""

    def __init__(self, reader: ParquetReader, key: str) -> None:
        self._reader = reader
        self._key = key
        field = reader.file.schema_arrow.field(key).type
        library = pyarrow()
        self._fixed = library.types.is_fixed_size_list(field)
        if not self._fixed and not (
            library.types.is_list(field) or library.types.is_large_list(field)
        ):
            raise ValueError(f"column {key!r} is {field}, not a list of numbers")
        dim = field.list_size if self._fixed else 0
        if not self._fixed and reader.rows:
            vector = reader.parts(key, slice(0, 1))[0][0].as_py()
            if vector is None:
                raise ValueError("row 0: its vector is null")
            dim = len(vector)
        self.shape: tuple[int, ...] = (reader.rows, dim)
        self.dtype: np.dtype[Any] = np.dtype(field.value_type.to_pandas_dtype())

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Return these rows, in memory; ValueError for one that is null or of another length."""
        dim = self.shape[1]
        matrices = [np.zeros((0, dim), dtype=self.dtype)]
        first = rows.start
        for part in self._reader.parts(self._key, rows):
            if part.null_count:
                raise ValueError(f"row {first + first_true(part.is_null()):,}: its vector is null")
            if not self._fixed:
                lengths = part.value_lengths().to_numpy()
                if (others := lengths != dim).any():
                    row = int(others.argmax())
                    reason = f"{counted(int(lengths[row]), 'component')}, not {dim:,}"
                    raise ValueError(f"row {first + row:,}: its vector has {reason}")
            numbers = part.flatten()
            if numbers.null_count:
                row = first + first_true(numbers.is_null()) // dim
                raise ValueError(f"row {row:,}: its vector has a component that is null")
            matrices.append(numbers.to_numpy(zero_copy_only=False).reshape(-1, dim))
            first += len(part)
        return np.concatenate(matrices)


class ParquetTexts:
    """A column of text; None where a row has no text."""

    def __init__(self, reader: ParquetReader, key: str) -> None:
        types, field = pyarrow().types, reader.file.schema_arrow.field(key).type
        text = field.value_type if types.is_dictionary(field) else field
        kinds = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
        if not any(is_kind(text) for is_kind in (*kinds, types.is_null)):
            raise ValueError(f"column {key!r} is {field}, not text: JSON, such as of json.dumps")
        self._reader = reader
        self._key = key
        self.shape: tuple[int, ...] = (reader.rows,)
        self.dtype: np.dtype[Any] = np.dtype(object)

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Return these texts, in memory."""
        texts = [text for part in self._reader.parts(self._key, rows) for text in part.to_pylist()]
        return np.array(texts, dtype=object)


class ParquetWriter:
    """Writes rows into a Parquet file: `id`, `vector` and `metadata`, which is JSON or null."""

    def __init__(self, path: Path, dim: int, id_type: IdType, configuration: str) -> None:
        self._library = library = pyarrow()
        ids = library.int64() if id_type is IdType.INT64 else library.string()
        self._vector = library.list_(library.float32(), dim)
        self._schema = library.schema(
            [
                library.field(ID, ids, nullable=False),
                library.field(VECTOR, self._vector, nullable=False),
                library.field(METADATA, library.string()),
            ],
            metadata={CONFIGURATION: configuration.encode()},
        )
        self._writer = library.parquet.ParquetWriter(path, self._schema, compression="zstd")

    def write(self, ids: IdArray, vectors: Float32Array, metadata: Sequence[str]) -> None:
        """Append rows, as one group."""
        library = self._library
        flat = library.array(np.ascontiguousarray(vectors).reshape(-1))
        columns = [
            library.array(ids, type=self._schema.field(ID).type),
            library.FixedSizeListArray.from_arrays(flat, type=self._vector),
            library.array([text or None for text in metadata], type=library.string()),
        ]
        self._writer.write_table(library.Table.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()
