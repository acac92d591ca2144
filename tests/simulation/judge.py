"""What an answer must be, from all that the shards have ever been.

A call is judged when it has ended. Reads are held to the states that the shards were in while it
ran: a search to the very ones that its receipt names. Writes are held to the states that their
token names. What is left undone or done too often is found at the end, from the changes that the
shards have noted.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np

from tests.router.model_shard import Change, Held, ModelShard, ranked, top_k
from vectorshard.shard.config import SLOTS_TOTAL
from vectorshard.shard.descriptions import CollectionDescription
from vectorshard.shard.errors import (
    CollectionExists,
    CollectionNotFound,
    DeadlineExceeded,
    DimensionMismatch,
    IncarnationMismatch,
    Overloaded,
    PlacementMismatch,
    ShardUnavailable,
)
from vectorshard.shard.rows.slots import slots_of
from vectorshard.shard.types import (
    CollectionConfig,
    CollectionEntry,
    CountRequest,
    DeleteRequest,
    DeleteResult,
    Float32Array,
    GetRequest,
    IdArray,
    RowErrorCode,
    Rows,
    SearchRequest,
    SearchResult,
    Token,
    UpsertRequest,
    UpsertResult,
)

NAMED: Final = re.compile(r"\bshards?[ -]\d|may be incomplete|in the queue")
"""What a failure must say that a missing shard has caused: which it is, or where."""

GRACE_S: Final = 0.01
"""How long after its deadline a call may end."""


class Wrong(Exception):
    """An answer, or a history, that must not be."""


@dataclass(frozen=True, slots=True)
class Create:
    """Create a collection."""

    config: CollectionConfig


@dataclass(frozen=True, slots=True)
class Drop:
    """Drop a collection."""

    collection: str


@dataclass(frozen=True, slots=True)
class Describe:
    """Describe a collection."""

    collection: str


Request = (
    SearchRequest
    | UpsertRequest
    | DeleteRequest
    | GetRequest
    | CountRequest
    | Create
    | Drop
    | Describe
)


@dataclass(slots=True, kw_only=True)
class Asked:
    """A call: what was asked, when, and how it ended."""

    number: int
    request: Request
    began: float
    timeout_s: float
    cancelled_at: float | None = None
    ended: float = 0.0
    outcome: object = None
    """The answer, True for none; the error that it failed with; None if it was cancelled."""
    awaited: Sequence[str] = ()
    """RPCs that it still waited for when it had ended."""

    @property
    def collection(self) -> str:
        """The collection that it is about."""
        if isinstance(self.request, Create):
            return self.request.config.name
        return self.request.collection


def require(holds: bool, why: str) -> None:
    """Raise `Wrong` unless it holds."""
    if not holds:
        raise Wrong(why)


class Judge:
    """Judges calls by the shards' histories.

    Parameters
    ----------
    shards
        All leaf shards, in order.
    strangers
        Whether somebody else was, or may have been, at a shard's address.
    """

    def __init__(self, shards: Sequence[ModelShard], *, strangers: bool) -> None:
        self._shards = shards
        self._strangers = strangers

    # ---- one call -------------------------------------------------------------------------------

    def judge(self, asked: Asked) -> None:
        """Raise `Wrong` if a call ended as it must not."""
        end = asked.began + asked.timeout_s
        if asked.cancelled_at is not None:
            end = min(end, asked.cancelled_at)
        require(asked.ended <= end + GRACE_S, f"it ended {asked.ended - end:.3f} s too late")
        require(not asked.awaited, f"{asked.awaited} run on though it has ended")
        if isinstance(asked.outcome, BaseException):
            self._judge_failure(asked, asked.outcome)
        elif asked.outcome is not None:
            self._judge_answer(asked)

    def _judge_answer(self, asked: Asked) -> None:
        match asked.request, asked.outcome:
            case SearchRequest() as request, SearchResult() as result:
                self._judge_search(asked, request, result)
            case UpsertRequest() as request, UpsertResult() as result:
                self._judge_upsert(asked, request, result)
            case DeleteRequest() as request, DeleteResult() as result:
                self._judge_delete(asked, request, result)
            case GetRequest() as request, Rows() as result:
                self._judge_get(asked, request, result)
            case CountRequest(), int() as result:
                self._judge_count(asked, result)
            case Describe(), CollectionDescription() as result:
                self._judge_description(asked, result)
            case Create() as request, (CollectionEntry() as entry, bool()):
                self._judge_creation(asked, request, entry)
            case Drop(), _:
                self._judge_drop(asked)
            case _:
                raise Wrong(f"the answer is {asked.outcome!r}")

    def _judge_failure(self, asked: Asked, failure: BaseException) -> None:
        told = f"{type(failure).__name__}: {failure}"
        incarnations = {
            held.entry.incarnation if held is not None else None
            for shard in self._shards
            for held in self._helds(shard, asked)
        }
        match failure:
            case ShardUnavailable() | DeadlineExceeded():
                require(bool(NAMED.search(str(failure))), f"names no shard: {told}")
            case CollectionNotFound():
                gone = None in incarnations or self._strangers
                require(gone, f"all shards had it: {told}")
            case IncarnationMismatch():
                require(len(incarnations) > 1, f"there was only one: {told}")
            case DimensionMismatch():
                require(self._has_other_dim(asked), f"they are of its dim: {told}")
            case CollectionExists():
                require(isinstance(asked.request, Create), f"nothing is created: {told}")
            case PlacementMismatch():
                require(self._strangers, f"nobody has moved: {told}")
            case Overloaded():
                pass
            case _:
                raise Wrong(f"it failed with {told}")

    def _has_other_dim(self, asked: Asked) -> bool:
        """Whether a shard had the collection with another dim than that of the request."""
        match asked.request:
            case SearchRequest(queries=vectors) | UpsertRequest(vectors=vectors):
                return any(
                    held is not None and held.entry.config.dim != vectors.shape[1]
                    for shard in self._shards
                    for held in self._helds(shard, asked)
                )
            case _:
                return False

    # ---- searches -------------------------------------------------------------------------------

    def _judge_search(self, asked: Asked, request: SearchRequest, result: SearchResult) -> None:
        receipt = result.receipt
        numbers = [shard.shard for shard in receipt.shards]
        require(numbers == list(range(len(self._shards))), f"its receipt is of shards {numbers}")
        answered = [shard for shard in receipt.shards if not shard.missing_reason]
        slots = sum(self._shards[shard.shard].slots for shard in answered)
        require(
            abs(receipt.coverage - slots / SLOTS_TOTAL) < 1e-6,
            f"it claims coverage {receipt.coverage}, shards {answered} have answered",
        )
        require(receipt.coverage >= request.min_coverage - 1e-6, "it covers too little")
        require(bool(answered), "nobody has answered")
        seen = [
            self._seen(asked, shard.shard, shard.generation, f"the receipt of {shard.shard}")
            for shard in answered
        ]
        for shard, held in zip(answered, seen, strict=True):
            require(shard.rows_visible == len(held.rows), f"shard {shard.shard} has other rows")
        entry = self._one_incarnation(seen)
        rows = {id_: vector for held in seen for id_, vector in held.rows.items()}
        expected = top_k(
            ranked(rows, query, entry.config.metric)[: request.k]
            for query in np.asarray(request.queries, dtype=np.float32)
        )
        hits = result.hits
        same = (
            np.array_equal(hits.counts, expected.counts)
            and np.array_equal(hits.ids, expected.ids)
            and np.array_equal(hits.scores, expected.scores)
        )
        if not same:
            raise Wrong(f"hits {_told(hits)}, and not {_told(expected)}, of {_told(receipt)}")
        if request.include.vectors:
            require(result.vectors is not None, "its hits have no vectors")
            self._require_vectors(hits.ids, result.vectors, rows)

    def _seen(self, asked: Asked, number: int, sequence: int, what: str) -> Held:
        """Return the collection in a state that an answer names, which must be of its time."""
        shard = self._shards[number]
        state = shard.state_of(sequence)
        require(state is not None, f"{what}: there is no state {sequence}")
        require(
            state in shard.states_within(asked.began, asked.ended),
            f"{what}: state {sequence} is of another time",
        )
        assert state is not None
        held = state.held.get(asked.collection)
        require(held is not None, f"{what}: state {sequence} has no such collection")
        assert held is not None
        return held

    @staticmethod
    def _one_incarnation(seen: Sequence[Held]) -> CollectionEntry:
        incarnations = {held.entry.incarnation for held in seen}
        require(len(incarnations) == 1, f"it is of several incarnations: {incarnations}")
        return seen[0].entry

    @staticmethod
    def _require_vectors(
        ids: IdArray, vectors: Float32Array | None, rows: Mapping[int, Float32Array]
    ) -> None:
        assert vectors is not None
        require(len(vectors) == len(ids), f"{len(ids)} hits have {len(vectors)} vectors")
        for id_, vector in zip(ids.tolist(), vectors, strict=True):
            require(np.array_equal(vector, rows[id_]), f"row {id_} is {vector}, not {rows[id_]}")

    # ---- writes ---------------------------------------------------------------------------------

    def _parts(self, ids: IdArray) -> Iterator[tuple[int, list[int]]]:
        """Yield the shards that own some of the ids, with their indices."""
        owners = slots_of(ids) * len(self._shards) // SLOTS_TOTAL
        for number in sorted(set(owners.tolist())):
            yield number, np.flatnonzero(owners == number).tolist()

    def _written(
        self, asked: Asked, ids: IdArray, token: Token
    ) -> Iterator[tuple[list[int], Held]]:
        """Yield the indices of the ids of each shard that has written, and what it held then."""
        for number, rows in self._parts(ids):
            if number not in token.sequences:
                continue
            held = self._seen(asked, number, token.sequences[number], f"token of {number}")
            require(held.entry.incarnation == token.incarnation, "written to another incarnation")
            yield rows, held

    def _judge_upsert(self, asked: Asked, request: UpsertRequest, result: UpsertResult) -> None:
        refused = {
            error.row for error in result.errors if error.code == RowErrorCode.ALREADY_EXISTS
        }
        missed = {error.row: error.message for error in result.errors if error.row not in refused}
        counted = result.accepted + len(refused) + len(missed)
        require(counted == len(request.ids), "not all rows are counted")
        for number, rows in self._parts(request.ids):
            if number not in result.token.sequences:
                require(set(rows) <= missed.keys(), f"shard {number} has not written its rows")
                named = all(f"shard {number}: " in missed.pop(row) for row in rows)
                require(named, f"shard {number} is not named")
        require(not missed, f"rows {[*missed]} are errors, though their shards have written")
        for rows, held in self._written(asked, request.ids, result.token):
            for row in rows:
                there = held.rows.get(int(request.ids[row]))
                same = there is not None and np.array_equal(there, request.vectors[row])
                require(there is not None, f"row {row} was acknowledged, and is not there")
                require(same != (row in refused), f"row {row} was answered wrongly")

    def _judge_delete(self, asked: Asked, request: DeleteRequest, result: DeleteResult) -> None:
        assert request.ids is not None
        owners = {number for number, _ in self._parts(request.ids)}
        require(owners <= result.token.sequences.keys(), "a shard owns ids and has no token")
        for rows, held in self._written(asked, request.ids, result.token):
            for row in rows:
                require(int(request.ids[row]) not in held.rows, f"row {row} is there")
        by_it = [change for change in self._changes() if change.cause.call == asked.number]
        deleted = sum(len(change.ids) for change in by_it)
        exactly = not any(change.cause.copy for change in by_it)
        require(
            result.deleted == deleted if exactly else result.deleted <= deleted,
            f"it counts {result.deleted} rows, and {deleted} were deleted",
        )

    # ---- reads ----------------------------------------------------------------------------------

    def _helds(self, shard: ModelShard, asked: Asked) -> list[Held | None]:
        """Return what a shard held of the collection while the call ran."""
        states = shard.states_within(asked.began, asked.ended)
        return [state.held.get(asked.collection) for state in states]

    def _by_incarnation(self, asked: Asked) -> Iterator[list[list[Held]]]:
        """Yield, for each incarnation that all shards had, what each of them held of it."""
        all_held = [
            [held for held in self._helds(shard, asked) if held is not None]
            for shard in self._shards
        ]
        for incarnation in {held.entry.incarnation: None for held in all_held[0]}:
            of_it = [
                [held for held in helds if held.entry.incarnation == incarnation]
                for helds in all_held
            ]
            if all(of_it):
                yield of_it

    def _judge_count(self, asked: Asked, count: int) -> None:
        possible = {
            sum(counts)
            for of_it in self._by_incarnation(asked)
            for counts in product(*({len(held.rows) for held in helds} for helds in of_it))
        }
        require(count in possible, f"it counts {count}, there were {sorted(possible)}")

    def _judge_get(self, asked: Asked, request: GetRequest, rows: Rows) -> None:
        assert request.ids is not None
        assert rows.vectors is not None
        asked_ids, got = request.ids.tolist(), rows.ids.tolist()
        require(got == [id_ for id_ in asked_ids if id_ in set(got)], "the ids are out of order")
        vectors = dict(zip(got, rows.vectors, strict=True))

        def is_of(held: Held, indices: Sequence[int]) -> bool:
            return all(
                _same(vectors.get(id_), held.rows.get(id_))
                for id_ in (asked_ids[i] for i in indices)
            )

        parts = list(self._parts(request.ids))
        possible: set[str] = set(
            _incarnations_of_all(
                [
                    {
                        held.entry.incarnation
                        for held in self._helds(self._shards[number], asked)
                        if held is not None and is_of(held, indices)
                    }
                    for number, indices in parts
                ]
            )
        )
        require(bool(possible), f"rows {got} were never there together")

    def _judge_description(self, asked: Asked, told: CollectionDescription) -> None:
        require(
            [shard.shard for shard in told.shards] == list(range(len(self._shards))),
            "it does not describe each shard",
        )
        for description, shard in zip(told.shards, self._shards, strict=True):
            ledgers = [
                held.ledger
                for held in self._helds(shard, asked)
                if held is not None and held.entry.incarnation == told.incarnation
            ]
            require(description.ledger in ledgers, f"shard {shard.shard} has another ledger")

    # ---- collections ----------------------------------------------------------------------------

    def _judge_creation(self, asked: Asked, request: Create, entry: CollectionEntry) -> None:
        require(entry.config == request.config, "it has another configuration")
        for shard in self._shards:
            there = [held.entry for held in self._helds(shard, asked) if held is not None]
            require(entry in there, f"shard {shard.shard} has not created it")

    def _judge_drop(self, asked: Asked) -> None:
        for shard in self._shards:
            first, *_ = helds = self._helds(shard, asked)
            gone = any(held is None or first is None or held.entry != first.entry for held in helds)
            require(gone, f"shard {shard.shard} has not dropped it")

    # ---- the whole ------------------------------------------------------------------------------

    def _changes(self) -> Iterator[Change]:
        for shard in self._shards:
            yield from shard.changes

    def judge_history(self, calls: Mapping[int, Asked]) -> Iterator[tuple[int, str]]:
        """Yield the calls that have done what they must not, each with what that is."""
        times: Counter[tuple[int, str, int]] = Counter()
        wrote_to: defaultdict[int, set[str]] = defaultdict(set)
        created: dict[str, float] = {}
        for change in sorted(self._changes(), key=lambda change: change.at):
            asked = calls[change.cause.call]
            if change.kind == "create":
                created.setdefault(change.incarnation, change.at)
            if change.kind == "drop" and created[change.incarnation] > asked.ended:
                yield asked.number, f"it dropped {change.incarnation}, which came after it"
            if change.cause.copy:
                continue
            if change.kind in ("upsert", "delete"):
                times.update((asked.number, change.incarnation, id_) for id_ in change.ids)
                wrote_to[asked.number].add(change.incarnation)
            if change.at > asked.ended and not _leaves_open(asked):
                yield asked.number, f"shard {change.shard} went on after it had ended"
        for (number, _, id_), changes in times.items():
            if changes > 1:
                yield number, f"it changed row {id_} {changes} times"
        for number, incarnations in wrote_to.items():
            if len(incarnations) > 1:
                yield number, f"it wrote to several incarnations: {sorted(incarnations)}"

    def newest(self, collection: str) -> list[Held | None]:
        """Return what each shard holds of a collection now."""
        return [shard.state.held.get(collection) for shard in self._shards]


def _leaves_open(asked: Asked) -> bool:
    """Whether nobody knows, by how a call ended, what has become of it."""
    match asked.outcome:
        case None | ShardUnavailable() | DeadlineExceeded():
            return True
        case UpsertResult(errors=errors):
            return any(error.code != RowErrorCode.ALREADY_EXISTS for error in errors)
        case _:
            return False


def _incarnations_of_all(sets: Sequence[set[str]]) -> set[str]:
    """Return what is in all of the sets."""
    return set.intersection(*sets) if sets else {""}


def _same(one: Float32Array | None, other: Float32Array | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


def _told(what: object) -> str:
    return str(what).replace("\n", " ")
