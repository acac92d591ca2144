"""The vocabulary of copies: what a shard hands out of a collection, to be backed up.

A copy is one snapshot of one leaf shard, pinned while it is read. A row number is never reused,
and its row never changes. So the rows below some number have their content for ever, and a later
copy needs only the newer rows and the rows that have died.
"""

from __future__ import annotations

from dataclasses import dataclass

from vectorshard.shard.membership import Member, Sessions, Stage
from vectorshard.shard.types import CollectionConfig, Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCopyRequest:
    """Pins what leaf shard `shard` has of a collection. The copy names the dead rows that are below
    row `dead_below`."""

    collection: str
    shard: int
    dead_below: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """What is pinned: `copy` names it in the calls that follow.

    `sequence` is the newest commit, `rows` were ever committed and `live` of them live. `dead` are
    the dead rows below `dead_below`, as a serialized 64-bit Roaring bitmap. `content_sum`, 16
    bytes, is that of the live rows. `damaged` are rows that are known to be damaged.
    """

    copy: bytes
    config: CollectionConfig
    incarnation: str
    stage: Stage
    members: tuple[Member, ...]
    cluster: str
    shards_total: int
    placement_epoch: int
    slots: tuple[tuple[int, int], ...]
    directory: str
    life: int
    sessions: Sessions
    sequence: int
    rows: int
    live: int
    ledger: Ledger
    content_sum: bytes
    dead: bytes
    damaged: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadCopyRequest:
    """Asks for the live rows of a copy from `first_row` on, about `bytes_max` bytes."""

    collection: str
    shard: int
    copy: bytes
    first_row: int
    bytes_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiedRows:
    """A block of rows (shard.storage.row_block), each verified; empty if there were none.

    Go on at `next_row`, which is the number of rows after the last. `damaged` are rows between them
    that do not match their content hashes; the block lacks them.
    """

    block: bytes
    next_row: int
    damaged: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseCopyRequest:
    """Lets go of a copy; one that is unknown changes nothing."""

    collection: str
    shard: int
    copy: bytes
