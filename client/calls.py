"""The table of calls: one function for each method that `Client` and `AsyncClient` share. Pure.

A function has the method's parameters and docstring, and returns what to send and how to read the
answer. The two clients only send it, so that a method is written once. What the functions need is
loaded with the first call.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypedDict, TypeVar

from vectorshard.client.lazy import parts
from vectorshard.shard.errors import DeadlineExceeded, InvalidConfig, VectorShardError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from vectorshard.client.arguments import FilterLike
    from vectorshard.client.config_arguments import FilterFields, IndexLike
    from vectorshard.client.id_arguments import Ids
    from vectorshard.client.metadata_arguments import Metadata
    from vectorshard.client.results import Hits, RowsView, ServerInfo
    from vectorshard.client.upload import Progress, UpsertUpload
    from vectorshard.client.vector_arguments import Vectors
    from vectorshard.shard.descriptions import (
        CollectionDescription,
        Explanation,
        ShardDescription,
    )
    from vectorshard.shard.types import (
        CollectionConfig,
        IdType,
        ListRequest,
        Metric,
        Rows,
        Token,
        WriteMode,
    )
    from vectorshard.shard.wire.rpcs import Rpc

AnswerT = TypeVar("AnswerT")
RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")


_DEADLINE_TEXT = "Deadline Exceeded"
"""gRPC's text for a call whose deadline has passed."""


@dataclass(frozen=True, slots=True)
class UnaryCall(Generic[AnswerT]):
    """A call to send: the name of the RPC, the request's bytes, and how to read the response.

    Without `timeout_s`, the timeout of the client applies. `goes_on` is what the server does after
    the deadline, and how to see it.
    """

    rpc: str
    payload: bytes
    decode: Callable[[bytes], AnswerT]
    timeout_s: float | None = None
    goes_on: str = ""

    def explained(self, error: VectorShardError, timeout_s: float) -> VectorShardError:
        """Return the error; DeadlineExceeded also names the timeout, and what goes on after it."""
        if isinstance(error, DeadlineExceeded):
            text = str(error)
            text = f"no answer within {timeout_s:g} s" if text == _DEADLINE_TEXT else text
            error.args = (f"{text}; {self.goes_on}" if self.goes_on else text,)
        return error


def _call(
    rpc: Rpc[RequestT, ResultT],
    request: RequestT,
    read: Callable[[ResultT], AnswerT],
    timeout_s: float | None = None,
) -> UnaryCall[AnswerT]:
    return UnaryCall(
        rpc.name,
        rpc.encode_request(request),
        lambda payload: read(rpc.decode_response(payload, request)),
        None if timeout_s is None else parts.seconds_of(timeout_s),
    )


def _itself(result: ResultT) -> ResultT:
    return result


# ---- collections ---------------------------------------------------------------------------------


def server_info() -> UnaryCall[ServerInfo]:
    """Return the server's version, topology and limits, and what an operator has to look at."""
    return UnaryCall(
        parts.rpcs.GET_SERVER_INFO, parts.encode_get_server_info_request(), _server_info
    )


def _server_info(payload: bytes) -> ServerInfo:
    version, topology, limits, problems = parts.decode_get_server_info_response(payload)
    return parts.ServerInfo(version=version, topology=topology, limits=limits, problems=problems)


def create_collection(
    name: str,
    *,
    dim: int,
    metric: Metric | str = "cosine",
    id_type: IdType | str = "int64",
    index: IndexLike | None = None,
    target_recall: float | None = None,
    filter_fields: FilterFields = (),
) -> UnaryCall[CollectionConfig]:
    """Create a collection, and return its resolved configuration.

    For `index` and `target_recall`, None means the server's defaults. Creating the same collection
    again changes nothing. Enums may be given as text in any case.

    Parameters
    ----------
    index
        An IndexConfig, a dict of its fields, or the name of a kind. An `nlist` fixes the number of
        lists.
    filter_fields
        FilterFields, pairs such as ``("year", "int64")``, or a dict of names and types.

    Raises
    ------
    InvalidConfig
        For an invalid configuration.
    CollectionExists
        If a collection of this name has another configuration.
    """
    payload = parts.encode_create_collection_request(
        name=name,
        dim=dim,
        metric=parts.member_of(parts.Metric, metric, "config.metric", InvalidConfig),
        id_type=parts.member_of(parts.IdType, id_type, "config.id_type", InvalidConfig),
        index=parts.index_of(index),
        target_recall=target_recall,
        filter_fields=parts.filter_fields_of(filter_fields),
    )
    return UnaryCall(parts.rpcs.CREATE_COLLECTION.name, payload, _created_config)


def _created_config(payload: bytes) -> CollectionConfig:
    entry, _ = parts.decode_create_collection_response(payload)
    return entry.config


def drop_collection(name: str) -> UnaryCall[None]:
    """Drop a collection with all its rows."""
    return _call(parts.rpcs.DROP_COLLECTION, parts.name_of(name), _itself)


