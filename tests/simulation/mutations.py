"""Ways to break the router on purpose: a simulation that misses one of them is worth nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import pytest

from vectorshard.router.fan_out import catalogue, merge, search
from vectorshard.router.fan_out import router as router_module
from vectorshard.router.fan_out.catalogue import Catalogue
from vectorshard.router.fan_out.children import Child, all_answers
from vectorshard.router.fan_out.router import Router
from vectorshard.router.fan_out.search import SearchFanOut
from vectorshard.router.fan_out.search_batcher import SearchBatcher
from vectorshard.router.remote.search_links import SearchLinks
from vectorshard.shard.types import (
    Call,
    CollectionEntry,
    Receipt,
    Rows,
    SearchRequest,
    SearchResult,
)

Break = Callable[[pytest.MonkeyPatch], None]


def _sends_no_incarnation(patch: pytest.MonkeyPatch) -> None:
    def without(real: Callable[..., Any]) -> Callable[..., Any]:
        async def ask(*arguments: Any) -> Any:
            *others, call = arguments
            return await real(*others, replace(call, incarnation=""))

        return ask

    patch.setattr(SearchFanOut, "search", without(SearchFanOut.search))
    for method in ("_upsert", "_delete", "_get", "_count", "_describe"):
        patch.setattr(Router, method, without(getattr(Router, method)))


def _sends_no_placement(patch: pytest.MonkeyPatch) -> None:
    real = Child.to
    patch.setattr(Child, "to", lambda child, call: replace(real(child, call), placement=""))


def _keeps_no_time_for_itself(patch: pytest.MonkeyPatch) -> None:
    real = Child.to
    patch.setattr(Child, "to", lambda child, call: replace(real(child, call), deadline=None))


def _counts_what_is_missing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(search, "require_coverage", lambda receipt, min_coverage: None)


def _hides_what_is_missing(patch: pytest.MonkeyPatch) -> None:
    def whole(receipt: Receipt, min_coverage: float) -> None:
        object.__setattr__(receipt, "coverage", 1.0)

    patch.setattr(search, "require_coverage", whole)


def _forgets_what_is_missing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(search, "missing_receipts", lambda shards, reason: {})


def _merges_fewer_hits(patch: pytest.MonkeyPatch) -> None:
    real = merge.merge_results

    def merged(answers: Any, *arguments: Any) -> SearchResult:
        return real(answers[:1] if len(answers) > 1 else answers, *arguments)

    patch.setattr(search, "merge_results", merged)


def _mixes_up_what_it_includes(patch: pytest.MonkeyPatch) -> None:
    for module in (merge, router_module):
        patch.setattr(module, "reordered", lambda rows, order: rows)


def _repeats_writes(patch: pytest.MonkeyPatch) -> None:
    async def all_done(self: Router, call: Call, outcomes: Sequence[Any]) -> list[Any]:
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return [*outcomes]

    patch.setattr(Router, "_all_done", all_done)


def _gathers(patch: pytest.MonkeyPatch, gather: Callable[..., Any]) -> None:
    for module in (catalogue, router_module):
        assert module.all_answers is all_answers
        patch.setattr(module, "all_answers", gather)


def _leaves_parts_running(patch: pytest.MonkeyPatch) -> None:
    async def gather(calls: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
        return await asyncio.gather(*calls)

    _gathers(patch, gather)


def _remembers_for_ever(patch: pytest.MonkeyPatch) -> None:
    async def remembering(
        self: Catalogue, name: str, call: Call, ask: Callable[..., Any], request: Any
    ) -> Any:
        entry = self._entries.get(name) or await self._look_up(name, call)
        entry_call = replace(call, incarnation=entry.incarnation)
        return await self._with_placement(call, lambda: ask(request, entry, entry_call))

    patch.setattr(Catalogue, "ask", remembering)


def _joins_what_is_not_alike(patch: pytest.MonkeyPatch) -> None:
    real = SearchBatcher.search

    async def joining(
        self: SearchBatcher, request: SearchRequest, call: Call, run: Any, *_: Any
    ) -> SearchResult:
        return await real(self, replace(request, min_coverage=0.1), call, run, None)

    patch.setattr(SearchBatcher, "search", joining)


def _joins_without_regard_to_deadlines(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(search, "deadline_class", lambda call, now: 0)
    patch.setattr(
        "vectorshard.router.fan_out.search_batcher._first_deadline",
        lambda chosen: chosen[0].call.deadline,
    )


def _creates_side_by_side(patch: pytest.MonkeyPatch) -> None:
    async def create(self: Catalogue, config: Any, call: Call) -> tuple[CollectionEntry, bool]:
        call = replace(call, incarnation=self._new_incarnation())
        made = await all_answers(
            child.shard.create_collection(config, call=child.to(call))
            for child in self._children.in_order()
        )
        return made[0]

    patch.setattr(Catalogue, "_create", create)


def _keeps_a_link_for_another_placement(patch: pytest.MonkeyPatch) -> None:
    real = SearchLinks.to
    patch.setattr(SearchLinks, "to", lambda links, placement: real(links, ""))


def _gives_rows_in_any_order(patch: pytest.MonkeyPatch) -> None:
    def joined(pages: list[Rows], config: Any) -> Rows:
        return replace(pages[0], ids=pages[0].ids[::-1])

    patch.setattr(router_module, "joined_rows", joined)


def _swallows_a_failed_part(patch: pytest.MonkeyPatch) -> None:
    async def gather(calls: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        answers = [each for each in outcomes if not isinstance(each, BaseException)]
        if not answers:
            raise outcomes[0]
        return answers

    _gathers(patch, gather)


MUTATIONS: Final[Mapping[str, Break]] = {
    "calls name no incarnation": _sends_no_incarnation,
    "calls do not say who they are for": _sends_no_placement,
    "deadlines are not passed on": _keeps_no_time_for_itself,
    "coverage is not looked at": _counts_what_is_missing,
    "receipts claim full coverage": _hides_what_is_missing,
    "receipts do not name who is missing": _forgets_what_is_missing,
    "one shard's hits are the answer": _merges_fewer_hits,
    "vectors are not sorted with their hits": _mixes_up_what_it_includes,
    "writes are repeated though parts may be done": _repeats_writes,
    "a call ends while parts of it run": _leaves_parts_running,
    "a collection is never looked up again": _remembers_for_ever,
    "searches are joined that are not alike": _joins_what_is_not_alike,
    "joined searches go by anyone's deadline": _joins_without_regard_to_deadlines,
    "nobody decides about names": _creates_side_by_side,
    "a link outlives the placement that it is for": _keeps_a_link_for_another_placement,
    "rows come in any order": _gives_rows_in_any_order,
    "a failed part is left out": _swallows_a_failed_part,
}
