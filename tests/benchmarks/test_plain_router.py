"""The plain fan-out: it must answer as a router does, or it is no baseline."""

from __future__ import annotations

import pytest

from benchmarks.plain_router import PlainRouter, merge
from vectorshard.v1 import vectorshard_pb2 as v1


def answer(shard: int, *hits: list[tuple[int, float]]) -> v1.SearchResponse:
    """Return a shard's answer: the hits of each query, best first."""
    return v1.SearchResponse(
        counts=[len(each) for each in hits],
        ids=v1.Ids(int64s=v1.Int64Ids(values=[id_ for each in hits for id_, _ in each])),
        scores=[score for each in hits for _, score in each],
        receipt=v1.Receipt(shards=[v1.ShardReceipt(shard=shard)]),
    )


ONE = answer(0, [(1, 0.9), (4, 0.5)], [(2, 0.7)])
OTHER = answer(1, [(3, 0.9), (5, 0.6)], [])


def test_the_best_of_all_shards_are_kept_and_ties_rank_by_id() -> None:
    merged = merge([OTHER, ONE], 3)
    assert list(merged.counts) == [3, 1]
    assert list(merged.ids.int64s.values) == [1, 3, 5, 2]
    assert list(merged.scores) == pytest.approx([0.9, 0.9, 0.6, 0.7])
    assert [shard.shard for shard in merged.receipt.shards] == [1, 0]


async def test_every_shard_gets_the_request_as_it_came() -> None:
    asked = []

    def shard(told: v1.SearchResponse):  # type: ignore[no-untyped-def]
        async def search(request: bytes) -> bytes:
            asked.append(request)
            return told.SerializeToString()

        return search

    router = PlainRouter([shard(ONE), shard(OTHER)], [], [])
    request = v1.SearchRequest(collection="words", k=1).SerializeToString()
    merged = v1.SearchResponse.FromString(await router.search(request, None))
    assert asked == [request, request]
    assert list(merged.ids.int64s.values) == [1, 2]


async def test_a_description_is_the_sum_of_all_shards() -> None:
    async def describe(request: bytes) -> bytes:
        return v1.DescribeCollectionResponse(
            ledger=v1.Ledger(accepted=5, indexed=5),
            shards=[v1.ShardDescription(ledger=v1.Ledger(accepted=5))],
        ).SerializeToString()

    router = PlainRouter([], [describe, describe], [])  # type: ignore[list-item]
    told = v1.DescribeCollectionResponse.FromString(await router.describe_collection(b"", None))
    assert (told.ledger.accepted, told.ledger.indexed, len(told.shards)) == (10, 10, 2)


async def test_rows_come_in_the_order_asked_for_wherever_they_are() -> None:
    def shard(*ids: int):  # type: ignore[no-untyped-def]
        async def get(request: bytes) -> bytes:
            return v1.GetResponse(
                ids=v1.Ids(int64s=v1.Int64Ids(values=ids)),
                vectors=v1.Matrix(data=bytes(4 * [ids[0]] + 4 * [ids[1]]), dim=1),
            ).SerializeToString()

        return get

    router = PlainRouter([], [], [shard(1, 4), shard(3, 2)])
    asked = v1.GetRequest(ids=v1.Ids(int64s=v1.Int64Ids(values=[1, 2, 3, 4])))
    rows = v1.GetResponse.FromString(await router.get(asked.SerializeToString(), None))
    assert list(rows.ids.int64s.values) == [1, 2, 3, 4]
    assert rows.vectors.data == bytes(4 * [1] + 4 * [2] + 4 * [3] + 4 * [4])
