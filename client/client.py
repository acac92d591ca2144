"""The blocking client. Numpy in, numpy out, one tree of errors.

    with Client("127.0.0.1:7700") as client:
        client.create_collection("words", dim=100)
        client.upsert("words", [1, 2], np.eye(2, 100))
        for hits in client.search("words", np.eye(2, 100), k=1):
            print(hits[0].id, hits[0].score)

A shard, a router and an embedded server are asked alike. The methods are in the table of
client.calls; this module sends what they build, and client.streams what travels over streams.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar, Unpack

import grpc

from vectorshard.client import calls
from vectorshard.client.lazy import parts
from vectorshard.client.methods import answer_of, method_of
from vectorshard.shard.errors import (
    ClientUnusable,
    InvalidParameter,
    ShardUnavailable,
    VectorShardError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vectorshard.client.calls import AnswerT, Listing, SearchOptions, UnaryCall
    from vectorshard.client.results import Hits, RowsView, UpsertSummary
    from vectorshard.client.retry import Retry
    from vectorshard.client.upload import UpsertUpload
    from vectorshard.client.vector_arguments import Vectors
    from vectorshard.shard.config import Limits

P = ParamSpec("P")
T = TypeVar("T")


def _unary(build: Callable[P, UnaryCall[AnswerT]]) -> Callable[Concatenate[Client, P], AnswerT]:
    """Return the method of Client that sends one call."""

    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> AnswerT:
        return self._ask(build(*args, **kwargs))

    return method_of("Client", build, answer_of(build), method)


def _listing(build: Callable[P, Listing]) -> Callable[Concatenate[Client, P], Iterator[RowsView]]:
    """Return the method of Client that yields one page after another."""

    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[RowsView]:
        listing = build(*args, **kwargs)
        while (call := listing.next_call()) is not None:
            if not (page := self._ask(call)).is_empty:
                yield page

    return method_of("Client", build, "Iterator[RowsView]", method)


def _upload(build: Callable[P, UpsertUpload]) -> Callable[Concatenate[Client, P], UpsertSummary]:
    """Return the method of Client that sends an upload."""

    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> UpsertSummary:
        return self._send(build(*args, **kwargs))

    return method_of("Client", build, "UpsertSummary", method)


class Client:
    """A client of one server. Threads may share it; each call blocks its thread.

    A forked child may use it, too: it opens a connection for itself.

    Parameters
    ----------
    target
        HOST:PORT, or any gRPC name; the port of HOST alone is 7700. A URL or an invalid port raises
        InvalidParameter. The client connects with its first call. Several addresses, of a name or
        as in ``10.0.0.1:7700,10.0.0.2:7700``, are routers that are used in turn.
    timeout_s
        Longest duration of a call, and of an upload's wait for an acknowledgement.
    retry
        Which calls are repeated, within `timeout_s`, when a server or a shard is missing or
        overloaded. Uploads of several messages are never repeated.

    Notes
    -----
    In addition to what its docstring says, every method may raise

    - CollectionNotFound, if it names a collection;
    - ShardUnavailable, if the server or a shard is missing, and Overloaded: worth repeating;
    - DeadlineExceeded after `timeout_s`, and InternalError for faults of the server.
    """

    def __init__(
        self, target: str, *, timeout_s: float = 30.0, retry: Retry | str = "none"
    ) -> None:
        self._target = parts.checked_target(target)
        self._connect()
        self._closed = False
        self._timeout_s = parts.seconds_of(timeout_s)
        self._retry = parts.member_of(parts.Retry, retry, "retry", InvalidParameter)
        self._limits: Limits | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._target!r})"

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle what it connects to: in another process, it connects for itself."""
        return Client._connected, (self._target, self._timeout_s, str(self._retry))

    @staticmethod
    def _connected(target: str, timeout_s: float, retry: str) -> Client:
        return Client(target, timeout_s=timeout_s, retry=retry)

    @property
    def target(self) -> str:
        """What it connects to."""
        return self._target

    server_info = _unary(calls.server_info)
    create_collection = _unary(calls.create_collection)
    drop_collection = _unary(calls.drop_collection)
    update_collection = _unary(calls.update_collection)
    list_collections = _unary(calls.list_collections)
    describe = _unary(calls.describe)
    train = _unary(calls.train)
    upsert = _upload(calls.upsert)
    delete = _unary(calls.delete)
    get = _unary(calls.get)
    count = _unary(calls.count)
    list_rows = _listing(calls.list_rows)
    search = _unary(calls.search)
    explain = _unary(calls.explain)

    def search_stream(
        self,
        name: str,
        batches: Iterable[Vectors],
        k: int = 10,
        *,
        in_flight: int = 16,
        timeout_s: float | None = None,
        **options: Unpack[SearchOptions],
    ) -> Iterator[Hits]:
        """Find the k best rows for the queries of each batch, with several batches in flight.

        Yields the hits of each batch in order. The first batch that fails ends the stream with its
        error, after the hits of the batches before it.

        Parameters
        ----------
        batches
            Each (queries, dim), or (dim,) for one query. A background thread takes them, at most
            `in_flight` ahead of what is yielded.
        in_flight
            1 to 64.
        timeout_s
            Longest duration of one batch. Overrides the timeout of the client.
        options
            As in `search`.
        """
        reason = parts.why_not_rows(batches)
        if isinstance(batches, str | bytes) or not parts.is_listed(batches):
            reason = f"{parts.shown(batches)} is not a list of queries"
        if reason:
            raise InvalidParameter(reason, field="batches")
        searches = (calls.search(name, queries, k, **options) for queries in batches)
        within_s = self._timeout_s if timeout_s is None else parts.seconds_of(timeout_s)
        stream = parts.SearchBatches(
            self._open(), searches, in_flight=in_flight, timeout_s=within_s
        )
        yield from stream.hits()

    def wait_until_ready(self, timeout_s: float = 10.0) -> None:
        """Return when the server is reachable.

        Raises
        ------
        ShardUnavailable
            If it is not reachable within `timeout_s`.
        """
        ready = grpc.channel_ready_future(self._open())
        try:
            ready.result(parts.seconds_of(timeout_s))
        except grpc.FutureTimeoutError:
            ready.cancel()
            raise ShardUnavailable(f"the server was not reached in {timeout_s:g} s") from None

    def close(self) -> None:
        """Disconnect. Calls in progress end with ShardUnavailable; later calls: ClientUnusable."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> grpc.Channel:
        """Return the channel, unless it is closed. A forked child opens a separate one."""
        if self._closed:
            raise ClientUnusable(parts.CLOSED)
        if self._pid != os.getpid():
            parts.check_forked()
            self._connect()
        return self._channel

    def _connect(self) -> None:
        self._pid = os.getpid()
        self._channel = grpc.insecure_channel(self._target, options=parts.client_options())
        self._rpcs: dict[str, grpc.UnaryUnaryMultiCallable[bytes, bytes]] = {}

    def _ask(self, call: UnaryCall[AnswerT]) -> AnswerT:
        within_s = self._timeout_s if call.timeout_s is None else call.timeout_s
        return self._repeated(call.rpc, partial(self._ask_once, call), within_s)

    def _repeated(self, rpc: str, ask: Callable[[float], T], timeout_s: float) -> T:
        """Call `ask` with the time that is left, again if the client repeats calls of this RPC."""
        if not self._retry.covers(rpc):
            return ask(timeout_s)
        from tenacity import Retrying  # when it is needed: half of the clients never load it

        schedule = parts.RetrySchedule(timeout_s)
        return Retrying(**schedule.options())(lambda: ask(schedule.left_s))

    def _ask_once(self, call: UnaryCall[AnswerT], timeout_s: float) -> AnswerT:
        channel = self._open()
        rpc = self._rpcs.get(call.rpc)
        if rpc is None:
            rpc = self._rpcs[call.rpc] = channel.unary_unary(parts.rpcs.path_of(call.rpc))
        try:
            answer = rpc(call.payload, timeout=timeout_s)
        except grpc.RpcError as error:
            raise call.explained(parts.error_of(error), timeout_s) from error
        except ValueError:  # another thread closed the channel meanwhile
            self._open()
            raise
        return call.decode(answer)

    def _send(self, upload: UpsertUpload) -> UpsertSummary:
        if self._limits is None and not upload.is_small:
            self._limits = self.server_info().limits
        upload.cut(self._limits or parts.Limits())
        if upload.messages == 1:
            return self._repeated(
                parts.rpcs.UPSERT.name, partial(self._write, upload), self._timeout_s
            )
        return self._write(upload, self._timeout_s)

    def _write(self, upload: UpsertUpload, timeout_s: float) -> UpsertSummary:
        upload.begin()
        try:
            if upload.messages == 1:
                call = calls.UnaryCall(
                    parts.rpcs.UPSERT.name, upload.message(0), upload.acknowledge
                )
                self._ask_once(call, timeout_s)
            else:
                parts.UploadStream(self._open(), upload, timeout_s).run()
        except VectorShardError as error:
            raise upload.ended_by(error) from error.__cause__
        return upload.summary()
