"""Who is refused: a second server on what is taken, a shard or a router that contradicts the rows.

An answer from the wrong shard looks like any other, and a row in the wrong shard is lost to all who
look for it where it belongs. So who contradicts the placement is refused, and nothing is written.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.bare_wire import int64s, matrix
from tests.system.acknowledged import DIM, Acknowledged, vectors_of
from tests.system.conftest import (
    START_S,
    Fleet,
    Server,
    ServerProcess,
    Starter,
    Stub,
    adds_up,
    check_does_not_start,
    refused,
    servers,
    start_all,
    wait_until,
)
from vectorshard.client.client import Client
from vectorshard.shard.errors import PlacementMismatch, ShardUnavailable
from vectorshard.shard.types import Metric, Role
from vectorshard.v1 import vectorshard_pb2 as v1

pytestmark = pytest.mark.system

NAME = "rows"
IDS = range(200)
NEW_IDS = range(1_000, 1_200)
SERVICE = "vectorshard.v1.VectorService"
BACK_S = 10.0


def fill(client: Client) -> Acknowledged:
    """Create the collection with its rows."""
    rows = Acknowledged()
    client.create_collection(NAME, dim=DIM, metric=Metric.L2)
    rows.upsert(client, NAME, IDS)
    return rows


def rows_of(server: Server) -> dict[int, bytes]:
    """Return the vector of each row that a server has, by id."""
    with server.client() as client:
        assert adds_up(client.describe(NAME))
        return {
            id_: vector.tobytes()
            for page in client.list_rows(NAME, vectors=True)
            if page.vectors is not None
            for id_, vector in zip(page.ids.tolist(), page.vectors, strict=True)
        }


CALLS: dict[str, Callable[[Stub], object]] = {
    "Upsert": lambda stub: stub.Upsert(
        v1.UpsertRequest(
            collection=NAME, ids=int64s(*NEW_IDS), vectors=matrix(vectors_of(NEW_IDS, 9))
        )
    ),
    "UpsertStream": lambda stub: list(
        stub.UpsertStream(
            iter(
                [
                    v1.UpsertRequest(
                        collection=NAME, ids=int64s(*IDS), vectors=matrix(vectors_of(IDS, 9))
                    )
                ]
            )
        )
    ),
    "Delete": lambda stub: stub.Delete(v1.DeleteRequest(collection=NAME, ids=int64s(*IDS))),
    "Get": lambda stub: stub.Get(v1.GetRequest(collection=NAME, ids=int64s(*IDS))),
    "Count": lambda stub: stub.Count(v1.CountRequest(collection=NAME)),
    "List": lambda stub: stub.List(v1.ListRequest(collection=NAME)),
    "Search": lambda stub: stub.Search(
        v1.SearchRequest(collection=NAME, queries=matrix(vectors_of(IDS, 1)), k=1)
    ),
    "Train": lambda stub: stub.Train(v1.TrainRequest(collection=NAME)),
    "DescribeCollection": lambda stub: stub.DescribeCollection(
        v1.DescribeCollectionRequest(collection=NAME)
    ),
    "CreateCollection": lambda stub: stub.CreateCollection(
        v1.CreateCollectionRequest(
            config=v1.CollectionConfig(
                name="new", dim=DIM, metric=v1.METRIC_L2, id_type=v1.ID_TYPE_INT64
            )
        )
    ),
    "DropCollection": lambda stub: stub.DropCollection(v1.DropCollectionRequest(collection=NAME)),
}


# ---- what is taken -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "host"), [("serve", "127.0.0.1"), ("shard", "localhost"), ("router", "127.0.0.1")]
)
def test_a_second_server_on_a_port_ends_with_one_line_and_makes_no_directory(
    embedded_server: Server, start_server: Starter, kind: str, host: str
) -> None:
    listen = f"{host}:{embedded_server.address.rpartition(':')[2]}"
    start: dict[str, Callable[..., ServerProcess]] = {
        "serve": start_server,
        "shard": start_server.shard,
        "router": lambda **changes: start_server.router(["127.0.0.1:1"], **changes),
    }
    server = start[kind](start=False, listen=listen)
    check_does_not_start(server, f"cannot listen on {listen}", 10)
    assert kind == "router" or not server.data.exists()
    with embedded_server.client() as client:
        client.list_collections()


@pytest.mark.parametrize(("first", "second"), [("serve", "shard"), ("shard", "serve")])
def test_a_second_server_on_a_data_directory_ends_with_one_line(
    start_server: Starter, tmp_path: Path, first: str, second: str
) -> None:
    def start(kind: str, *, start: bool = True) -> ServerProcess:
        if kind == "serve":
            return start_server(2, data=tmp_path / "data", start=start)
        return start_server.shard(0, 2, data=tmp_path / "data" / "shard-0", start=start)

    server = start(first)
    assert server.process is not None
    check_does_not_start(start(second, start=False), f"in use by process {server.process.pid}", 11)
    with server.client() as client:
        client.list_collections()
    server.stop()


# ---- whose rows they are -------------------------------------------------------------------------


def test_a_shard_on_the_rows_of_another_ends_with_one_line_and_leaves_them_alone(
    start_server: Starter, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    blue = start_server.shard(1, 2, data=data, options=("--cluster", "blue"))
    with blue.client() as client:
        client.create_collection(NAME, dim=DIM, metric=Metric.L2)
    blue.stop()
    for shard, shards, options, told in (
        (0, 2, (), "has shard 1, not 0"),
        (1, 3, (), "has shards_total 2, not 3"),
        (1, 2, ("--cluster", "red"), "has cluster 'blue', not 'red'"),
    ):
        wrong = start_server.shard(shard, shards, data=data, options=options, start=False)
        check_does_not_start(wrong, told, 13)
    again = start_server.shard(1, 2, data=data)
    with again.client() as client:
        assert client.server_info().topology.cluster == "blue"
        assert [config.name for config in client.list_collections()] == [NAME]
    again.stop()


def test_the_rows_of_one_process_are_served_by_a_fleet_as_they_are_and_back(
    start_server: Starter, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    embedded = start_server(2, data=data)
    with embedded.client() as client:
        rows = fill(client)
    embedded.stop()
    fleet = start_server.fleet(2, data=data)
    with fleet.client() as client:
        rows.check(client, NAME)
        rows.upsert(client, NAME, NEW_IDS)
        rows.delete(client, NAME, IDS[::3])
        rows.check(client, NAME)
    fleet.stop()
    embedded.start()
    with embedded.client() as client:
        rows.check(client, NAME)
    embedded.stop()


def test_a_directory_too_high_or_too_low_is_refused_instead_of_starting_empty(
    start_server: Starter, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    start_server(2, data=data).stop()
    within = start_server(2, data=data / "shard-0", start=False)
    check_does_not_start(within, "is the directory of one shard", 13)
    above = start_server.shard(0, 2, data=data, start=False)
    check_does_not_start(above, "contains the directories of several shards", 13)
    assert sorted(entry.name for entry in data.iterdir()) == ["fault", "shard-0", "shard-1"]
    assert not (data / "shard-0" / "shard-0").exists()


def test_an_address_without_a_port_is_refused(start_server: Starter) -> None:
    router = start_server.router(["127.0.0.1"], start=False)
    check_does_not_start(router, "'127.0.0.1' is not HOST:PORT", 1)


def test_a_shard_that_is_held_stays_up_says_why_and_ends_with_its_code(
    start_server: Starter, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    start_server.shard(0, 2, data=data).stop()
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        health = f"127.0.0.1:{free.getsockname()[1]}"
    listen = "127.0.0.1:0"
    held = start_server.shard(
        1, 2, data=data, listen=listen, options=("--hold", "--health", health), start=False
    )
    held.launch()
    with grpc.insecure_channel(health) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        alive = check(health_pb2.HealthCheckRequest(), timeout=START_S, wait_for_ready=True)
        service = health_pb2.HealthCheckRequest(service="vectorshard.v1.VectorService")
        assert alive.status == health_pb2.HealthCheckResponse.SERVING
        ready = check(service, timeout=START_S)
        assert ready.status == health_pb2.HealthCheckResponse.NOT_SERVING
    held.terminate()
    assert held.ended() == 13
    told = [line for line in held.log_text().splitlines() if "start refused" in line]
    assert len(told) == 1
    assert "has shard 0, not 1" in told[0]


# ---- routers -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Addresses of shards that do not all belong together, by what they are."""
    with servers(tmp_path_factory.mktemp("shards")) as starter:
        red = ("--cluster", "red")
        shards = {
            "0 of 2": starter.shard(0, 2, start=False),
            "1 of 2": starter.shard(1, 2, start=False),
            "another 1 of 2": starter.shard(1, 2, start=False),
            "1 of 3": starter.shard(1, 3, start=False),
            "1 of 2, red": starter.shard(1, 2, options=red, start=False),
        }
        start_all(list(shards.values()))
        yield {name: shard.address for name, shard in shards.items()}