def update_collection(name: str, *, target_recall: float) -> UnaryCall[CollectionConfig]:
    """Change the recall that a collection's searches aim for, and return its configuration.

    The index is not trained again. If a shard is missing, repeat the update once it is back: until
    then the shards aim for different targets.

    Raises
    ------
    InvalidParameter
        If the target is not in (0, 1].
    """
    request = parts.UpdateRequest(collection=parts.name_of(name), target_recall=target_recall)
    return _call(parts.rpcs.UPDATE_COLLECTION, request, lambda entry: entry.config)


def list_collections() -> UnaryCall[list[CollectionConfig]]:
    """Return the collections by name."""
    return _call(
        parts.rpcs.LIST_COLLECTIONS, None, lambda entries: [entry.config for entry in entries]
    )


def describe(name: str) -> UnaryCall[CollectionDescription]:
    """Describe a collection. `incarnation` is empty: servers do not report it to clients."""
    return _call(parts.rpcs.DESCRIBE_COLLECTION, parts.name_of(name), _itself)


def train(
    name: str, wait: bool = False, *, timeout_s: float | None = None
) -> UnaryCall[Sequence[ShardDescription]]:
    """Train a new index on every shard. With `wait`, return after the training.

    A training may take longer than the timeout of the client, which `timeout_s` overrides. After
    DeadlineExceeded the training goes on: `describe` shows whether a shard is `training`.
    """
    request = parts.TrainRequest(collection=parts.name_of(name), wait=parts.flag_of(wait, "wait"))
    call = _call(parts.rpcs.TRAIN, request, _itself, timeout_s)
    goes_on = f"the training goes on, and describe({name!r}) shows when it has ended"
    return replace(call, goes_on=goes_on if wait else "")


# ---- rows ----------------------------------------------------------------------------------------


def upsert(
    name: str,
    ids: Ids,
    vectors: Vectors,
    metadata: Metadata | None = None,
    *,
    mode: WriteMode | str = "upsert",
    progress: Progress | None = None,
) -> UpsertUpload:
    """Write any number of rows. When it returns they are durable and searchable.

    Many rows travel as a stream of messages. When that fails midway, `error.acknowledged_rows`
    counts the first rows that are written; some of the rows after them may be. When shards are
    missing, the rows of the other shards are still written, and `error.unwritten_rows` lists those
    that are not. Repeating an upsert is harmless, unless another writer wrote the same ids since.

    Parameters
    ----------
    ids
        (rows,), each id once: integers of 64 bits, or strings; or one id. Anything with an order,
        such as the keys of a dict, whose values may be the vectors; but no set.
    vectors
        (rows, dim), real numbers; (dim,) for one id. float16 travels as float16, everything else as
        float32. Arrays of pandas, Arrow and torch are read, too.
    metadata
        None, a mapping (or None) for each row, or a DataFrame; one mapping for one id.
    mode
        For an id that exists: "upsert" replaces its row; "insert" reports it in the errors of the
        summary, unless its content is the same.
    progress
        Called with (rows acknowledged, rows) after every message.

    Raises
    ------
    InvalidRequest
        For rows that the collection does not accept: see its subclasses.
    ShardUnavailable
        Also when only some of the rows are not written.
    """
    return parts.UpsertUpload(name, ids, vectors, metadata, mode=mode, progress=progress)


def delete(
    name: str, ids: Ids | None = None, *, filter: FilterLike | None = None
) -> UnaryCall[int]:
    """Delete the rows of `ids`, or those that pass a filter; return how many rows existed.

    Raises
    ------
    InvalidId
        For an invalid id, or one that occurs twice.
    InvalidParameter
        For an invalid filter, and unless exactly one of `ids` and `filter` is given.
    """
    chosen, condition = parts.selection(ids, filter, ordered=False)
    request = parts.DeleteRequest(collection=parts.name_of(name), ids=chosen, filter=condition)
    return _call(parts.rpcs.DELETE, request, lambda result: result.deleted)


def get(
    name: str,
    ids: Ids | None = None,
    *,
    filter: FilterLike | None = None,
    vectors: bool = True,
    metadata: bool = True,
) -> UnaryCall[RowsView]:
    """Return the rows of `ids` that exist, in the order of `ids`, or those that pass a filter.

    Rows that pass a filter come in no particular order.

    Raises
    ------
    InvalidId
        For an invalid id, or one that occurs twice.
    InvalidParameter
        For an invalid filter, and unless exactly one of `ids` and `filter` is given.
    LimitExceeded
        If the response does not fit in one message: get fewer ids, or use `list_rows`.
    """
    include = parts.include_of(vectors, metadata)
    chosen, condition = parts.selection(ids, filter, ordered=True)
    request = parts.GetRequest(
        collection=parts.name_of(name), ids=chosen, filter=condition, include=include
    )
    return _call(parts.rpcs.GET, request, parts.rows_view)


