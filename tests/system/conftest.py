"""Real servers: processes that are started, stopped, killed and started anew on the same rows.

Most tests share one server, each with a collection of its own; who harms a server starts one.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import IO, Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from google.rpc import (  # type: ignore[import-untyped]  # it has stubs, but no py.typed
    error_details_pb2,
    status_pb2,
)
from vectorshard.v1 import vectorshard_pb2 as v1
from vectorshard.v1.vectorshard_pb2_grpc import VectorServiceStub

from router.client import Client
from shard.types import CollectionDescription

VECTORSHARD = Path(__file__).resolve().parents[2] / ".venv" / "bin" / "vectorshard"
START_S = 20.0
STOP_S = 20.0
"""Well under the 30 s for which a draining server waits: who lets it wait so long fails here."""

CHANNEL_OPTIONS = [("grpc.max_receive_message_length", -1)]

Stub = Any
"""A VectorServiceStub; the generated code has no types."""

_stub_of: Callable[[grpc.Channel], Stub] = VectorServiceStub
_names = (f"c{number}" for number in count())


@dataclass(slots=True)
class ServerProcess:
    """One `vectorshard serve`, and its log. May be started again after its end."""

    data: Path
    log: Path
    shards: int = 2
    listen: str = "127.0.0.1:0"
    options: Sequence[str] = ()
    address: str = ""
    process: subprocess.Popen[str] | None = None

    def start(self) -> ServerProcess:
        """Start it, and return when it says that it can serve."""
        process = self.launch()
        assert process.stdout is not None
        line = line_of(process.stdout, START_S)
        said = re.fullmatch(r"listening on (127\.0\.0\.1:[1-9][0-9]*)\n", line)
        assert said, f"it said {line!r}; its log: {self.log_text()}"
        self.address = said[1]
        return self

    def launch(self) -> subprocess.Popen[str]:
        """Start the process; nothing is known of it yet."""
        assert self.process is None, "it runs already"
        command = [str(VECTORSHARD), "serve", "--shards", str(self.shards)]
        command += ["--data", str(self.data), "--listen", self.listen, "--log-format", "json"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.options], stdout=subprocess.PIPE, stderr=log, text=True
            )
        return self.process

    def terminate(self) -> None:
        """Ask it to end; do not wait."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """End it by SIGTERM; it must end in time, with exit code 0."""
        self.terminate()
        code = self.ended()
        assert code == 0, f"it ended with {code}: {self.log_text()}"

    def kill(self) -> None:
        """End it by SIGKILL, in the middle of whatever it does."""
        assert self.process is not None
        self.process.kill()
        assert self.ended() == -signal.SIGKILL

    def ended(self) -> int:
        """Wait for its end, and return its exit code."""
        assert self.process is not None
        with self.process as process:
            code = process.wait(STOP_S)
        self.process = None
        return code

    def log_text(self) -> str:
        """Return all that it has logged."""
        return self.log.read_text(errors="replace")

    def client(self) -> Client:
        """Return a new client of it."""
        return Client(self.address)

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        """Lend a raw channel to it."""
        with grpc.insecure_channel(self.address, options=CHANNEL_OPTIONS) as channel:
            yield channel

    @contextmanager
    def stub(self) -> Iterator[Stub]:
        """Lend a raw stub of it."""
        with self.channel() as channel:
            yield _stub_of(channel)


def line_of(stdout: IO[str], timeout_s: float) -> str:
    """Return the next line that a process prints; "" when it ends without one."""
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        assert selector.select(timeout_s), "it printed nothing in time"
    return stdout.readline()


def wait_until(holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Ask again and again until it holds; fail when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"it did not hold within {timeout_s:g} s"
        time.sleep(0.01)


def adds_up(description: CollectionDescription) -> bool:
    """Whether every accepted row of every shard is in exactly one place."""
    return all(shard.ledger.adds_up for shard in description.shards)


def new_name() -> str:
    """Return a collection's name that no test has used."""
    return f"{next(_names)}-{os.getpid()}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """The status of a call that failed, as a client in any language reads it."""

    code: grpc.StatusCode
    message: str
    fields: tuple[str, ...] = ()
    """Of BadRequest.field_violations."""
    descriptions: tuple[str, ...] = ()
    reason: str = ""
    """Of ErrorInfo."""
    facts: dict[str, str] = field(default_factory=dict)
    """ErrorInfo.metadata."""


def refusal_of(error: grpc.RpcError) -> Refusal:
    """Read a failed call's status and its google.rpc details."""
    assert isinstance(error, grpc.Call)
    bad_request, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            assert status.code == error.code().value[0]
            for detail in status.details:
                for message in (bad_request, info):
                    detail.Unpack(message)
    return Refusal(
        code=error.code(),
        message=error.details() or "",
        fields=tuple(violation.field for violation in bad_request.field_violations),
        descriptions=tuple(violation.description for violation in bad_request.field_violations),
        reason=info.reason,
        facts=dict(info.metadata),
    )


