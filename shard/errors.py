"""All expected failures, as one tree.

It is independent of gRPC: shard/server/status.py maps each class to a status code.

VectorShardError
  InvalidRequest              the request is invalid; names its field and, if there is one, its row
    MalformedMessage          the message does not parse, or its parts are inconsistent
    DimensionMismatch         the vectors' dim differs from the collection's
    InvalidVector             NaN, infinity, a magnitude that overflows, or norm 0 under COSINE
    InvalidId                 the id is empty, too long, duplicated, or of the wrong type
    InvalidParameter          k, nprobe, target_recall, cursor, token, filter, declared field ...
    InvalidConfig             the configuration of the collection is invalid
    CannotListen              an address to listen on is in use, or not of this machine
    LimitExceeded             too many rows, queries, hits or filters in one request
  CollectionNotFound          no collection has this name
  CollectionExists            the name is in use with a different configuration
  IncarnationMismatch         the collection was dropped and created again; look it up again
  PlacementMismatch           a row, shard or router contradicts the placement
  Unsupported                 part of the contract, but not of this release
  Overloaded                  a limit of the server is reached; try again later
  ShardUnavailable            a shard is missing, draining or stalled
    ShardMissing              its disk was lost, or is older than others remember: see accept-loss
    ReadFailed                the disk failed a read; nothing is known to be lost
      CollectionUnreadable    a shard set the collection aside: it could not read its files
  DeadlineExceeded            the deadline of the call has passed
  DiskFailed                  the disk failed a change of the collections, or is read-only
  WritesStopped               a disk write failed; reads continue, writes need a restart
  WritesLost                  the token names writes that a shard has lost with its disk
  CopyEnded                   a copy of a shard's rows is no longer open
  CorruptData                 stored bytes do not match their checksum
    CollectionDamaged         a shard set the collection aside; it serves the others
    RowsDamaged               rows do not match their content hashes; names their ids
    RowFileCorrupt            a committed row does not match its checksum
    RowStoreCorrupt           the row store contradicts itself
  DataDirectoryError          the server cannot start on this data directory
    DataDirectoryLocked       another process uses it
    DataDirectoryTooNew       a later version wrote it
    DataDirectoryForeign      it belongs to another shard, cluster or placement
    DataDirectoryFull         its disk has no room for what a start writes
    DataDirectoryUnusable     its disk fails, is read-only, or denies access
  LimitsTooLow                the machine allows too few open files for a server
  ClientUnusable              the client is closed, or belongs to another event loop
  InternalError               a server's internal error, as a client sees it: an opaque error id
"""

from __future__ import annotations

import re
from typing import ClassVar, Final, TypeVar


class VectorShardError(Exception):
    """The base of every expected failure."""

    retryable: ClassVar[bool] = False
    """The same call may succeed later, and repeating it is safe."""
    is_servers_own: ClassVar[bool] = False
    """The text concerns the server's internals: the log gets it, the caller gets an error id."""

    error_id: str = ""
    """The id under which the server's log has the details, if the server withholds them."""

    acknowledged_rows: int | None = None
    """For an upload that this error ended: how many of its first rows are written and stay."""

    unwritten_rows: tuple[int, ...] = ()
    """For an upload that was sent completely: the rows that are not written because their shards
    were missing. All other rows are written."""

    unanswered: bool = False
    """No server answered: the network failed, or the deadline passed. The call may have taken
    effect."""

    retry_delay_s: float | None = None
    """How long to wait before a retry, if the server has stated it."""


_SUBJECT: Final = re.compile(r"(cannot \w+|.*?(?= (?:is|are|was|must|has|nests|names)\b))")


def _has_subject(message: str, field: str) -> bool:
    """Whether the sentence is about the field by name: then the text does not repeat the name."""
    subject = _SUBJECT.match(message)
    return subject is not None and set(field.split(", ")) <= set(re.findall(r"\w+", subject[1]))


