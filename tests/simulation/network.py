"""A network between routers and servers, in virtual time: what gRPC promises, and nothing beyond.

It stands where `grpc.aio.Channel` stands. Above it runs what runs in production: RemoteShard and
Link on the one side, VectorService with its streams on the other, and between them the bytes of the
contract. Chance decides how long each message travels, and what becomes of it: it may be lost, the
connection may break, a unary request may arrive twice. Messages of a stream arrive in order, those
of different calls do not.

A `Host` is an address. What serves there is a `Server`, which may die, come back, or be somebody
else the next time. A host that is stalled neither takes nor gives anything: a process that was
stopped, or a network that swallows packets.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from random import Random
from typing import Any, Final, NoReturn, cast

import grpc
from grpc.aio import Metadata
from prometheus_client import CollectorRegistry

from tests.router.model_shard import CAUSE, Cause, ModelShard
from vectorshard.shard.config import Limits
from vectorshard.shard.server.service import VectorService
from vectorshard.shard.server.telemetry import RpcMetrics

KEEPALIVE_S: Final = 20.0
"""After this long without a sign of life a connection is given up."""

RECONNECT_S: Final = 1.0
"""The longest time for which a channel does not try again to connect."""

LONGEST_S: Final = 2.0
"""No message travels longer, unless a host is stalled."""

Pairs = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """What the network does by itself. Each is a probability, of a call or of a message."""

    delay_s: float = 0.001
    """How long a message travels, on average."""
    late: float = 0.0
    """A message takes a hundred times as long."""
    lost_request: float = 0.0
    lost_answer: float = 0.0
    """It never arrives, and nobody hears of it."""
    cut: float = 0.0
    """The connection breaks while a call, or a stream's answer, is under way."""
    copied: float = 0.0
    """A unary request arrives a second time, or an answer of a stream does."""


class _Fate(Enum):
    ARRIVES = auto()
    REQUEST_LOST = auto()
    ANSWER_LOST = auto()
    CUT_BEFORE = auto()
    CUT_AFTER = auto()
    COPIED = auto()


_FAILURES: Final = (grpc.aio.AioRpcError, grpc.aio.BaseError)
"""What a call of gRPC raises: its status, or that its channel is closed."""


def _failure(code: grpc.StatusCode, text: str, trailing: Pairs = ()) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, Metadata(), Metadata(*trailing), text)


def _broken() -> grpc.aio.AioRpcError:
    return _failure(grpc.StatusCode.UNAVAILABLE, "Socket closed")


class _Aborted(Exception):
    """What `Context.abort` raises."""

    def __init__(self, code: grpc.StatusCode, text: str, trailing: Pairs) -> None:
        super().__init__(text)
        self.failure = _failure(code, text, trailing)


@dataclass(slots=True)
class Context:
    """What a handler sees of its call, as far as ours look."""

    metadata: Pairs
    deadline: float | None
    payload: bytes = b""

    async def read(self) -> bytes:
        """Return the request, of a handler that reads it."""
        return self.payload

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - asyncio.get_running_loop().time())

    def invocation_metadata(self) -> Pairs:
        """Return what travels beside the request."""
        return self.metadata

    async def abort(self, code: grpc.StatusCode, details: str, trailing: Pairs) -> NoReturn:
        """End the call with a status."""
        raise _Aborted(code, details, trailing)


@dataclass(frozen=True, slots=True)
class _Details:
    method: str
    invocation_metadata: Pairs


class Server:
    """A process that serves a model shard."""

    def __init__(self, shard: ModelShard, clock: Callable[[], float]) -> None:
        self.shard = shard
        self.service = VectorService(
            shard, Limits(), "simulated", RpcMetrics(CollectorRegistry()), clock=clock
        )
        self._handler = self.service.handler()
        self.connections: dict[_Connection, None] = {}  # a set has an order by chance
        self.serves = True

    def method(self, path: str, metadata: Pairs) -> Any:
        """Return the handler of a method."""
        return self._handler.service(cast(Any, _Details(path, metadata)))


