"""Whether SQLite reads the tables and indexes of a row store as this format has them.

SQLite's description of its tables has no checksum. A flipped bit in it may rename a column, change
which rows an index holds, or do nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import cache
from typing import TypeAlias

from vectorshard.shard.storage.row_store_format import SCHEMA

_Select: TypeAlias = Callable[..., sqlite3.Cursor]
_Described: TypeAlias = list[tuple[object, ...]]


def differing(select: _Select) -> list[str]:
    """Return the tables and indexes that are not as they were created, and strange triggers.

    Strange indexes too: both take part in writes. Other tables do not.
    """
    expected = _expected()
    wrong = [name for name, each in expected.items() if _described(select, name) != each]
    query = "SELECT name FROM sqlite_master WHERE type IN ('trigger', 'index') AND sql NOT NULL"
    return [*wrong, *(name for (name,) in select(query) if name not in expected)]


@cache
def _expected() -> Mapping[str, _Described]:
    with closing(sqlite3.connect(":memory:")) as database:
        for statement in SCHEMA:
            database.execute(statement)
        names = database.execute("SELECT name FROM sqlite_master WHERE sql NOT NULL").fetchall()
        return {name: _described(database.execute, name) for (name,) in names}


def _described(select: _Select, name: str) -> _Described:
    """Return the columns of a table, or the definition of an index.

    The text that defines a table differs between one that was created and one that was upgraded.
    """
    query = "SELECT type, tbl_name, sql FROM sqlite_master WHERE name = ?"
    found = select(query, (name,)).fetchall()
    if [entry[:2] for entry in found] == [("table", name)]:
        return select(f"PRAGMA table_info({name})").fetchall()
    return [(*entry[:2], " ".join(str(entry[2]).split())) for entry in found]
