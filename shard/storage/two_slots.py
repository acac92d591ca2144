"""A small file that holds the newest of a series of records, and survives a torn write.

Two slots, in different blocks, are overwritten in turn, so that one of them is whole at any moment.
docs/formats.md describes the bytes. What the numbers mean must not enter here.
"""

from __future__ import annotations

import struct
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.disk import Disk, DiskFile
from vectorshard.shard.storage.store_files import read_file

SLOT_BYTES: Final = 4096
"""The distance of the slots: no disk tears a write of one and harms the other."""

_MAGIC: Final = b"VSSLOTS1"
_RECORD: Final = struct.Struct("<8sQQ")
_CRC32C: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Slot:
    """A record: the one with the larger `counter` is the newer one. Both are below 2**64."""

    counter: int
    value: int = 0


class TwoSlots:
    """The file, open to be written. One thread at a time writes; any thread syncs."""

    def __init__(self, disk: Disk, file: DiskFile, slots: tuple[Slot | None, Slot | None]) -> None:
        self._disk = disk
        self.path = file.path
        """Where the file is."""
        self._file: DiskFile | None = file
        newest = _newest(slots)
        self._next = 0 if newest is None or slots[1] == newest else 1
        self.newest = newest
        """The newest record; None if both slots are damaged."""

    @staticmethod
    def create(disk: Disk, path: Path, slot: Slot) -> None:
        """Write a new file durably, in place of one that may be there, with one record."""
        disk.write_new_file(path, _packed(slot).ljust(SLOT_BYTES, b"\0") * 2)

    @staticmethod
    def read(path: Path) -> Slot | None:
        """Return the newest record; None if the file is absent, or both slots are damaged.

        Raises OSError if the disk fails.
        """
        try:
            return _newest(_slots(path))
        except FileNotFoundError:
            return None

    @classmethod
    def open(cls, disk: Disk, path: Path) -> TwoSlots:
        """Open a file that exists, and change nothing in it."""
        slots = _slots(path)
        return cls(disk, disk.open(path), slots)

    def write(self, slot: Slot) -> None:
        """Write a newer record over the older one. Durable after `sync`.

        After an OSError, the newest record is still there. ValueError if it is not newer.
        """
        if self.newest is not None and slot.counter <= self.newest.counter:
            raise ValueError(f"counter {slot.counter} does not follow {self.newest.counter}")
        self._disk.write(self.reopen(), self._next * SLOT_BYTES, _packed(slot))
        self.newest, self._next = slot, 1 - self._next

    def sync(self) -> None:
        """Make what was written durable."""
        self._disk.sync(self.reopen())

    def reopen(self) -> DiskFile:
        """Return the file, opened again if it was closed. It is the one that was open before."""
        if self._file is None:
            self._file = self._disk.open(self.path)
        return self._file

    def close(self) -> None:
        """Close the file. Syncs nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None


def write_durably(disk: Disk, path: Path, slot: Slot) -> None:
    """Write a newer record into a file that exists, and sync it. It needs no room on the disk."""
    with closing(TwoSlots.open(disk, path)) as slots:
        slots.write(slot)
        slots.sync()


def stored_records(path: Path) -> list[tuple[bytes, int]]:
    """Return the bytes of both records with their stored checksums, sound or not.

    Fewer if the file was cut, or is absent. Raises OSError if the disk fails.
    """
    try:
        contents = read_file(path, 2 * SLOT_BYTES)
    except FileNotFoundError:
        return []
    return [
        (contents[at : at + _RECORD.size], *_CRC32C.unpack_from(contents, at + _RECORD.size))
        for at in (0, SLOT_BYTES)
        if len(contents) >= at + _RECORD.size + _CRC32C.size
    ]


def slot_of(record: bytes) -> Slot | None:
    """Return what a record's bytes say, None if they are no record."""
    if not record.startswith(_MAGIC):
        return None
    _, counter, value = _RECORD.unpack(record)
    return Slot(counter, value)


def _packed(slot: Slot) -> bytes:
    record = _RECORD.pack(_MAGIC, slot.counter, slot.value)
    return record + _CRC32C.pack(checksum(record))


def _slots(path: Path) -> tuple[Slot | None, Slot | None]:
    contents = read_file(path, 2 * SLOT_BYTES)
    return _slot_in(contents, 0), _slot_in(contents, SLOT_BYTES)


def _slot_in(contents: bytes, offset: int) -> Slot | None:
    """Return the record at an offset, or None if it is damaged."""
    record = contents[offset : offset + _RECORD.size]
    crc32c = contents[offset + _RECORD.size :][: _CRC32C.size]
    return slot_of(record) if crc32c == _CRC32C.pack(checksum(record)) else None


def _newest(slots: tuple[Slot | None, Slot | None]) -> Slot | None:
    return max(filter(None, slots), key=lambda slot: slot.counter, default=None)
