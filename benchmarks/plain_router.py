"""A plain fan-out, the baseline of the router: what one would write first.

It serves Search with one unary call to each shard per request, and merges the answers with numpy.
There are no streams and no batching, and every message is parsed and built. GetServerInfo does
nothing. The load generator calls DescribeCollection before it begins.
A separate program: python -m benchmarks.plain_router SHARD ...
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import grpc
import numpy as np
import uvloop

from benchmarks.load.connections import SERVICE
from vectorshard.v1 import vectorshard_pb2 as v1

Unary = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
MESSAGE_BYTES_MAX = 64 << 20


class PlainRouter:
    """The RPCs of a load, over shards by the methods of each."""

    def __init__(
        self, searches: Sequence[Unary], descriptions: Sequence[Unary], gets: Sequence[Unary]
    ) -> None:
        self._searches = searches
        self._descriptions = descriptions
        self._gets = gets

    async def search(self, request: bytes, context: object) -> bytes:
        """Search every shard, and answer with the best hits of all."""
        answers = await asyncio.gather(*(search(request) for search in self._searches))
        k = v1.SearchRequest.FromString(request).k
        merged = merge([v1.SearchResponse.FromString(answer) for answer in answers], k)
        return merged.SerializeToString()

    async def describe_collection(self, request: bytes, context: object) -> bytes:
        """Answer with the descriptions of all shards, and the sum of their ledgers."""
        answers = await asyncio.gather(*(describe(request) for describe in self._descriptions))
        every = [v1.DescribeCollectionResponse.FromString(answer) for answer in answers]
        first, *others = every
        for other in others:
            first.shards.extend(other.shards)
            for field in v1.Ledger.DESCRIPTOR.fields:
                total = getattr(first.ledger, field.name) + getattr(other.ledger, field.name)
                setattr(first.ledger, field.name, total)
        return first.SerializeToString()

    async def get(self, request: bytes, context: object) -> bytes:
        """Answer with the rows of all shards, in the order of the int64 ids asked for."""
        answers = await asyncio.gather(*(get(request) for get in self._gets))
        first, *others = [v1.GetResponse.FromString(answer) for answer in answers]
        for other in others:
            first.ids.int64s.values.extend(other.ids.int64s.values)
            first.vectors.data += other.vectors.data
            first.metadata.extend(other.metadata)
        asked = v1.GetRequest.FromString(request).ids.int64s.values
        place = {id_: place for place, id_ in enumerate(asked)}
        order = np.argsort([place[id_] for id_ in first.ids.int64s.values])
        rows = np.frombuffer(first.vectors.data, np.uint8).reshape(len(order), -1)
        first.vectors.data = rows[order].tobytes()
        ids, metadata = list(first.ids.int64s.values), list(first.metadata)
        first.ids.int64s.values[:] = [ids[row] for row in order]
        if metadata:
            del first.metadata[:]
            first.metadata.extend(metadata[row] for row in order)
        return first.SerializeToString()

    async def get_server_info(self, request: bytes, context: object) -> bytes:
        """Answer with an empty message."""
        return v1.GetServerInfoResponse().SerializeToString()


def merge(answers: Sequence[v1.SearchResponse], k: int) -> v1.SearchResponse:
    """Return the k best hits of each query over all answers, larger scores first, int64 ids."""
    counts = np.array([answer.counts for answer in answers], np.int64)
    queries = counts.shape[1]
    query_of = np.concatenate([np.repeat(np.arange(queries), each) for each in counts])
    scores = np.concatenate([np.array(answer.scores, np.float32) for answer in answers])
    ids = np.concatenate([np.array(answer.ids.int64s.values, np.int64) for answer in answers])
    order = np.lexsort((ids, -scores, query_of))
    found = counts.sum(axis=0)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(found) - found, found)
    order = order[rank < k]
    shards = [shard for answer in answers for shard in answer.receipt.shards]
    return v1.SearchResponse(
        counts=np.minimum(found, k).tolist(),
        ids=v1.Ids(int64s=v1.Int64Ids(values=ids[order].tolist())),
        scores=scores[order].tolist(),
        receipt=v1.Receipt(
            shards_total=len(shards), shards_answered=len(shards), coverage=1.0, shards=shards
        ),
    )


async def serve(targets: Sequence[str]) -> None:
    """Serve on a free port, which it prints, until it is killed."""
    options = [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX)]
    channels = [grpc.aio.insecure_channel(target, options) for target in targets]
    router = PlainRouter(
        [channel.unary_unary(f"{SERVICE}Search") for channel in channels],
        [channel.unary_unary(f"{SERVICE}DescribeCollection") for channel in channels],
        [channel.unary_unary(f"{SERVICE}Get") for channel in channels],
    )
    server = grpc.aio.server(options=[*options, ("grpc.so_reuseport", 0)])
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Search": grpc.unary_unary_rpc_method_handler(router.search),
        "DescribeCollection": grpc.unary_unary_rpc_method_handler(router.describe_collection),
        "Get": grpc.unary_unary_rpc_method_handler(router.get),
        "GetServerInfo": grpc.unary_unary_rpc_method_handler(router.get_server_info),
    }
    service = grpc.method_handlers_generic_handler(SERVICE.strip("/"), handlers)
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1:]))
