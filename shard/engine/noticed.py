"""What the reads of one collection have noticed of its disk, until a restart.

A read that fails says nothing about other rows, so the collection goes on serving; but an operator
must look at the disk.
"""

from __future__ import annotations

from vectorshard.shard.errors import CorruptData, ReadFailed, RowsDamaged
from vectorshard.shard.membership import Problem, ProblemKind
from vectorshard.shard.storage.read_failures import is_read_failure


class Noticed:
    """The newest failed read and the newest damage of one collection. Any thread may use it."""

    def __init__(self, shard: int, collection: str) -> None:
        self._shard = shard
        self._collection = collection
        self._texts: dict[ProblemKind, str] = {}

    def error_of(self, error: Exception) -> Exception:
        """Remember what an error of a read says about the disk; return the error to raise.

        Damaged rows are a problem of their own: the snapshot holds them.
        """
        if is_read_failure(error):
            told = f"collection {self._collection!r}: the disk failed a read ({error})"
            error = ReadFailed(told)
        if isinstance(error, ReadFailed):
            self._texts[ProblemKind.UNREADABLE] = (
                f"{error}; nothing is known to be lost. Check the disk and restart the shard."
            )
        elif isinstance(error, CorruptData) and not isinstance(error, RowsDamaged):
            self._texts[ProblemKind.DAMAGED] = (
                f"{error}. Other rows are served. Restore the collection's directory from a copy."
            )
        return error

    def note(self, kind: ProblemKind, text: str) -> None:
        """Remember what an operator has to look at, in place of the last of its kind."""
        self._texts[kind] = f"collection {self._collection!r}: {text}"

    def check(self, error: Exception) -> None:
        """Remember an error of a read; raise the one that stands for it, unless it is the same."""
        if (named := self.error_of(error)) is not error:
            raise named from error

    @property
    def problems(self) -> list[Problem]:
        """What an operator has to look at."""
        return [
            Problem(shard=self._shard, kind=kind, collection=self._collection, text=text)
            for kind, text in self._texts.copy().items()
        ]
