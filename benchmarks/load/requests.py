"""The requests of a run: bytes, encoded before the clock starts."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from benchmarks.load.plan import Plan
from vectorshard.client import calls
from vectorshard.shard.types import IdType, VectorArray
from vectorshard.v1 import vectorshard_pb2 as v1

FRESH_ID = 2**32
"""The smallest id of a written row, above the ids of any file whose ids are row numbers."""

FRESH_IDS = 2**62
"""Number of places where ids may begin: two random choices practically never collide."""


def fresh_id(choose: Callable[[int], int] = secrets.randbelow) -> int:
    """Return the first id of a run: different in each process, whatever its seed.

    `choose` returns a random integer below its argument.
    """
    return FRESH_ID + choose(FRESH_IDS)


class Requests:
    """The requests of an RPC by number; numbers equal modulo `distinct` have equal requests.

    Parameters
    ----------
    rpc
        The RPC's name.
    bodies
        The distinct requests, all of the same size.
    """

    def __init__(self, rpc: str, bodies: list[bytes]) -> None:
        self.rpc = rpc
        self._bodies = bodies

    @property
    def distinct(self) -> int:
        """The number of distinct requests."""
        return len(self._bodies)

    def __getitem__(self, number: int) -> bytes:
        """Return the request of a call."""
        return self._bodies[number % len(self._bodies)]


class FreshRows(Requests):
    """Upserts of ids that occur once: the server would not write a stored row again.

    Parameters
    ----------
    bodies
        Requests without ids.
    batch
        Rows of each.
    first_id
        The ids count up from here; as text if the collection has string ids.
    """

    def __init__(self, bodies: list[bytes], batch: int, first_id: int, id_type: IdType) -> None:
        super().__init__("Upsert", bodies)
        self._batch = batch
        self._first_id = first_id
        self._strings = id_type is IdType.STRING

    def __getitem__(self, number: int) -> bytes:
        """Return the request of a call."""
        first = self._first_id + number * self._batch
        ids = range(first, first + self._batch)
        if self._strings:
            named = v1.Ids(strings=v1.StringIds(values=map(str, ids)))
        else:
            named = v1.Ids(int64s=v1.Int64Ids(values=ids))
        # The concatenated encodings of two parts of a message are the encoding of both.
        return super().__getitem__(number) + v1.UpsertRequest(ids=named).SerializeToString()


def empty_calls() -> Requests:
    """Return calls that do nothing."""
    return Requests("GetServerInfo", [v1.GetServerInfoRequest().SerializeToString()])


def with_effort(plan: Plan, target_recall: float) -> Plan:
    """Return a plan whose searches state an effort: the collection's target recall by default.

    They are the same searches, but shards leave searches with an effort out of their live recall.
    The load of a measurement must not change what the collection does for its users.
    """
    if plan.exact or plan.nprobe is not None or plan.target_recall is not None:
        return plan
    return replace(plan, target_recall=target_recall)


def searches(plan: Plan, queries: VectorArray) -> Requests:
    """Return searches, `plan.batch` queries each, in the order of `queries` (queries, dim)."""
    options: dict[str, object] = {}
    if plan.filter is not None:
        options["filter"] = filter_message(plan.filter)
    if plan.exact:
        options["exact"] = True
    elif plan.nprobe is not None:
        options["nprobe"] = plan.nprobe
    elif plan.target_recall is not None:
        options["target_recall"] = plan.target_recall
    return Requests(
        "Search",
        [
            v1.SearchRequest(
                collection=plan.collection,
                queries=matrix(block),
                k=plan.k,
                **options,  # type: ignore[arg-type]  # each value has the type of its name
            ).SerializeToString()
            for block in blocks(queries, plan.batch)
        ],
    )


def filter_message(text: str) -> v1.Filter:
    """Return a filter as the client encodes it. Raises InvalidParameter if it does not parse."""
    search = calls.search("", np.zeros((1, 1), np.float32), 1, filter=text)
    return v1.SearchRequest.FromString(search.payload).filter


def upserts(plan: Plan, vectors: VectorArray, id_type: IdType, first_id: int) -> Requests:
    """Return upserts of `plan.batch` rows each, under ids that count from `first_id`."""
    bodies = [
        v1.UpsertRequest(collection=plan.collection, vectors=matrix(block)).SerializeToString()
        for block in blocks(vectors, plan.batch)
    ]
    return FreshRows(bodies, plan.batch, first_id, id_type)


def blocks(vectors: VectorArray, size: int) -> Iterator[VectorArray]:
    """Yield blocks (size, dim); a remainder is omitted, and too few rows are repeated."""
    if len(vectors) < size:
        vectors = vectors[np.arange(size) % len(vectors)]
    for first in range(0, len(vectors) - size + 1, size):
        yield vectors[first : first + size]


def matrix(vectors: VectorArray) -> v1.Matrix:
    """Return vectors (rows, dim), float16 or float32, as a message of the contract."""
    dtype = v1.D_TYPE_FLOAT16 if vectors.dtype.itemsize == 2 else v1.D_TYPE_FLOAT32
    little_endian = np.ascontiguousarray(vectors, vectors.dtype.newbyteorder("<"))
    return v1.Matrix(data=little_endian.tobytes(), dim=vectors.shape[1], dtype=dtype)
