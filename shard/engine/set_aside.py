"""Collections that a shard could not open: it sets them aside, and serves the others.

Nothing of a set-aside collection is changed or removed on disk, so that a restart finds the same
files, or better ones. Its calls fail with what was found. Damage, which means that stored bytes do
not match their checksums, is told apart from files that could not be read, of which nothing is
known to be lost.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import structlog

from vectorshard.shard.descriptions import CollectionDescription, ShardDescription
from vectorshard.shard.engine.reads import recommended_batch_size
from vectorshard.shard.errors import (
    CollectionDamaged,
    CollectionUnreadable,
    CorruptData,
    DataDirectoryTooNew,
    IncarnationMismatch,
    ReadFailed,
    ShardMissing,
    VectorShardError,
)
from vectorshard.shard.membership import CollectionReport, CollectionState, Problem, ProblemKind
from vectorshard.shard.storage.disk import DISK_ERRORS
from vectorshard.shard.storage.disk_failures import failure_at_open
from vectorshard.shard.storage.read_failures import try_twice
from vectorshard.shard.storage.stored_entry import stored_entry
from vectorshard.shard.types import Call, CollectionConfig, CollectionEntry, Ledger, ShardState

OTHERS_SERVED: Final = "The other collections are served."

_log = structlog.get_logger(__name__)

EXPECTED: Final = (VectorShardError, *DISK_ERRORS, MemoryError)
"""Errors of an open that say all that there is to say."""

_KINDS: Final = {
    CollectionState.DAMAGED: ProblemKind.DAMAGED,
    CollectionState.UNREADABLE: ProblemKind.UNREADABLE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """A collection that a shard does not serve, though its directory is there or should be.

    `reason` is what was found, and `cure` what an operator does about it. `config` and
    `incarnation` are None and empty if they could not be read.
    """

    shard: int
    name: str
    state: CollectionState
    reason: str
    cure: str = ""
    incarnation: str = ""
    config: CollectionConfig | None = None

    @property
    def text(self) -> str:
        """What was found, for people, with what to do."""
        told = f"collection {self.name!r} of shard {self.shard} is set aside: {self.reason}."
        return f"{told} {OTHERS_SERVED} {self.cure}".rstrip()

    @property
    def entry(self) -> CollectionEntry | None:
        """The collection's configuration and incarnation; None if they could not be read."""
        if self.config is None:
            return None
        return CollectionEntry(config=self.config, incarnation=self.incarnation)

    @property
    def error(self) -> VectorShardError:
        """What its calls raise."""
        if self.state is CollectionState.DAMAGED:
            return CollectionDamaged(self.text)
        if self.state is CollectionState.UNREADABLE:
            return CollectionUnreadable(self.text)
        return ShardMissing(self.text)

    @property
    def problem(self) -> Problem:
        """What an operator is told."""
        kind = _KINDS.get(self.state, ProblemKind.MISSING)
        return Problem(shard=self.shard, kind=kind, collection=self.name, text=self.text)

    @property
    def report(self) -> CollectionReport:
        """What other shards are told."""
        reason = self.reason
        if self.state in _KINDS:  # a router has no other advice to its callers
            reason = f"collection {self.name!r} is set aside: {reason}. {self.cure}"
        return CollectionReport(
            name=self.name, incarnation=self.incarnation, state=self.state, reason=reason
        )

    def describe(self) -> CollectionDescription:
        """Describe it by its configuration; raise its error if that could not be read."""
        if self.config is None:
            raise self.error
        shard = ShardDescription(
            shard=self.shard,
            state=ShardState.BUFFERING,
            training=False,
            ledger=Ledger(),
            measured_recall=0.0,
            measured_recall_balanced=0.0,
            missing_reason=self.text,
        )
        return CollectionDescription(
            config=self.config,
            incarnation=self.incarnation,
            shards=(shard,),
            recommended_batch_size=recommended_batch_size(self.config.dim),
        )


