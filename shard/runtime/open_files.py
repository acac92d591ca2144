"""How many files this process may have open, and what they suffice for.

A process that runs out of open files fails in unexpected places: gRPC itself aborts it. Therefore
the limit is raised as far as the system allows, and divided before it is used: among connections,
collections, and what every server needs.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SERVER_FILES: Final = 96
"""What a server opens beside the rest: logs, event loops, pipes, ports and their backlog, answers
to Prometheus, files that are open for a moment. An idle one has 25."""

SHARD_FILES: Final = 8
"""Of each shard: its lock, its witness, files and directories that are open for a moment; in a
router, the connections to it."""

STORE_FILES: Final = 8
"""Of the open store of a collection: its database, log and the index of the log, the log mark, its
row file, and the same database and log once more for each read at a time."""

COLLECTION_MAPS: Final = 3
"""Memory maps of a collection on one shard: its row file, which searches may still map as it was
before it grew, or before a compaction."""

SERVER_MAPS: Final = 4_096
"""Memory maps of libraries, threads and arrays."""

CONNECTIONS_MIN: Final = 16
STORES_MIN: Final = 4
"""A server for which not even these remain does not start."""


def raise_limit() -> int:
    """Raise the limit of open files to the highest that the system allows; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # some systems state a limit that they do not grant
            return soft
    return hard


def map_limit() -> int | None:
    """Return how many memory maps a process may have; None if the system does not tell."""
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the shards of one process want: a router has no stores and no collections.

    `connections` of clients, `stores` open at a time, and `collections` on each of the `shards`.
    """

    shards: int
    connections: int
    stores: int = 0
    collections: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePlan:
    """What the limits suffice for; `too_low` names a limit that is too low, and the cure."""

    connections: int
    stores: int
    collections: int
    too_low: str = ""
    can_serve: bool = True


def plan_files(limit: int, maps: int | None, wanted: Wanted) -> FilePlan:
    """Divide `limit` open files, and `maps` memory maps, among what a process wants.

    If they do not fit, connections get half of the files, and the rest goes to stores.
    """
    base = SERVER_FILES + wanted.shards * SHARD_FILES
    needed = base + wanted.connections + wanted.stores * STORE_FILES
    connections, stores, too_low = wanted.connections, wanted.stores, ""
    if 0 <= limit < needed:  # RLIM_INFINITY is -1
        rest = max(0, limit - base)
        connections = min(connections, max(rest // 2, rest - stores * STORE_FILES))
        stores = min(stores, (rest - connections) // STORE_FILES)
        too_low = (
            f"the limit of open files, {limit}, suffices for {connections} connections"
            f"{f' and {stores} open stores' if wanted.stores else ''}: raise it to {needed} "
            "(`ulimit -Hn`, LimitNOFILE of systemd) and restart the server"
        )
    collections = wanted.collections
    if maps is not None and collections:
        fitting = max(0, maps - SERVER_MAPS) // (wanted.shards * COLLECTION_MAPS)
        if fitting < collections:
            mapped = SERVER_MAPS + wanted.shards * COLLECTION_MAPS * collections
            collections = fitting
            too_low = too_low or (
                f"the limit of memory maps, {maps}, suffices for {fitting} collections a shard: "
                f"raise it to {mapped} (sysctl vm.max_map_count) and restart the server"
            )
    return FilePlan(
        connections=connections,
        stores=stores,
        collections=collections,
        too_low=too_low,
        can_serve=connections >= CONNECTIONS_MIN and stores >= min(STORES_MIN, wanted.stores),
    )
