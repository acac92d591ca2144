"""An upsert of any number of rows: cuts it into messages and counts what is acknowledged. Pure.

The client sends `message(0)`, `message(1)` ... in order and passes every response to `acknowledge`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from vectorshard.client.config_arguments import member_of, name_of
from vectorshard.client.id_arguments import Ids, id_array, is_one_id
from vectorshard.client.metadata_arguments import Metadata, metadata_bytes
from vectorshard.client.results import UpsertSummary
from vectorshard.client.vector_arguments import Vectors, row_matrix, wire_vectors
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import (
    CollectionDamaged,
    InternalError,
    InvalidParameter,
    InvalidRequest,
    MalformedMessage,
    Overloaded,
    ShardMissing,
    ShardUnavailable,
    VectorShardError,
)
from vectorshard.shard.texts import counted
from vectorshard.shard.types import RowError, RowErrorCode, Token, UpsertRequest, WriteMode
from vectorshard.shard.wire.ids import check_ids
from vectorshard.shard.wire.primitives import shown
from vectorshard.shard.wire.writes import decode_upsert_response, encode_upsert_request

MESSAGE_BYTES: Final = 256 * 1024
"""Target size of a message. Larger ones gain nothing: a server's event loop takes 20 ms to read one
of 4 MiB, searches wait meanwhile, and their p99 during a bulk load doubles."""

ROW_OVERHEAD_BYTES: Final = 8
"""More than protobuf's tags and lengths add to a row with a string id and metadata."""

SMALL_UPSERT_ROWS: Final = 1_000
"""An upsert of more rows asks for the server's limits first."""

Progress = Callable[[int, int], None]
"""Called with the number of rows acknowledged so far and the number of all rows."""


