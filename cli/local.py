"""`vectorshard.open_local`: a client and its server in one program, for tests and notebooks.

All servers of a program share a thread with an event loop. A client reaches its server over a unix
socket in a private directory. What needs the extra `server` is imported when a server is opened.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

from vectorshard.cli.__main__ import MODULES_OF_SERVER, REFUSED_OPTIMIZED
from vectorshard.client.channel import check_forked, note_asyncio
from vectorshard.client.client import Client
from vectorshard.shard.config import SLOTS_TOTAL
from vectorshard.shard.errors import ClientUnusable, InvalidParameter, Unsupported
from vectorshard.shard.wire.primitives import shown, uint32_of

if TYPE_CHECKING:
    from vectorshard.client.retry import Retry
    from vectorshard.shard.server.local_server import LocalServer

T = TypeVar("T")

NEEDS_EXTRA: Final = "open_local needs the libraries of a server: pip install 'vectorshard[server]'"
NEEDS_LINUX: Final = (
    "open_local needs Linux, as servers do: run one elsewhere, and connect a Client"
)
NOT_IN_A_CHILD: Final = (
    "the server of this client runs in the process that opened it, which was forked since: "
    "call open_local after the fork, or start processes with spawn"
)

SOCKET: Final = "socket"

SOCKET_PATH_BYTES: Final = 100
"""The longest path of a socket: Linux takes 107 bytes."""


def report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report what failed in a loop, except that a call of another loop ended after that loop.

    gRPC hands over what ends in whichever loop is awake: here, also for the clients of a program
    whose `asyncio.run` is over. What it cannot hand over, no caller waits for.
    """
    is_closed = isinstance(context.get("exception"), RuntimeError)
    if not (is_closed and "PollerCompletionQueue" in repr(context.get("handle"))):
        loop.default_exception_handler(context)


class _Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        import uvloop

        self._loop = uvloop.new_event_loop()
        self._loop.set_exception_handler(report)
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="vectorshard-local", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run work in the loop, and return its result. An interrupt of the caller cancels it."""
        running = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return running.result()
        except BaseException:
            running.cancel()
            raise

    def begin(self, work: Coroutine[Any, Any, object]) -> None:
        """Run work in the loop without waiting for it; from any thread, such as the loop's own."""
        asyncio.run_coroutine_threadsafe(work, self._loop)

    def end(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Private:
    """Directories that only this user can enter, for a socket and for rows of no other place."""

    def __init__(self) -> None:
        first = Path(tempfile.mkdtemp(prefix="vectorshard-"))
        self.rows = first / "rows"
        self._directories = [first]
        if len(os.fsencode(first / SOCKET)) > SOCKET_PATH_BYTES:
            self._directories.append(Path(tempfile.mkdtemp(prefix="vectorshard-", dir="/tmp")))
        # gRPC reads what follows as a part of a URI.
        self.target = "unix:" + quote(str(self._directories[-1] / SOCKET))

    def remove(self) -> None:
        """Remove them, with the rows."""
        for directory in self._directories:
            shutil.rmtree(directory, ignore_errors=True)


class _Opened:
    """A server in the loop, and its private directories, which it owns."""

    def __init__(self, server: LocalServer, private: _Private) -> None:
        self.pid = os.getpid()
        self._server = server
        self._private = private
        self._stopping: asyncio.Future[None] | None = None

    async def stop(self) -> None:
        """Stop the server, once, and remove its directories."""
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop())
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        try:
            await self._server.stop()
        finally:
            _servers.opened.discard(self)
            await asyncio.to_thread(self._private.remove)