@dataclass(slots=True, eq=False)
class Host:
    """An address, and who serves there, if anybody does."""

    name: str
    server: Server | None = None
    pace: float = 1.0
    """How many times longer everything takes there."""
    resumed: asyncio.Event = field(default_factory=asyncio.Event)
    stalls: int = 0

    def __post_init__(self) -> None:
        self.resumed.set()


class Network:
    """All hosts, all connections, and the chance that rules them.

    Parameters
    ----------
    weather
        What happens to calls and messages.
    random
        Decides when.
    note
        Takes a line of the log: who, did what, to what.
    """

    def __init__(
        self, weather: Weather, random: Random, note: Callable[[str, str, object], None]
    ) -> None:
        self.weather = weather
        self.random = random
        self.note = note
        self.hosts: dict[str, Host] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._awaited: set[_Unary] = set()
        self.failures: list[BaseException] = []
        """What went wrong in the simulation itself."""

    # ---- what is done to it ---------------------------------------------------------------------

    def start(self, name: str, server: Server) -> None:
        """Have a server serve at an address."""
        self.hosts.setdefault(name, Host(name)).server = server

    def kill(self, name: str) -> None:
        """End the server at an address, in the middle of whatever it does."""
        host = self.hosts[name]
        server, host.server = host.server, None
        if server is not None:
            server.serves = False
            for connection in list(server.connections):
                connection.end()
            server.shard.crash()

    def cut(self, name: str) -> None:
        """Break all connections to an address; its server lives on."""
        server = self.hosts[name].server
        for connection in list(server.connections) if server is not None else ():
            connection.end()

    def stall(self, name: str) -> None:
        """Let nothing in or out of an address from now on."""
        host = self.hosts[name]
        host.resumed.clear()
        host.stalls += 1
        stall = host.stalls

        def give_up() -> None:
            if stall == host.stalls and not host.resumed.is_set():
                self.note(name, "is given up by keepalive", "")
                self.cut(name)

        asyncio.get_running_loop().call_later(KEEPALIVE_S, give_up)

    def resume(self, name: str) -> None:
        """Deliver what has waited, and all that comes."""
        self.hosts[name].resumed.set()

    # ---- what it does ---------------------------------------------------------------------------

    def channel(self, name: str) -> grpc.aio.Channel:
        """Return a channel to an address."""
        host = self.hosts.setdefault(name, Host(name))
        return cast(grpc.aio.Channel, Channel(self, host))

    def delay_s(self, host: Host) -> float:
        """Return how long a message travels."""
        weather = self.weather
        long = 100.0 if self.random.random() < weather.late else 1.0
        travels_s = self.random.expovariate(1.0 / weather.delay_s) * long * host.pace
        return min(travels_s, LONGEST_S)

    async def passage(self, host: Host) -> None:
        """Return when a message has come through."""
        await asyncio.sleep(self.delay_s(host))
        while not host.resumed.is_set():
            await host.resumed.wait()

    def fate(self) -> _Fate:
        """Say what becomes of a call."""
        weather, at = self.weather, self.random.random()
        for fate, part in (
            (_Fate.REQUEST_LOST, weather.lost_request),
            (_Fate.ANSWER_LOST, weather.lost_answer),
            (_Fate.CUT_BEFORE, weather.cut / 2),
            (_Fate.CUT_AFTER, weather.cut / 2),
            (_Fate.COPIED, weather.copied),
        ):
            at -= part
            if at < 0:
                return fate
        return _Fate.ARRIVES

    def task(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something as a part of the network."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            failure = task.exception()
            if not isinstance(failure, _Aborted | grpc.aio.AioRpcError | grpc.aio.BaseError | None):
                self.note("network", "has failed: ", repr(failure))
                self.failures.append(failure)

    def awaited(self, call: int) -> list[str]:
        """Return the RPCs that a caller's call still waits for."""
        return [unary.rpc for unary in self._awaited if unary.cause.call == call]

    async def close(self) -> None:
        """End all that is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Connection:
    """A channel's connection to one server, and what is under way on it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.calls: dict[_Unary | Stream, None] = {}
        self.broken = False
        server.connections[self] = None

    def end(self) -> None:
        """Break; all that is under way ends with it."""
        self.broken = True
        self.server.connections.pop(self, None)
        for call in list(self.calls):
            call.cut()


class Channel:
    """What RemoteShard and Link use of `grpc.aio.Channel`."""

    def __init__(self, network: Network, host: Host) -> None:
        self.network = network
        self.host = host
        self._connection: _Connection | None = None
        self._not_before = 0.0
        self._closed = False

    async def connected(self) -> _Connection:
        """Return a connection; raise UNAVAILABLE at once while there is none to be had."""
        if self._closed:
            raise grpc.aio.UsageError("Channel is closed.")
        connection = self._connection
        if connection is not None and not connection.broken:
            return connection
        now = asyncio.get_running_loop().time()
        if now >= self._not_before:
            await self.network.passage(self.host)
            if self._connection is not None and not self._connection.broken:
                return self._connection  # somebody else's call was faster
            if (server := self.host.server) is not None:
                self._connection = _Connection(server)
                return self._connection
            wait_s = self.network.random.uniform(0.1, RECONNECT_S)
            self._not_before = asyncio.get_running_loop().time() + wait_s
        raise _failure(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses")

    def unary_unary(
        self, path: str, request_serializer: Callable[[Any], bytes]
    ) -> Callable[..., _Unary]:
        """Return what makes calls of a method."""

        def call(request: Any, *, timeout: float | None, metadata: Pairs) -> _Unary:
            return _Unary(self, path, request_serializer(request), timeout, metadata)

        return call

    def stream_stream(self, path: str) -> Callable[..., Stream]:
        """Return what opens streams of a method."""

        def call(*, metadata: Pairs) -> Stream:
            return Stream(self, path, metadata)

        return call

    def get_state(self) -> grpc.ChannelConnectivity:
        """Say whether it is connected."""
        connected = self._connection is not None and not self._connection.broken
        states = grpc.ChannelConnectivity
        return states.READY if connected else states.TRANSIENT_FAILURE

    async def close(self, grace: float | None = None) -> None:
        """Take no more calls; those under way after `grace` seconds end as if cancelled."""
        self._closed = True
        await asyncio.sleep(grace or 0.0)
        for call in list(self._connection.calls) if self._connection is not None else ():
            call.cancel()


class _Unary:
    """A unary call: who waits for it, and what runs for it on the server."""

    def __init__(
        self, channel: Channel, path: str, payload: bytes, timeout_s: float | None, metadata: Pairs
    ) -> None:
        self.rpc = path.rpartition("/")[2]
        self.cause = CAUSE.get()
        self._channel = channel
        self._network = channel.network
        self._path = path
        self._payload = payload
        self._timeout_s = timeout_s
        self._metadata = metadata
        self._fate = self._network.fate()
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._answer.add_done_callback(lambda answer: answer.cancelled() or answer.exception())
        self._running: list[asyncio.Task[bytes]] = []
        self._arrives: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._connection: _Connection | None = None
        self._travels = self._network.task(self._travel())

    # ---- who waits ------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, bytes]:
        return self._answered().__await__()

    def _cancel(self, details: str) -> None:
        """End it at once: what RemoteShard uses instead of `cancel`."""
        self._network._awaited.discard(self)
        self._answer.cancel()

    async def _answered(self) -> bytes:
        """Return the answer; raise what gRPC raises instead."""
        self._network._awaited.add(self)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.shield(self._answer)
        except TimeoutError:
            self._withdraw()
            raise _failure(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded") from None
        except asyncio.CancelledError:
            self._withdraw()
            raise
        finally:
            self._network._awaited.discard(self)

    def cut(self) -> None:
        """End it: its connection is broken."""
        if not self._answer.done():
            self._answer.set_exception(_broken())
        self._withdraw()

    def cancel(self) -> None:
        """End it at once."""
        self._answer.cancel()

    def _withdraw(self) -> None:
        """Nobody waits any more: the request never leaves, or the server hears of it later.

        What was sent first arrives first: a handler that is told to end has begun.
        """
        if not self._running and self._network.random.random() < 0.5:
            self._travels.cancel()
        self._network.task(self._withdrawn())

    async def _withdrawn(self) -> None:
        await asyncio.wait([self._arrives])
        await self._network.passage(self._channel.host)
        for running in self._running:
            running.cancel()
        self._travels.cancel()

    # ---- what runs ------------------------------------------------------------------------------

    async def _travel(self) -> None:
        try:
            answer = await self._there_and_back()
        except asyncio.CancelledError:
            raise
        except BaseException as failure:
            if not self._answer.done():
                self._answer.set_exception(failure)
        else:
            if not self._answer.done():
                self._answer.set_result(answer)
        finally:
            if not self._arrives.done():
                self._arrives.cancel()
            if self._connection is not None:
                self._connection.calls.pop(self, None)

    async def _there_and_back(self) -> bytes:
        network, host = self._network, self._channel.host
        self._connection = connection = await self._channel.connected()
        connection.calls[self] = None
        await network.passage(host)
        if self._fate is _Fate.REQUEST_LOST:
            network.note(host.name, "does not get ", self)
            self._arrives.cancel()
            await asyncio.Event().wait()
        if self._fate is _Fate.CUT_BEFORE:
            network.note(host.name, "loses its connection before ", self)
            connection.end()
        if not connection.server.serves:
            raise _broken()
        if self._fate is _Fate.COPIED:
            network.note(host.name, "gets twice: ", self)
            network.task(self._copy(connection.server))
        running = network.task(self._run(connection.server))
        self._running.append(running)
        self._arrives.set_result(None)
        try:
            answer: bytes = await asyncio.shield(running)
        except _Aborted as aborted:
            await network.passage(host)
            raise aborted.failure from None
        except asyncio.CancelledError:
            if running.cancelled():
                raise _failure(grpc.StatusCode.CANCELLED, "cancelled on the server") from None
            raise
        await network.passage(host)
        if self._fate is _Fate.ANSWER_LOST:
            network.note(host.name, "answers in vain: ", self)
            await asyncio.Event().wait()
        if self._fate is _Fate.CUT_AFTER:
            network.note(host.name, "loses its connection before it has answered ", self)
            connection.end()
        return answer

    async def _run(self, server: Server) -> bytes:
        """Have the handler answer, until the time is over that the call has from now on."""
        deadline = None
        if self._timeout_s is not None:
            deadline = asyncio.get_running_loop().time() + self._timeout_s
        handler = server.method(self._path, self._metadata)
        try:
            async with asyncio.timeout(self._timeout_s):
                context = Context(self._metadata, deadline, self._payload)
                if handler.unary_unary is not None:
                    return cast(bytes, await handler.unary_unary(self._payload, context))
                return cast(bytes, await handler.stream_unary(None, context))
        except TimeoutError:
            raise _Aborted(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", ()) from None

    async def _copy(self, server: Server) -> None:
        CAUSE.set(Cause(self.cause.call, copy=True))
        await self._network.passage(self._channel.host)
        if server.serves:
            with suppress(_Aborted):
                await self._run(server)

    def __str__(self) -> str:
        return f"{self.rpc} of call {self.cause.call}"


class _Pipe:
    """One direction of a stream: messages arrive in the order in which they were sent."""

    def __init__(self, network: Network, host: Host, arrive: Callable[[Any], None]) -> None:
        self._network = network
        self._host = host
        self._arrive = arrive
        self._sent: asyncio.Queue[tuple[float, Any]] = asyncio.Queue()
        self._last = 0.0
        self.task = network.task(self._carry())

    def send(self, message: Any) -> None:
        """Send a message, or a failure, or whatever else means the end."""
        now = asyncio.get_running_loop().time()
        self._last = max(self._last, now + self._network.delay_s(self._host))
        self._sent.put_nowait((self._last, message))

    async def _carry(self) -> None:
        while True:
            arrives, message = await self._sent.get()
            await asyncio.sleep(arrives - asyncio.get_running_loop().time())
            while not self._host.resumed.is_set():
                await self._host.resumed.wait()
            self._arrive(message)


class Stream:
    """A bidirectional stream, as a client sees it: what `GrpcStream` uses of it."""

    def __init__(self, channel: Channel, path: str, metadata: Pairs) -> None:
        self._channel = channel
        self._network = network = channel.network
        self._host = channel.host
        self._path = path
        self._metadata = metadata
        self._cancelled = self._over = False
        self._answers: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self._requests: asyncio.Queue[bytes] = asyncio.Queue()
        self._to_server = _Pipe(network, self._host, self._requests.put_nowait)
        self._to_client = _Pipe(network, self._host, self._answers.put_nowait)
        self._connection: _Connection | None = None
        self._serves = network.task(self._serve())

    # ---- the client's side ----------------------------------------------------------------------

    async def write(self, payload: bytes) -> None:
        """Send a message."""
        if self._over:
            raise asyncio.InvalidStateError("the stream has ended")
        self._to_server.send(payload)

    async def read(self) -> object:
        """Return the next message, or EOF."""
        answer = None if self._over else await self._answers.get()
        if isinstance(answer, bytes):
            return answer
        self._over = True
        if self._cancelled:
            raise asyncio.CancelledError
        if answer is not None:
            raise answer
        return grpc.aio.EOF

    def cancel(self) -> None:
        """End it at once; the server hears of it later."""
        if not self._over:
            self._cancelled = True
            self._answers.put_nowait(None)
            self._network.task(self._withdrawn())

    def cancelled(self) -> bool:
        """Say whether it was cancelled."""
        return self._cancelled

    # ---- the network and the server -------------------------------------------------------------

    def cut(self) -> None:
        """End it: its connection is broken."""
        self._answers.put_nowait(_broken())
        self._network.task(self._withdrawn())

    async def _withdrawn(self) -> None:
        await self._network.passage(self._host)
        self._serves.cancel()

    async def _serve(self) -> None:
        CAUSE.set(Cause())
        try:
            await self._served()
        except _Aborted as aborted:
            self._to_client.send(aborted.failure)
        except _FAILURES as failure:
            self._answers.put_nowait(failure)
        else:
            self._to_client.send(None)
        finally:
            self._to_server.task.cancel()
            if self._connection is not None:
                self._connection.calls.pop(self, None)

    async def _served(self) -> None:
        network = self._network
        self._connection = connection = await self._channel.connected()
        connection.calls[self] = None
        await network.passage(self._host)
        if not connection.server.serves:
            raise _broken()
        handler = connection.server.method(self._path, self._metadata)
        answers: AsyncIterator[bytes] = handler.stream_stream(
            self._read(), Context(self._metadata, None)
        )
        async for answer in answers:
            self._to_client.send(answer)
            chance = network.random.random()
            if chance < network.weather.copied:
                network.note(self._host.name, "answers twice on a stream", "")
                self._to_client.send(answer)
            elif chance > 1.0 - network.weather.cut:
                network.note(self._host.name, "loses its connection with a stream on it", "")
                connection.end()

    async def _read(self) -> AsyncIterator[bytes]:
        while True:
            yield await self._requests.get()
