"""Which opening of a data directory this is: a counter, and a random number drawn for it.

Others who saw a later opening, or the same one with another number, notice that a directory is an
older copy, or is served twice. docs/formats.md describes the file.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

import structlog

from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.two_slots import Slot, TwoSlots, write_durably

SESSION_FILE: Final = "session"

_log = structlog.get_logger(__name__)


def new_session() -> int:
    """Return a random session, from 1 to 2**63 - 1."""
    return secrets.randbelow(2**63 - 1) + 1


def begin_session(disk: Disk, directory: Path, session: int, *, expected: bool) -> int:
    """Record that a directory is opened, durably; return how many times that was done.

    Needs no room on the disk once the file exists. `expected`: the directory has been opened before
    by a release that keeps this file.
    """
    path = directory / SESSION_FILE
    newest = TwoSlots.read(path)
    if newest is not None:
        write_durably(disk, path, Slot(newest.counter + 1, session))
        return newest.counter + 1
    if expected:
        _log.error("session file missing or damaged", file=str(path))
    TwoSlots.create(disk, path, Slot(1, session))
    return 1
