"""Ten times as many searches as a server can answer, of three kinds, from clients that keep to the
rules of gRPC: it answers on, and is itself again when they stop.

The load comes from `tests.http2`, whose calls cost a tenth of those of grpc's Python client.
"""

from __future__ import annotations

import base64
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import pytest

from benchmarks.vectors import clustered
from tests.bare_wire import matrix
from tests.http2 import Load, Told, offer, offer_all
from tests.system.conftest import Server, ServerProcess, Starter
from vectorshard.client import calls
from vectorshard.v1 import vectorshard_pb2 as v1

pytestmark = pytest.mark.system

NAME = "overload"
DIM, ROWS = 100, 20_000
COLOURS = 10
REQUESTS = 32
FACTOR = 10.0
CONNECTIONS, CALLERS = 8, 2
"""Of the closed loop that says what a server can answer."""
PATH = "/vectorshard.v1.VectorService/Search"

SILENT = 1_100
LOCKED_OUT_S = 6.0


def requests_of(kind: str) -> list[str]:
    """Return searches as a Load takes them: one query, a batch of 64, or one with a filter."""
    size = 64 if kind == "batch of 64" else 1
    queries = clustered(size * REQUESTS, DIM, part=1)
    made = []
    for first in range(0, len(queries), size):
        some = queries[first : first + size]
        if kind == "filter":
            call = calls.search(NAME, some, 10, filter='colour = "3"')
            payload = call.payload
        else:
            search = v1.SearchRequest(collection=NAME, queries=matrix(some), k=10)
            payload = search.SerializeToString()
        made.append(base64.b64encode(payload).decode())
    return made


def fill(server: Server) -> None:
    """Create a collection with a filter field, and train its index."""
    vectors = clustered(ROWS, DIM)
    with server.client() as client:
        client.create_collection(NAME, dim=DIM, metric="l2", filter_fields={"colour": "keyword"})
        metadata = [{"colour": str(row % COLOURS)} for row in range(ROWS)]
        client.upsert(NAME, np.arange(ROWS), vectors, metadata)
        client.train(NAME)


@dataclass(frozen=True, slots=True)
class Overload:
    """What a server did before, during and right after an overload."""

    kind: str
    peak_per_s: float
    told: Told
    after_per_s: float
    seconds: float
    memory_mb: tuple[float, float]

    @property
    def goodput(self) -> float:
        """Answers in time, relative to what it answers to a few callers."""
        return self.told.answered_per_s / self.peak_per_s

    def __str__(self) -> str:
        told = self.told
        refused, answered = "RESOURCE_EXHAUSTED", "OK"
        return (
            f"{self.kind}: {told.offered / self.seconds:.0f}/s offered, {self.peak_per_s:.0f}/s "
            f"is the peak, {told.answered_per_s:.0f}/s answered ({self.goodput:.2f}), right after "
            f"{self.after_per_s:.0f}/s; {dict(told.counts)}; p50 of answers "
            f"{1e3 * told.quantile_s(answered, 0.5):.0f} ms, of refusals "
            f"{1e3 * told.quantile_s(refused, 0.5):.1f}; memory {self.memory_mb[0]:.0f} MB, then "
            f"{self.memory_mb[1]:.0f}"
        )


def closed_loop(server: Server, kind: str, connections: int, callers: int, seconds: float) -> Load:
    """Return a load of so many callers on each connection, who wait for their answers."""
    host, port = server.address.rsplit(":", 1)
    return Load(
        host=host,
        port=int(port),
        path=PATH,
        payloads=requests_of(kind),
        seconds=seconds,
        connections=connections,
        callers=callers,
        timeout_s=30.0,
    )


def overload(server: Server, process: ServerProcess, kind: str, seconds: float) -> Overload:
    """Offer FACTOR times of what the server answers, for so long."""
    few = closed_loop(server, kind, CONNECTIONS, CALLERS, seconds=max(0.7, seconds / 5))
    peak_per_s = offer(few).answered_per_s
    quiet_mb = process.memory_mb("RssAnon")
    many = replace(few, per_s=FACTOR * peak_per_s, seconds=seconds, timeout_s=2.0)
    told = offer(many)
    after_per_s = offer(few).answered_per_s
    memory = quiet_mb, process.memory_mb("RssAnon")
    found = Overload(kind, peak_per_s, told, after_per_s, seconds, memory)
    print(found)
    return found


