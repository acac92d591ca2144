"""The filter columns on disk, so that a start need not read the metadata of every row
(docs/formats.md).

Derived: a file that is missing, unreadable, damaged or of other rows is ignored, and the columns
are built from the rows' metadata again; so are those of rows newer than the file.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import structlog

from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.membership import Sessions
from vectorshard.shard.rows.declared_fields import declared_fields
from vectorshard.shard.rows.filter_columns import DamagedColumns, FieldValues, FilterColumns
from vectorshard.shard.search.snapshot import Snapshot
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.content_hash import content_hashes
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.memory_map import require_readable
from vectorshard.shard.storage.room import Room
from vectorshard.shard.storage.row_store import RowStore
from vectorshard.shard.storage.store_files import read_file
from vectorshard.shard.types import CollectionConfig, Int64Array
from vectorshard.shard.witnesses import session_at

FILTER_FILE: Final = "filter file"
"""The work, as the log names it."""

_log = structlog.get_logger(__name__)

_MAGIC: Final = b"VSFILTR2"
_MAGIC_BEFORE: Final = b"VSFILTR1"  # did not say whose rows it has
_HEAD: Final = struct.Struct("<8sQQI")
_NAMES: Final = "filters-*"
_ROWS_AT_ONCE: Final = 10_000


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose rows a file has: a collection's incarnation, and which session wrote which commits.

    Another shard has other sessions, and so have copies of a directory that went on separately.
    """

    incarnation: str
    sessions: Sessions

    @classmethod
    def of(cls, row_store: RowStore) -> Origin:
        """Return the origin of the rows of a store."""
        return cls(row_store.entry.incarnation, row_store.sessions)

    def crc32c(self, rows: int, sequence: int, serialized: bytes) -> int:
        """Return the checksum of a file of the first `rows` rows, as of commit `sequence`."""
        session = session_at(self.sessions, sequence)
        numbers = struct.pack("<3Q", rows, sequence, session)
        return checksum(_MAGIC, numbers, self.incarnation.encode(), serialized)


def columns_after_start(
    directory: Path, row_store: RowStore, snapshot: Snapshot, repaired: Int64Array
) -> tuple[FilterColumns, int, Int64Array]:
    """Return the columns of all committed rows, how many of them a file holds, and damaged rows.

    Live rows whose metadata is read are verified, in addition to those that the snapshot knows to
    be damaged. No damaged row gets fields that may have changed. `repaired` rows were damaged when
    the file was written, perhaps, and are sound.
    """
    config, rows, origin = row_store.entry.config, snapshot.rows, Origin.of(row_store)
    columns = FilterColumns(config.filter_fields)
    if not config.filter_fields:
        return columns, 0, snapshot.damaged[:0]
    for path in directory.glob(_NAMES):
        read = _read(path, config, origin)
        if read is None or path.name != _name(read.rows):
            reason = "it is unreadable, damaged, of other rows or of an earlier release"
            _log.warning("filter file ignored", path=str(path), reason=reason)
        elif columns.rows < read.rows <= rows:
            columns = read
    stored = columns.rows
    if len(repaired):
        values = field_values_of(config, row_store.metadata(repaired))
        columns.append(dict(zip(repaired.tolist(), values, strict=True)), stored)
    found = [snapshot.damaged]
    for first in range(stored, rows, _ROWS_AT_ONCE):
        last = min(first + _ROWS_AT_ONCE, rows)
        metadata = row_store.metadata(np.arange(first, last))
        found.append(_damaged(snapshot, first, last, metadata))
        known = slice(*np.searchsorted(snapshot.damaged, [first, last]).tolist())
        for row in (*found[-1].tolist(), *snapshot.damaged[known].tolist()):
            metadata[row - first] = b""
        values = field_values_of(config, metadata)
        columns.append(dict(zip(range(first, last), values, strict=True)), last)
    damaged = np.unique(np.concatenate(found))
    columns.unknown = damaged
    return columns, stored, damaged


def _damaged(snapshot: Snapshot, first: int, last: int, metadata: Sequence[bytes]) -> Int64Array:
    """Return the visible rows of [first, last) that do not match their content hashes."""
    rows = snapshot.hidden.live_rows(first, last)
    begin, end = snapshot.positions.span(first, last)
    require_readable(snapshot.vectors[begin:end])
    found = content_hashes(
        snapshot.ids_of(rows),
        [metadata[row] for row in (rows - first).tolist()],
        snapshot.vectors_of(rows),
    )
    wrong: Int64Array = rows[(found != snapshot.content_hashes_of(rows)).any(axis=1)]
    return wrong


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


def is_sound(contents: bytes, rows: int, origin: Origin) -> bool:
    """Whether the contents of a file match their checksum, and are of so many rows of an origin."""
    if len(contents) < _HEAD.size:
        return False
    magic, stored_rows, sequence, crc32c = _HEAD.unpack_from(contents)
    found = origin.crc32c(stored_rows, sequence, contents[_HEAD.size :])
    return bool(magic == _MAGIC and stored_rows == rows and crc32c == found)


def _read(path: Path, config: CollectionConfig, origin: Origin) -> FilterColumns | None:
    try:
        contents = read_file(path)
    except OSError:
        return None
    if len(contents) < _HEAD.size:
        return None
    _, rows, *_ = _HEAD.unpack_from(contents)
    if not is_sound(contents, rows, origin):
        return None
    serialized = contents[_HEAD.size :]
    try:
        return FilterColumns.from_bytes(config.filter_fields, rows, serialized)
    except DamagedColumns:
        return None


def is_sound_columns_file(path: Path, config: CollectionConfig, origin: Origin) -> bool:
    """Whether a start could use a file of columns, or knows it as one of an earlier release."""
    if _read(path, config, origin) is not None:
        return True
    with suppress(OSError):
        return read_file(path)[: len(_MAGIC_BEFORE)] == _MAGIC_BEFORE
    return False


def store_columns(
    disk: Disk,
    directory: Path,
    columns: FilterColumns,
    rows: int,
    sequence: int,
    origin: Origin,
    room: Room,
) -> None:
    """Write the columns of the first `rows` rows, as of commit `sequence`, to a new file.

    The file before it is removed. Other rows may be appended meanwhile. Raises PutOff if the disk
    has no room.
    """
    serialized = columns.to_bytes(rows)
    head = _HEAD.pack(_MAGIC, rows, sequence, origin.crc32c(rows, sequence, serialized))
    with room.taken_by(FILTER_FILE, len(serialized)):
        disk.write_new_file(directory / _name(rows), head + serialized)
    remove_stray_columns(disk, directory, rows)