class _Servers:
    """What is open in this program, and the loop that serves it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: _Loop | None = None
        self.opened: set[_Opened] = set()

    def loop(self) -> _Loop:
        """Return the loop. The first call starts it, to end with the interpreter."""
        from concurrent.futures import thread  # noqa: F401  # which ends its threads after us

        with self._lock:
            if self._loop is None:
                self._loop = _Loop()
                threading._register_atexit(self._end, os.getpid())  # type: ignore[attr-defined]
            return self._loop

    def abandon(self, opened: _Opened) -> None:
        """Stop a server whose client was collected as garbage, without waiting for it."""
        if opened.pid == os.getpid() and self._loop is not None and opened in self.opened:
            self._loop.begin(opened.stop())

    def _end(self, pid: int) -> None:
        """Stop all servers before the interpreter shuts down; not in a forked child."""
        if pid != os.getpid():
            return
        _wait_for_callers()
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is None:
            return
        for opened in tuple(self.opened):
            with suppress(Exception):
                loop.run(opened.stop())
        loop.end()
        from vectorshard.shard.engine.background import wait_for_abandoned

        wait_for_abandoned()


def _wait_for_callers() -> None:
    """Wait for the threads that the interpreter waits for, but for those of pools, as it does."""
    from concurrent.futures import thread as pools

    for thread in threading.enumerate():
        in_pool = thread in getattr(pools, "_threads_queues", ())
        if not (thread.daemon or in_pool or thread is threading.main_thread()):
            thread.join()


_servers: Final = _Servers()


class LocalClient(Client):
    """A client with its own server in this program. `open_local` makes it."""

    def __init__(
        self, target: str, opened: _Opened, *, timeout_s: float, retry: Retry | str
    ) -> None:
        super().__init__(target, timeout_s=timeout_s, retry=retry)
        self._opened = opened
        ending = weakref.finalize(self, _servers.abandon, opened)
        ending.atexit = False  # the end of the loop comes first

    def close(self) -> None:
        """Disconnect and stop the server. Its rows stay, unless they were in a temporary place."""
        super().close()
        if self._opened.pid == os.getpid() and self._opened in _servers.opened:
            _servers.loop().run(self._opened.stop())

    def _open(self) -> Any:
        if self._opened.pid != os.getpid():
            raise ClientUnusable(NOT_IN_A_CHILD)
        return super()._open()


def open_local(
    path: str | os.PathLike[str] | None = None,
    *,
    shards: int | None = None,
    timeout_s: float = 30.0,
    retry: Retry | str = "none",
) -> LocalClient:
    """Return a client of a server that runs in a thread of this program, without a network.

        with vectorshard.open_local() as client:
            client.create_collection("words", dim=100)

    It is the same server as `vectorshard serve`, and a directory of one may be opened by the other.
    Close the client to stop the server; the end of the program stops it, too. A forked child cannot
    use it. An AsyncClient, or a client in another process, connects to `client.target`.

    Parameters
    ----------
    path
        The directory of the rows, created if it is missing. None is a temporary one, which is
        removed with its rows when the client is closed.
    shards
        Number of shards, permanent. None means that of the directory, 1 for a new one.
    timeout_s, retry
        As of `Client`.

    Raises
    ------
    DataDirectoryLocked
        If another process, or another client here, has the directory open.
    DataDirectoryError, CorruptData
        If a server cannot start on it: see their subclasses.
    Unsupported
        Without the extra `server`, elsewhere than on Linux, and under ``python -O``.
    InvalidParameter
        For an invalid argument.
    """
    server_of = _server_of()
    check_forked()  # before anything of grpc's asyncio, which waits for ever in such a child
    rows, total = _path_of(path), _shards_of(shards)
    private = _Private()
    try:
        note_asyncio()
        server = _servers.loop().run(server_of(rows or private.rows, total, private.target))
    except BaseException:
        private.remove()
        raise
    opened = _Opened(server, private)
    _servers.opened.add(opened)
    try:
        return LocalClient(private.target, opened, timeout_s=timeout_s, retry=retry)
    except BaseException:
        _servers.loop().run(opened.stop())
        raise


def _server_of() -> Callable[[Path, int | None, str], Coroutine[Any, Any, LocalServer]]:
    """Return what opens rows and serves them, by its libraries; raise Unsupported without them."""
    if sys.platform != "linux":
        raise Unsupported(NEEDS_LINUX)
    if sys.flags.optimize:
        raise Unsupported(REFUSED_OPTIMIZED)
    try:
        from vectorshard.cli import embedded
        from vectorshard.shard.runtime.logs import quiet_logs
        from vectorshard.shard.server.local_server import LocalServer
    except ModuleNotFoundError as missing:
        if missing.name not in MODULES_OF_SERVER:
            raise
        raise Unsupported(NEEDS_EXTRA) from None
    quiet_logs()

    async def server_of(rows: Path, shards: int | None, target: str) -> LocalServer:
        limits, open_shards = embedded.prepared(rows, shards)
        return await LocalServer.start(open_shards, limits, target)

    return server_of


def _path_of(path: str | os.PathLike[str] | None) -> Path | None:
    if path is None:
        return None
    if not isinstance(path, str | os.PathLike) or os.fspath(path) in ("", ":memory:"):
        reason = f"{shown(path)} is not a path; pass None for a temporary directory"
        raise InvalidParameter(reason, field="path")
    return Path(path).expanduser().absolute()


def _shards_of(shards: int | None) -> int | None:
    if shards is None:
        return None
    shards = uint32_of(shards, SLOTS_TOTAL, "shards", InvalidParameter)
    if not 1 <= shards <= SLOTS_TOTAL:
        raise InvalidParameter(f"{shards:,} is not in 1..{SLOTS_TOTAL:,}", field="shards")
    return shards