class UpsertUpload:
    """The rows of one upsert. `cut` must be called before the first message is made.

    `vectors` are kept as they are and converted message by message: a memory map need not fit in
    memory. `progress` is called after every acknowledgement. See `calls.upsert`.

    Raises
    ------
    InvalidRequest
        For rows that no server accepts: see its subclasses. Nothing was sent.
    """

    def __init__(
        self,
        name: str,
        ids: Ids,
        vectors: Vectors,
        metadata: Metadata | None = None,
        *,
        mode: WriteMode | str,
        progress: Progress | None = None,
    ) -> None:
        if not (progress is None or callable(progress)):
            raise InvalidParameter(f"{shown(progress)} is not callable", field="progress")
        self.progress = progress
        self._name = name_of(name)
        self._ids = id_array(ids)
        self._vectors = row_matrix(vectors, is_one=is_one_id(ids))
        self._mode = member_of(WriteMode, mode, "mode", InvalidParameter)
        self._spans: list[slice] = []
        if len(self._vectors) != self.rows:
            raise MalformedMessage(
                f"{counted(len(self._vectors), 'row')} for {counted(self.rows, 'id')}: "
                "give one for each",
                field="vectors",
            )
        self._metadata = metadata_bytes(metadata, self.rows)
        self.begin()

    def cut(self, limits: Limits) -> None:
        """Cut the rows into messages within the limits of the server.

        Raises InvalidId for an id that is empty, too long or not unique.
        """
        check_ids(self._ids, replace(limits, rows=max(limits.rows, self.rows)))
        self._spans = _spans(self._row_bytes(), limits)

    def begin(self) -> None:
        """Forget all responses: all messages are sent, or sent again."""
        self._acknowledged = 0
        self._accepted = 0
        self._errors: list[RowError] = []
        self._token = Token(incarnation="")

    def _row_bytes(self) -> npt.NDArray[np.int64]:
        """Return about how many bytes each row takes in a message (rows,)."""
        component_bytes = 2 if self._vectors.dtype == np.float16 else 4
        fixed = self._vectors.shape[1] * component_bytes + ROW_OVERHEAD_BYTES
        row_bytes = np.full(self.rows, fixed, dtype=np.int64)
        if self._ids.dtype == np.object_:
            row_bytes += [len(id_.encode("utf-8", "replace")) for id_ in self._ids.tolist()]
        else:
            row_bytes += self._ids.itemsize
        if self._metadata is not None:
            row_bytes += np.fromiter(map(len, self._metadata), dtype=np.int64, count=self.rows)
        return row_bytes

    @property
    def rows(self) -> int:
        """All rows."""
        return self._ids.size

    @property
    def is_small(self) -> bool:
        """Whether the default limits are good enough to cut the rows."""
        return self.rows <= SMALL_UPSERT_ROWS

    @property
    def rows_acknowledged(self) -> int:
        """The number of first rows that are acknowledged."""
        return self._spans[self._acknowledged - 1].stop if self._acknowledged else 0

    @property
    def complete(self) -> bool:
        """Whether every message is acknowledged."""
        return self._acknowledged == len(self._spans)

    @property
    def messages(self) -> int:
        """The number of messages. An upload without rows is one message."""
        return len(self._spans)

    def message(self, number: int) -> bytes:
        """Return the bytes of message `number`, counted from 0."""
        span = self._spans[number]
        request = UpsertRequest(
            collection=self._name,
            ids=self._ids[span],
            vectors=wire_vectors(self._vectors[span], "vectors"),
            metadata=None if self._metadata is None else self._metadata[span],
            mode=self._mode,
        )
        return encode_upsert_request(request, number)

    def acknowledge(self, payload: bytes) -> None:
        """Count the response to the next message.

        Raises InternalError if it is the response to another message.
        """
        result, number = decode_upsert_response(payload)
        if self.complete or number != self._acknowledged:
            raise InternalError(
                f"message {number} was acknowledged where {self._acknowledged} was expected"
            )
        first_row = self.rows_acknowledged
        self._accepted += result.accepted
        self._errors += [replace(error, row=error.row + first_row) for error in result.errors]
        self._token = _newest(self._token, result.token)
        self._acknowledged += 1
        if self.progress is not None:
            self.progress(self.rows_acknowledged, self.rows)

    def summary(self) -> UpsertSummary:
        """Return what is acknowledged so far.

        Raises ShardUnavailable if rows are not written because their shards are missing. Lists the
        rows. Overloaded if the shards have no room, CollectionDamaged if they have set the
        collection aside.
        """
        if (unwritten := self._unwritten()) is not None:
            raise unwritten
        return UpsertSummary(accepted=self._accepted, errors=tuple(self._errors), token=self._token)

    def ended_by(self, error: VectorShardError) -> VectorShardError:
        """Return the error of the first unacknowledged message as an error of the whole upload.

        Its row is an index into all rows, and `acknowledged_rows` is set.
        """
        if isinstance(error, InvalidRequest) and error.row is not None:
            row = error.row + self.rows_acknowledged
            error = type(error)(error.reason, field=error.field, row=row)
        unwritten = self._unwritten()
        error.acknowledged_rows = (
            self.rows_acknowledged if unwritten is None else unwritten.acknowledged_rows
        )
        return error

    def _unwritten(self) -> VectorShardError | None:
        """Return the error for the rows of missing shards, None if all rows are written.

        ShardUnavailable, or what its class is if only operators can help, or only time.
        """
        missed = [error for error in self._errors if error.code != RowErrorCode.ALREADY_EXISTS]
        if not missed:
            return None
        first = missed[0]
        codes = {error.code for error in missed}
        kind = next((kind for among, kind in _KINDS if codes <= among), ShardUnavailable)
        unwritten = kind(
            f"{len(missed):,} of {self.rows_acknowledged:,} rows are not written; "
            f"row {first.row}: {first.message}"
        )
        unwritten.unwritten_rows = tuple(error.row for error in missed)
        unwritten.acknowledged_rows = first.row
        return unwritten


_KINDS: Final[Sequence[tuple[frozenset[int], type[VectorShardError]]]] = (
    (frozenset({RowErrorCode.FAILED_PRECONDITION}), ShardMissing),
    (frozenset({RowErrorCode.FAILED_PRECONDITION, RowErrorCode.DATA_LOSS}), CollectionDamaged),
    (frozenset({RowErrorCode.RESOURCE_EXHAUSTED}), Overloaded),
)
"""The error of rows that are not written, if they have no other codes than these."""


def _spans(row_bytes: npt.NDArray[np.int64], limits: Limits) -> list[slice]:
    """Cut rows into messages: each holds as many rows as fit, and at least one."""
    # Half of a small limit leaves room for the parts of a message other than rows.
    message_bytes = min(MESSAGE_BYTES, limits.message_bytes // 2)
    ends = np.cumsum(row_bytes)
    spans = []
    first = 0
    while first < row_bytes.size:
        begin = int(ends[first - 1]) if first else 0
        fitting = int(np.searchsorted(ends, begin + message_bytes, side="right"))
        last = min(max(fitting, first + 1), first + limits.rows)
        spans.append(slice(first, last))
        first = last
    return spans or [slice(0, 0)]


def _newest(token: Token, later: Token) -> Token:
    """Return a token for the writes of both."""
    if not later.incarnation:
        return token
    if token.incarnation != later.incarnation:
        return later
    sequences = dict(token.sequences)
    for shard, sequence in later.sequences.items():
        sequences[shard] = max(sequence, sequences.get(shard, 0))
    return Token(incarnation=later.incarnation, sequences=sequences)
