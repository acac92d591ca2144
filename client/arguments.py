"""Arguments of a client's methods that select rows and say how to search. Pure.

A client rejects here what no server accepts; limits and the collection's own rules are the
server's. Ids, vectors, metadata and configurations are in the modules beside this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from vectorshard.client.config_arguments import flag_of
from vectorshard.client.filter_text import filter_from_text
from vectorshard.client.id_arguments import (
    Ids,
    id_array,
    is_listed,
    plain_list,
    why_not_one_axis,
)
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.filters import And, Equals, Filter, In
from vectorshard.shard.types import Effort, IdArray, Include, Token
from vectorshard.shard.wire.primitives import check_recall, float_of, shown, uint32_of

FilterLike: TypeAlias = Filter | str | Mapping[str, Any]
"""A filter as a caller may pass it: built from shard.filters; text, see client.filter_text; or a
mapping of fields to the value that each has, or to a list of values of which it has one."""


def filter_of(filter_: FilterLike | None) -> Filter | None:
    """Return the filter that a caller passed; InvalidParameter for one that is not a filter."""
    if filter_ is None or isinstance(filter_, Filter):
        return filter_
    if isinstance(filter_, str):
        return filter_from_text(filter_)
    if not isinstance(filter_, Mapping):
        reason = (
            f"{shown(filter_)} is not a filter: pass text such as 'lang = \"en\"', or a mapping"
        )
        raise InvalidParameter(reason, field="filter")
    if not filter_:
        raise InvalidParameter(
            "an empty mapping is not a filter: pass None for no filter", field="filter"
        )
    conditions = tuple(_condition(name, value) for name, value in filter_.items())
    return conditions[0] if len(conditions) == 1 else And(conditions)


def _condition(name: Any, value: Any) -> Filter:
    if isinstance(value, Mapping):
        reason = f"the value of {shown(name)} is a mapping: pass text such as '{name} >= 1990'"
        raise InvalidParameter(reason, field="filter")
    if reason := why_not_one_axis(value):
        raise InvalidParameter(f"the values of {shown(name)}: {reason}", field="filter")
    if isinstance(value, str | bytes | bytearray | memoryview) or not is_listed(value):
        return Equals(name, value)
    return In(name, tuple(plain_list(value)))


def selection(
    ids: Ids | None, filter_: FilterLike | None, *, ordered: bool
) -> tuple[IdArray | None, Filter | None]:
    """Return ids or a filter as they travel; InvalidParameter unless exactly one is given."""
    if ids is None and filter_ is None:
        raise InvalidParameter("one of ids and filter is required", field="ids, filter")
    if ids is not None and filter_ is not None:
        raise InvalidParameter("ids and filter are mutually exclusive", field="ids, filter")
    return None if ids is None else id_array(ids, ordered=ordered), filter_of(filter_)


def effort_of(exact: bool, nprobe: int | None, target_recall: float | None) -> Effort:
    """Return the search effort. On the wire a 0 would mean the default, so it is rejected here."""
    exact = flag_of(exact, "exact")
    if exact + (nprobe is not None) + (target_recall is not None) > 1:
        raise InvalidParameter(
            "exact, nprobe and target_recall are mutually exclusive",
            field="exact, nprobe, target_recall",
        )
    if nprobe is not None:
        largest = Limits().nlist
        nprobe = uint32_of(nprobe, largest, "nprobe", InvalidParameter)
        if nprobe < 1:
            raise InvalidParameter(f"{nprobe} is not in 1..{largest:,}", field="nprobe")
    if target_recall is not None:
        target_recall = float_of(target_recall, "target_recall", InvalidParameter)
        check_recall(target_recall, "target_recall", InvalidParameter)
    return Effort(nprobe=nprobe or 0, target_recall=target_recall or 0.0, exact=exact)


def include_of(vectors: bool, metadata: bool) -> Include:
    """Return what a result includes."""
    return Include(vectors=flag_of(vectors, "vectors"), metadata=flag_of(metadata, "metadata"))


def token_of(token: Token | None) -> Token | None:
    """Return the token of an UpsertSummary; InvalidParameter for anything else."""
    if token is not None and not isinstance(token, Token):
        reason = f"{shown(token)} is not a Token: pass the token of an UpsertSummary"
        raise InvalidParameter(reason, field="token")
    return token
