"""SearchStream over real processes: by clients, and as the links of a router to its shards."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import grpc
import numpy as np
import pytest
from google.rpc import status_pb2  # type: ignore[import-untyped]  # it has stubs, but no py.typed

from tests.bare_wire import matrix
from tests.system.conftest import (
    Server,
    ServerProcess,
    Starter,
    StartServer,
    Stub,
    new_name,
    refused,
    stream_bytes,
    wait_until,
)
from vectorshard.client.client import Client
from vectorshard.shard.errors import ShardUnavailable
from vectorshard.shard.types import IndexConfig, Metric
from vectorshard.v1 import vectorshard_pb2 as v1

pytestmark = pytest.mark.system

DIM = 16
ROWS = 500
VECTORS = np.random.default_rng(5).standard_normal((ROWS, DIM), dtype=np.float32)
DRAIN_S = 10.0
NEVER = 10_000_000
"""A min_training_size that is not reached."""


def fill(client: Client, name: str) -> None:
    """Make a collection of ROWS rows."""
    client.create_collection(name, dim=DIM, metric=Metric.L2)
    client.upsert(name, np.arange(ROWS), VECTORS)


@pytest.fixture(scope="module")
def filled(shared_server: Server) -> str:
    """The name of a collection of ROWS rows on the shared server."""
    name = new_name()
    with shared_server.client() as client:
        fill(client, name)
    return name


def search_of(name: str, query: int = 0, k: int = 5, queries: int = 1) -> v1.SearchRequest:
    """Return a search that begins with the vector of a row."""
    batch = matrix(VECTORS[query : query + queries])
    return v1.SearchRequest(collection=name, queries=batch, k=k)


def asked(
    stub: Stub, requests: Sequence[v1.SearchStreamRequest], timeout_s: float = 30
) -> dict[int, v1.SearchStreamResponse]:
    """Send requests on one stream, and return the answers by request_id."""
    answers = list(stub.SearchStream(iter(requests), timeout=timeout_s))
    assert len(answers) == len(requests)
    return {answer.request_id: answer for answer in answers}


# ---- answers ------------------------------------------------------------------------------------


def test_many_in_flight_are_answered_as_by_unary_calls(stub: Stub, filled: str) -> None:
    searches = {
        number: search_of(filled, query=number, k=1 + number % 7, queries=1 + number % 3)
        for number in range(1, 400)
    }
    for number, search in searches.items():
        search.include.vectors = number % 2 == 0
        search.exact = number % 5 == 0
    answers = asked(
        stub,
        [
            v1.SearchStreamRequest(request_id=number, search=search, timeout_ms=30_000)
            for number, search in searches.items()
        ],
    )
    assert {number: answer.response for number, answer in answers.items()} == {
        number: stub.Search(search) for number, search in searches.items()
    }


def test_each_mistake_has_the_status_of_the_unary_call_and_the_others_go_on(
    stub: Stub, filled: str
) -> None:
    narrow = v1.SearchRequest(collection=filled, queries=matrix([[1, 2]]), k=1)
    infinite = v1.SearchRequest(collection=filled, queries=matrix([[np.inf] * DIM]), k=1)
    mistakes = [search_of("absent"), search_of(filled, k=0), narrow, infinite]
    answers = asked(
        stub,
        [
            v1.SearchStreamRequest(request_id=number, search=search)
            for number, search in enumerate([*mistakes, search_of(filled)], start=1)
        ],
    )
    assert answers.pop(5).response == stub.Search(search_of(filled))
    for number, mistake in enumerate(mistakes, start=1):
        status = answers[number].error
        unary = refused(lambda mistake=mistake: stub.Search(mistake))  # type: ignore[misc]
        assert (status.code, status.message) == (unary.code.value[0], unary.message)
        assert [detail.TypeName() for detail in status.details][-1] == "google.rpc.ErrorInfo"


def test_garbage_on_a_stream_spoils_its_own_answers_only(
    shared_server: Server, stub: Stub, filled: str
) -> None:
    good = v1.SearchStreamRequest(request_id=1, search=search_of(filled)).SerializeToString()
    bad_inside = b"\x08\x02\x1a\x02\xff\xff"
    nothing = v1.SearchStreamRequest(request_id=3).SerializeToString()
    other = v1.SearchStreamRequest(
        request_id=4, search=search_of(filled), incarnation="older"
    ).SerializeToString()
    messages = [b"\xff" * 100, good, bad_inside, nothing, other, b""]
    with shared_server.channel() as channel:
        payloads = list(stream_bytes(channel, "SearchStream")(iter(messages), timeout=30))
    answers = [v1.SearchStreamResponse.FromString(payload) for payload in payloads]
    assert sorted(answer.request_id for answer in answers) == [0, 0, 1, 2, 3, 4]
    by_id = {answer.request_id: answer for answer in answers}
    assert by_id[1].response == stub.Search(search_of(filled))
    codes = [by_id[number].error.code for number in (0, 2, 3)]
    assert codes == [grpc.StatusCode.INVALID_ARGUMENT.value[0]] * 3
    assert by_id[4].error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert isinstance(by_id[4].error, status_pb2.Status)


def test_a_stream_on_which_nothing_is_sent_ends_well(stub: Stub) -> None:
    assert list(stub.SearchStream(iter([]), timeout=30)) == []


# ---- a shard that is silent ---------------------------------------------------------------------


def test_a_stopped_shard_is_named_in_time_and_found_again(start_server: Starter) -> None:
    fleet = start_server.fleet(2)
    stopped = fleet.shards[1]
    with fleet.client() as client, ThreadPoolExecutor(100) as callers:
        fill(client, "rows")
        client.search("rows", VECTORS[:1])

        def search(number: int, timeout_s: float = 1.0, min_coverage: float = 1.0) -> str:
            try:
                hits = client.search(
                    "rows", VECTORS[number], timeout_s=timeout_s, min_coverage=min_coverage
                )
            except ShardUnavailable as error:
                return str(error)
            return f"{hits.receipt.coverage:.1f}"

        stopped.signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            told = list(callers.map(search, range(100)))
            assert time.monotonic() - began < 5.0
            assert all("shard 1" in each and stopped.address in each for each in told), told
            assert search(0, min_coverage=0.5) == "0.5"
        finally:
            stopped.signal(signal.SIGCONT)
        wait_until(lambda: search(0) == "1.0")
        assert set(callers.map(search, range(30), [20.0] * 30)) == {"1.0"}
    fleet.stop()


def test_a_shard_that_is_killed_is_unavailable_and_its_successor_is_found(
    start_server: Starter,
) -> None:
    fleet = start_server.fleet(2)
    with fleet.client() as client:
        fill(client, "rows")
        before = client.search("rows", VECTORS[:1])
        fleet.shards[0].kill()
        with pytest.raises(ShardUnavailable, match="shard 0"):
            client.search("rows", VECTORS[:1])
        fleet.shards[0].start_again()

        def is_back() -> bool:
            try:
                return client.search("rows", VECTORS[:1])[0] == before[0]
            except ShardUnavailable:
                return False

        wait_until(is_back)
    fleet.stop()


# ---- ends ---------------------------------------------------------------------------------------


def test_a_server_ends_in_time_though_streams_are_open(start_either: StartServer) -> None:
    server = start_either(2)
    with server.client() as client, server.stub() as stub:
        fill(client, "rows")
        requests: SimpleQueue[v1.SearchStreamRequest | None] = SimpleQueue()
        streams = [stub.SearchStream(iter(requests.get, None), timeout=60) for _ in range(3)]
        requests.put(v1.SearchStreamRequest(request_id=1, search=search_of("rows")))
        answered = [0]

        def read_first(stream: Iterator[v1.SearchStreamResponse]) -> None:
            for answer in stream:
                answered[0] = answer.request_id

        readers = [ThreadPoolExecutor(1) for _ in streams]
        reading = [
            reader.submit(read_first, stream)
            for reader, stream in zip(readers, streams, strict=True)
        ]
        wait_until(lambda: answered == [1])
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < DRAIN_S
        for read in reading:
            error = read.exception(DRAIN_S)
            assert isinstance(error, grpc.RpcError)
            assert refused(read.result).code is grpc.StatusCode.UNAVAILABLE
        for _ in streams:
            requests.put(None)
        for reader in readers:
            reader.shutdown()


def test_a_shard_ends_in_time_under_a_routers_load_and_the_router_too(
    start_server: Starter,
) -> None:
    fleet = start_server.fleet(2)
    ending = threading.Event()
    told: list[str] = []
    with fleet.client() as client:
        fill(client, "rows")

        def search() -> None:
            while not ending.is_set():
                try:
                    client.search("rows", VECTORS[:1], min_coverage=0.0)
                except ShardUnavailable as error:
                    told.append(str(error))

        with ThreadPoolExecutor(8) as callers:
            for _ in range(8):
                callers.submit(search)
            began = time.monotonic()
            for process in fleet.shards:
                process.stop()
            fleet.router.stop()
            ending.set()
        assert time.monotonic() - began < 2 * DRAIN_S
        assert told, "in the end nobody answers"


# ---- memory -------------------------------------------------------------------------------------

WIDE = 256
WIDE_ROWS = 1_000
WIDE_VECTORS = np.random.default_rng(6).standard_normal((WIDE_ROWS, WIDE), dtype=np.float32)
LARGE_ANSWERS = 400
"""Of 1 MB each: all rows, with their vectors."""
MOST_MB = 160
"""A window of 16 MiB, with what searching, merging and encoding takes beside it."""


def growth_mb(server: ServerProcess, quiet_mb: float) -> float:
    """Return how much memory of its own a server has taken."""
    return server.memory_mb("RssAnon") - quiet_mb


def fill_wide(client: Client) -> None:
    """Create a collection whose answers are large."""
    index = IndexConfig(min_training_size=NEVER)
    client.create_collection("wide", dim=WIDE, metric=Metric.L2, index=index)
    client.upsert("wide", np.arange(WIDE_ROWS), WIDE_VECTORS)


def large_searches(count: int) -> Iterator[v1.SearchStreamRequest]:
    """Ask for all rows with their vectors, so many times."""
    search = v1.SearchRequest(
        collection="wide",
        queries=matrix(WIDE_VECTORS[:1]),
        k=WIDE_ROWS,
        include=v1.Include(vectors=True),
    )
    for number in range(1, count + 1):
        yield v1.SearchStreamRequest(request_id=number, search=search)


def test_a_client_that_does_not_read_its_answers_does_not_hold_up_the_end(
    start_server: Starter,
) -> None:
    server = start_server(2)
    with server.client() as client, server.stub() as stub:
        fill_wide(client)
        answers = stub.SearchStream(large_searches(LARGE_ANSWERS), timeout=120)
        next(answers)  # it runs, and from now on nobody reads
        time.sleep(1.0)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < DRAIN_S
        assert refused(lambda: list(answers)).code in {
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.CANCELLED,
        }


def test_a_client_that_does_not_read_its_answers_does_not_fill_the_server(
    start_server: Starter,
) -> None:
    server = start_server(2)
    taken = [0]

    def large(count: int) -> Iterator[v1.SearchStreamRequest]:
        for message in large_searches(count):
            taken[0] = message.request_id
            yield message

    with server.client() as client, server.stub() as stub:
        fill_wide(client)
        assert len(list(stub.SearchStream(large(20), timeout=60))) == 20
        quiet_mb = server.memory_mb("RssAnon")
        answers = stub.SearchStream(large(LARGE_ANSWERS), timeout=120)
        grown_mb, last, since = 0.0, 0, time.monotonic()
        while time.monotonic() - since < 2.0:  # until the server takes no more of them
            if taken[0] != last:
                last, since = taken[0], time.monotonic()
            grown_mb = max(grown_mb, growth_mb(server, quiet_mb))
            time.sleep(0.02)
        seen = set()
        for answer in answers:
            seen.add(answer.request_id)
            assert len(answer.response.scores) == WIDE_ROWS
            grown_mb = max(grown_mb, growth_mb(server, quiet_mb))
        assert seen == set(range(1, LARGE_ANSWERS + 1))
        assert grown_mb < MOST_MB
    server.stop()
