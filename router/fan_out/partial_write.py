"""A batch that only some children have written: what became of each of its rows.

Only for children that were missing for a moment. A failure of another kind, or one by which the
collection or the placement has become another meanwhile, is one of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from vectorshard.shard.errors import (
    DeadlineExceeded,
    Overloaded,
    ShardUnavailable,
    VectorShardError,
)
from vectorshard.shard.types import Int64Array, RowError, RowErrorCode, Token, UpsertResult

_CODES: Final = {
    DeadlineExceeded: RowErrorCode.DEADLINE_EXCEEDED,
    Overloaded: RowErrorCode.RESOURCE_EXHAUSTED,
    ShardUnavailable: RowErrorCode.UNAVAILABLE,
}
"""What failed for its rows alone, and the code that each of them gets."""

_TEXT_CHARS: Final = 200
"""An error's text is cut to this: it comes with each of its rows."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a child has made of its part of a batch.

    `indices` (rows,) is where its rows are in the batch, ascending; `shards` returns the numbers of
    its leaf shards.
    """

    indices: Int64Array
    shards: Callable[[], Sequence[int]]
    outcome: UpsertResult | BaseException


def reached_some(parts: Sequence[Written]) -> bool:
    """Whether a part is written, and all others failed in a way that is their rows' alone."""
    outcomes = [part.outcome for part in parts]
    return any(isinstance(outcome, UpsertResult) for outcome in outcomes) and all(
        isinstance(outcome, (UpsertResult, *_CODES)) for outcome in outcomes
    )


def joined(parts: Sequence[Written]) -> UpsertResult:
    """Return what became of the batch, of which at least one part is written."""
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
    shards = ", ".join(map(str, part.shards()))
    message = f"shard {shards}: {type(failure).__name__}: {failure}"[:_TEXT_CHARS]
    return [RowError(row, code, message) for row in part.indices.tolist()]


def joined_token(tokens: Sequence[Token]) -> Token:
    """Return a token for the writes of all, of which there is at least one."""
    sequences = {shard: at for token in tokens for shard, at in token.sequences.items()}
    return Token(incarnation=tokens[0].incarnation, sequences=sequences)
