"""A small server of the tests' own, and an AsyncClient that is called as a Client is.

It is no model of a shard (tests/router/model_shard.py): a client is tested against the network, so
it answers the contract's messages over a socket, when and as a test says, without a service.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import grpc
import numpy as np

from tests.shard.filter_samples import holds
from vectorshard import AsyncClient
from vectorshard.client.id_arguments import id_array
from vectorshard.shard.config import Limits
from vectorshard.shard.descriptions import (
    CollectionDescription,
    ExplainRequest,
    Explanation,
    ShardDescription,
    ShardPlacement,
    Topology,
)
from vectorshard.shard.errors import (
    CollectionExists,
    CollectionNotFound,
    VectorShardError,
)
from vectorshard.shard.filters import Filter
from vectorshard.shard.server.status import DETAILS_KEY, status_code, status_of
from vectorshard.shard.types import (
    CollectionConfig,
    CollectionEntry,
    CountRequest,
    Cursor,
    DeleteRequest,
    DeleteResult,
    GetRequest,
    Ledger,
    Receipt,
    Role,
    Rows,
    SearchRequest,
    SearchResult,
    ShardReceipt,
    ShardState,
    Token,
    TopK,
    TrainRequest,
    UpsertRequest,
    UpsertResult,
)
from vectorshard.shard.wire import descriptions, reads, searches, writes
from vectorshard.shard.wire.collections import (
    decode_create_collection_request,
    decode_drop_collection_request,
    decode_update_collection_request,
    encode_create_collection_response,
    encode_drop_collection_response,
    encode_list_collections_response,
    encode_update_collection_response,
)
from vectorshard.shard.wire.metadata import mapping_from_metadata
from vectorshard.shard.wire.search_stream import (
    StreamAnswer,
    decode_search_stream_request,
    encode_search_stream_response,
)
from vectorshard.shard.wire.server_info import encode_get_server_info_response

TOKEN = Token(incarnation="x1", sequences={0: 7})
TOPOLOGY = Topology(
    role=Role.SHARD,
    cluster="c1",
    placement_epoch=2,
    shards_total=1,
    shards=(ShardPlacement(shard=0, slots=((0, 4095),)),),
)
RECEIPT = Receipt(shards=(ShardReceipt(shard=0, rows_visible=3, rows_exact=3),), coverage=1.0)
EXPLANATION = Explanation(
    exists=True, list=3, centroid_rank=2, nprobe_needed=2, exact_rank=7, score=0.5
)
SHARD = ShardDescription(
    shard=0, state=ShardState.BUFFERING, training=False, ledger=Ledger(accepted=3, buffered=3)
)


class FakeServer:
    """Keeps one collection of rows in order, in plain lists; remembers what it was asked, and how
    much time each unary call had.

    `error`, when set, is what every call ends with; `silent` calls last until the test ends.
    `acknowledge` answers an upload's messages, and `answer` those of a search stream.
    """

    def __init__(self) -> None:
        self.configs: dict[str, CollectionConfig] = {}
        self.limits = Limits()
        self.rows: dict[int | str, tuple[Any, bytes]] = {}
        self.damaged: set[int | str] = set()
        self.error: Exception | None = None
        self.silent = False
        self.asked: list[str] = []
        self.left_s: list[float] = []
        self.searches: list[SearchRequest] = []
        self.explains: list[ExplainRequest] = []
        self.trains: list[TrainRequest] = []
        self.upserts: list[UpsertRequest] = []
        self.released = threading.Event()
        self.acknowledge: Callable[[Iterator[bytes]], Iterator[bytes]] = self.acknowledge_each
        self.answer: Callable[[Iterator[bytes]], Iterator[bytes]] = self.answer_each

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handler to add to a server."""
        unary = {
            "CreateCollection": self._create_collection,
            "DropCollection": self._drop_collection,
            "UpdateCollection": self._update_collection,
            "ListCollections": self._list_collections,
            "DescribeCollection": self._describe,
            "Upsert": lambda payload: self.upsert(payload),  # which a test may replace
            "Delete": self._delete,
            "Get": self._get,
            "Count": self._count,
            "List": self._list,
            "Search": self._search,
            "Explain": self._explain,
            "Train": self._train,
            "GetServerInfo": self._server_info,
        }
        handlers: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(self._unary(name, answer))
            for name, answer in unary.items()
        }
        for name, stream in (("UpsertStream", "acknowledge"), ("SearchStream", "answer")):
            handlers[name] = grpc.stream_stream_rpc_method_handler(self._streaming(name, stream))
        return grpc.method_handlers_generic_handler("vectorshard.v1.VectorService", handlers)

    def _unary(self, name: str, answer: Callable[[bytes], bytes]) -> Any:
        def handle(payload: bytes, context: grpc.ServicerContext) -> bytes:
            self.asked.append(name)
            self.left_s.append(context.time_remaining())
            if self.silent:
                self.released.wait()
            try:
                if self.error is not None:
                    raise self.error
                return answer(payload)
            except VectorShardError as error:
                abort(context, error)
                raise

        return handle

    def _streaming(self, name: str, attribute: str) -> Any:
        def handle(payloads: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            self.asked.append(name)
            context.add_callback(self.released.set)
            try:
                yield from getattr(self, attribute)(payloads)
            except VectorShardError as error:
                abort(context, error)

        return handle

    def answer_each(self, payloads: Iterator[bytes]) -> Iterator[bytes]:
        """Answer every message of a search stream."""
        yield from map(self.search_answer, payloads)

    def search_answer(self, payload: bytes) -> bytes:
        """Answer a message of a search stream."""
        request = decode_search_stream_request(payload)
        assert request.search is not None
        try:
            if self.error is not None:
                raise self.error
            answer = StreamAnswer(
                request_id=request.request_id, response=self._search(request.search)
            )
        except VectorShardError as error:
            status = status_of(error).SerializeToString()
            answer = StreamAnswer(request_id=request.request_id, error=status)
        return encode_search_stream_response(answer)

    def acknowledge_each(self, payloads: Iterator[bytes]) -> Iterator[bytes]:
        """Write and acknowledge every message of an upload."""
        for payload in payloads:
            yield self.upsert(payload)

    def upsert(self, payload: bytes) -> bytes:
        """Write a batch."""
        request, request_id = writes.decode_upsert_request(payload, self.limits)
        self.upserts.append(request)
        metadata = request.metadata or [b""] * len(request.ids)
        for id_, vector, struct in zip(
            request.ids.tolist(), request.vectors, metadata, strict=True
        ):
            self.rows[id_] = (vector.astype(np.float32), struct)
        result = UpsertResult(accepted=len(request.ids), errors=(), token=TOKEN)
        return writes.encode_upsert_response(result, request_id)

    def _create_collection(self, payload: bytes) -> bytes:
        config = decode_create_collection_request(payload, self.limits)
        if self.configs.setdefault(config.name, config) != config:
            raise CollectionExists(f"{config.name} is another one")
        entry = CollectionEntry(config=config, incarnation="x1")
        return encode_create_collection_response(entry, True)

    def _drop_collection(self, payload: bytes) -> bytes:
        name = decode_drop_collection_request(payload)
        if self.configs.pop(name, None) is None:
            raise CollectionNotFound(name)
        return encode_drop_collection_response()

    def _update_collection(self, payload: bytes) -> bytes:
        request = decode_update_collection_request(payload)
        if request.collection not in self.configs:
            raise CollectionNotFound(request.collection)
        config = replace(self.configs[request.collection], target_recall=request.target_recall)
        self.configs[request.collection] = config
        return encode_update_collection_response(CollectionEntry(config=config, incarnation="x1"))

    def _list_collections(self, payload: bytes) -> bytes:
        return encode_list_collections_response(
            [CollectionEntry(config=config, incarnation="x1") for config in self.configs.values()]
        )

    def _describe(self, payload: bytes) -> bytes:
        config = self.configs[descriptions.decode_describe_collection_request(payload)]
        return descriptions.encode_describe_collection_response(
            CollectionDescription(
                config=config, incarnation="x1", shards=(SHARD,), recommended_batch_size=64
            )
        )

    def _delete(self, payload: bytes) -> bytes:
        request = writes.decode_delete_request(payload, self.limits)
        gone = [self.rows.pop(id_, None) for id_ in self._selected(request)]
        deleted = sum(row is not None for row in gone)
        return writes.encode_delete_response(DeleteResult(deleted=deleted, token=TOKEN))

    def _rows(self, ids: Sequence[Any], vectors: bool, metadata: bool, cursor: Any = None) -> Rows:
        found = [self.rows[id_] for id_ in ids]
        return Rows(
            ids=id_array(ids),
            vectors=np.array([vector for vector, _ in found] or np.empty((0, 3)))
            if vectors
            else None,
            metadata=[struct for _, struct in found] if metadata else None,
            cursor=cursor,
        )

    def _get(self, payload: bytes) -> bytes:
        request = reads.decode_get_request(payload, self.limits)
        ids = self._selected(request)
        rows = self._rows(ids, request.include.vectors, request.include.metadata)
        return reads.encode_get_response(rows, self.limits)

    def _count(self, payload: bytes) -> bytes:
        request = reads.decode_count_request(payload, self.limits)
        return reads.encode_count_response(len(self._selected(request)))

    def _selected(self, request: DeleteRequest | GetRequest | CountRequest) -> list[int | str]:
        """Return the ids of the rows that ids and filter select."""
        chosen = list(self.rows) if request.ids is None else request.ids.tolist()
        passing = self._passing(request.filter)
        return [id_ for id_ in chosen if id_ in passing]

    def _passing(self, filter_: Filter | None) -> list[int | str]:
        return [
            id_
            for id_, (_, metadata) in self.rows.items()
            if filter_ is None or holds(filter_, mapping_from_metadata(metadata))
        ]

    def _list(self, payload: bytes) -> bytes:
        request = reads.decode_list_request(payload, self.limits)
        first = 0 if request.cursor is None else request.cursor.row
        last = first + request.page_size
        passing = self._passing(request.filter)
        damaged = [id_ for id_ in passing[first:last] if id_ in self.damaged]
        cursor = Cursor(incarnation="x1", shard=0, row=last) if last < len(passing) else None
        sound = [id_ for id_ in passing[first:last] if id_ not in self.damaged]
        page = self._rows(sound, request.include.vectors, request.include.metadata, cursor)
        if damaged:
            page = replace(page, damaged=id_array(np.array(damaged)))
        return reads.encode_list_response(page, self.limits)

    def _search(self, payload: bytes) -> bytes:
        request = searches.decode_search_request(payload, self.limits)
        self.searches.append(request)
        ids = np.array(list(self.rows))
        vectors = np.array([vector for vector, _ in self.rows.values()])
        queries = request.queries.astype(np.float32).reshape(-1, vectors.shape[1])
        scores = queries @ vectors.T
        # One hit fewer for each further query, so that counts differ.
        best = [np.argsort(-row)[: request.k - query] for query, row in enumerate(scores)]
        found = [row[of] for row, of in zip(scores, best, strict=True)]
        hits = TopK(
            counts=np.array([len(of) for of in best], dtype=np.uint32),
            ids=id_array(ids[np.concatenate([np.empty(0, dtype=np.int64), *best])]),
            scores=np.concatenate([np.empty(0, dtype=np.float32), *found]),
        )
        rows = self._rows(hits.ids.tolist(), request.include.vectors, request.include.metadata)
        result = SearchResult(
            hits=hits, receipt=RECEIPT, vectors=rows.vectors, metadata=rows.metadata
        )
        return searches.encode_search_response(result, self.limits)

    def _explain(self, payload: bytes) -> bytes:
        self.explains.append(searches.decode_explain_request(payload, self.limits))
        return searches.encode_explain_response(EXPLANATION)

    def _train(self, payload: bytes) -> bytes:
        self.trains.append(descriptions.decode_train_request(payload))
        return descriptions.encode_train_response([SHARD])

    def _server_info(self, payload: bytes) -> bytes:
        return encode_get_server_info_response("1.2.3", TOPOLOGY, self.limits)


def abort(context: grpc.ServicerContext, error: VectorShardError) -> None:
    """End a call with the error's status."""
    status = status_of(error)
    context.set_trailing_metadata(((DETAILS_KEY, status.SerializeToString()),))
    context.abort(status_code(error), status.message)


class Blocking:
    """An AsyncClient whose methods are called as the sync client's are."""

    def __init__(self, target: str, timeout_s: float, retry: str = "none") -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncClient(target, timeout_s=timeout_s, retry=retry)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            return self._loop.run_until_complete(method(*arguments, **keywords))

        return call

    def list_rows(self, *arguments: Any, **keywords: Any) -> list[Any]:
        """Return all pages."""

        async def pages() -> list[Any]:
            return [page async for page in self._client.list_rows(*arguments, **keywords)]

        return self._loop.run_until_complete(pages())

    def close(self) -> None:
        """Close the client and its loop."""
        self._loop.run_until_complete(self._client.__aexit__(None, None, None))
        self._loop.close()


Connect = Callable[..., Any]
"""Connects a client of either kind to a target."""
