"""What a client asks and what it gets back: numpy in, bytes out, and the way back.

Pure: every function builds one unary call, to be sent by whoever has a channel. Nothing here knows
grpc, a clock or a thread, so that the client and the asyncio client share all of it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, partial
from typing import Any, Generic, TypedDict, TypeVar, overload

import numpy as np
import numpy.typing as npt

from vectorshard.client.filter_text import filter_from_text
from vectorshard.shard import wire
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import (
    InvalidConfig,
    InvalidId,
    InvalidParameter,
    InvalidRequest,
    InvalidVector,
    MalformedMessage,
)
from vectorshard.shard.filters import Filter
from vectorshard.shard.types import (
    CollectionConfig,
    CollectionDescription,
    CountRequest,
    Cursor,
    DeleteRequest,
    Effort,
    ExplainRequest,
    Explanation,
    FilterField,
    Float32Array,
    GetRequest,
    IdArray,
    IdType,
    Include,
    IndexConfig,
    ListRequest,
    Metric,
    Receipt,
    Rows,
    SearchRequest,
    ShardDescription,
    Token,
    Topology,
    TrainRequest,
    UInt32Array,
    VectorArray,
)

"""What the path of every RPC begins with."""

AnswerT = TypeVar("AnswerT")
_EnumT = TypeVar("_EnumT", bound=Enum)

Ids = Sequence[int] | Sequence[str] | IdArray
"""Ids as a caller may give them."""

FilterLike = Filter | str
"""A filter as a caller may give it: built of shard.filters, or client.filter_text."""


@dataclass(frozen=True, slots=True)
class UnaryCall(Generic[AnswerT]):
    """A call to send: the RPC's name, the request's bytes, and how to read the answer's."""

    rpc: str
    payload: bytes
    decode: Callable[[bytes], AnswerT]