def refused(call: Callable[[], object]) -> Refusal:
    """Make a call that must fail, and return its status."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return refusal_of(caught.value)


def unary_bytes(channel: grpc.Channel, rpc: str) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
    """Return an RPC of the service that sends and receives bare bytes."""
    return channel.unary_unary(f"/vectorshard.v1.VectorService/{rpc}")


def stream_bytes(channel: grpc.Channel, rpc: str) -> grpc.StreamStreamMultiCallable[bytes, bytes]:
    """Return a streaming RPC of the service that sends and receives bare bytes."""
    return channel.stream_stream(f"/vectorshard.v1.VectorService/{rpc}")


def matrix(vectors: npt.ArrayLike) -> v1.Matrix:
    """Return vectors (rows, dim) as FLOAT32, as a client in any language writes them."""
    array = np.asarray(vectors, dtype="<f4")
    return v1.Matrix(data=array.tobytes(), dim=array.shape[1], dtype=v1.D_TYPE_FLOAT32)


def int64s(*ids: int) -> v1.Ids:
    """Return ids that are integers."""
    return v1.Ids(int64s=v1.Int64Ids(values=ids))


def strings(*ids: str) -> v1.Ids:
    """Return ids that are strings."""
    return v1.Ids(strings=v1.StringIds(values=ids))


def ledger_of(stub: Stub, collection: str) -> tuple[int, ...]:
    """Return accepted, live, deleted and replaced: what training and absorbing leave alone."""
    ledger = stub.DescribeCollection(v1.DescribeCollectionRequest(collection=collection)).ledger
    live = ledger.buffered + ledger.indexed
    assert ledger.accepted == live + ledger.deleted + ledger.replaced
    return ledger.accepted, live, ledger.deleted, ledger.replaced


StartServer = Callable[..., ServerProcess]


@contextmanager
def _servers(directory: Path) -> Iterator[StartServer]:
    """Lend a function that starts servers below `directory`; all are gone when the context ends."""
    started: list[ServerProcess] = []

    def new(shards: int = 2, *, start: bool = True, **changes: Any) -> ServerProcess:
        number = len(started)
        changes.setdefault("data", directory / f"data-{number}")
        server = ServerProcess(log=directory / f"log-{number}", shards=shards, **changes)
        started.append(server)
        return server.start() if start else server

    try:
        yield new
    finally:
        for server in started:
            if server.process is not None:
                server.process.kill()
                server.ended()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """A function that starts servers of this test alone; `shards`, `data`, `options` ..."""
    with _servers(tmp_path) as new:
        yield new


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of two shards for all tests that do it no harm. It must end as it should."""
    with _servers(tmp_path_factory.mktemp("shared")) as new:
        server = new(2)
        yield server
        server.stop()


@pytest.fixture
def client(shared_server: ServerProcess) -> Iterator[Client]:
    """A client of the shared server."""
    with shared_server.client() as client:
        yield client


@pytest.fixture
def stub(shared_server: ServerProcess) -> Iterator[Stub]:
    """A raw stub of the shared server."""
    with shared_server.stub() as stub:
        yield stub
