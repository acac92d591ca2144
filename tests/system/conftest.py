"""Real servers: processes that are started, stopped, killed and started anew on the same rows.

A server is one process (`serve`, `shard` or `router`), or a fleet: shards and a router over them.
Most tests share one, each with a collection of its own, and run twice: over a process with its
shards inside, and over a fleet. Who harms a server starts one.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import IO, Any

import grpc
import pytest

from tests.bare_wire import Refusal, refusal_of
from vectorshard.client.client import Client
from vectorshard.shard.descriptions import CollectionDescription
from vectorshard.v1 import vectorshard_pb2 as v1
from vectorshard.v1.vectorshard_pb2_grpc import VectorServiceStub

VECTORSHARD = Path(__file__).resolve().parents[2] / ".venv" / "bin" / "vectorshard"
START_S = 20.0
STOP_S = 20.0
"""Well under the 30 s for which a draining server waits: who lets it wait so long fails here."""

CHANNEL_OPTIONS = [("grpc.max_receive_message_length", -1)]

Stub = Any
"""A VectorServiceStub; the generated code has no types."""

_stub_of: Callable[[grpc.Channel], Stub] = VectorServiceStub
_names = (f"c{number}" for number in count())


class Server(ABC):
    """What tests see of a server: it is started, asked at an address, and ended."""

    @property
    @abstractmethod
    def address(self) -> str:
        """HOST:PORT where it is asked, once it has started."""

    @abstractmethod
    def start(self) -> Server:
        """Start it, and return when it says that it can serve."""

    @abstractmethod
    def terminate(self) -> None:
        """Ask it to end; do not wait."""

    @abstractmethod
    def ended(self) -> int:
        """Wait for its end, and return its exit code."""

    @abstractmethod
    def kill(self) -> None:
        """End it by SIGKILL, in the middle of whatever it does."""

    @abstractmethod
    def log_text(self) -> str:
        """Return all that it has logged."""

    def stop(self) -> None:
        """End it by SIGTERM; it must end in time, with exit code 0."""
        self.terminate()
        code = self.ended()
        assert code == 0, f"it ended with {code}: {self.log_text()}"

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


@dataclass(slots=True)
class ServerProcess(Server):
    """One process of `vectorshard`, and its log. May be started again after its end."""

    command: Sequence[str]
    """What it is: `serve`, `shard` or `router`, with what only that takes."""
    log: Path
    data: Path
    """Where its rows are; nowhere for a router."""
    listen: str = "127.0.0.1:0"
    options: Sequence[str] = ()
    prefix: Sequence[str] = ()
    """A command that becomes the process, such as one that runs it on another host."""
    address: str = ""
    process: subprocess.Popen[str] | None = None

    def start(self) -> ServerProcess:
        """Start it, and return when it says that it can serve."""
        self.launch()
        return self.listening()

    def listening(self) -> ServerProcess:
        """Return when a launched process says that it can serve."""
        assert self.process is not None
        assert self.process.stdout is not None
        line = line_of(self.process.stdout, START_S)
        said = re.fullmatch(r"listening on ([0-9.]+:[1-9][0-9]*)\n", line)
        assert said, f"it said {line!r}; its log: {self.log_text()}"
        self.address = said[1]
        return self

    def launch(self) -> subprocess.Popen[str]:
        """Start the process; nothing is known of it yet."""
        assert self.process is None, "it runs already"
        command = [*self.prefix, str(VECTORSHARD), *self.command, "--listen", self.listen]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--log-format", "json", *self.options],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        return self.process

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def terminate(self) -> None:
        """Ask it to end; do not wait."""
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it by SIGKILL, in the middle of whatever it does."""
        self.signal(signal.SIGKILL)
        assert self.ended() == -signal.SIGKILL

    def ended(self) -> int:
        """Wait for its end, and return its exit code."""
        assert self.process is not None
        with self.process as process:
            code = process.wait(STOP_S)
        self.process = None
        return code

    def start_again(self) -> None:
        """Start it where it was reached before, as whoever asks it expects."""
        self.listen = self.address
        self.start()

    def log_text(self) -> str:
        """Return all that it has logged."""
        return self.log.read_text(errors="replace")

    def memory_mb(self, entry: str) -> float:
        """Return an entry of its /proc/PID/status, such as VmRSS, in megabytes."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"^{entry}:\s+(\d+) kB$", status, re.MULTILINE)
        assert found, status
        return int(found[1]) / 1024


@dataclass(slots=True)
class Fleet(Server):
    """Shard processes, and a router process over them, which is what is asked."""

    shards: Sequence[ServerProcess]
    router: ServerProcess

    def start(self) -> Fleet:
        """Start all of it, and return when the router can serve."""
        start_all(self.shards)
        self.router.command = router_command([shard.address for shard in self.shards])
        self.router.start()
        return self

    @property
    def address(self) -> str:
        """Where the router is asked."""
        return self.router.address

    @property
    def processes(self) -> list[ServerProcess]:
        """All of it, the router last."""
        return [*self.shards, self.router]

    def terminate(self) -> None:
        """Ask all of it to end; do not wait."""
        for process in self.processes:
            process.terminate()

    def kill(self) -> None:
        """End all of it by SIGKILL."""
        for process in self.processes:
            process.kill()

    def ended(self) -> int:
        """Wait for the end of all of it, and return the first exit code that is not 0, else 0."""
        codes = [process.ended() for process in self.processes]
        return next((code for code in codes if code), 0)

    def log_text(self) -> str:
        """Return all that any of it has logged."""
        return "".join(process.log_text() for process in self.processes)


def start_all(servers: Sequence[ServerProcess]) -> None:
    """Start several processes side by side."""
    for server in servers:
        server.launch()
    for server in servers:
        server.listening()


def serve_command(data: Path, shards: int) -> list[str]:
    """Return the command of a server with its shards inside."""
    return ["serve", "--shards", str(shards), "--data", str(data)]


def shard_command(data: Path, shard: int, shards: int) -> list[str]:
    """Return the command of one shard of a fleet."""
    identity = ["--shard-id", str(shard), "--shards", str(shards)]
    return ["shard", *identity, "--data", str(data)]


def router_command(addresses: Sequence[str]) -> list[str]:
    """Return the command of a router over shards."""
    return ["router", *(word for address in addresses for word in ("--shard", address))]


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


def logged_address(server: ServerProcess, event: str) -> str:
    """Return the address that a server's log tells with an event, such as `serving health`."""
    for entry in log_entries(server):
        if entry["event"] == event:
            return str(entry["address"])
    raise AssertionError(server.log_text())


