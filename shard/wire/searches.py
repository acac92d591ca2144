"""Search with its receipt, and Explain."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import numpy as np

from vectorshard.internal.v1 import internal_pb2 as twins
from vectorshard.shard import types
from vectorshard.shard.config import Limits
from vectorshard.shard.descriptions import ExplainRequest, Explanation
from vectorshard.shard.errors import InvalidParameter, LimitExceeded, MalformedMessage
from vectorshard.shard.wire.bulk import (
    Bulk,
    check_count,
    field_bytes,
    packed,
    write_answer,
)
from vectorshard.shard.wire.ids import check_ids, decode_ids, encode_ids, ids_of, split_ids
from vectorshard.shard.wire.matrices import decode_matrix, encode_matrix
from vectorshard.shard.wire.opaque import decode_token, encode_token
from vectorshard.shard.wire.primitives import (
    EXACT_REASONS,
    FILTER_PLANS,
    check_recall,
    copied,
    float_of,
    parse,
    shortest_decimal,
    str_of,
    uint32_of,
)
from vectorshard.shard.wire.selection import (
    decode_include,
    encode_include,
    parse_filtered,
    selected_filter,
    set_filter,
)
from vectorshard.v1 import vectorshard_pb2 as v1

_HIT_BYTES: Final = 12
"""Bytes of a hit: an int64 id and a score."""

_METADATA_BYTES: Final = 1_024
"""Expected bytes of a hit's metadata. The limit is 64 times that; typical metadata is smaller."""


_HEADS_QUERIES: Final = 64
"""Queries up to which the bytes before the ids and the scores of a response are remembered."""

_TEMPLATES_MAX: Final = 256
_TEMPLATE_BYTES: Final = 4_096
"""Requests whose parameters take more bytes, such as a long filter, are parsed each time."""


def encode_search_request(request: types.SearchRequest) -> bytes:
    """Write a batch of queries: float16 as FLOAT16, others as FLOAT32.

    A request that was read from a message, or was written before, is that message. Raises
    InvalidParameter if a parameter is not a number or does not fit its field, or as `encode_filter`
    does.
    """
    if request.encoded is not None:
        return request.encoded
    effort, threshold = request.effort, request.score_threshold
    if threshold is not None:
        threshold = float_of(threshold, "score_threshold", InvalidParameter)
    message = v1.SearchRequest(
        collection=str_of(request.collection, "collection", InvalidParameter),
        queries=encode_matrix(request.queries),
        k=uint32_of(request.k, Limits().k, "k", InvalidParameter),
        include=encode_include(request.include),
        score_threshold=threshold,
        min_coverage=float_of(request.min_coverage, "min_coverage", InvalidParameter),
        token=b"" if request.token is None else encode_token(request.token),
    )
    if effort.exact:
        message.exact = True
    elif effort.nprobe:
        message.nprobe = uint32_of(effort.nprobe, Limits().nlist, "nprobe", InvalidParameter)
    elif effort.target_recall:
        message.target_recall = effort.target_recall
    set_filter(message, request.filter)
    payload = message.SerializeToString()
    object.__setattr__(request, "encoded", payload)  # a router sends it to several shards
    return payload


def decode_search_request(payload: bytes, limits: Limits) -> types.SearchRequest:
    """Return the batch of queries, a read-only view, and the search parameters.

    Raises
    ------
    MalformedMessage
        For bytes that do not parse, or an invalid matrix.
    InvalidParameter, LimitExceeded
        For a parameter out of its range, or an invalid filter.
    """
    return _request_of(parse_filtered(v1.SearchRequest, payload, limits), payload, limits)


def _request_of(message: v1.SearchRequest, payload: bytes, limits: Limits) -> types.SearchRequest:
    matrix = message.queries
    queries = decode_matrix(matrix.data, matrix.dim, matrix.dtype, "queries")
    _check_hits(len(queries), message.k, limits)
    request = types.SearchRequest(
        collection=message.collection,
        queries=queries,
        k=message.k,
        effort=_decode_effort(message, limits),
        filter=selected_filter(message, limits),
        include=decode_include(message.include),
        score_threshold=_decode_score_threshold(message),
        min_coverage=_decode_min_coverage(message),
        token=decode_token(message.token) if message.token else None,
    )
    return request.of_message(queries, payload)


