"""The result of a batch that only some children have written: an error for each row of the others.

It covers children that are temporarily unavailable, and leaf shards that are missing. Any other
failure is one of the whole batch, such as a collection or a placement that has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Final

from vectorshard.shard.errors import (
    CollectionDamaged,
    DeadlineExceeded,
    DiskFailed,
    Overloaded,
    ReadFailed,
    ShardMissing,
    ShardUnavailable,
    VectorShardError,
)
from vectorshard.shard.types import Int64Array, RowError, RowErrorCode, Token, UpsertResult

_CODES: Final = {
    ShardMissing: RowErrorCode.FAILED_PRECONDITION,  # first: it is a ShardUnavailable
    CollectionDamaged: RowErrorCode.DATA_LOSS,
    ReadFailed: RowErrorCode.FAILED_PRECONDITION,
    DiskFailed: RowErrorCode.FAILED_PRECONDITION,
    DeadlineExceeded: RowErrorCode.DEADLINE_EXCEEDED,
    Overloaded: RowErrorCode.RESOURCE_EXHAUSTED,
    ShardUnavailable: RowErrorCode.UNAVAILABLE,
}
"""Failures that affect only the rows of their child, and the code that each row gets."""

FIRST_TEXT_CHARS: Final = 900
TEXT_CHARS: Final = 200
"""An error's text is cut to this length at a word: it is repeated for each row. That of a part's
first row may be longer: it says what to do."""


@dataclass(frozen=True, slots=True)
class Written:
    """The outcome of a child's part of a batch.

    `indices` (rows,) are its rows in the batch, ascending; `shards` returns its leaf shards.
    """

    indices: Int64Array
    shards: Callable[[], Sequence[int]]
    outcome: UpsertResult | BaseException


def reached_some(parts: Sequence[Written]) -> bool:
    """Whether a part is written, and the failures of all others affect only their own rows."""
    outcomes = [part.outcome for part in parts]
    return any(isinstance(outcome, UpsertResult) for outcome in outcomes) and all(
        isinstance(outcome, (UpsertResult, *_CODES)) for outcome in outcomes
    )


def joined(parts: Sequence[Written]) -> UpsertResult:
    """Return the result of a batch of which at least one part is written."""
    results: list[UpsertResult] = []
    errors: list[RowError] = []
    for part in parts:
        if isinstance(part.outcome, UpsertResult):
            results.append(part.outcome)
            errors += [
                RowError(int(part.indices[error.row]), error.code, error.message)
                for error in part.outcome.errors
            ]
        elif isinstance(part.outcome, VectorShardError):
            errors += _errors_of(part, part.outcome)
    return UpsertResult(
        accepted=sum(result.accepted for result in results),
        errors=tuple(sorted(errors, key=lambda error: error.row)),
        token=joined_token([result.token for result in results]),
    )


def _errors_of(part: Written, failure: VectorShardError) -> list[RowError]:
    code = next(code for kind, code in _CODES.items() if isinstance(failure, kind))
    shards = f"shard {', '.join(map(str, part.shards()))}: "
    text = f"{shards}{type(failure).__name__}: {str(failure).removeprefix(shards)}"
    first, others = (
        shorten(text, chars, placeholder=" …") for chars in (FIRST_TEXT_CHARS, TEXT_CHARS)
    )
    return [
        RowError(row, code, others if place else first)
        for place, row in enumerate(part.indices.tolist())
    ]


def joined_token(tokens: Sequence[Token]) -> Token:
    """Return one token for the writes of all tokens, at least one."""
    sequences = {shard: at for token in tokens for shard, at in token.sequences.items()}
    sessions = {shard: at for token in tokens for shard, at in token.sessions.items()}
    return Token(incarnation=tokens[0].incarnation, sequences=sequences, sessions=sessions)
