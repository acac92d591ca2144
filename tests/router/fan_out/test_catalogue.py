"""Collections of a router over fakes: creation, drops, and what it remembers of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.router.fan_out.samples import found, remembering, search
from tests.router.model_shard import FaultyShard
from tests.shard.samples import config_of, some_vectors
from vectorshard.router.fan_out.children import Children
from vectorshard.router.fan_out.router import Router
from vectorshard.shard.errors import (
    CollectionExists,
    CollectionNotFound,
    DimensionMismatch,
    IncarnationMismatch,
    ShardUnavailable,
)
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CollectionConfig,
    CollectionEntry,
    CountRequest,
    Effort,
    Role,
    UpdateRequest,
    UpsertRequest,
)


async def test_a_creation_that_reached_only_some_is_completed(children: list[FaultyShard]) -> None:
    del children[1].entries["words"], children[2].entries["words"]
    entry, new = await (await Router.connect(children)).create_collection(config_of())
    assert (entry.incarnation, new) == ("first", True)
    assert {child.entries["words"].incarnation for child in children} == {"first"}


async def test_a_creation_that_fails_on_some_can_be_repeated(children: list[FaultyShard]) -> None:
    for child in children:
        child.entries.clear()
    router = await Router.connect(children)
    children[2].failure = ShardUnavailable("gone")
    with pytest.raises(ShardUnavailable):
        await router.create_collection(config_of())
    children[2].failure = None
    entry, _ = await router.create_collection(config_of())
    assert {child.entries["words"] for child in children} == {entry}


async def test_a_creation_asks_nobody_when_a_child_has_become_unknown_meanwhile(
    children: list[FaultyShard],
) -> None:
    for child in children:
        child.entries.clear()
    known = Children(children, Role.ROUTER)
    await known.connect()

    class Forgotten(FaultyShard):
        """Becomes unknown while it is asked what it has."""

        async def list_collections(self, *, call: Call = NO_LIMIT) -> Sequence[CollectionEntry]:
            known[2].topology = None
            return []

    known[1].shard = Forgotten(1, 3)
    with pytest.raises(ShardUnavailable):
        await Router(known).create_collection(config_of())
    assert not children[0].asked("create")


async def test_a_name_that_any_child_uses_for_something_else_is_taken(
    children: list[FaultyShard],
) -> None:
    children[0].entries.clear()
    other = CollectionEntry(config=config_of(dim=99), incarnation="other")
    children[2].entries["words"] = other
    with pytest.raises(CollectionExists):
        await (await Router.connect(children)).create_collection(config_of())
    assert children[0].entries == {}


async def test_what_a_drop_left_over_is_not_completed_to_a_collection_again(
    children: list[FaultyShard],
) -> None:
    del children[0].entries["words"]  # where it is dropped first
    router = await Router.connect(children)
    with pytest.raises(IncarnationMismatch, match="drop it once more"):
        await router.create_collection(config_of())
    await router.drop_collection("words")
    _, new = await router.create_collection(config_of())
    assert new


async def test_leftovers_of_a_half_finished_drop_are_refused_by_a_creation(
    children: list[FaultyShard],
) -> None:
    children[2].with_collection(incarnation="second")
    router = await Router.connect(children)
    with pytest.raises(IncarnationMismatch, match="drop it once more"):
        await router.create_collection(config_of())
    await router.drop_collection("words")
    await router.create_collection(config_of())


async def test_who_is_slower_in_creating_the_same_takes_what_is_there(
    children: list[FaultyShard],
) -> None:
    for child in children:
        child.entries.clear()

    class Faster(FaultyShard):
        """Somebody else creates the collection here just before."""

        async def create_collection(
            self, config: CollectionConfig, *, call: Call = NO_LIMIT
        ) -> tuple[CollectionEntry, bool]:
            if not self.entries:
                self.with_collection(incarnation="theirs")
            return await super().create_collection(config, call=call)

    children[0] = Faster(0, 3)
    entry, _ = await (await Router.connect(children)).create_collection(config_of())
    assert entry.incarnation == "theirs"
    assert {child.entries["words"].incarnation for child in children} == {"theirs"}


async def test_a_drop_that_cannot_begin_where_names_are_decided_drops_nothing(
    children: list[FaultyShard],
) -> None:
    router = await Router.connect(children)
    children[0].drop_failure = ShardUnavailable("gone")
    with pytest.raises(ShardUnavailable):
        await router.drop_collection("words")
    assert all(child.entries for child in children)


async def test_a_drop_means_the_collection_that_was_there_when_it_was_asked(
    children: list[FaultyShard],
) -> None:
    class Later(FaultyShard):
        """Drop and creation of others arrive just before."""

        async def drop_collection(self, name: str, *, call: Call = NO_LIMIT) -> None:
            self.with_collection(incarnation="second")
            await super().drop_collection(name, call=call)

    children[2] = Later(2, 3).with_collection()
    await (await Router.connect(children)).drop_collection("words")
    assert [bool(child.entries) for child in children] == [False, False, True]


async def test_a_drop_that_reached_only_some_is_completed(children: list[FaultyShard]) -> None:
    router = await Router.connect(children)
    children[1].drop_failure = ShardUnavailable("gone")
    with pytest.raises(ShardUnavailable):
        await router.drop_collection("words")
    children[1].drop_failure = None
    assert [bool(child.entries) for child in children] == [False, True, False]
    await router.drop_collection("words")
    assert not any(child.entries for child in children)
    with pytest.raises(CollectionNotFound):
        await router.drop_collection("words")


async def test_collections_of_any_child_are_listed_once(children: list[FaultyShard]) -> None:
    children[1].with_collection("another")
    listed = await (await Router.connect(children)).list_collections()
    assert [entry.config.name for entry in listed] == ["another", "words"]


async def test_a_collection_is_looked_up_once_and_its_incarnation_sent_with_every_call(
    children: list[FaultyShard],
) -> None:
    router = await Router.connect(children)
    for _ in range(3):
        await router.search(search())
    for child in children:
        assert len(child.asked("list collections")) == 1
        sent = {call.incarnation for name, _, call in child.calls if name == "search"}
        assert sent == {"first"}


async def test_a_router_that_remembers_a_dropped_collection_looks_again(
    children: list[FaultyShard],
) -> None:
    router = await remembering(children)
    for child in children:
        child.with_collection(incarnation="second")
    assert await router.count(CountRequest(collection="words")) == 3
    for child in children:
        child.entries.clear()
    with pytest.raises(CollectionNotFound):
        await router.search(search())
    for child in children:
        child.with_collection(incarnation="third")
    result = await router.search(search())
    assert result.receipt.coverage == 1.0


async def test_a_collection_that_was_created_anew_with_another_dim_is_served_as_it_is_now(
    children: list[FaultyShard],
) -> None:
    routers = [await remembering(children) for _ in range(2)]
    for child in children:
        child.entries["words"] = CollectionEntry(config=config_of(dim=16), incarnation="second")
    ids, vectors = np.arange(60), some_vectors(60, dim=16)
    result = await routers[0].upsert(UpsertRequest(collection="words", ids=ids, vectors=vectors))
    assert result.accepted == 60
    for router in routers:
        hits = (await found(router, queries=vectors[:1])).hits
        assert hits.ids.tolist() == [30, 200, 3, 10, 1, 100]
        with pytest.raises(DimensionMismatch):
            await found(router)
    for child in children:
        sent = [call.incarnation for name, _, call in child.calls if name == "upsert"]
        assert sent == ["second"]


async def test_a_bad_request_is_refused_by_a_router_that_remembers_the_collection(
    children: list[FaultyShard],
) -> None:
    router = await remembering(children)
    for _ in range(2):
        with pytest.raises(DimensionMismatch):
            await found(router, queries=some_vectors(1, dim=16))
    assert len((await found(router)).hits.ids) == 6


async def test_a_caller_that_means_another_incarnation_is_not_helped_on(
    children: list[FaultyShard],
) -> None:
    router = await remembering(children)
    with pytest.raises(IncarnationMismatch):
        await router.search(search(), call=Call(incarnation="older"))
    await router.search(search(), call=Call(incarnation="first"))


def targets_of(children: Sequence[FaultyShard]) -> list[float]:
    """Return what searches aim for on each child."""
    return [child.entries["words"].config.target_recall for child in children]


UPDATE = UpdateRequest(collection="words", target_recall=0.9)


async def test_an_update_that_fails_on_some_can_be_repeated(children: list[FaultyShard]) -> None:
    router = await Router.connect(children)
    children[2].failure = ShardUnavailable("gone")
    with pytest.raises(ShardUnavailable):
        await router.update_collection(UPDATE)
    children[2].failure = None
    assert targets_of(children) == [0.9, 0.9, 0.95]
    for target_recall in (0.9, 0.95):  # it is neither, until the update is repeated
        with pytest.raises(CollectionExists):
            await router.create_collection(config_of(target_recall=target_recall))
    entry = await router.update_collection(UPDATE)
    assert targets_of(children) == 3 * [0.9]
    assert await router.create_collection(config_of(target_recall=0.9)) == (entry, False)


async def test_an_update_that_fails_where_names_are_decided_changes_nothing(
    children: list[FaultyShard],
) -> None:
    router = await Router.connect(children)
    children[0].failure = ShardUnavailable("gone")
    with pytest.raises(ShardUnavailable):
        await router.update_collection(UPDATE)
    assert targets_of(children) == 3 * [0.95]


async def test_a_router_that_remembers_the_old_target_names_none_to_its_children(
    children: list[FaultyShard],
) -> None:
    router, other = await Router.connect(children), await Router.connect(children)
    await other.search(search())
    await router.update_collection(UPDATE)
    await other.search(search())
    assert (await other.describe("words")).config.target_recall == 0.9
    for child in children:
        efforts = [request.effort for request in child.asked("search")]  # type: ignore[attr-defined]
        assert efforts == 2 * [Effort()]
