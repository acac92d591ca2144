"""The server as a process: how it starts, is watched, streams, drains, and ends."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from time import monotonic
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.bare_wire import int64s, matrix
from tests.system.conftest import (
    VECTORSHARD,
    Server,
    Starter,
    StartServer,
    Stub,
    adds_up,
    check_does_not_start,
    ledger_of,
    new_name,
    refused,
    wait_until,
)
from vectorshard.client.client import Client
from vectorshard.shard.errors import DeadlineExceeded
from vectorshard.shard.types import Float32Array, IdType, IndexConfig, Metric, Role
from vectorshard.v1 import vectorshard_pb2 as v1

pytestmark = pytest.mark.system

SERVICE = "vectorshard.v1.VectorService"
NAME = "rows"
DIM = 16
ROWS_A_MESSAGE = 50
EVERYWHERE: tuple[dict[str, Any], ...] = ({"exact": True}, {"nprobe": 65_536})
"""Both must find every row: the first asks no index, the second every list of it."""
DRAIN_S = 10.0
"""A drain with next to nothing to do."""


def vectors_of(ids: Sequence[int]) -> Float32Array:
    """Return the vector (rows, dim) that the tests write for each id: it tells the id."""
    vectors = np.full((len(ids), DIM), 0.5, dtype=np.float32)
    vectors[:, 0] = ids
    return vectors


def upsert_request(
    ids: Sequence[int], *, collection: str = NAME, request_id: int = 0
) -> v1.UpsertRequest:
    """Return a message of an upload."""
    return v1.UpsertRequest(
        collection=collection,
        ids=int64s(*ids),
        vectors=matrix(vectors_of(ids)),
        request_id=request_id,
    )


def create(stub: Stub, name: str = NAME, **index: Any) -> None:
    """Create a collection of dim 16, L2 and int64 ids, whose every list finds every row."""
    index = {"kind": v1.INDEX_KIND_IVF_FLAT, **index}
    config = v1.CollectionConfig(
        name=name, dim=DIM, metric=v1.METRIC_L2, id_type=v1.ID_TYPE_INT64, index=index
    )
    stub.CreateCollection(v1.CreateCollectionRequest(config=config))


def message_ids(message: int) -> range:
    """Return the ids that message number `message` of an upload writes."""
    return range(message * ROWS_A_MESSAGE, (message + 1) * ROWS_A_MESSAGE)


def messages(numbers: Iterator[int] | range, collection: str = NAME) -> Iterator[v1.UpsertRequest]:
    """Yield messages of 50 rows; their request_id is their number plus 1,000."""
    for number in numbers:
        yield upsert_request(message_ids(number), collection=collection, request_id=number + 1_000)


def check_kept(client: Client, acknowledged: int, name: str = NAME) -> None:
    """Assert that the rows of the first `acknowledged` messages are all there, as written."""
    ids = list(range(acknowledged * ROWS_A_MESSAGE))
    stored = client.get(name, ids)
    assert stored.ids.tolist() == ids
    assert stored.vectors is not None
    np.testing.assert_array_equal(stored.vectors, vectors_of(ids))
    assert adds_up(client.describe(name))


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# ---- start ---------------------------------------------------------------------------------------


def test_port_0_prints_the_port_that_it_serves_on(shared_server: Server) -> None:
    host, port = shared_server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=5):
        pass
    with shared_server.client() as client:
        assert client.server_info().topology.role in {Role.EMBEDDED, Role.ROUTER}


@pytest.mark.parametrize(("made_with", "started_with"), [(2, 3), (2, 1)])
def test_another_number_of_shards_on_the_same_rows_is_refused(
    start_server: Starter, made_with: int, started_with: int
) -> None:
    server = start_server(made_with)
    with server.client() as client:
        client.create_collection(NAME, dim=DIM, metric=Metric.L2)
        client.upsert(NAME, range(100), vectors_of(range(100)))
    server.stop()
    other = start_server(started_with, start=False, data=server.data)
    check_does_not_start(other, f"was made for {made_with} shards, not {started_with}", 13)
    server.start()
    with server.client() as client:
        assert client.count(NAME) == 100
    server.stop()


@pytest.mark.parametrize(
    ("listen", "told", "code"),
    [
        ("nowhere", "HOST:PORT", 1),
        ("127.0.0.1:70000", "HOST:PORT", 1),
        ("192.0.2.1:0", "cannot listen", 10),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_one_line(
    start_server: Starter, listen: str, told: str, code: int
) -> None:
    check_does_not_start(start_server(1, start=False, listen=listen), told, code)


def test_a_data_directory_that_cannot_be_one_is_one_line(
    start_server: Starter, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("no directory")
    check_does_not_start(start_server(1, start=False, data=file), "file", 16)


# ---- watched from outside ------------------------------------------------------------------------


def test_health_is_serving(shared_server: Server) -> None:
    with shared_server.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE):
            status = health.Check(health_pb2.HealthCheckRequest(service=service)).status
            assert status == health_pb2.HealthCheckResponse.SERVING
        refusal = refused(lambda: health.Check(health_pb2.HealthCheckRequest(service="another")))
        assert refusal.code is grpc.StatusCode.NOT_FOUND


def test_health_turns_to_not_serving_and_a_watcher_does_not_hold_up_the_end(
    start_either: StartServer,
) -> None:
    server = start_either(1)
    with server.channel() as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=SERVICE)
        )
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        told_at = monotonic()
        server.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert server.ended() == 0
        assert monotonic() - told_at < DRAIN_S


def test_reflection_lists_the_service_and_hands_out_its_contract(
    shared_server: Server,
) -> None:
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]
    with shared_server.channel() as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        listed, described = stub.ServerReflectionInfo(iter(asked))
    names = {service.name for service in listed.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names
    files = described.file_descriptor_response.file_descriptor_proto
    assert any(b"vectorshard.v1" in file for file in files)


def test_the_metrics_endpoint_exposes_the_ledger_of_every_shard(start_server: Starter) -> None:
    server = start_server(2, options=("--metrics", "127.0.0.1:0"))
    logged = re.search(r'"address": "127\.0\.0\.1:([1-9][0-9]*)"', server.log_text())
    assert logged, server.log_text()
    port = int(logged[1])
    with server.client() as client:
        client.create_collection(NAME, dim=DIM, metric=Metric.L2)
        client.upsert(NAME, range(300), vectors_of(range(300)))
        client.upsert(NAME, range(10), vectors_of(range(1, 11)))
        client.delete(NAME, range(100, 120))
        description = client.describe(NAME)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    for shard in description.shards:
        for entry in ("accepted", "buffered", "indexed", "deleted", "replaced"):
            labels = f'collection="{NAME}",entry="{entry}",shard="{shard.shard}"'
            found = re.search(rf"^vectorshard_rows{{{labels}}} (\S+)$", text, re.MULTILINE)
            assert found, text
            assert float(found[1]) == getattr(shard.ledger, entry)
    assert 'vectorshard_calls_total{code="OK",method="Upsert"} 2.0' in text
    taken = start_server(1, start=False, options=("--metrics", f"127.0.0.1:{port}"))
    check_does_not_start(taken, "cannot listen on 127.0.0.1:", 10)
    server.stop()


# ---- uploads -------------------------------------------------------------------------------------


@pytest.fixture
def name(stub: Stub) -> Iterator[str]:
    """A collection of the shared server, for this test alone."""
    name = new_name()
    create(stub, name)
    yield name
    stub.DropCollection(v1.DropCollectionRequest(collection=name))


def test_a_pipelined_upload_is_acknowledged_in_order_with_its_request_ids(
    stub: Stub, client: Client, name: str
) -> None:
    answers = list(stub.UpsertStream(messages(range(60), name)))
    assert [answer.request_id for answer in answers] == list(range(1_000, 1_060))
    assert {answer.accepted for answer in answers} == {ROWS_A_MESSAGE}
    assert not any(answer.errors for answer in answers)
    assert all(answer.token for answer in answers)
    check_kept(client, 60, name)
    assert ledger_of(stub, name) == (3_000, 3_000, 0, 0)


def test_an_upload_that_waits_for_each_acknowledgement_gets_it_at_once(
    stub: Stub, client: Client, name: str
) -> None:
    requests: SimpleQueue[v1.UpsertRequest | None] = SimpleQueue()
    answers = stub.UpsertStream(iter(requests.get, None), timeout=30)
    for number, request in enumerate(messages(range(20), name)):
        requests.put(request)
        assert next(answers).request_id == number + 1_000
        assert client.count(name) == (number + 1) * ROWS_A_MESSAGE
    requests.put(None)
    assert list(answers) == []
    assert answers.code() is grpc.StatusCode.OK


def test_an_upload_of_nothing_ends_well(stub: Stub) -> None:
    answers = stub.UpsertStream(iter([]))
    assert list(answers) == []
    assert answers.code() is grpc.StatusCode.OK


def test_the_last_message_of_an_upload_wins_however_few_shards_it_concerns(
    stub: Stub, client: Client
) -> None:
    """Messages of one row and of many, in turn: the small ones must not overtake the large."""
    for _ in range(10):
        name = new_name()
        create(stub, name)
        requests = []
        for value in range(20):
            ids = range(40) if value % 2 == 0 else [value % 40]
            vectors = np.full((len(ids), DIM), value, dtype=np.float32)
            requests.append(
                v1.UpsertRequest(collection=name, ids=int64s(*ids), vectors=matrix(vectors))
            )
        list(stub.UpsertStream(iter(requests)))
        stored = client.get(name, range(40)).vectors
        assert stored is not None
        expected = np.full(40, 18)
        expected[19] = 19
        np.testing.assert_array_equal(stored[:, 0], expected)
        stub.DropCollection(v1.DropCollectionRequest(collection=name))


def test_a_refused_message_ends_the_upload_and_what_was_acknowledged_stays(
    stub: Stub, client: Client, name: str
) -> None:
    bad = upsert_request([1, 1], collection=name)

    def requests() -> Iterator[v1.UpsertRequest]:
        yield from messages(range(5), name)
        yield bad
        yield from messages(range(6, 30), name)

    answers = stub.UpsertStream(requests(), timeout=30)
    refusal = refused(lambda: list(answers))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.fields == ("ids",)
    assert refusal.descriptions[0].startswith("row 1: ")
    check_kept(client, 5, name)
    ledger_of(stub, name)


def test_every_message_before_a_refused_one_is_acknowledged(stub: Stub, name: str) -> None:
    answers = stub.UpsertStream(
        iter([*messages(range(5), name), upsert_request([1, 1], collection=name)]), timeout=30
    )
    assert [next(answers).request_id for _ in range(5)] == list(range(1_000, 1_005))
    assert refused(lambda: next(answers)).code is grpc.StatusCode.INVALID_ARGUMENT


def test_an_upload_that_its_client_cancels_keeps_what_was_acknowledged(
    stub: Stub, client: Client, name: str
) -> None:
    answers = stub.UpsertStream(messages(count(), name))
    for number in range(10):
        assert next(answers).request_id == number + 1_000
    answers.cancel()
    assert refused(lambda: list(answers)).code is grpc.StatusCode.CANCELLED
    check_kept(client, 10, name)
    # What was begun is written or not, on one shard perhaps and not on the other.
    ledger_of(stub, name)
    assert len(list(stub.UpsertStream(messages(range(20), name)))) == 20
    check_kept(client, 20, name)


def test_an_upload_ends_at_its_deadline_and_keeps_what_was_acknowledged(
    stub: Stub, client: Client, name: str
) -> None:
    requests: SimpleQueue[v1.UpsertRequest | None] = SimpleQueue()
    answers = stub.UpsertStream(iter(requests.get, None), timeout=1.0)
    for request in messages(range(2), name):
        requests.put(request)
        next(answers)
    assert refused(lambda: next(answers)).code is grpc.StatusCode.DEADLINE_EXCEEDED
    requests.put(None)
    check_kept(client, 2, name)


# ---- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start_either", "shards", "pipelined"),
    [
        ("embedded", 1, True),
        ("embedded", 2, False),
        ("fleet", 2, True),
        ("fleet", 2, False),
    ],
    indirect=["start_either"],
)
def test_sigterm_during_an_upload_loses_nothing_acknowledged_and_ends_it_with_unavailable(
    start_either: StartServer, shards: int, pipelined: bool
) -> None:
    server = start_either(shards)
    acknowledged = 0
    go_on = threading.Semaphore(1)
    over = threading.Event()

    def requests() -> Iterator[v1.UpsertRequest]:
        for request in messages(count()):
            if not pipelined:
                go_on.acquire()
            if over.is_set():
                return
            yield request

    with server.stub() as stub:
        create(stub)
        answers = stub.UpsertStream(requests())

        def take(messages: Iterable[int]) -> None:
            nonlocal acknowledged
            for number in messages:
                assert next(answers).request_id == number + 1_000
                acknowledged = number + 1
                go_on.release()

        take(range(20))
        server.terminate()
        told_at = monotonic()
        refusal = refused(lambda: take(count(20)))
        over.set()
        go_on.release()
        assert refusal.code is grpc.StatusCode.UNAVAILABLE
        assert refusal.reason == "SHARD_UNAVAILABLE"
        assert server.ended() == 0
        assert monotonic() - told_at < DRAIN_S
    server.start()
    with server.client() as client:
        check_kept(client, acknowledged)
    server.stop()


def test_an_idle_upload_does_not_hold_up_the_end(start_either: StartServer) -> None:
    server = start_either(1)
    requests: SimpleQueue[v1.UpsertRequest | None] = SimpleQueue()
    with server.stub() as stub:
        create(stub)
        answers = stub.UpsertStream(iter(requests.get, None))
        requests.put(next(messages(range(1))))
        next(answers)
        told_at = monotonic()
        server.terminate()
        refusal = refused(lambda: next(answers))
        assert refusal.code is grpc.StatusCode.UNAVAILABLE
        assert refusal.reason == "SHARD_UNAVAILABLE"
        requests.put(None)
        assert server.ended() == 0
        assert monotonic() - told_at < DRAIN_S


def write_until_refused(server: Server, first: int, acknowledged: list[int]) -> None:
    """Write one row after the other from id `first` on, until the server is gone."""
    with server.stub() as stub:
        for id_ in count(first):
            try:
                stub.Upsert(upsert_request([id_]), timeout=20)
            except grpc.RpcError:
                return
            acknowledged.append(id_)


@pytest.mark.parametrize(
    ("start_either", "end"), [("fleet", "stop"), ("embedded", "kill")], indirect=["start_either"]
)
def test_no_acknowledged_row_is_lost_when_a_server_with_many_writers_ends(
    start_either: StartServer, end: str
) -> None:
    server = start_either(2)
    with server.stub() as stub:
        create(stub)
    acknowledged: list[list[int]] = [[] for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        writers = [
            threads.submit(write_until_refused, server, number * 1_000_000, ids)
            for number, ids in enumerate(acknowledged)
        ]
        wait_until(lambda: all(len(ids) >= 20 for ids in acknowledged))
        getattr(server, end)()
        for writer in writers:
            writer.result(30)
    server.start()
    written = sorted(id_ for ids in acknowledged for id_ in ids)
    with server.client() as client:
        stored = client.get(NAME, written)
        assert stored.ids.tolist() == written
        assert stored.vectors is not None
        np.testing.assert_array_equal(stored.vectors, vectors_of(written))
        assert adds_up(client.describe(NAME))
    server.stop()


def test_sigterm_during_a_training_does_not_wait_for_it_and_loses_nothing(
    start_server: Starter,
) -> None:
    server = start_server(1)
    rows = 30_000
    vectors = np.random.default_rng(2).standard_normal((rows, DIM), dtype=np.float32)
    with server.client() as client:
        index = IndexConfig(min_training_size=rows)
        client.create_collection(NAME, dim=DIM, metric=Metric.L2, index=index)
        client.upsert(NAME, range(rows), vectors)
        wait_until(lambda: client.describe(NAME).shards[0].training)
        told_at = monotonic()
        server.stop()
        assert monotonic() - told_at < DRAIN_S
    server.start()
    with server.client() as client:
        assert adds_up(client.describe(NAME))
        assert client.count(NAME) == rows
        sample = range(0, rows, 300)
        hits = client.search(NAME, vectors[list(sample)], 1, exact=True)
        assert hits.ids.tolist() == list(sample)
    server.stop()


def test_sigint_ends_a_server_as_sigterm_does(start_server: Starter) -> None:
    server = start_server(1)
    assert server.process is not None
    server.process.send_signal(signal.SIGINT)
    assert server.ended() == 0


# ---- deadlines and crowds ------------------------------------------------------------------------


def test_a_deadline_ends_a_call_and_the_server_serves_on(
    stub: Stub, client: Client, name: str
) -> None:
    client.upsert(name, range(2_000), vectors_of(range(2_000)))
    queries = np.random.default_rng(1).standard_normal((5_000, DIM), dtype=np.float32)
    for _ in range(3):
        with pytest.raises(DeadlineExceeded):
            client.search(name, queries, 50, exact=True, timeout_s=0.002)
    request = upsert_request(range(5_000, 25_000), collection=name)
    assert (
        refused(lambda: stub.Upsert(request, timeout=0.001)).code
        is grpc.StatusCode.DEADLINE_EXCEEDED
    )
    assert client.search(name, vectors_of([7]), 1).ids.tolist() == [7]
    wait_until(lambda: client.count(name) in {2_000, 22_000})
    assert adds_up(client.describe(name))


def test_one_who_stops_waiting_for_a_training_does_not_keep_others_waiting(
    start_server: Starter,
) -> None:
    server = start_server.fleet(1)
    rows = 20_000
    vectors = np.random.default_rng(1).standard_normal((rows, DIM), dtype=np.float32)
    with server.client() as client, server.stub() as stub:
        client.create_collection(NAME, dim=DIM, metric=Metric.L2)
        client.upsert(NAME, range(rows), vectors)
        asked = v1.TrainRequest(collection=NAME, wait=True)
        for _ in range(2):
            client.train(NAME)
            wait_until(lambda: client.describe(NAME).shards[0].training)
            impatient, patient = stub.Train.future(asked), stub.Train.future(asked, timeout=60)
            # Whoever asks after them is answered after them, so both have arrived.
            client.count(NAME)
            impatient.cancel()
            [shard] = patient.result().shards
            assert shard.state == v1.SHARD_STATE_TRAINED
        assert "background work failed" not in server.log_text()
        client.drop_collection(NAME)
    server.stop()


def test_many_clients_at_once_are_all_answered_right(start_server: Starter) -> None:
    server = start_server.fleet(2)
    clients, rounds, rows = 16, 6, 40
    with server.stub() as stub:
        create(stub, min_training_size=300)

    def work(number: int) -> None:
        first = number * 10_000
        with server.client() as client:
            for turn in range(rounds):
                ids = range(first + turn * rows, first + (turn + 1) * rows)
                assert client.upsert(NAME, ids, vectors_of(ids)).accepted == rows
                mine = range(first, ids.stop)
                for effort in EVERYWHERE:
                    hits = client.search(NAME, vectors_of(mine), 1, **effort)
                    assert hits.ids.tolist() == list(mine)
                    assert hits.receipt.coverage == 1.0
                assert client.count(NAME, list(mine)) == len(mine)
                assert adds_up(client.describe(NAME))

    with ThreadPoolExecutor(clients) as threads:
        for future in [threads.submit(work, number) for number in range(clients)]:
            future.result(100)
    with server.client() as client:
        ledger = client.describe(NAME).ledger
        assert ledger.accepted == ledger.live == client.count(NAME) == clients * rounds * rows
    server.stop()


# ---- the command line ----------------------------------------------------------------------------


def vectorshard(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the command line."""
    return subprocess.run(
        [str(VECTORSHARD), *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_command_line_ingests_searches_and_describes(
    fleet_server: Server, tmp_path: Path
) -> None:
    name, address = new_name(), fleet_server.address
    vectors = np.random.default_rng(9).standard_normal((500, DIM), dtype=np.float32)
    words = np.array([f"word-{row}" for row in range(500)])
    file = tmp_path / "words.npz"
    np.savez(file, vectors=vectors, ids=words)

    ingested = vectorshard(
        "ingest", str(file), "--collection", name, "--target", address, "--batch", "200"
    )
    assert ingested.returncode == 0, ingested.stderr
    assert "500 rows accepted, 0 refused" in ingested.stdout
    assert "rows/s" in ingested.stdout
    assert "500 accepted, adds up" in ingested.stdout
    with fleet_server.client() as client:
        description = client.describe(name)
    assert description.config.id_type is IdType.STRING
    assert description.ledger.live == 500

    searched = vectorshard(
        "search", "--collection", name, "--target", address, "--id", "word-7", "--k", "3"
    )
    assert searched.returncode == 0, searched.stderr
    assert searched.stdout.count("word-") >= 4
    assert "2 of 2 shards answered" in searched.stdout

    described = vectorshard("describe", name, "--target", address)
    assert described.returncode == 0, described.stderr
    assert "500 accepted, adds up" in described.stdout
    assert "BUFFERING" in described.stdout
    listed = vectorshard("describe", "--target", address)
    assert name in listed.stdout


def test_the_command_line_tells_a_failure_in_one_line(fleet_server: Server) -> None:
    absent = vectorshard("describe", "absent", "--target", fleet_server.address)
    nobody = vectorshard("describe", "--target", f"127.0.0.1:{free_port()}", "--timeout", "2")
    for ended in (absent, nobody):
        assert ended.returncode == 1
        assert ended.stdout == ""
        assert len(ended.stderr.splitlines()) == 1
        assert ended.stderr.startswith("error: ")
    assert "collection 'absent' does not exist" in absent.stderr
    assert "is the server running?" in nobody.stderr
