"""The filter columns on disk, so that a start need not read the metadata of every row
(docs/formats.md).

Derived: a file that is missing, unreadable or damaged is ignored, and the columns are built from
the rows' metadata again; so are those of rows newer than the file.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.rows.declared_fields import declared_fields
from vectorshard.shard.rows.filter_columns import DamagedColumns, FieldValues, FilterColumns
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.room import Room
from vectorshard.shard.storage.row_store import RowStore
from vectorshard.shard.storage.store_files import read_file
from vectorshard.shard.types import CollectionConfig

FILTER_FILE: Final = "filter file"
"""The work, as the log names it."""

_MAGIC: Final = b"VSFILTR1"
_HEAD: Final = struct.Struct("<8sQI")
_NAMES: Final = "filters-*"
_ROWS_AT_ONCE: Final = 10_000


def columns_after_start(
    directory: Path, row_store: RowStore, rows: int
) -> tuple[FilterColumns, int]:
    """Return the columns of all `rows` committed rows, and how many of them a file holds."""
    config = row_store.entry.config
    columns = FilterColumns(config.filter_fields)
    if not config.filter_fields:
        return columns, 0
    for path in directory.glob(_NAMES):
        read = _read(path, config)
        if read is not None and columns.rows < read.rows <= rows and path.name == _name(read.rows):
            columns = read
    stored = columns.rows
    for first in range(stored, rows, _ROWS_AT_ONCE):
        last = min(first + _ROWS_AT_ONCE, rows)
        metadata = row_store.metadata(np.arange(first, last))
        values = field_values_of(config, metadata)
        columns.append(dict(zip(range(first, last), values, strict=True)), last)
    return columns, stored


def _name(rows: int) -> str:
    return f"filters-{rows}.columns"


def remove_stray_columns(disk: Disk, directory: Path, rows: int) -> None:
    """Remove the files that are not in use: all but the one with so many rows."""
    for path in directory.glob(_NAMES):
        if path.name != _name(rows):
            disk.remove(path)


def field_values_of(config: CollectionConfig, metadata: Sequence[bytes]) -> Sequence[FieldValues]:
    """Return the declared fields of stored rows; none of a row that would be rejected today."""
    try:
        return declared_fields(config, metadata) or []
    except InvalidParameter:
        if len(metadata) == 1:
            return [(None,) * len(config.filter_fields)]
        return [values for each in metadata for values in field_values_of(config, [each])]


def has_columns_file(directory: Path) -> bool:
    """Whether there is a file of filter columns, of any number of rows."""
    return any(directory.glob(_NAMES))


def is_taken(config: CollectionConfig, metadata: bytes) -> bool:
    """Whether the declared fields of a row would not be rejected today."""
    try:
        declared_fields(config, [metadata])
    except InvalidParameter:
        return False
    return True


def is_sound(contents: bytes, rows: int) -> bool:
    """Whether the contents of a file of so many rows match their checksum."""
    if len(contents) < _HEAD.size:
        return False
    magic, stored_rows, crc32c = _HEAD.unpack_from(contents)
    return bool(
        magic == _MAGIC and stored_rows == rows and crc32c == _crc32c(rows, contents[_HEAD.size :])
    )


def _read(path: Path, config: CollectionConfig) -> FilterColumns | None:
    try:
        contents = read_file(path)
    except OSError:
        return None
    if len(contents) < _HEAD.size:
        return None
    magic, rows, crc32c = _HEAD.unpack_from(contents)
    serialized = contents[_HEAD.size :]
    if magic != _MAGIC or crc32c != _crc32c(rows, serialized):
        return None
    try:
        return FilterColumns.from_bytes(config.filter_fields, rows, serialized)
    except DamagedColumns:
        return None


def is_sound_columns_file(path: Path, config: CollectionConfig) -> bool:
    """Whether a start could use a file of columns."""
    return _read(path, config) is not None


def store_columns(
    disk: Disk, directory: Path, columns: FilterColumns, rows: int, room: Room
) -> None:
    """Write the columns of the first `rows` rows to a new file, and remove the file before it.

    Other rows may be appended meanwhile. Raises PutOff if the disk has no room.
    """
    serialized = columns.to_bytes(rows)
    head = _HEAD.pack(_MAGIC, rows, _crc32c(rows, serialized))
    with room.taken_by(FILTER_FILE, len(serialized)):
        disk.write_new_file(directory / _name(rows), head + serialized)
    remove_stray_columns(disk, directory, rows)


def _crc32c(rows: int, serialized: bytes) -> int:
    return checksum(_MAGIC, struct.pack("<Q", rows), serialized)