class InvalidRequest(VectorShardError):
    """The request is invalid. Nothing was written.

    Parameters
    ----------
    message
        What is wrong, for people.
    field
        The path of the invalid field in the request, such as ``vectors``.
    row
        The index of the invalid row in the request, if one row is at fault.
    """

    def __init__(self, message: str, *, field: str, row: int | None = None) -> None:
        named = message if row is None else f"row {row}: {message}"
        super().__init__(named if _has_subject(message, field) else f"{field}: {named}")
        self.reason = message
        self.field = field
        self.row = row

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the composed text and the attributes: `__init__` takes neither as it stands."""
        return _with_args, (type(self), self.args), vars(self)


def _with_args(kind: type[InvalidRequest], args: tuple[object, ...]) -> InvalidRequest:
    return kind.__new__(kind, *args)


class MalformedMessage(InvalidRequest):
    """The message does not parse, or its parts are inconsistent."""


class DimensionMismatch(InvalidRequest):
    """The vectors' dim differs from the collection's."""


class InvalidVector(InvalidRequest):
    """A vector with NaN, infinity, a magnitude whose scores overflow float32, or COSINE norm 0."""


class InvalidId(InvalidRequest):
    """An id that is empty, too long, duplicated in one batch, or of the wrong type."""


class InvalidParameter(InvalidRequest):
    """A parameter out of its range, or a filter or metadata that contradicts a declared field."""


class CannotListen(InvalidParameter):
    """An address to listen on is in use, or not of this machine."""


class InvalidConfig(InvalidRequest):
    """The configuration of the collection is invalid."""


class LimitExceeded(InvalidRequest):
    """More rows, queries, hits or filters in one request than the limits allow."""


class CollectionNotFound(VectorShardError):
    """No collection has this name."""


class CollectionExists(VectorShardError):
    """The name is in use with a different configuration."""


class IncarnationMismatch(VectorShardError):
    """The collection was dropped and created again after the caller looked it up."""


class PlacementMismatch(VectorShardError):
    """A row, shard or router contradicts the placement."""


class Unsupported(VectorShardError):
    """Part of the contract, but not of this release."""


class Overloaded(VectorShardError):
    """A limit of the server is reached; the call had no effect."""

    retryable = True


class ShardUnavailable(VectorShardError):
    """A shard is missing, draining or stalled."""

    retryable = True


class ShardMissing(ShardUnavailable):
    """A shard lacks rows that it should have: an operator must act."""

    retryable = False


class ReadFailed(ShardUnavailable):
    """The disk failed a read. Nothing is known to be lost."""

    retryable = False
    is_servers_own = True


class CollectionUnreadable(ReadFailed):
    """A shard set the collection aside, because it could not read its files."""

    is_servers_own = False


class DeadlineExceeded(VectorShardError):
    """The deadline of the call has passed."""


class DiskFailed(VectorShardError):
    """The disk of a shard is read-only, or failed a change of the set of collections."""


class WritesStopped(VectorShardError):
    """A disk failed a write, which may have been done. Reads continue; writes need a restart."""

    is_servers_own = True


class WritesLost(VectorShardError):
    """The token names writes that a shard has lost with its disk."""


class CopyEnded(VectorShardError):
    """A copy of a shard's rows is no longer open: its lease is over, or the shard has restarted."""


class CorruptData(VectorShardError):
    """Stored bytes do not match their checksum."""

    is_servers_own = True


class CollectionDamaged(CorruptData):
    """A shard set the collection aside, because its files do not match their checksums."""

    is_servers_own = False


class RowsDamaged(CorruptData):
    """Rows do not match their content hashes: an upsert or a delete of their ids heals them."""

    is_servers_own = False


class RowFileCorrupt(CorruptData):
    """A committed row does not match its checksum."""


class RowStoreCorrupt(CorruptData):
    """The row store contradicts itself."""


class DataDirectoryError(VectorShardError):
    """The server cannot start on this data directory."""

    is_servers_own = True


class DataDirectoryLocked(DataDirectoryError):
    """Another process uses the data directory."""


class DataDirectoryTooNew(DataDirectoryError):
    """A later format version wrote the data directory."""


class DataDirectoryForeign(DataDirectoryError):
    """The data directory belongs to another shard, cluster or placement."""


class DataDirectoryFull(DataDirectoryError):
    """The disk of the data directory has no room for what a start writes."""


class DataDirectoryUnusable(DataDirectoryError):
    """The disk of the data directory fails, is read-only, or denies access."""


class LimitsTooLow(VectorShardError):
    """The machine allows too few open files for a server."""

    is_servers_own = True


class ClientUnusable(VectorShardError, RuntimeError):
    """The client is closed, or belongs to another event loop. Nothing was sent."""


class InternalError(VectorShardError):
    """A server's internal error, as a client sees it: an opaque text."""


ErrorT = TypeVar("ErrorT", bound=VectorShardError)


def mark_unanswered(error: ErrorT) -> ErrorT:
    """Return the error, marked as one that no server returned."""
    error.unanswered = True
    return error
