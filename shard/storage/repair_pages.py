"""Reads the records of a damaged SQLite database page by page, without following its trees.

Every leaf page is read alone, so that a damaged page costs only what is in it. Which table a
record is of follows from its columns: docs/formats.md has the tables. The format is SQLite's
(sqlite.org/fileformat2.html, sections 1 and 2). What a record means must not enter here. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol, TypeAlias

Columns: TypeAlias = tuple[Any, ...]

_TABLE_LEAF: Final = 0x0D
_INDEX: Final = (0x0A, 0x02)  # a leaf, and an inner page, which holds records too
_INTEGER_BYTES: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_FIRST_HEAD: Final = 100
_FREE_LIST: Final = 32


class Pages(Protocol):
    """The pages of a database."""

    page_bytes: int
    """The size of each."""

    def __len__(self) -> int:
        """How many there are."""

    def page(self, number: int) -> bytes:
        """Return a page by its number, from 1; shorter at the end of a file that was cut."""


def table_records(pages: Pages) -> Iterator[tuple[int, Columns]]:
    """Yield the row id and the columns of each record of a table that can be read.

    A column that repeats the row id is None. Unreadable records are left out, and so are
    those of pages that are free.
    """
    free = _free_pages(pages)
    for number in range(1, len(pages) + 1):
        if number not in free:
            yield from _table_page(pages, number)


def index_records(pages: Pages) -> Iterator[Columns]:
    """Yield the columns of each record of an index, or of a table without row ids."""
    free = _free_pages(pages)
    for number in range(1, len(pages) + 1):
        if number not in free:
            yield from _index_page(pages, number)


def _table_page(pages: Pages, number: int) -> Iterator[tuple[int, Columns]]:
    page = pages.page(number)
    for at in _cells(page, number, (_TABLE_LEAF,)):
        try:
            payload_bytes, at = _varint(page, at)
            row_id, at = _varint(page, at)
            largest = pages.page_bytes - 35
            payload = _payload(pages, page, at, payload_bytes, largest)
            yield _signed(row_id), _columns(payload)
        except (IndexError, ValueError, struct.error):
            continue


def _index_page(pages: Pages, number: int) -> Iterator[Columns]:
    page = pages.page(number)
    for at in _cells(page, number, _INDEX):
        try:
            if page[_FIRST_HEAD if number == 1 else 0] == _INDEX[1]:
                at += 4
            payload_bytes, at = _varint(page, at)
            largest = (pages.page_bytes - 12) * 64 // 255 - 23
            yield _columns(_payload(pages, page, at, payload_bytes, largest))
        except (IndexError, ValueError, struct.error):
            continue


def _cells(page: bytes, number: int, kinds: Sequence[int]) -> list[int]:
    """Return where the cells of a page begin, if it is of one of some kinds."""
    head = _FIRST_HEAD if number == 1 else 0
    if len(page) < head + 12 or page[head] not in kinds:
        return []
    (count,) = struct.unpack_from(">H", page, head + 3)
    first = head + (12 if page[head] == _INDEX[1] else 8)
    count = min(count, (len(page) - first) // 2)
    return list(struct.unpack_from(f">{count}H", page, first))


def _payload(pages: Pages, page: bytes, at: int, payload_bytes: int, largest: int) -> bytes:
    """Return the payload of a cell, with what is on overflow pages."""
    usable = pages.page_bytes
    if payload_bytes > usable * len(pages):
        raise ValueError("a payload larger than the database")
    if payload_bytes <= largest:
        return page[at : at + payload_bytes]
    smallest = (usable - 12) * 32 // 255 - 23
    local = smallest + (payload_bytes - smallest) % (usable - 4)
    if local > largest:
        local = smallest
    parts, left = [page[at : at + local]], payload_bytes - local
    (following,) = struct.unpack_from(">I", page, at + local)
    while left > 0:
        if not 0 < following <= len(pages):
            raise ValueError("a broken chain of overflow pages")
        overflow = pages.page(following)
        (following,) = struct.unpack_from(">I", overflow)
        parts.append(overflow[4 : 4 + min(left, usable - 4)])
        left -= usable - 4
    return b"".join(parts)


def _columns(payload: bytes) -> Columns:
    """Return the columns of a record."""
    head_bytes, at = _varint(payload, 0)
    body, columns = head_bytes, []
    while at < head_bytes:
        kind, at = _varint(payload, at)
        value: Any = None
        if kind in _INTEGER_BYTES:
            end = body + _INTEGER_BYTES[kind]
            value = int.from_bytes(payload[body:end], "big", signed=True)
        elif kind == 7:
            end = body + 8
            (value,) = struct.unpack(">d", payload[body:end])
        elif kind in (8, 9):
            end, value = body, kind - 8
        elif kind >= 12:
            end = body + (kind - 12) // 2
            value = payload[body:end]
            if kind % 2:
                value = value.decode(errors="surrogateescape")
        elif kind == 0:
            end = body
        else:
            raise ValueError(f"a column of type {kind}")
        if end > len(payload):
            raise ValueError("a column beyond its record")
        columns.append(value)
        body = end
    if body != len(payload) or at != head_bytes:
        raise ValueError("a record that is longer than its columns")
    return tuple(columns)


def _varint(page: bytes, at: int) -> tuple[int, int]:
    """Return a number of one to nine bytes, and where it ends."""
    value = 0
    for place in range(8):
        byte = page[at + place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + place + 1
    return value << 8 | page[at + 8], at + 9


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _free_pages(pages: Pages) -> set[int]:
    """Return the pages of the list of free pages; none if the list is damaged."""
    free: set[int] = set()
    first = pages.page(1) if len(pages) else b""
    if len(first) < _FIRST_HEAD:
        return free
    trunk, total = struct.unpack_from(">II", first, _FREE_LIST)
    while 0 < trunk <= len(pages) and trunk not in free:
        free.add(trunk)
        page = pages.page(trunk)
        if len(page) < pages.page_bytes:
            break
        trunk, count = struct.unpack_from(">II", page)
        count = min(count, pages.page_bytes // 4 - 2)
        free.update(struct.unpack_from(f">{count}I", page, 8))
    return free if len(free) == total else set()
