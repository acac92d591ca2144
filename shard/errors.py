"""Every expected failure, in one tree. Knows nothing of gRPC: shard/status.py maps it to codes.

VectorShardError
  InvalidRequest              the caller's mistake; names a field and, where there is one, a row
    MalformedMessage          bytes that do not parse, or whose parts do not fit together
    DimensionMismatch         vectors of another dim than the collection's
    InvalidVector             NaN, Inf, overflowing magnitude, norm 0 under COSINE
    InvalidId                 empty, over-long, twice, or of the wrong kind
    InvalidParameter          k, nprobe, target_recall, cursor, token, filter, declared field ...
    InvalidConfig             a collection that cannot be
    LimitExceeded             more rows, queries, hits or filters in one request than allowed
  CollectionNotFound
  CollectionExists            the name is taken by a different configuration
  IncarnationMismatch         the collection was dropped and created anew; look again
  PlacementMismatch           a row, shard or router that contradicts the placement
  Unsupported                 in the contract, not in this release
  Overloaded                  a bound is reached; try again later
  ShardUnavailable            a shard is missing, draining or stalled
  DeadlineExceeded
  WritesStopped               the disk failed a write; reads go on, writes need a restart
  CorruptData                 stored bytes do not match their checksum
    RowFileCorrupt
    RowStoreCorrupt
  DataDirectoryError          a server cannot start on this data directory
    DataDirectoryLocked
    DataDirectoryTooNew
    DataDirectoryForeign      it belongs to another shard, cluster or placement
  InternalError               the server's own fault, as a client sees it: an opaque id
"""

from __future__ import annotations

from typing import ClassVar, TypeVar


class VectorShardError(Exception):
    """Base of every expected failure."""

    retryable: ClassVar[bool] = False
    """The same call may succeed later, and repeating it does no harm."""
    is_servers_own: ClassVar[bool] = False
    """Its text is about the server itself: it goes to the log, and an id to the caller."""

    error_id: str = ""
    """What to look for in a server's log, of an error whose story that server keeps to itself. The
    text of such an error says nothing that a caller may not see."""

    acknowledged_rows: int | None = None
    """Of an upload that this error ended: its first rows, which are written and stay."""

    unwritten_rows: tuple[int, ...] = ()
    """Of an upload all of which was sent: the rows that are not written, because their shards were
    missing. All others are."""

    unanswered: bool = False
    """Nobody who was asked has said this: the network failed, or the time was over. What was asked
    may have been done."""

    retry_delay_s: float | None = None
    """How long to wait before trying again, where whoever refused has said so."""


class InvalidRequest(VectorShardError):
    """The caller's mistake. Nothing was written.

    Parameters
    ----------
    message
        What is wrong, for a person.
    field
        Path of the offending field in the request, such as ``vectors``.
    row
        Index of the offending row in the request, if it is one row's fault.
    """

    def __init__(self, message: str, *, field: str, row: int | None = None) -> None:
        super().__init__(f"{field}: {message}" if row is None else f"{field}: row {row}: {message}")
        self.reason = message
        self.field = field
        self.row = row


class MalformedMessage(InvalidRequest):
    """Bytes that do not parse, or whose parts do not fit together."""


class DimensionMismatch(InvalidRequest):
    """Vectors of another dim than the collection's."""


class InvalidVector(InvalidRequest):
    """NaN, Inf, a magnitude whose scores overflow float32, or norm 0 under COSINE."""


class InvalidId(InvalidRequest):
    """An id that is empty, over-long, twice in one batch, or of the wrong kind."""


class InvalidParameter(InvalidRequest):
    """A k, nprobe, target_recall, cursor, token or mode out of its range, or a filter or metadata
    that the collection's declared fields do not take."""


class InvalidConfig(InvalidRequest):
    """A collection that cannot be."""


class LimitExceeded(InvalidRequest):
    """More rows, queries, hits or filters in one request than the limits allow."""


class CollectionNotFound(VectorShardError):
    """No collection of this name."""


class CollectionExists(VectorShardError):
    """The name is taken by a different configuration."""


class IncarnationMismatch(VectorShardError):
    """The collection was dropped and created anew since the caller looked."""


class PlacementMismatch(VectorShardError):
    """A row, shard or router that contradicts the placement."""


class Unsupported(VectorShardError):
    """In the contract, not in this release."""


class Overloaded(VectorShardError):
    """A bound is reached; nothing was done."""

    retryable = True


class ShardUnavailable(VectorShardError):
    """A shard is missing, draining or stalled."""

    retryable = True


class DeadlineExceeded(VectorShardError):
    """The caller's deadline passed."""


class WritesStopped(VectorShardError):
    """The disk failed a write. Reads go on; writes are refused until a restart."""

    is_servers_own = True


class CorruptData(VectorShardError):
    """Stored bytes do not match their checksum."""

    is_servers_own = True


class RowFileCorrupt(CorruptData):
    """A committed row does not match its checksum."""


class RowStoreCorrupt(CorruptData):
    """The row store contradicts itself."""


class DataDirectoryError(VectorShardError):
    """A server cannot start on this data directory."""

    is_servers_own = True


class DataDirectoryLocked(DataDirectoryError):
    """Another process uses it."""


class DataDirectoryTooNew(DataDirectoryError):
    """It was written by a later format version."""


class DataDirectoryForeign(DataDirectoryError):
    """It belongs to another shard, cluster or placement."""


class InternalError(VectorShardError):
    """The server's own fault, as a client sees it: an opaque text."""


ErrorT = TypeVar("ErrorT", bound=VectorShardError)


def mark_unanswered(error: ErrorT) -> ErrorT:
    """Return the error, marked as one that no server returned."""
    error.unanswered = True
    return error
