"""A client and its server in one program: several, in a running loop, in threads, without a close.

Programs that fork, or end without a close, run in a process of their own.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vectorshard
from tests.program_logs import default_logs
from vectorshard import AsyncClient, Client
from vectorshard.cli import local
from vectorshard.cli.local import open_local
from vectorshard.shard.errors import (
    ClientUnusable,
    DataDirectoryForeign,
    DataDirectoryLocked,
    DataDirectoryUnusable,
    InvalidParameter,
    Unsupported,
)

UNCLOSED = """
import gc, os, sys, threading
import numpy as np
import vectorshard
from vectorshard import Client
from vectorshard.errors import ClientUnusable

client = vectorshard.open_local(sys.argv[1])
client.create_collection("words", dim=2)
other = Client(client.target)
other.count("words")
if (pid := os.fork()) == 0:
    count = lambda: client.count("words")
    for call in (client.close, count, other.server_info, vectorshard.open_local):
        try:
            call()
        except ClientUnusable as error:
            print(error, flush=True)
    sys.exit(0)
print(os.waitpid(pid, 0)[1], flush=True)

def write():
    for id_ in range(20):
        client.upsert("words", [id_], np.ones((1, 2)))
    print(client.count("words"), flush=True)

threading.Thread(target=write).start()
cycle = [vectorshard.open_local()]
cycle.append(cycle)
"""


@pytest.fixture(autouse=True, scope="module")
def _logs() -> Iterator[None]:
    with default_logs():
        yield


@pytest.fixture(autouse=True)
def _private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the test its own directory of temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


def left_over(tmp_path: Path) -> list[Path]:
    """Return what is left of private directories."""
    return [*(tmp_path / "temporary").iterdir()]


def test_rows_stay_in_a_directory_and_go_with_a_temporary_one(tmp_path: Path) -> None:
    for rows in (0, 2):
        with vectorshard.open_local(tmp_path / "rows") as client:
            client.create_collection("words", dim=2)
            assert client.count("words") == rows
            client.upsert("words", [1, 2], np.eye(2))
            [[hit]] = client.search("words", [0, 1], k=1)
            assert hit.id == 2
            assert client.server_info().problems == ()
    client.close()
    with pytest.raises(ClientUnusable, match="the client is closed"):
        client.count("words")
    with open_local() as client, open_local(shards=2) as other:
        client.create_collection("words", dim=2)
        assert other.list_collections() == []
        assert other.server_info().topology.shards_total == 2
        assert len(left_over(tmp_path)) == 2
    assert not left_over(tmp_path)


async def test_a_running_event_loop_has_both_kinds_of_client() -> None:
    with open_local() as client:
        client.create_collection("words", dim=2)
        async with AsyncClient(client.target) as asking:
            await asking.upsert("words", [1, 2], np.eye(2))
            async with asking.search_stream() as stream:
                searches = (stream.search("words", [0, 1], k=1) for _ in range(20))
                assert [hits[0][0].id for hits in await asyncio.gather(*searches)] == [2] * 20
            assert client.count("words") == 2
            client.close()  # while a stream and a connection are open


def test_a_directory_is_locked_and_its_errors_are_those_of_a_server(tmp_path: Path) -> None:
    with open_local(tmp_path / "rows") as client:
        with pytest.raises(DataDirectoryLocked, match="is open in this process: close it first"):
            open_local(tmp_path / "rows")
        assert client.list_collections() == []
    with pytest.raises(DataDirectoryForeign, match="made for 1 shard, not 2"):
        open_local(tmp_path / "rows", shards=2)
    (tmp_path / "file").touch()
    with pytest.raises(DataDirectoryUnusable, match="Not a directory"):
        open_local(str(tmp_path / "file"))
    assert not left_over(tmp_path)


@pytest.mark.parametrize(
    "argument",
    [
        *({"path": 7}, {"path": ""}, {"path": b"rows"}, {"path": ":memory:"}),
        *({"shards": 0}, {"shards": "2"}, {"timeout_s": -1}, {"retry": "sometimes"}),
    ],
)
def test_an_invalid_argument_is_refused_by_name(argument: dict[str, Any], tmp_path: Path) -> None:
    [name] = argument
    with pytest.raises(InvalidParameter) as caught:
        open_local(**argument)
    assert caught.value.field == name
    assert not left_over(tmp_path)
    assert not local._servers.opened


@pytest.mark.parametrize("name", ["a?b#c 100%41", "x" * 100])
def test_a_socket_has_any_path(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    with open_local() as client:
        assert client.list_collections() == []
        assert [*(tmp_path / name).iterdir()]
    assert not [*(tmp_path / name).iterdir()]


def test_a_client_that_is_collected_as_garbage_ends_its_server(tmp_path: Path) -> None:
    cycle: list[Any] = [open_local()]
    cycle.append(cycle)
    collecting = asyncio.run_coroutine_threadsafe(_collected(cycle), local._servers.loop()._loop)
    del cycle
    collecting.result(10)
    until = time.monotonic() + 10
    while left_over(tmp_path) and time.monotonic() < until:
        threading.Event().wait(0.01)
    assert not left_over(tmp_path)


async def _collected(cycle: list[Any]) -> None:
    """Collect the garbage in the loop's own thread, which must not wait for itself."""
    cycle.clear()
    gc.collect()


def test_without_the_extra_the_error_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "vectorshard.shard.server.local_server")
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(Unsupported, match=r"pip install 'vectorshard\[server\]'"):
        open_local()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_a_program_forks_and_ends_without_a_close(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", UNCLOSED, str(tmp_path / "rows")],
        env={**os.environ, "GRPC_VERBOSITY": "NONE", "TMPDIR": str(tmp_path / "temporary")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    *refused, status, rows = ended.stdout.splitlines()
    assert (status, rows) == ("0", "20")
    assert len(refused) == 3
    assert all("forked" in each and "after the fork" in each for each in refused)
    assert not left_over(tmp_path)
    with open_local(tmp_path / "rows") as client:
        assert client.count("words") == 20
    assert isinstance(client, Client)


class PollerCompletionQueue:
    """What hands over the ends of calls in gRPC, by its name; the loop that it has is closed."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.close()

    def hand_over(self) -> None:
        """Fail as gRPC's does."""
        self.loop.call_soon_threadsafe(print)


def test_what_ends_after_its_own_loop_is_not_reported_by_that_of_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def hand_over() -> None:
        running = asyncio.get_running_loop()
        running.call_soon(PollerCompletionQueue().hand_over)
        running.call_soon(int, "not a number")
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    with open_local(tmp_path / "rows"):
        local._servers.loop().run(hand_over())
    reported = caplog.text
    assert "invalid literal for int" in reported
    assert "Event loop is closed" not in reported