def log_entries(server: ServerProcess) -> list[dict[str, Any]]:
    """Return what a server has logged."""
    return [json.loads(line) for line in server.log_text().splitlines()]


def log_lines(server: ServerProcess) -> set[str]:
    """Return what a server has logged, as docs/operations.md shows it."""
    return {
        f"log {entry['level']}: {entry['event']}"
        + (f" ({entry['reason']})" if "reason" in entry else "")
        for entry in log_entries(server)
    }


def new_name() -> str:
    """Return a collection's name that no test has used."""
    return f"{next(_names)}-{os.getpid()}"


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


def ledger_of(stub: Stub, collection: str) -> tuple[int, ...]:
    """Return accepted, live, deleted and replaced: what training and absorbing leave alone."""
    ledger = stub.DescribeCollection(v1.DescribeCollectionRequest(collection=collection)).ledger
    live = ledger.buffered + ledger.indexed
    assert ledger.accepted == live + ledger.deleted + ledger.replaced
    return ledger.accepted, live, ledger.deleted, ledger.replaced


def check_does_not_start(server: ServerProcess, told: str, code: int) -> None:
    """Assert that a server ends at once, with its code and one line that says why."""
    process = server.launch()
    assert process.stdout is not None
    assert line_of(process.stdout, START_S) == ""
    assert server.ended() == code
    [line] = [line for line in server.log_text().splitlines() if not line.startswith("{")]
    assert re.search(told, line), line