def count(name: str, ids: Ids | None = None, *, filter: FilterLike | None = None) -> UnaryCall[int]:
    """Count the live rows: all of them, or those in `ids`, that pass a filter, or both."""
    chosen = None if ids is None else parts.id_array(ids, ordered=False)
    request = parts.CountRequest(
        collection=parts.name_of(name), ids=chosen, filter=parts.filter_of(filter)
    )
    return _call(parts.rpcs.COUNT, request, _itself)


class Listing:
    """The pages of `list_rows`. The caller sends `next_call()` until it returns None."""

    def __init__(self, request: ListRequest) -> None:
        self._request: ListRequest | None = request

    def next_call(self) -> UnaryCall[RowsView] | None:
        """Return the call for the next page, None after the last page."""
        if self._request is None:
            return None
        return _call(parts.rpcs.LIST, self._request, self._page)

    def _page(self, rows: Rows) -> RowsView:
        assert self._request is not None
        cursor = rows.cursor
        self._request = None if cursor is None else replace(self._request, cursor=cursor)
        return parts.rows_view(rows)


def list_rows(
    name: str,
    *,
    page_size: int = 1_000,
    filter: FilterLike | None = None,
    vectors: bool = False,
    metadata: bool = False,
    skip_damaged: bool = False,
) -> Listing:
    """Yield all live rows, or those that pass a filter, in pages of at most `page_size` rows.

    A row that lives throughout the listing is returned at least once. A row that is written
    meanwhile may be returned again. A damaged row is an error, unless `skip_damaged` leaves it out
    and names its id in `damaged` of its page, which may then have no rows.
    """
    include = parts.include_of(vectors, metadata)
    return Listing(
        parts.ListRequest(
            collection=parts.name_of(name),
            page_size=page_size,
            filter=parts.filter_of(filter),
            include=include,
            skip_damaged=parts.flag_of(skip_damaged, "skip_damaged"),
        )
    )


# ---- searches ------------------------------------------------------------------------------------


class SearchOptions(TypedDict, total=False):
    """The parameters of `search` that searches over a stream take, too."""

    filter: FilterLike | None
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
    queries: Vectors,
    k: int = 10,
    *,
    filter: FilterLike | None = None,
    exact: bool = False,
    nprobe: int | None = None,
    target_recall: float | None = None,
    vectors: bool = False,
    metadata: bool = False,
    score_threshold: float | None = None,
    min_coverage: float | None = None,
    token: Token | None = None,
    timeout_s: float | None = None,
) -> UnaryCall[Hits]:
    """Find the k best rows for each query.

    Parameters
    ----------
    queries
        (queries, dim), or (dim,) for one query.
    filter
        Only rows that pass it: text such as ``lang = "en" and year >= 1990``, or a `Filter`. The
        collection must declare its fields.
    exact, nprobe, target_recall
        At most one: score every row; probe this many lists on each shard; aim at this recall.
        Without any, a search aims at the target recall of the collection.
    vectors, metadata
        Whether each hit includes them.
    score_threshold
        Only hits at least this good: score <= threshold under L2, >= otherwise.
    min_coverage
        The fraction of the collection that must answer; None means all of it.
    token
        From an UpsertSummary: the search sees at least the writes of that upsert.
    timeout_s
        Overrides the timeout of the client.

    Raises
    ------
    InvalidRequest
        For invalid queries or parameters: see its subclasses.
    ShardUnavailable
        If fewer shards answered than `min_coverage` requires.
    """
    request = parts.SearchRequest(
        collection=parts.name_of(name),
        queries=parts.query_matrix(queries, "queries"),
        k=k,
        effort=parts.effort_of(exact, nprobe, target_recall),
        filter=parts.filter_of(filter),
        include=parts.include_of(vectors, metadata),
        score_threshold=score_threshold,
        min_coverage=1.0 if min_coverage is None else min_coverage,
        token=parts.token_of(token),
    )
    return _call(parts.rpcs.SEARCH, request, parts.hits_of, timeout_s)


def explain(
    name: str, query: npt.ArrayLike, id_: int | str, *, filter: FilterLike | None = None
) -> UnaryCall[Explanation]:
    """Explain where an id is stored, its rank for a query, and what a search needs to find it.

    An id that does not exist is an answer, not an error.

    Parameters
    ----------
    query
        (dim,) or (1, dim).
    filter
        The answer reports whether it hides the id, and ignores it otherwise. As in `search`.

    Raises
    ------
    InvalidRequest
        For an invalid query, id or filter: see its subclasses.
    ShardUnavailable
        If a shard is missing: the rank would be wrong.
    """
    request = parts.ExplainRequest(
        collection=parts.name_of(name),
        query=parts.query_matrix(query, "query"),
        id=parts.one_id(id_),
        filter=parts.filter_of(filter),
    )
    return _call(parts.rpcs.EXPLAIN, request, _itself)