# ---- answers -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hit:
    """One result. `vector` (dim,) and `metadata` are None when they were not asked for."""

    id: int | str
    score: float
    vector: Float32Array | None = None
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Hits(Sequence[list[Hit]]):
    """The hits of a batch of queries, flat in query order, best first.

    As a sequence it has one list of `Hit` for each query. `counts` is uint32 (queries,), `ids`
    (hits,), `scores` float32 (hits,); `vectors` float32 (hits, dim) and `metadata` (one a hit) are
    None when they were not asked for. `receipt` says what the answer covers.
    """

    counts: UInt32Array
    ids: IdArray
    scores: Float32Array
    receipt: Receipt
    vectors: Float32Array | None = None
    metadata: list[dict[str, Any]] | None = None

    @cached_property
    def _bounds(self) -> list[int]:
        """Where the hits of each query begin, and where the last one's end."""
        return [0, *np.cumsum(self.counts, dtype=np.int64).tolist()]

    def __len__(self) -> int:
        """Return the number of queries."""
        return self.counts.size

    @overload
    def __getitem__(self, query: int) -> list[Hit]: ...
    @overload
    def __getitem__(self, query: slice) -> list[list[Hit]]: ...
    def __getitem__(self, query: int | slice) -> list[Hit] | list[list[Hit]]:
        """Return the hits of one query, or of several."""
        if isinstance(query, slice):
            return [self._of_query(number) for number in range(len(self))[query]]
        return self._of_query(range(len(self))[query])

    def _of_query(self, query: int) -> list[Hit]:
        flat = range(self._bounds[query], self._bounds[query + 1])
        span = slice(flat.start, flat.stop)
        return [
            Hit(
                id_,
                score,
                None if self.vectors is None else self.vectors[hit],
                None if self.metadata is None else self.metadata[hit],
            )
            for hit, id_, score in zip(
                flat, self.ids[span].tolist(), self.scores[span].tolist(), strict=True
            )
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class RowsView:
    """Rows that exist: ids (rows,), and what was asked for of them, else None.

    `vectors` is float32 (rows, dim), of norm 1 under COSINE; `metadata` is one dict a row.
    """

    ids: IdArray
    vectors: Float32Array | None = None
    metadata: list[dict[str, Any]] | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.ids.size


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """Who answers, and within which bounds."""

    version: str
    topology: Topology
    limits: Limits


# ---- what a caller hands over --------------------------------------------------------------------


def id_array(ids: Sequence[int] | Sequence[str] | IdArray | npt.NDArray[Any]) -> IdArray:
    """Return ids (rows,): int64 of integers, object of str of strings.

    Raises
    ------
    InvalidId
        If they are neither all integers of 64 bits nor all strings; the row is the first other.
    """
    if isinstance(ids, str | bytes):
        raise InvalidId("one id alone; give a sequence of ids", field="ids")
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1:
            raise InvalidId(f"of shape {ids.shape}, not (rows,)", field="ids")
        if ids.dtype.kind == "i":
            return ids.astype(np.int64, copy=False)
    listed = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    if listed and isinstance(listed[0], str):
        return _string_ids(listed)
    return _int64_ids(listed)


def _string_ids(ids: list[Any]) -> npt.NDArray[np.object_]:
    for row, id_ in enumerate(ids):
        if not isinstance(id_, str):
            raise InvalidId(f"{id_!r} is no string, as row 0 is", field="ids", row=row)
    strings = np.empty(len(ids), dtype=np.object_)
    strings[:] = ids
    return strings


def _int64_ids(ids: list[Any]) -> npt.NDArray[np.int64]:
    integers = np.empty(len(ids), dtype=np.int64)
    for row, id_ in enumerate(ids):
        try:
            if isinstance(id_, bool | np.bool_):
                raise TypeError
            integers[row] = operator.index(id_)
        except TypeError:
            raise InvalidId(f"{id_!r} is no integer", field="ids", row=row) from None
        except OverflowError:
            raise InvalidId(f"{id_} has more than 64 bits", field="ids", row=row) from None
    return integers


def real_array(values: npt.ArrayLike, field: str) -> npt.NDArray[Any]:
    """Return an array of real numbers of any width, without a copy where there is one.

    Raises
    ------
    InvalidVector
        If they are ragged or not numbers.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InvalidVector(str(error), field=field) from None
    if array.dtype.kind not in "fiu":
        raise InvalidVector(f"of type {array.dtype}, not real numbers", field=field)
    return array


def wire_vectors(array: npt.NDArray[Any]) -> VectorArray:
    """Return numbers as they travel: float16 as they are, all others as float32.

    What overflows becomes Inf, which the server refuses by its row.
    """
    if array.dtype == np.float16:
        return array
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def _query_matrix(queries: npt.ArrayLike, field: str) -> VectorArray:
    array = real_array(queries, field)
    if array.ndim == 1:
        array = array.reshape(1 if array.size else 0, array.size)
    if array.ndim != 2:
        raise MalformedMessage(f"of shape {array.shape}, not (queries, dim)", field=field)
    return wire_vectors(array)


def metadata_bytes(metadata: Sequence[Mapping[str, Any] | None] | None) -> list[bytes] | None:
    """Return each row's metadata as bytes; None and {} are b"".

    Raises
    ------
    InvalidParameter
        For what metadata cannot hold; names the row.
    """
    if metadata is None:
        return None
    return [
        wire.metadata_from_mapping(mapping, row) if mapping else b""
        for row, mapping in enumerate(metadata)
    ]


def _mappings(metadata: Sequence[bytes] | None) -> list[dict[str, Any]] | None:
    return None if metadata is None else [wire.mapping_from_metadata(row) for row in metadata]


def filter_of(filter_: FilterLike | None) -> Filter | None:
    """Return the filter that a caller means; raise InvalidParameter for a text that says none."""
    return filter_from_text(filter_) if isinstance(filter_, str) else filter_


def _selection(ids: Ids | None, filter_: FilterLike | None) -> tuple[IdArray | None, Filter | None]:
    """Return ids and filter as they travel; raise InvalidParameter unless one of them is given."""
    if (ids is None) == (filter_ is None):
        raise InvalidParameter("give ids or a filter, one of them", field="ids, filter")
    return None if ids is None else id_array(ids), filter_of(filter_)


def member_of(
    enum: type[_EnumT], value: _EnumT | str, field: str, refuse: type[InvalidRequest]
) -> _EnumT:
    """Return the member that `value` is or names; raise `refuse` when there is none."""
    try:
        return enum(value)
    except ValueError:
        known = ", ".join(member.value for member in enum)
        raise refuse(f"{value!r} is none of {known}", field=field) from None


# ---- calls ---------------------------------------------------------------------------------------


def create_collection(
    name: str,
    *,
    dim: int,
    metric: Metric | str,
    id_type: IdType | str,
    index: IndexConfig | None,
    target_recall: float | None,
    filter_fields: Sequence[FilterField],
) -> UnaryCall[CollectionConfig]:
    """Create a collection."""
    payload = wire.encode_create_collection_request(
        name=name,
        dim=dim,
        metric=member_of(Metric, metric, "config.metric", InvalidConfig),
        id_type=member_of(IdType, id_type, "config.id_type", InvalidConfig),
        index=index,
        target_recall=target_recall,
        filter_fields=filter_fields,
    )
    return UnaryCall("CreateCollection", payload, _created_config)


def _created_config(payload: bytes) -> CollectionConfig:
    entry, _ = wire.decode_create_collection_response(payload)
    return entry.config


def drop_collection(name: str) -> UnaryCall[None]:
    """Drop a collection."""
    return UnaryCall(
        "DropCollection",
        wire.encode_drop_collection_request(name),
        wire.decode_drop_collection_response,
    )


def list_collections() -> UnaryCall[list[CollectionConfig]]:
    """List the collections."""
    return UnaryCall(
        "ListCollections",
        wire.encode_list_collections_request(),
        _listed_configs,
    )


def _listed_configs(payload: bytes) -> list[CollectionConfig]:
    return [entry.config for entry in wire.decode_list_collections_response(payload)]


def describe(name: str) -> UnaryCall[CollectionDescription]:
    """Describe a collection."""
    return UnaryCall(
        "DescribeCollection",
        wire.encode_describe_collection_request(name),
        wire.decode_describe_collection_response,
    )


def train(name: str, wait: bool) -> UnaryCall[Sequence[ShardDescription]]:
    """Train a collection."""
    payload = wire.encode_train_request(TrainRequest(collection=name, wait=wait))
    return UnaryCall("Train", payload, wire.decode_train_response)


def server_info() -> UnaryCall[ServerInfo]:
    """Ask about the server."""
    return UnaryCall("GetServerInfo", wire.encode_get_server_info_request(), _server_info)


def _server_info(payload: bytes) -> ServerInfo:
    version, topology, limits = wire.decode_get_server_info_response(payload)
    return ServerInfo(version=version, topology=topology, limits=limits)


def delete(name: str, ids: Ids | None, filter_: FilterLike | None) -> UnaryCall[int]:
    """Delete ids, or what passes a filter."""
    chosen, condition = _selection(ids, filter_)
    request = DeleteRequest(collection=name, ids=chosen, filter=condition)
    return UnaryCall("Delete", wire.encode_delete_request(request), _deleted)


def _deleted(payload: bytes) -> int:
    return wire.decode_delete_response(payload).deleted


def get(
    name: str, ids: Ids | None, filter_: FilterLike | None, *, vectors: bool, metadata: bool
) -> UnaryCall[RowsView]:
    """Get rows by id, or what passes a filter."""
    include = Include(vectors=vectors, metadata=metadata)
    chosen, condition = _selection(ids, filter_)
    request = GetRequest(collection=name, ids=chosen, filter=condition, include=include)
    return UnaryCall("Get", wire.encode_get_request(request), partial(_got, include=include))


def _got(payload: bytes, include: Include) -> RowsView:
    return _view(wire.decode_get_response(payload, include))


def _view(rows: Rows) -> RowsView:
    return RowsView(ids=rows.ids, vectors=rows.vectors, metadata=_mappings(rows.metadata))


def count(name: str, ids: Ids | None, filter_: FilterLike | None) -> UnaryCall[int]:
    """Count rows."""
    request = CountRequest(
        collection=name,
        ids=None if ids is None else id_array(ids),
        filter=filter_of(filter_),
    )
    return UnaryCall("Count", wire.encode_count_request(request), wire.decode_count_response)


def list_page(
    name: str,
    *,
    page_size: int,
    cursor: Cursor | None,
    filter_: Filter | None,
    vectors: bool,
    metadata: bool,
) -> UnaryCall[tuple[RowsView, Cursor | None]]:
    """List a page of rows; the answer's cursor leads to the next, None after the last."""
    include = Include(vectors=vectors, metadata=metadata)
    payload = wire.encode_list_request(
        ListRequest(
            collection=name, page_size=page_size, cursor=cursor, filter=filter_, include=include
        )
    )
    return UnaryCall("List", payload, partial(_page, include=include))


def _page(payload: bytes, include: Include) -> tuple[RowsView, Cursor | None]:
    rows = wire.decode_list_response(payload, include)
    return _view(rows), rows.cursor


class SearchOptions(TypedDict, total=False):
    """How to search, and what to bring along, as `search` takes it."""

    exact: bool
    nprobe: int | None
    target_recall: float | None
    vectors: bool
    metadata: bool
    score_threshold: float | None
    min_coverage: float | None
    token: Token | None


def search(
    name: str,
    queries: npt.ArrayLike,
    k: int,
    *,
    filter_: FilterLike | None = None,
    exact: bool = False,
    nprobe: int | None = None,
    target_recall: float | None = None,
    vectors: bool = False,
    metadata: bool = False,
    score_threshold: float | None = None,
    min_coverage: float | None = None,
    token: Token | None = None,
) -> UnaryCall[Hits]:
    """Search for the k best rows of each query."""
    include = Include(vectors=vectors, metadata=metadata)
    payload = wire.encode_search_request(
        SearchRequest(
            collection=name,
            queries=_query_matrix(queries, "queries"),
            k=k,
            effort=_effort(exact, nprobe, target_recall),
            filter=filter_of(filter_),
            include=include,
            score_threshold=score_threshold,
            min_coverage=1.0 if min_coverage is None else min_coverage,
            token=token,
        )
    )
    return UnaryCall("Search", payload, partial(_hits, include=include))


def _effort(exact: bool, nprobe: int | None, target_recall: float | None) -> Effort:
    """Return the one effort that is stated. A 0 would mean none, so it is refused here."""
    if exact + (nprobe is not None) + (target_recall is not None) > 1:
        raise InvalidParameter(
            "state one of exact, nprobe and target_recall", field="exact, nprobe, target_recall"
        )
    if nprobe is not None and nprobe < 1:
        raise InvalidParameter(f"{nprobe} is less than 1", field="nprobe")
    if target_recall is not None and not 0 < target_recall <= 1:
        raise InvalidParameter(f"{target_recall} is not in (0, 1]", field="target_recall")
    return Effort(nprobe=nprobe or 0, target_recall=target_recall or 0.0, exact=exact)


def _hits(payload: bytes, include: Include) -> Hits:
    result = wire.decode_search_response(payload, include)
    return Hits(
        counts=result.hits.counts,
        ids=result.hits.ids,
        scores=result.hits.scores,
        receipt=result.receipt,
        vectors=result.vectors,
        metadata=_mappings(result.metadata),
    )


def explain(
    name: str, query: npt.ArrayLike, id_: int | str, filter_: FilterLike | None
) -> UnaryCall[Explanation]:
    """Ask why a query does or does not find an id."""
    ids = id_array(np.array([id_], dtype=np.object_))
    request = ExplainRequest(
        collection=name,
        query=_query_matrix(query, "query"),
        id=ids,
        filter=filter_of(filter_),
    )
    return UnaryCall("Explain", wire.encode_explain_request(request), wire.decode_explain_response)