@pytest.mark.parametrize(
    ("shards", "told"),
    [
        pytest.param(["1 of 2", "0 of 2"], "in the order of their numbers", id="another order"),
        pytest.param(["0 of 2"], "no downstream shard is shard 1 of 2", id="too few"),
        pytest.param(["0 of 2", "1 of 2, red"], "cluster red", id="another cluster"),
        *(
            pytest.param(shards, told, id=name, marks=pytest.mark.system_long)
            for name, shards, told in (
                ("only the last", ["1 of 2"], "no downstream shard is shard 0 of 2"),
                (
                    "too many",
                    ["0 of 2", "1 of 2", "another 1 of 2"],
                    "3 downstream shards, but 2 shards",
                ),
                (
                    "one twice",
                    ["0 of 2", "0 of 2"],
                    "shard 0 is reached through two downstream shards",
                ),
                ("another count", ["0 of 2", "1 of 3"], "of 3 shards"),
            )
        ),
    ],
)
def test_a_router_over_shards_that_contradict_it_ends_with_one_line(
    start_server: Starter, addresses: dict[str, str], shards: list[str], told: str
) -> None:
    router = start_server.router([addresses[name] for name in shards], start=False)
    check_does_not_start(router, told, 18)


def check_health(channel: grpc.Channel, *, serves: bool) -> None:
    """Assert that the process serves, and whether calls make sense."""
    statuses = health_pb2.HealthCheckResponse
    health = health_pb2_grpc.HealthStub(channel)
    process = health.Check(health_pb2.HealthCheckRequest(service="")).status
    assert process == statuses.SERVING
    service = health.Check(health_pb2.HealthCheckRequest(service=SERVICE)).status
    assert service == (statuses.SERVING if serves else statuses.NOT_SERVING)


