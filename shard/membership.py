"""The vocabulary of membership: which directories hold a collection, and what others know of them.

A shard's disk can be lost, or come back from an older copy, and nothing on it says so. Therefore
shards are each other's witnesses: each remembers what the others had, and routers carry that
between them in the background (ARCHITECTURE.md, "Who a directory is").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Final

from vectorshard.shard.types import CollectionConfig


class Stage(IntEnum):
    """How far the creation of a collection has come."""

    CREATED = 1
    """This shard has it."""
    KNOWN = 2
    """Every member has it."""
    COMPLETE = 3
    """Every member knows that every member has it: from here on it takes writes."""


class CollectionState(Enum):
    """Whether a shard has a collection."""

    LIVE = "live"
    LOST = "lost"  # its directory is gone, though nothing dropped it
    DAMAGED = "damaged"  # it is set aside
    UNREADABLE = "unreadable"  # it is set aside, and nothing is known to be lost
    FOREIGN = "foreign"  # its files belong to another shard's directory; it is set aside
    DROPPED = "dropped"  # a drop has begun, or is done: a tombstone


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A shard's data directory as a collection knows it.

    `directory` is drawn when the directory is made and never copied; `life` is 1, and raised by
    each loss that an operator accepts.
    """

    shard: int
    directory: str
    life: int


GIVEN_UP: Final = "given-up-"
"""How the directory of a member begins, if a repair gave up commits of it, until an operator
accepts that loss: no shard has such a directory, so all routers call it MISSING."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Which `directory` a collection's files belong to, and its members.

    An earlier release wrote a collection without a `directory`.
    """

    directory: str = ""
    stage: Stage = Stage.COMPLETE
    members: tuple[Member, ...] = ()

    @property
    def gave_up_commits(self) -> bool:
        """Whether a repair gave up commits, and the loss is not accepted."""
        return any(member.directory.startswith(GIVEN_UP) for member in self.members)


NO_MEMBERSHIP: Final = Membership()


def rows_given_up(members: Iterable[Member]) -> int:
    """Return how many rows repairs gave up with commits, as far as the members' names say it."""
    given_up = (each.directory for each in members if each.directory.startswith(GIVEN_UP))
    counts = (each.removeprefix(GIVEN_UP).partition("-") for each in given_up)
    return sum(int(rows) for rows, dash, _ in counts if dash and rows.isdecimal())


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenDirectory:
    """One opening of a shard's directory: the `opens`-th, with a random `session`."""

    shard: int
    directory: str
    life: int
    opens: int
    session: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """Which session committed which sequence numbers: parallel and ascending.

    A session lasts until the next begins.
    """

    first_sequences: tuple[int, ...] = ()
    sessions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a shard had of a collection when it was last seen. All of it was durable there.

    `session` committed `sequence`; `accepted` and `live` are rows; `sum` is that of the content
    hashes of the live rows, 16 bytes.
    """

    shard: int
    incarnation: str
    life: int
    sequence: int
    session: int
    accepted: int = 0
    live: int = 0
    sum: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionReport:
    """What a shard has of a collection. Without `members`, an earlier release created it.

    `reason` says why it is not LIVE or DROPPED.
    """

    name: str
    incarnation: str
    state: CollectionState
    reason: str = ""
    stage: Stage = Stage.CREATED
    members: tuple[Member, ...] = ()
    sessions: Sessions = field(default_factory=Sessions)
    sequence: int = 0
    accepted: int = 0
    live: int = 0
    sum: bytes = b""


class ProblemKind(Enum):
    """What an operator has to look at."""

    MISSING = "missing"  # a shard lacks rows that it should have
    DAMAGED = "damaged"  # a collection is set aside
    WRITES_STOPPED = "writes_stopped"  # a disk failed a write
    DISK_FULL = "disk_full"  # free space is below the reserve
    LIMIT = "limit"  # a limit of the machine is too low
    DISK_UNSAFE = "disk_unsafe"  # such as a network file system
    UNREADABLE = "unreadable"  # a disk failed a read, or an open of files
    ROWS_DAMAGED = "rows_damaged"  # single rows; all others are served


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A problem that stays until an operator acts. An empty `collection` means the whole shard."""

    shard: int
    kind: ProblemKind
    text: str
    collection: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """What a leaf shard has, and what it remembers of the others.

    `version` grows with each change of it within a session, but not with the problems.
    """

    cluster: str
    shard: int
    directory: str
    life: int
    opens: int
    session: int
    version: int = 0
    collections: tuple[CollectionReport, ...] = ()
    statements: tuple[Statement, ...] = ()
    seen: tuple[SeenDirectory, ...] = ()
    problems: tuple[Problem, ...] = ()
    unchanged: bool = False
    """On the wire: the caller knows the report of this version, and only its head is sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownReport:
    """A report that a caller has."""

    shard: int
    session: int
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeRequest:
    """Reports of other shards, and incarnations whose drop has reached all shards.

    Reports that are `known` need not be sent again.
    """

    others: tuple[ShardReport, ...] = ()
    forget: tuple[str, ...] = ()
    known: tuple[KnownReport, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleRequest:
    """Raise the stage of a collection, and merge `members` into its members.

    `shard` is the leaf shard that is meant; None stands for all.
    """

    collection: str
    incarnation: str
    stage: Stage
    members: tuple[Member, ...] = ()
    shard: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedLoss:
    """What a shard has of a collection, and what a witness remembers; None without one."""

    collection: str
    incarnation: str
    reason: str
    config: CollectionConfig
    sequence: int = 0
    accepted: int = 0
    live: int = 0
    witnessed_sequence: int | None = None
    witnessed_accepted: int | None = None
    witnessed_live: int | None = None
    stage: Stage = Stage.COMPLETE
    members: tuple[Member, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptLossRequest:
    """Show what a shard has lost, and record it if `accept` is set.

    A router fills in `losses`, and the `life` of the shard from then on, for the shard.
    """

    shard: int
    accept: bool = False
    losses: tuple[AcceptedLoss, ...] = ()
    life: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptLossResult:
    """What is lost, by collection, and the life of the shard."""

    losses: Sequence[AcceptedLoss]
    life: int
