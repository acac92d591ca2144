"""What a scrub found, and what became of it: texts for Describe, log events, problems."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

import structlog

from vectorshard.shard.engine.noticed import Noticed
from vectorshard.shard.membership import ProblemKind

FINDINGS_KEPT: Final = 20

RECORDS_CURE: Final = (
    "The server still has these rows in memory. Do not restart it before `vectorshard backup` has "
    "copied them; then restore the backup, or run `vectorshard repair` on the stopped shard's "
    "directory."
)
MEMORY_CURE: Final = "Restart the shard: the disk is sound. Check the memory of the machine."
DISK_CURE: Final = "Replace the disk."

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Piece:
    """What a piece of a scrub has verified and read."""

    rows: int = 0
    bytes: int = 0


class Findings:
    """The findings of one collection's scrub since the shard started. One thread adds to it."""

    def __init__(self, noticed: Noticed, collection: str) -> None:
        self._noticed = noticed
        self._collection = collection
        self._newest: deque[str] = deque(maxlen=FINDINGS_KEPT)
        self.total = 0
        """How many there were, each counted once."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The newest ones, the newest first."""
        return tuple(self._newest)

    def add(self, text: str, cure: str = "", *, repaired: bool = True) -> None:
        """Add a finding; with a `cure`, it is a problem that an operator must act on.

        `repaired`: without a cure, whether all is well again.

        A later pass that finds the same again adds nothing.
        """
        if cure:
            self._noticed.note(ProblemKind.DAMAGED, f"the scrub found: {text}. {cure}")
        if text in self._newest:
            return
        self._newest.appendleft(text)
        self.total += 1
        repaired = repaired and not cure
        _log.error("scrub finding", collection=self._collection, finding=text, repaired=repaired)

    def read_failed(self, error: Exception) -> None:
        """Add a failed read; nothing is known to be lost."""
        named = self._noticed.error_of(error)
        text = f"a read failed: {named}"
        if text not in self._newest:
            self._newest.appendleft(text)
            self.total += 1
            _log.error("scrub read failed", collection=self._collection, error=str(error))