def test_a_router_starts_before_its_shards_and_serves_once_they_are_up(
    start_server: Starter,
) -> None:
    fleet = start_server.fleet(2)
    with fleet.client() as client:
        rows = fill(client)
    fleet.stop()
    fleet.router.start_again()
    with fleet.channel() as channel, fleet.stub() as stub, fleet.client() as client:
        check_health(channel, serves=False)
        topology = client.server_info().topology
        assert (topology.role, topology.shards_total, topology.shards) == (Role.ROUTER, 0, ())
        for call in CALLS.values():
            assert refused(lambda call=call: call(stub)).code is grpc.StatusCode.UNAVAILABLE  # type: ignore[misc]
        for shard in fleet.shards:
            shard.listen = shard.address
        start_all(fleet.shards)
        wait_until(lambda: len(client.server_info().topology.shards) == 2, BACK_S)
        check_health(channel, serves=True)
        rows.check(client, NAME)
    fleet.stop()


def test_a_wrong_shard_at_the_address_of_a_missing_one_is_refused_and_gets_nothing(
    start_server: Starter,
) -> None:
    fleet = start_server.fleet(2)
    present, missing = fleet.shards
    with fleet.client() as client:
        fill(client)
    expected = [rows_of(shard) for shard in fleet.shards]
    missing.stop()
    fleet.router.stop()
    fleet.router.start_again()
    at = missing.address
    intruders = (
        start_server.shard(0, 2, listen=at, start=False),
        start_server.shard(1, 3, listen=at, start=False),
        start_server.shard(1, 2, listen=at, options=("--cluster", "red"), start=False),
    )
    with fleet.stub() as stub, fleet.client() as client:
        for intruder in intruders:
            told_before = told_of_contradictions(fleet)
            intruder.start()
            with intruder.client() as its_client:
                its_client.create_collection(NAME, dim=DIM, metric=Metric.L2)
            wait_until(lambda before=told_before: told_of_contradictions(fleet) > before, BACK_S)  # type: ignore[misc]
            for call in CALLS.values():
                refusal = refused(lambda call=call: call(stub))  # type: ignore[misc]
                assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
                assert refusal.reason == "PLACEMENT_MISMATCH"
                assert at in refusal.message
            hits = client.search(NAME, vectors_of(IDS, 1), 1, min_coverage=0.4)
            assert set(hits.ids.tolist()) == set(expected[0])
            [absent] = [part for part in hits.receipt.shards if part.missing_reason]
            assert (absent.shard, hits.receipt.coverage) == (1, 0.5)
            assert "PlacementMismatch" in absent.missing_reason
            assert rows_of(intruder) == {}
            assert rows_of(present) == expected[0]
            intruder.stop()
        missing.start_again()
        wait_until(lambda: is_whole(client), BACK_S)
        assert [rows_of(shard) for shard in fleet.shards] == expected
    fleet.stop()


