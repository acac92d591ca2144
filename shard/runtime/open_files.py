"""How many files this process may have open, and what they suffice for.

A process that runs out of open files fails in unexpected places: gRPC itself aborts it. Therefore
the limit is raised as far as the system allows, and divided before it is used: among connections,
collections, and what every server needs.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Final

SERVER_FILES: Final = 96
"""What a server opens beside the rest: logs, event loops, pipes, ports and their backlog, answers
to Prometheus, files that are open for a moment. An idle one has 25."""

SHARD_FILES: Final = 8
"""Of each shard: its lock, its witness, files and directories that are open for a moment; in a
router, the connections to it."""

COLLECTION_FILES: Final = 7
"""Of a collection on one shard: its database, log and index of the log, the same for a reader but
the index, and its row file twice, of which one is the memory map."""

CONNECTIONS_MIN: Final = 16
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePlan:
    """What the open files suffice for.

    `connections` may be open at a time, and each shard may have `collections`. `too_low` names the
    limit and the cure if either is less than was wanted; it is empty otherwise.
    """

    connections: int
    collections: int
    too_low: str = ""

    @property
    def can_serve(self) -> bool:
        """Whether there is enough to start at all."""
        return self.connections >= CONNECTIONS_MIN


def plan_files(limit: int, *, shards: int, connections: int, collections: int) -> FilePlan:
    """Divide `limit` open files among what `shards` shards in one process want.

    `connections` of clients, and `collections` on each shard; 0 for a router. If they do not fit,
    connections get half of the files at most.
    """
    base = SERVER_FILES + shards * SHARD_FILES
    a_collection = shards * COLLECTION_FILES
    needed = base + connections + collections * a_collection
    if limit >= needed or limit < 0:  # RLIM_INFINITY is -1
        return FilePlan(connections=connections, collections=collections)
    rest = max(0, limit - base)
    if collections:
        fitting = min(connections, max(rest // 2, rest - collections * a_collection))
    else:
        fitting = min(connections, rest)
    held = min(collections, (rest - fitting) // a_collection) if collections else 0
    suffices = f"{fitting} connections"
    if collections:
        suffices += f" and {held} collections a shard"
    return FilePlan(
        connections=fitting,
        collections=held,
        too_low=(
            f"the limit of open files, {limit}, suffices for {suffices}: raise it to {needed} "
            "(`ulimit -Hn`, LimitNOFILE of systemd) and restart the server"
        ),
    )
