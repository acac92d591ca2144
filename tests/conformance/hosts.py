"""The test's side of its hosts: starting them, giving them orders, and the gate that they share."""

from __future__ import annotations

import os
import pickle
import selectors
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conformance.host import CloseServer, Failed, TurnGate
from tests.shard.samples import DEADLINE_S, TrainingGate
from vectorshard.cli.__main__ import ENVIRONMENT
from vectorshard.router.remote.remote_shard import RemoteShard

ROOT = Path(__file__).resolve().parents[2]


class Host:
    """A process that serves one shard or router at a time, on a port of 127.0.0.1.

    Parameters
    ----------
    log
        Where it writes what it logs.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from tests.conformance.host import main; main()"],
                cwd=ROOT,
                env={**os.environ, **ENVIRONMENT},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )

    def tell(self, order: object) -> None:
        """Give an order. Its answer must be taken before the next one is given."""
        assert self._process.stdin is not None
        pickle.dump(order, self._process.stdin)
        self._process.stdin.flush()

    def answer(self) -> str:
        """Wait for the answer to the order: of a server, its HOST:PORT."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            assert selector.select(DEADLINE_S), f"a host is silent; its log: {self._logged()}"
        try:
            answer: Any = pickle.load(self._process.stdout)
        except EOFError:
            raise AssertionError(f"a host has ended; its log: {self._logged()}") from None
        assert not isinstance(answer, Failed), answer.story
        return str(answer)

    def _logged(self) -> str:
        return self._log.read_text()

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        with self._process:  # waits for its end, and closes the pipes
            pass


class Hosts:
    """As many hosts as somebody has asked for. Use `some_hosts`."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._hosts: list[Host] = []

    def first(self, number: int) -> Sequence[Host]:
        """Return so many hosts, the same ones each time; start those that are not there yet."""
        while len(self._hosts) < number:
            self._hosts.append(Host(self._logs / f"host-{len(self._hosts)}.log"))
        return self._hosts[:number]

    def end(self) -> None:
        """End them all."""
        for host in self._hosts:
            host.end()


@contextmanager
def some_hosts(logs: Path) -> Iterator[Hosts]:
    """Lend hosts. They end with the block, and at the latest with this process."""
    hosts = Hosts(logs)
    try:
        yield hosts
    finally:
        hosts.end()


def tell_all(hosts: Sequence[Host], orders: Sequence[object]) -> list[str]:
    """Give each host its order, all at once, and return their answers."""
    for host, order in zip(hosts, orders, strict=True):
        host.tell(order)
    return [host.answer() for host in hosts]


class _Switch(threading.Event):
    """An event that tells when it was set or cleared, before the call returns."""

    def __init__(self, turned: Callable[[], None]) -> None:
        super().__init__()
        self._turned = turned

    def set(self) -> None:
        super().set()
        self._turned()

    def clear(self) -> None:
        super().clear()
        self._turned()


class SharedGate(TrainingGate):
    """A gate of trainings, here and on the hosts that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.hosts: Sequence[Host] = ()
        self.start, self.end = _Switch(self._tell), _Switch(self._tell)
        self.open()

    def state(self) -> TurnGate:
        """Return how a gate must be turned to be as this one is."""
        return TurnGate(self.start.is_set(), self.end.is_set())

    def _tell(self) -> None:
        tell_all(self.hosts, [self.state()] * len(self.hosts))


class HostedShard(RemoteShard):
    """A shard on hosts, reached over gRPC, which takes its servers along when it is closed.

    Parameters
    ----------
    target
        HOST:PORT of the server to ask.
    tiers
        All hosts that serve a part of it, those nearest to the caller first.
    """

    def __init__(self, target: str, tiers: Sequence[Sequence[Host]]) -> None:
        super().__init__(target)
        self._tiers = tiers

    async def close(self) -> None:
        """Let go of the connection; end the servers from here down."""
        await super().close()
        for hosts in self._tiers:
            tell_all(hosts, [CloseServer()] * len(hosts))
