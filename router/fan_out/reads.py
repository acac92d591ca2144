"""Reads of a router by id, by filter or by page, and explanations. None has a partial answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vectorshard.router.fan_out.children import Child, Children, all_answers
from vectorshard.router.fan_out.merge import joined_rows, reordered
from vectorshard.shard.config import PAGE_SIZE_DEFAULT
from vectorshard.shard.engine.validation import check_filter, check_ids, check_vectors
from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.types import (
    Call,
    CollectionEntry,
    CountRequest,
    Cursor,
    ExplainRequest,
    Explanation,
    GetRequest,
    IdArray,
    Int64Array,
    ListRequest,
    Rows,
)


async def get(children: Children, request: GetRequest, entry: CollectionEntry, call: Call) -> Rows:
    """Return the rows of existing ids in the order of the request, or those of a filter."""
    check_filter(entry.config, request.filter)
    pages = await all_answers(
        child.shard.get(part, call=child.to(call))
        for child, part in children.parts_of(request, entry.config)
    )
    rows = joined_rows(pages, entry.config)
    if request.ids is None:
        return rows
    return reordered(rows, np.argsort(_places_of(rows.ids, request.ids)))


def _places_of(found: IdArray, ids: IdArray) -> Int64Array:
    """Return the index in `ids` of each id of `found`, (found,)."""
    if ids.dtype == np.object_:
        place = dict(zip(ids.tolist(), range(len(ids)), strict=True))
        return np.fromiter(map(place.__getitem__, found.tolist()), np.int64, len(found))
    ascending = np.argsort(ids)
    places: Int64Array = ascending[np.searchsorted(ids, found, sorter=ascending)]
    return places


async def count(
    children: Children, request: CountRequest, entry: CollectionEntry, call: Call
) -> int:
    """Count live rows."""
    check_filter(entry.config, request.filter)
    counts = await all_answers(
        child.shard.count(part, call=child.to(call))
        for child, part in children.parts_of(request, entry.config)
    )
    return sum(counts)


async def list_rows(
    children: Children, request: ListRequest, entry: CollectionEntry, call: Call
) -> Rows:
    """Return a page: one child after the other, each in its own order."""
    check_filter(entry.config, request.filter)
    in_order = children.in_order()
    wanted = request.page_size or PAGE_SIZE_DEFAULT
    cursor = request.cursor
    pages: list[Rows] = []
    for child in in_order[_place_of_cursor(cursor, children, in_order, entry) :]:
        part = replace(request, cursor=cursor, page_size=wanted)
        page = await child.shard.list_rows(part, call=child.to(call))
        pages.append(page)
        wanted -= len(page.ids)
        cursor = page.cursor
        if cursor is not None:
            break
        if wanted == 0 and child is not in_order[-1]:
            after = in_order[in_order.index(child) + 1]
            cursor = Cursor(incarnation=entry.incarnation, shard=after.first_shard, row=0)
            break
    return replace(joined_rows(pages, entry.config), cursor=cursor)


def _place_of_cursor(
    cursor: Cursor | None, children: Children, in_order: Sequence[Child], entry: CollectionEntry
) -> int:
    if cursor is None:
        return 0
    number = children.placement.child_of_shard(cursor.shard)
    if number is None or cursor.incarnation != entry.incarnation:
        raise InvalidParameter("the cursor is of another collection", field="cursor")
    return in_order.index(children[number])


async def explain(
    children: Children, request: ExplainRequest, entry: CollectionEntry, call: Call
) -> Explanation:
    """Ask the owner of the id, then all others how many of their rows rank before it."""
    check_ids(entry.config, request.id, "id")
    check_vectors(entry.config, request.query, "query")
    check_filter(entry.config, request.filter)
    others = children.all()
    if request.score is not None:
        found = Explanation(score=request.score, exact_rank=1)
    else:
        [(owner, _)] = children.split(request.id)
        found = await owner.shard.explain(request, call=owner.to(call))
        if not found.exists:
            return found
        others = [child for child in others if child is not owner]
    ranked = replace(request, filter=None, score=found.score)
    answers = await all_answers(
        child.shard.explain(ranked, call=child.to(call)) for child in others
    )
    before = sum(answer.exact_rank - 1 for answer in answers)
    return replace(found, exact_rank=found.exact_rank + before)