@dataclass(slots=True)
class Starter:
    """Starts servers, each with its files in a directory of its own below `directory`."""

    directory: Path
    processes: list[ServerProcess] = field(default_factory=list)

    def __call__(self, shards: int = 2, **changes: Any) -> ServerProcess:
        """Start a server with its shards inside; `changes` are those of `new`."""
        data = changes.pop("data", self._directory() / "data")
        return self.new(serve_command(data, shards), data=data, **changes)

    def shard(self, shard: int = 0, shards: int = 2, **changes: Any) -> ServerProcess:
        """Start one shard of a fleet."""
        data = changes.pop("data", self._directory() / "data")
        return self.new(shard_command(data, shard, shards), data=data, **changes)

    def router(self, addresses: Sequence[str], **changes: Any) -> ServerProcess:
        """Start a router over the shards at `addresses`."""
        return self.new(router_command(addresses), **changes)

    def fleet(
        self, shards: int = 2, *, data: Path | None = None, start: bool = True, **changes: Any
    ) -> Fleet:
        """Start a fleet whose shards keep their rows below `data`, as `serve` would."""
        data = data or self._directory() / "data"
        members = [
            self.shard(shard, shards, data=data / f"shard-{shard}", start=False, **changes)
            for shard in range(shards)
        ]
        fleet = Fleet(members, self.router([], start=False, **changes))
        return fleet.start() if start else fleet

    def new(
        self, command: Sequence[str], *, start: bool = True, data: Path = Path(), **changes: Any
    ) -> ServerProcess:
        """Start a process, unless `start` says otherwise; `listen`, `options`: as it has them."""
        log = self._directory() / "log"
        log.parent.mkdir(exist_ok=True)
        server = ServerProcess(command, log=log, data=data, **changes)
        self.processes.append(server)
        return server.start() if start else server

    def _directory(self) -> Path:
        return self.directory / f"server-{len(self.processes)}"


@contextmanager
def servers(directory: Path) -> Iterator[Starter]:
    """Lend what starts servers below `directory`; all are gone when the context ends."""
    starter = Starter(directory)
    try:
        yield starter
    finally:
        for server in starter.processes:
            if server.process is not None:
                server.signal(signal.SIGKILL)
                server.ended()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Starter]:
    """What starts servers of this test alone."""
    with servers(tmp_path) as starter:
        yield starter


KINDS = ("embedded", "fleet")
"""Shards in the server's own process, or each in one of its own."""

StartServer = Callable[[int], Server]


@pytest.fixture(params=KINDS)
def start_either(request: pytest.FixtureRequest, start_server: Starter) -> StartServer:
    """What starts servers of this test alone, of so many shards, of either kind."""
    return start_server if request.param == "embedded" else start_server.fleet


@pytest.fixture(scope="session")
def embedded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two shards inside, for all tests that do it no harm. It must end well."""
    with servers(tmp_path_factory.mktemp("embedded")) as starter:
        server = starter(2)
        yield server
        server.stop()


@pytest.fixture(scope="session")
def fleet_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A router over two shards, for all tests that do it no harm. It must end well."""
    with servers(tmp_path_factory.mktemp("fleet")) as starter:
        server = starter.fleet(2)
        yield server
        server.stop()


@pytest.fixture(scope="session", params=KINDS)
def shared_server(request: pytest.FixtureRequest) -> Server:
    """A server of two shards, of either kind, for all tests that do it no harm."""
    server: Server = request.getfixturevalue(f"{request.param}_server")
    return server


@pytest.fixture
def client(shared_server: Server) -> Iterator[Client]:
    """A client of the shared server."""
    with shared_server.client() as client:
        yield client


@pytest.fixture
def stub(shared_server: Server) -> Iterator[Stub]:
    """A raw stub of the shared server."""
    with shared_server.stub() as stub:
        yield stub