def told_of_contradictions(fleet: Fleet) -> int:
    """Return how often the router has logged that a shard contradicts the others."""
    return fleet.router.log_text().count("placement contradiction")


def is_whole(client: Client) -> bool:
    """Whether all rows can be asked for."""
    try:
        return client.count(NAME) == len(IDS)
    except (ShardUnavailable, PlacementMismatch):
        return False


def exchange(fleet: Fleet) -> None:
    """Let two shards exchange their addresses."""
    zero, one = fleet.shards
    for shard in fleet.shards:
        shard.terminate()
    assert [shard.ended() for shard in fleet.shards] == [0, 0]
    zero.listen, one.listen = one.address, zero.address
    start_all(fleet.shards)


@pytest.mark.parametrize("first", ["Delete", pytest.param("Search", marks=pytest.mark.system_long)])
def test_shards_that_exchange_their_addresses_under_a_router_are_never_taken_for_each_other(
    start_server: Starter, first: str
) -> None:
    """Some call comes upon it first: after a mismatch, the router knows."""
    fleet = start_server.fleet(2)
    with fleet.client() as client, fleet.stub() as stub:
        rows = fill(client)
        expected = [rows_of(shard) for shard in fleet.shards]
        exchange(fleet)

        def is_mismatch(call: Callable[[Stub], object] = CALLS[first]) -> bool:
            refusal = refused(lambda: call(stub))
            if refusal.code is grpc.StatusCode.UNAVAILABLE:  # not reached again yet
                return False
            assert refusal.reason == "PLACEMENT_MISMATCH"
            return True

        wait_until(is_mismatch, BACK_S)
        for call in CALLS.values():
            assert is_mismatch(call)
        with pytest.raises(PlacementMismatch):
            client.search(NAME, vectors_of(IDS, 1), 1, min_coverage=0.1)
        assert [rows_of(shard) for shard in fleet.shards] == expected
        exchange(fleet)
        wait_until(lambda: is_whole(client), BACK_S)
        rows.check(client, NAME)
        assert [rows_of(shard) for shard in fleet.shards] == expected
    fleet.stop()