class SetAsides:
    """The collections that a shard set aside, by name. Used by the event loop, after the start."""

    def __init__(self, shard: int) -> None:
        self._shard = shard
        self._by_name: dict[str, SetAside] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[SetAside]:
        return iter(self._by_name.values())

    def open_or_set_aside(
        self, directory: Path, open_: Callable[[Path], None], incarnation: str = ""
    ) -> None:
        """Open the collection in a directory; set it aside if that fails.

        `incarnation` is what it should be, for a collection that cannot say it.
        """
        try:
            try_twice(lambda: open_(directory))
        except Exception as error:
            aside = aside_of(self._shard, directory, error)
            unexpected = None if isinstance(error, EXPECTED) else error
            self.put(replace(aside, incarnation=incarnation or aside.incarnation), unexpected)

    def put(self, aside: SetAside, unexpected: Exception | None = None) -> None:
        """Set a collection aside, and log it once; an unexpected error with its trace."""
        self._by_name[aside.name] = aside
        _log.error(
            "collection set aside",
            collection=aside.name,
            shard=aside.shard,
            state=aside.state.value,
            reason=aside.reason,
            exc_info=unexpected,
        )

    def check(self, name: str, call: Call) -> None:
        """Raise the error of a collection if it is set aside."""
        if (aside := self.find(name, call)) is not None:
            raise aside.error

    def find(self, name: str, call: Call) -> SetAside | None:
        """Return a collection that is set aside; IncarnationMismatch if the call means another."""
        aside = self._by_name.get(name)
        if aside and aside.incarnation and call.incarnation not in ("", aside.incarnation):
            raise IncarnationMismatch(f"collection {name!r} was dropped and created again")
        return aside

    def forget(self, name: str) -> None:
        """Forget a collection that was dropped."""
        self._by_name.pop(name, None)

    @property
    def entries(self) -> list[CollectionEntry]:
        """Those whose configuration could be read."""
        return [aside.entry for aside in self if aside.entry is not None]

    @property
    def problems(self) -> list[Problem]:
        """What an operator is told of each."""
        return [aside.problem for aside in self]


# ---- why an open failed -------------------------------------------------------------------------

_RESTART: Final = "A restart of the shard tries again"
_DAMAGED: Final = (
    "Stop the shard and see what `vectorshard repair` finds. Or keep these files, put back an "
    "intact copy of the collection's directory, and restart the shard; `vectorshard describe` "
    "shows whether it is served"
)


def aside_of(shard: int, directory: Path, error: Exception) -> SetAside:
    """Return the collection in a directory as one that an error keeps from being opened."""
    state, reason, cure = _found(directory, error)
    entry = stored_entry(directory)
    return SetAside(
        shard=shard,
        name=directory.name,
        state=state,
        reason=_without(directory, reason).rstrip("."),
        cure=f"{cure}.",
        incarnation=entry.incarnation if entry is not None else "",
        config=entry.config if entry is not None else None,
    )


def _without(directory: Path, text: str) -> str:
    """Return a text without the path of the directory: callers do not know the server's disk."""
    return text.replace(f"{directory}{os.sep}", "").replace(f"{directory}: ", "")


def _found(directory: Path, error: Exception) -> tuple[CollectionState, str, str]:
    """Return the state, the reason and the cure that an error at open stands for."""
    unreadable = CollectionState.UNREADABLE
    if isinstance(error, CorruptData):
        return CollectionState.DAMAGED, str(error), _DAMAGED
    if isinstance(error, ReadFailed):
        return unreadable, f"{error}; nothing is known to be lost", f"Check the disk. {_RESTART}"
    if isinstance(error, DataDirectoryTooNew):
        return unreadable, str(error), "Start the shard with a later release"
    if isinstance(error, (*DISK_ERRORS, MemoryError)):
        failure = failure_at_open(directory, error)
        reason = f"{failure.reason}; nothing is known to be lost"
        return unreadable, reason, f"{failure.cure}. {_RESTART}"
    return unreadable, f"an unexpected {type(error).__name__}, see the shard's log", _RESTART