class SearchTemplates:
    """Decodes search requests; those that differ only in their queries are parsed once.

    The template of a request is its bytes around the queries' components. They contain all lengths,
    so a message with the same bytes there parses alike, and its components lie in the same place.
    Only messages as protobuf writes them become templates: each field once, in order.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._places: dict[tuple[int, bytes], tuple[int, int]] = {}
        """Where the components of the last such message begin and end, by its length and start."""
        self._requests: dict[bytes, types.SearchRequest] = {}

    def decode(self, payload: bytes) -> types.SearchRequest:
        """Return and raise what `decode_search_request` does."""
        place = self._places.get((len(payload), payload[:2]))
        if place is not None:
            begin, end = place
            known = self._requests.get(payload[:begin] + payload[end:])
            if known is not None:
                like = known.queries
                queries: Any = np.frombuffer(payload, like.dtype, like.size, begin)
                return known.of_message(queries.reshape(like.shape), payload)
        message = parse_filtered(v1.SearchRequest, payload, self._limits)
        request = _request_of(message, payload, self._limits)
        self._remember(message, payload, request)
        return request

    def _remember(
        self, message: v1.SearchRequest, payload: bytes, request: types.SearchRequest
    ) -> None:
        components = request.queries.nbytes
        template_bytes = len(payload) - components
        if not components or message.token or template_bytes > _TEMPLATE_BYTES:
            return  # a token is seldom sent twice
        if message.SerializeToString() != payload:
            return
        # Of the matrix, `data` comes first, and the fields after it are known by their lengths.
        rest = message.queries.ByteSize() - field_bytes(components)
        head = v1.SearchRequest(collection=message.collection).ByteSize()
        begin = head + field_bytes(field_bytes(components) + rest) - rest - components
        place = begin, begin + components
        if len(self._requests) >= _TEMPLATES_MAX:
            self._requests.clear()
            self._places.clear()
        self._places[len(payload), payload[:2]] = place
        nothing: Any = np.broadcast_to(request.queries.dtype.type(0), request.queries.shape)
        self._requests[payload[:begin] + payload[place[1] :]] = request.of_message(nothing, b"")


def _check_hits(queries: int, k: int, limits: Limits) -> None:
    if not 1 <= k <= limits.k:
        raise InvalidParameter(f"{k:,} is not in 1..{limits.k:,}", field="k")
    if queries > limits.queries:
        raise LimitExceeded(
            f"{queries:,} queries exceed the limit of {limits.queries:,}", field="queries"
        )
    if queries * k > limits.hits:
        raise LimitExceeded(
            f"{queries:,} queries * k = {queries * k:,} hits exceed the limit of {limits.hits:,}: "
            "request fewer queries or a smaller k",
            field="k",
        )


def _decode_effort(request: v1.SearchRequest, limits: Limits) -> types.Effort:
    kind = request.WhichOneof("effort")
    if kind == "nprobe":
        if not 1 <= request.nprobe <= limits.nlist:
            raise InvalidParameter(
                f"{request.nprobe:,} is not in 1..{limits.nlist:,}", field="nprobe"
            )
        return types.Effort(nprobe=request.nprobe)
    if kind == "target_recall":
        target_recall = shortest_decimal(request.target_recall)
        check_recall(target_recall, "target_recall", InvalidParameter)
        return types.Effort(target_recall=target_recall)
    return types.Effort(exact=request.exact)


def _decode_score_threshold(request: v1.SearchRequest) -> float | None:
    if not request.HasField("score_threshold"):
        return None
    if math.isnan(request.score_threshold):
        raise InvalidParameter("NaN is not allowed", field="score_threshold")
    return request.score_threshold


def _decode_min_coverage(request: v1.SearchRequest) -> float:
    if not request.HasField("min_coverage"):
        return 1.0
    coverage = shortest_decimal(request.min_coverage)
    if not 0.0 <= coverage <= 1.0:
        raise InvalidParameter(f"{coverage} is not in [0, 1]", field="min_coverage")
    return coverage


def expected_answer_bytes(request: types.SearchRequest) -> int:
    """Return about the bytes of the response if it has k hits for every query.

    Bytes of string ids and of metadata are estimates.
    """
    queries, dim = request.queries.shape
    hit_bytes = _HIT_BYTES
    if request.include.vectors:
        hit_bytes += 4 * int(dim)
    if request.include.metadata:
        hit_bytes += _METADATA_BYTES
    return int(queries) * request.k * hit_bytes


PartEncoder = Callable[[list[int], int, int, types.Receipt], bytes]
"""Writes the answer to some queries of a batch: the counts of their hits, the first hit and the end
of the hits, and the receipt."""


def part_encoder(result: types.SearchResult) -> PartEncoder | None:
    """Return what writes the answers to parts of a batch as `encode_search_response` does.

    None for an answer with more than int64 ids and scores.
    """
    hits = result.hits
    if hits.ids.dtype == np.object_ or result.vectors is not None or result.metadata is not None:
        return None
    ids = np.ascontiguousarray(hits.ids, dtype="<i8").tobytes()
    scores = np.ascontiguousarray(hits.scores, dtype="<f4").tobytes()

    def encode(counts: list[int], hit: int, end: int, receipt: types.Receipt) -> bytes:
        heads = _heads if len(counts) <= _HEADS_QUERIES else _heads.__wrapped__
        before_ids, before_scores = heads(tuple(counts), end - hit)
        return b"".join(
            (
                before_ids,
                ids[8 * hit : 8 * end],
                before_scores,
                scores[4 * hit : 4 * end],
                _receipt_field(receipt),
            )
        )

    return encode


@lru_cache(maxsize=256)
def _heads(counts: tuple[int, ...], hits: int) -> tuple[bytes, bytes]:
    """Return the bytes of a response before its ids, and those between ids and scores."""
    twin = twins.SearchResponseTwin(counts=counts, scores=bytes(4 * hits))
    twin.ids.int64s.values = bytes(8 * hits)
    payload = twin.SerializeToString()
    scores = payload[-field_bytes(4 * hits) : -4 * hits] if hits else b""
    return payload[: len(payload) - 12 * hits - len(scores)], scores


def encode_search_response(result: types.SearchResult, limits: Limits) -> bytes:
    """Answer a batch of queries. Raises LimitExceeded if it does not fit into one message."""
    if result.encoded is not None and len(result.encoded) <= limits.message_bytes:
        return result.encoded
    hits = result.hits
    twin = twins.SearchResponseTwin.FromString(_receipt_field(result.receipt))
    twin.counts[:] = hits.counts.tolist()
    twin.scores = np.ascontiguousarray(hits.scores, dtype="<f4").tobytes()
    return write_answer(
        twin,
        hits.ids,
        result.vectors,
        result.metadata,
        limits,
        is_json=result.metadata_json,
        field="k",
        advice="request fewer queries, a smaller k, or no vectors and metadata",
    )


def decode_search_response(payload: bytes, include: types.Include) -> types.SearchResult:
    """Return the hits. `include` is the request's.

    Raises MalformedMessage if the parts do not match, or one that was requested is missing.
    """
    twin = parse(twins.SearchResponseTwin, payload, v1.SearchResponse)
    try:
        hits = _decode_hits(twin)
    except MalformedMessage:
        hits = None
    if hits is None or len(twin.receipt) > 1:
        twin = twins.SearchResponseTwin.FromString(packed(v1.SearchResponse, payload))
        hits = _decode_hits(twin)
    vectors = metadata = None
    if include.vectors or include.metadata:
        vectors, metadata = Bulk(twin).included(include, hits.ids.size)
    return types.SearchResult(
        hits=hits,
        receipt=_decode_receipt(twin.receipt[0] if twin.receipt else b""),
        vectors=vectors,
        metadata=metadata,
        metadata_json=include.metadata_json,
    )


def _decode_hits(twin: twins.SearchResponseTwin) -> types.TopK:
    """Return the hits. Raises MalformedMessage if their parts do not match.

    Ids and scores that are not packed, or in several pieces, are only partly in the twin. As it has
    all of the counts, their parts do not match then.
    """
    ids = ids_of(*split_ids(twin.ids))
    counts, scores = list(twin.counts), twin.scores
    if len(scores) % 4:
        raise MalformedMessage(f"length {len(scores)} is not a multiple of 4", field="scores")
    check_count("scores", len(scores) // 4, ids.size)
    check_count("counts", sum(counts), ids.size)
    return types.TopK(
        counts=np.array(counts, dtype=np.uint32), ids=ids, scores=np.frombuffer(scores, "<f4")
    )


def _receipt_field(receipt: types.Receipt) -> bytes:
    """Return the bytes of a response that has the receipt only; the receipt keeps them."""
    encoded = receipt.encoded
    if encoded is None:
        message = v1.Receipt(
            shards_total=receipt.shards_total,
            shards_answered=receipt.shards_answered,
            coverage=receipt.coverage,
            shards=[_encode_shard_receipt(shard) for shard in receipt.shards],
        )
        twin = twins.SearchResponseTwin(receipt=[message.SerializeToString()])
        encoded = twin.SerializeToString()
        object.__setattr__(receipt, "encoded", encoded)
    return encoded


def _encode_shard_receipt(receipt: types.ShardReceipt) -> v1.ShardReceipt:
    plan = receipt.filter_plan
    return v1.ShardReceipt(
        **copied(receipt, types.ShardReceipt, "filter_plan", "exact_reason"),
        filter_plan=v1.FILTER_PLAN_UNSPECIFIED if plan is None else FILTER_PLANS.number[plan],
        exact_reason=_encode_reason(receipt.exact_reason),
    )


def _encode_reason(reason: types.ExactReason | None) -> v1.ExactReason:
    return v1.EXACT_REASON_UNSPECIFIED if reason is None else EXACT_REASONS.number[reason]


def _decode_reason(number: int, field: str) -> types.ExactReason | None:
    return EXACT_REASONS.member(number, field, MalformedMessage) if number else None


@lru_cache(maxsize=256)
def _decode_receipt(payload: bytes) -> types.Receipt:
    receipt = parse(v1.Receipt, payload)
    return types.Receipt(
        coverage=shortest_decimal(receipt.coverage),
        shards=tuple(_decode_shard_receipt(shard) for shard in receipt.shards),
    )


def _decode_shard_receipt(receipt: v1.ShardReceipt) -> types.ShardReceipt:
    plan = receipt.filter_plan
    return types.ShardReceipt(
        **copied(receipt, types.ShardReceipt, "filter_plan", "exact_reason", "nprobe_mean"),
        filter_plan=FILTER_PLANS.member(plan, "receipt", MalformedMessage) if plan else None,
        exact_reason=_decode_reason(receipt.exact_reason, "receipt"),
        nprobe_mean=shortest_decimal(receipt.nprobe_mean),
    )


def encode_explain_request(request: ExplainRequest) -> bytes:
    """Request the explanation of an id and a query. Raises what `encode_filter` raises."""
    message = v1.ExplainRequest(
        collection=request.collection, query=encode_matrix(request.query), score=request.score
    )
    message.id.MergeFromString(encode_ids(request.id).SerializeToString())
    set_filter(message, request.filter)
    return message.SerializeToString()


def decode_explain_request(payload: bytes, limits: Limits) -> ExplainRequest:
    """Return the id and the query, a read-only view.

    Raises
    ------
    MalformedMessage
        For bytes that do not parse, or an invalid matrix.
    InvalidParameter, LimitExceeded
        For more or fewer than one id or query, a score that is NaN, or an invalid filter.
    InvalidId
        For an id that is empty or too long.
    """
    request = parse_filtered(v1.ExplainRequest, payload, limits)
    query = decode_matrix(request.query.data, request.query.dim, request.query.dtype, "query")
    _check_one(len(query), "query")
    id_ = decode_ids(request.id)
    _check_one(len(id_), "id")
    check_ids(id_, limits, "id")
    score = request.score if request.HasField("score") else None
    if score is not None and math.isnan(score):
        raise InvalidParameter("NaN is not allowed", field="score")
    return ExplainRequest(
        collection=request.collection,
        query=query,
        id=id_,
        filter=selected_filter(request, limits),
        score=score,
    )


def _check_one(given: int, field: str) -> None:
    if given != 1:
        raise InvalidParameter(f"exactly 1 is required, got {given:,}", field=field)


def encode_explain_response(explanation: Explanation) -> bytes:
    """Answer with an explanation."""
    message = v1.ExplainResponse(
        **copied(explanation, Explanation, "exact_reason"),
        exact_reason=_encode_reason(explanation.exact_reason),
    )
    return message.SerializeToString()


def decode_explain_response(payload: bytes) -> Explanation:
    """Return the explanation."""
    response = parse(v1.ExplainResponse, payload)
    return Explanation(
        **copied(response, Explanation, "exact_reason"),
        exact_reason=_decode_reason(response.exact_reason, "exact_reason"),
    )
