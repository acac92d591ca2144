"""The exit codes of the commands that serve: one for each cause of a refusal to start.

An orchestrator restarts what fails, and most of these causes only an operator can remove.
docs/operations.md says what to do about each.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from vectorshard.shard import errors


class ExitCode(IntEnum):
    """How a server ended."""

    FAILED = 1
    USAGE = 2
    CANNOT_LISTEN = 10
    DIRECTORY_LOCKED = 11
    DIRECTORY_TOO_NEW = 12
    DIRECTORY_FOREIGN = 13
    DIRECTORY_DAMAGED = 14
    DISK_FULL = 15
    DISK_UNUSABLE = 16
    LIMITS_TOO_LOW = 17
    SHARDS_CONTRADICT = 18


MEANINGS: Final = {
    ExitCode.FAILED: "another failure: see the line on stderr",
    ExitCode.USAGE: "the command line is wrong",
    ExitCode.CANNOT_LISTEN: "an address is in use, or not of this machine",
    ExitCode.DIRECTORY_LOCKED: "another process uses the data directory",
    ExitCode.DIRECTORY_TOO_NEW: "a later release wrote the data directory",
    ExitCode.DIRECTORY_FOREIGN: "the data directory belongs to another shard or fleet",
    ExitCode.DIRECTORY_DAMAGED: "files of the data directory are damaged",
    ExitCode.DISK_FULL: "the disk has no room for what a start writes",
    ExitCode.DISK_UNUSABLE: "the disk fails, is read-only, or denies access",
    ExitCode.LIMITS_TOO_LOW: "too few open files, or too little memory",
    ExitCode.SHARDS_CONTRADICT: "the shards of a router do not make up one fleet",
}
"""What each code means, as `--help` prints it."""

_CODES: Final[dict[type[errors.VectorShardError], ExitCode]] = {
    errors.CannotListen: ExitCode.CANNOT_LISTEN,
    errors.DataDirectoryLocked: ExitCode.DIRECTORY_LOCKED,
    errors.DataDirectoryTooNew: ExitCode.DIRECTORY_TOO_NEW,
    errors.DataDirectoryForeign: ExitCode.DIRECTORY_FOREIGN,
    errors.DataDirectoryFull: ExitCode.DISK_FULL,
    errors.DataDirectoryUnusable: ExitCode.DISK_UNUSABLE,
    errors.DataDirectoryError: ExitCode.DIRECTORY_DAMAGED,  # what is left: an unreadable identity
    errors.CorruptData: ExitCode.DIRECTORY_DAMAGED,
    errors.LimitsTooLow: ExitCode.LIMITS_TOO_LOW,
    errors.PlacementMismatch: ExitCode.SHARDS_CONTRADICT,
}


def exit_code(error: Exception) -> ExitCode:
    """Return the exit code of a server that ends with an error; the nearest class counts."""
    found = (_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)
    return next(found, ExitCode.FAILED)


def explained() -> str:
    """Return the codes and their meanings, as text below a command's help."""
    lines = (f"{code:>3}  {MEANINGS[code]}" for code in ExitCode)
    return "\b\nExit codes when it does not serve:\n" + "\n".join(lines)
