"""Bad input to real processes: each RPC's refusal over the wire, bytes that do not parse, -O.

Every single refusal is held in one process: by `tests/shard/server/test_bad_requests.py` and
`test_bad_filters.py` with messages of the contract, by `tests/conformance/test_refusals.py` over
everything that implements the Shard protocol. Here one refusal of each RPC crosses real processes,
with its code, field and row, and nothing is written.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest

from tests.bare_wire import check, int64s, matrix, strings
from tests.system.conftest import (
    VECTORSHARD,
    Server,
    Starter,
    Stub,
    ledger_of,
    new_name,
    refused,
    stream_bytes,
    unary_bytes,
    wait_until,
)
from vectorshard.v1 import vectorshard_pb2 as v1

pytestmark = pytest.mark.system

DIM = 4
NAN = float("nan")
GOOD = np.eye(3, DIM, dtype=np.float32)
THREE = int64s(7, 8, 9)
UNPARSABLE = b"\xff\xff\xff"
UNARY_RPCS = (
    "CreateCollection",
    "DropCollection",
    "UpdateCollection",
    "ListCollections",
    "DescribeCollection",
    "Upsert",
    "Delete",
    "Get",
    "Count",
    "List",
    "Search",
    "Explain",
    "Train",
    "GetServerInfo",
)


@dataclass(frozen=True, slots=True)
class Names:
    """Collections of dim 4 with three rows each, by what they are."""

    l2: str
    inner_product: str
    cosine: str
    """Its ids are strings."""


@pytest.fixture(scope="module")
def names(shared_server: Server) -> Iterator[Names]:
    """Three collections."""
    names = Names(new_name(), new_name(), new_name())
    with shared_server.stub() as stub:
        for name, metric, id_type, ids in (
            (names.l2, v1.METRIC_L2, v1.ID_TYPE_INT64, int64s(1, 2, 3)),
            (names.inner_product, v1.METRIC_INNER_PRODUCT, v1.ID_TYPE_INT64, int64s(1, 2, 3)),
            (names.cosine, v1.METRIC_COSINE, v1.ID_TYPE_STRING, strings("a", "b", "c")),
        ):
            stub.CreateCollection(
                create_request(name=name, metric=metric, id_type=id_type), wait_for_ready=True
            )
            stub.Upsert(v1.UpsertRequest(collection=name, ids=ids, vectors=matrix(GOOD)))
        yield names
        for name in (names.l2, names.inner_product, names.cosine):
            stub.DropCollection(v1.DropCollectionRequest(collection=name))


@pytest.fixture
def untouched(stub: Stub, names: Names) -> Iterator[None]:
    """Assert that the test leaves all rows as they are."""
    everything = (names.l2, names.inner_product, names.cosine)
    before = [ledger_of(stub, name) for name in everything]
    yield
    assert [ledger_of(stub, name) for name in everything] == before
    for name in everything:
        assert stub.Count(v1.CountRequest(collection=name)).count == 3
        page = stub.List(v1.ListRequest(collection=name, include=v1.Include(vectors=True)))
        stored = np.frombuffer(page.vectors.data, dtype="<f4").reshape(-1, DIM)
        assert sorted(stored.tolist()) == sorted(GOOD.tolist())


def create_request(**changes: Any) -> v1.CreateCollectionRequest:
    """Return a request for a collection that could be, but for `changes`."""
    config: dict[str, Any] = {
        "name": "never-created",
        "dim": DIM,
        "metric": v1.METRIC_L2,
        "id_type": v1.ID_TYPE_INT64,
    }
    return v1.CreateCollectionRequest(config=v1.CollectionConfig(**(config | changes)))


def bad_vectors() -> v1.Matrix:
    """Return three vectors, of which the last has a NaN."""
    vectors = GOOD.copy()
    vectors[2, 1] = NAN
    return matrix(vectors)


UNDECLARED = v1.Filter(exists=v1.FieldExists(field="year"))

REFUSALS: dict[str, tuple[Callable[[Stub, str], object], str, int | None]] = {
    "CreateCollection": (
        lambda stub, _: stub.CreateCollection(create_request(dim=0)),
        "config.dim",
        None,
    ),
    "Upsert": (
        lambda stub, name: stub.Upsert(
            v1.UpsertRequest(collection=name, ids=THREE, vectors=bad_vectors())
        ),
        "vectors",
        2,
    ),
    "UpsertStream": (
        lambda stub, name: list(
            stub.UpsertStream(
                iter([v1.UpsertRequest(collection=name, ids=THREE, vectors=bad_vectors())])
            )
        ),
        "vectors",
        2,
    ),
    "Delete": (
        lambda stub, name: stub.Delete(v1.DeleteRequest(collection=name, ids=int64s(1, 2, 1))),
        "ids",
        2,
    ),
    "Get": (
        lambda stub, name: stub.Get(v1.GetRequest(collection=name, ids=strings("a"))),
        "ids",
        None,
    ),
    "Count": (
        lambda stub, name: stub.Count(v1.CountRequest(collection=name, filter=UNDECLARED)),
        "filter.exists.field",
        None,
    ),
    "List": (
        lambda stub, name: stub.List(v1.ListRequest(collection=name, cursor=b"junk")),
        "cursor",
        None,
    ),
    "Search": (
        lambda stub, name: stub.Search(
            v1.SearchRequest(collection=name, queries=bad_vectors(), k=3)
        ),
        "queries",
        2,
    ),
    "Explain": (
        lambda stub, name: stub.Explain(
            v1.ExplainRequest(collection=name, query=matrix(GOOD[:1]), id=int64s(1, 2))
        ),
        "id",
        None,
    ),
}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("rpc", REFUSALS)
def test_a_refusal_names_code_field_and_row_and_nothing_is_written(
    stub: Stub, names: Names, rpc: str
) -> None:
    call, field, row = REFUSALS[rpc]
    check(refused(lambda: call(stub, names.l2)), field, row)


@pytest.mark.parametrize("rpc", ["DropCollection", "DescribeCollection", "Train", "Search"])
def test_an_unknown_collection_is_not_found(stub: Stub, rpc: str) -> None:
    asked = {"queries": matrix(GOOD), "k": 1} if rpc == "Search" else {}
    request = getattr(v1, f"{rpc}Request")(collection="absent", **asked)
    refusal = refused(lambda: getattr(stub, rpc)(request))
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    assert refusal.reason == "COLLECTION_NOT_FOUND"


@pytest.mark.usefixtures("untouched")
def test_a_row_that_one_shard_would_refuse_keeps_the_others_from_being_written(
    stub: Stub, names: Names
) -> None:
    vectors = np.ones((64, DIM), dtype=np.float32)
    vectors[63, 0] = NAN
    request = v1.UpsertRequest(
        collection=names.l2, ids=int64s(*range(100, 164)), vectors=matrix(vectors)
    )
    check(refused(lambda: stub.Upsert(request)), "vectors", 63)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("rpc", UNARY_RPCS)
def test_bytes_that_do_not_parse_are_refused_by_every_call(shared_server: Server, rpc: str) -> None:
    with shared_server.channel() as channel:
        check(refused(lambda: unary_bytes(channel, rpc)(UNPARSABLE)), "message")


@pytest.mark.usefixtures("untouched")
def test_bytes_that_do_not_parse_end_a_stream_with_a_status(shared_server: Server) -> None:
    with shared_server.channel() as channel:
        stream = stream_bytes(channel, "UpsertStream")
        check(refused(lambda: list(stream(iter([UNPARSABLE])))), "message")


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("rpc", ["Upsert", "Search", "UpsertStream"])
def test_a_message_over_the_limit_is_resource_exhausted(
    shared_server: Server, stub: Stub, rpc: str
) -> None:
    limit = stub.GetServerInfo(v1.GetServerInfoRequest()).limits.message_bytes
    payload = bytes(limit + 1)
    with shared_server.channel() as channel:
        if rpc == "UpsertStream":
            stream = stream_bytes(channel, rpc)
            refusal = refused(lambda: list(stream(iter([payload]))))
        else:
            refusal = refused(lambda: unary_bytes(channel, rpc)(payload))
    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_change_that_the_disk_fails_is_named_and_where_it_failed_goes_to_the_log_only(
    start_server: Starter,
) -> None:
    server = start_server(1)
    with server.stub() as stub:
        stub.CreateCollection(create_request(name="kept"))
        stub.Upsert(v1.UpsertRequest(collection="kept", ids=THREE, vectors=matrix(GOOD)))
        collections = server.data / "shard-0" / "collections"
        collections.rename(collections.with_name("moved"))
        refusal = refused(lambda: stub.CreateCollection(create_request(name="lost")))
        assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
        assert refusal.reason == "DISK_FAILED"
        assert not re.search(r"shard-0|lost|Traceback|\.py", refusal.message)
        assert stub.Count(v1.CountRequest(collection="kept")).count == 3
    server.stop()


def test_a_damaged_row_is_data_loss_by_its_id_until_it_is_written_again(
    start_server: Starter,
) -> None:
    server = start_server(1)
    with server.stub() as stub:
        stub.CreateCollection(create_request(name="w"))
        stub.Upsert(v1.UpsertRequest(collection="w", ids=THREE, vectors=matrix(GOOD)))
        with (server.data / "shard-0" / "collections" / "w" / "rows-0.f32").open("r+b") as rows:
            rows.write(b"\x55")
        refusal = refused(lambda: stub.Get(v1.GetRequest(collection="w", ids=THREE)))
        assert refusal.code is grpc.StatusCode.DATA_LOSS
        assert refusal.reason == "ROWS_DAMAGED"
        assert str(THREE.int64s.values[0]) in refusal.message
        assert "upsert or delete" in refusal.message
        wait_until(lambda: "row damaged" in server.log_text())
        stub.Upsert(v1.UpsertRequest(collection="w", ids=THREE, vectors=matrix(GOOD)))
        assert len(stub.Get(v1.GetRequest(collection="w", ids=THREE)).ids.int64s.values) == 3
    server.stop()


@pytest.mark.parametrize(
    ("command", "environment"),
    [
        ([sys.executable, "-O", "-m", "vectorshard.cli"], {}),
        ([str(VECTORSHARD)], {"PYTHONOPTIMIZE": "1"}),
    ],
    ids=["python -O", "PYTHONOPTIMIZE"],
)
def test_a_server_without_assertions_is_refused_at_its_start(
    start_server: Starter, command: list[str], environment: dict[str, str]
) -> None:
    server = start_server(1, start=False)
    ended = subprocess.run(
        [*command, "serve", "--data", str(server.data), "--listen", "127.0.0.1:0"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert "python -O" in ended.stderr
    assert not server.data.exists()
