"""A fleet whose processes are on hosts of their own, found by DNS.

`make test-net` runs these tests; elsewhere they are skipped, with the reason.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.request import urlopen

import numpy as np
import pytest

from tests.bare_wire import matrix
from tests.net.bed import DOMAIN, Bed, Host, network
from tests.net.operations import never_seen
from tests.system.conftest import ServerProcess, Starter, refused, servers, start_all
from vectorshard import Client, Hits
from vectorshard.shard.errors import VectorShardError
from vectorshard.v1 import vectorshard_pb2 as v1

LACKING: Final = (
    ""
    if os.environ.get("VECTORSHARD_ISOLATED") == "1"
    else "needs namespaces of its own, iptables and dnsmasq: `make test-net` runs it"
)
PORT: Final = 7700
METRICS_PORT: Final = 9090
DIM: Final = 16
ROWS: Final = 400
K: Final = 10
CALL_S: Final = 1.0
"""The deadline of a search."""

SHOWN_S: Final = 10.0
"""Within which a fault shows all that it shows."""

LATE_S: Final = 0.1
"""How long after its deadline a call may end."""

NAMES: Final = f"dns:///shard-{{shard}}.{DOMAIN}:{PORT}"
QUERIES: Final = np.random.default_rng(1).normal(size=(3, DIM)).astype(np.float32)

Found = list[list[int | str]]
"""The ids of the hits of each query, best first."""


@dataclass(frozen=True, slots=True)
class Search:
    """How a search went."""

    took_s: float
    found: Found
    answered: frozenset[int]
    """The shards that the receipt counts in."""
    told: str
    """Why there is no answer, or, with an answer, why shards are missing from it."""

    @property
    def failed(self) -> bool:
        """Whether there is no answer."""
        return not self.found


class NetFleet:
    """Two shards and a router, each on a host; the router knows the shards' names only.

    Parameters
    ----------
    bed
        The network.
    start
        Starts processes.
    options
        What all of them are told.
    """

    def __init__(self, bed: Bed, start: Starter, options: Sequence[str] = ()) -> None:
        self.bed = bed
        self.hosts = [bed.host(), bed.host()]
        self.shards = [
            start.shard(
                number, 2, start=False, options=options, prefix=host.prefix, listen=listen_on(host)
            )
            for number, host in enumerate(self.hosts)
        ]
        start_all(self.shards)
        self.name([host.address for host in self.hosts])
        self.router = self._start_router(start, options)
        self.client = Client(self.router.address, timeout_s=20.0)
        self._fill()

    def _start_router(self, start: Starter, options: Sequence[str]) -> ServerProcess:
        command = ["router", "--shard", NAMES, "--shards", "2"]
        host = self.bed.host()
        return start.new(
            command,
            options=[*options, "--metrics", f"{host.address}:{METRICS_PORT}"],
            prefix=host.prefix,
            listen=listen_on(host),
        )

    def _fill(self) -> None:
        """Write the rows that all searches are for; take note of what each shard has."""
        vectors = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
        self.client.create_collection("words", dim=DIM)
        self.client.upsert("words", list(range(ROWS)), vectors)
        self.whole = found(search_of(self.client))
        self.parts = []
        for shard in self.shards:
            with Client(shard.address) as client:
                self.parts.append(found(search_of(client)))

    def name(self, addresses: Sequence[str]) -> None:
        """Have DNS know the shards at these addresses; "" is a name that it does not know."""
        self.bed.say({f"shard-{number}": to for number, to in enumerate(addresses) if to})

    def move(self, shard: int, host: Host) -> None:
        """Start a shard that has ended, with the same rows, on a host."""
        self.hosts[shard] = host
        server = self.shards[shard]
        server.prefix, server.listen = host.prefix, listen_on(host)
        server.start()

    def search(self, *, min_coverage: float | None = None) -> Search:
        """Search, and hold the answer to what the shards that it counts in have."""
        began = time.monotonic()
        try:
            hits = search_of(self.client, min_coverage=min_coverage)
        except VectorShardError as error:
            return Search(time.monotonic() - began, [], frozenset(), str(error))
        took_s = time.monotonic() - began
        shards = hits.receipt.shards
        answered = frozenset(each.shard for each in shards if not each.missing_reason)
        truth = {frozenset({0, 1}): self.whole} | {
            frozenset({number}): part for number, part in enumerate(self.parts)
        }
        assert found(hits) == truth[answered], "a wrong merge"
        assert len(answered) / 2 == hits.receipt.coverage
        return Search(took_s, found(hits), answered, "; ".join(s.missing_reason for s in shards))

    def covered_within(self, timeout_s: float) -> float:
        """Search until all shards answer, and return after how many seconds they do."""
        began = time.monotonic()
        while (answer := self.search()).failed:
            waited_s = time.monotonic() - began
            assert waited_s < timeout_s, f"{answer.told} after {waited_s:.1f} s"
        return time.monotonic() - began

    @contextmanager
    def shown(self, heading: str) -> Iterator[None]:
        """Have seen, from here to the end of the context, all that docs/operations.md shows.

        What clients and metrics show is seen here and now; the log may say the rest later on.
        """
        deadline = time.monotonic() + SHOWN_S
        seen: set[str] = set()
        while any(not line.startswith("log ") for line in never_seen(heading, seen)):
            assert time.monotonic() < deadline, never_seen(heading, seen)
            seen |= self._outside()
        yield
        assert not never_seen(heading, seen | self._log())

    def _outside(self) -> set[str]:
        """Search, and return what is seen of the router, as docs/operations.md shows it."""
        request = v1.SearchRequest(collection="words", queries=matrix(QUERIES), k=K)
        with self.router.stub() as stub:
            refusal = refused(lambda: stub.Search(request, timeout=CALL_S))
            request.min_coverage = 0.5
            receipt = stub.Search(request, timeout=CALL_S).receipt
        seen = {f"code {refusal.code.name}", f"reason {refusal.reason}"}
        seen |= {f"message {refusal.message}", f"receipt {receipt.shards[1].missing_reason}"}
        host = self.router.address.split(":")[0]
        with urlopen(f"http://{host}:{METRICS_PORT}/metrics", timeout=CALL_S) as metrics:
            seen |= {f"metric {line}" for line in metrics.read().decode().splitlines()}
        return seen

    def _log(self) -> set[str]:
        """Return the entries of the router's log, as docs/operations.md shows them."""
        entries = [json.loads(line) for line in self.router.log_text().splitlines()]
        return {
            f"log {entry['level']}: {entry['event']} ({about})"
            for entry in entries
            for about in [entry.get("target", entry.get("reason"))]
        }


def listen_on(host: Host) -> str:
    """Return where a server on a host listens."""
    return f"{host.address}:{PORT}"


def search_of(client: Client, *, min_coverage: float | None = None) -> Hits:
    """Search for the k best rows of all, whatever an index would find."""
    return client.search(
        "words", QUERIES, K, exact=True, min_coverage=min_coverage, timeout_s=CALL_S
    )


def found(hits: Hits) -> Found:
    """Return the ids of hits."""
    return [[hit.id for hit in of_query] for of_query in hits]


@pytest.fixture(scope="session")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """The network of all tests."""
    with network(tmp_path_factory.mktemp("bed")) as bed:
        yield bed


@contextmanager
def fleet_of(bed: Bed, directory: Path, options: Sequence[str] = ()) -> Iterator[NetFleet]:
    """Lend a fleet that has rows."""
    with servers(directory) as start:
        fleet = NetFleet(bed, start, options)
        with fleet.client:
            yield fleet


@pytest.fixture
def fleet(bed: Bed, tmp_path: Path) -> Iterator[NetFleet]:
    """A fleet that has rows, for one test."""
    with fleet_of(bed, tmp_path) as fleet:
        yield fleet