KINDS = ("one query", "batch of 64", "filter")


def check(found: Overload, goodput_min: float) -> None:
    """Assert what holds of each kind, on a machine of any speed."""
    told = found.told
    assert not told.counts["REFUSED_STREAM"]
    assert not told.counts["UNAVAILABLE"]
    assert not told.without_retry, "a refusal says when to try again"
    assert not told.closed
    if found.kind == "batch of 64":
        refused = told.counts["RESOURCE_EXHAUSTED"]
        assert told.counts["CANCELLED"] <= refused, "the service itself refuses most of them"
    assert found.goodput >= goodput_min
    assert found.after_per_s >= 0.3 * found.peak_per_s, "no backlog of calls whose callers left"
    assert found.memory_mb[1] - found.memory_mb[0] < 128


@pytest.mark.alone
def test_an_overload_of_each_kind_leaves_no_backlog_and_refuses_no_stream(
    start_server: Starter,
) -> None:
    server = start_server(1)
    fill(server)
    for kind in KINDS:
        check(overload(server, server, kind, seconds=2.5), goodput_min=0.2)


@pytest.mark.system_long
def test_an_overload_of_each_kind_for_long(start_server: Starter) -> None:
    server = start_server(1)
    fill(server)
    for kind in KINDS:
        check(overload(server, server, kind, seconds=20.0), goodput_min=0.3)


@pytest.mark.system_long
@pytest.mark.parametrize(("connections", "callers"), [(500, 2), (1, 2_000)])
def test_callers_who_wait_for_their_answers_are_all_answered(
    start_server: Starter, connections: int, callers: int
) -> None:
    server = start_server(1)
    fill(server)
    told = offer(closed_loop(server, "one query", connections, callers, seconds=5.0))
    print(
        f"{connections} connections with {callers} callers each: {told.answered_per_s:.0f}/s, "
        f"{dict(told.counts)}, p50 {1e3 * told.quantile_s('OK', 0.5):.0f} ms"
    )
    assert set(told.counts) == {"OK"}


@pytest.mark.system_long
def test_patient_callers_next_to_a_crowd_that_gives_up_after_50_ms(start_server: Starter) -> None:
    server = start_server(1)
    fill(server)
    patient = closed_loop(server, "one query", CONNECTIONS, CALLERS, seconds=5.0)
    peak_per_s = offer(patient).answered_per_s
    crowd = replace(patient, per_s=2 * peak_per_s, timeout_s=0.05)
    of_crowd, of_patient = offer_all([crowd, patient])
    print(
        f"{crowd.per_s:.0f}/s with 50 ms: {dict(of_crowd.counts)}; patient callers next to them: "
        f"{of_patient.answered_per_s:.0f}/s of {peak_per_s:.0f}/s, {dict(of_patient.counts)}"
    )
    assert of_patient.answered_per_s > 0


@pytest.fixture
def silent(start_server: Starter) -> Iterator[tuple[ServerProcess, Sequence[socket.socket]]]:
    """Lend a server, and more connections to it than it takes, which send nothing."""
    server = start_server(1)
    host, port = server.address.rsplit(":", 1)
    with ExitStack() as closing:
        yield (
            server,
            [
                closing.enter_context(socket.create_connection((host, int(port)), timeout=10))
                for _ in range(SILENT)
            ],
        )


@pytest.mark.system_long
def test_silent_connections_lock_others_out_for_six_seconds_at_most(
    silent: tuple[ServerProcess, Sequence[socket.socket]],
) -> None:
    server, _ = silent
    began = time.monotonic()
    with server.client() as client:
        client.wait_until_ready(timeout_s=30.0)
        client.server_info()
    locked_out_s = time.monotonic() - began
    print(f"{SILENT} silent connections lock a client out for {locked_out_s:.1f} s")
    assert 1.0 < locked_out_s < LOCKED_OUT_S
