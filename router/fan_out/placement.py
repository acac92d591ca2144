"""Where rows live: id -> slot -> child. Pure.

The slots are divided into contiguous ranges, one for each leaf shard. A router learns from its
children which slots each of them owns, and never guesses: a child that has not answered yet owns
none, and a report that contradicts the others is rejected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vectorshard.shard.config import SLOTS_TOTAL
from vectorshard.shard.descriptions import Topology
from vectorshard.shard.errors import PlacementMismatch, ShardUnavailable
from vectorshard.shard.rows.slots import slots_of
from vectorshard.shard.texts import counted
from vectorshard.shard.types import IdArray, Int64Array, Role

NO_CHILD = -1


def slots_of_shard(shard: int, shards_total: int) -> tuple[tuple[int, int], ...]:
    """Return the slots of one of `shards_total` shards, as ranges with both ends included."""
    first = shard * SLOTS_TOTAL // shards_total
    last = (shard + 1) * SLOTS_TOTAL // shards_total - 1
    return ((first, last),)


class Placement:
    """Which child of a router owns each slot.

    Parameters
    ----------
    topologies
        One for each child, in order; None if it has not reported yet.
    partial
        Whether the children may be only a part of the placement, as below another router.

    Raises
    ------
    PlacementMismatch
        If two children own the same slot, or belong to different clusters or placements; if a child
        reports a shard or slots that do not exist; if leaf shards are not in the order of their
        numbers; unless `partial`, if some are missing.
    """

    def __init__(self, topologies: Sequence[Topology | None], *, partial: bool = False) -> None:
        known = [(child, each) for child, each in enumerate(topologies) if each and each.shards]
        first_child, first = known[0] if known else (0, None)
        self.cluster = first.cluster if first else ""
        self.epoch = first.placement_epoch if first else 0
        self.shards_total = first.shards_total if first else 0
        self.shards = tuple(
            sorted(
                (shard for _, topology in known for shard in topology.shards),
                key=lambda shard: shard.shard,
            )
        )
        self.partial = partial
        self.slots_total = SLOTS_TOTAL
        self.slots_of_child = np.zeros(len(topologies), dtype=np.int64)
        self._child_of_slot = np.full(SLOTS_TOTAL, NO_CHILD, dtype=np.int64)
        self._shard_of_slot = np.full(SLOTS_TOTAL, NO_CHILD, dtype=np.int64)
        self._child_of_shard: dict[int, int] = {}
        for child, topology in known:
            self._require_same_placement(child, topology, first_child)
            self._place(child, topology)
        if partial:
            self.slots_total = int(self.slots_of_child.sum())
        # A router below this one may find more shards later: it proves no order and no gap.
        leaves = [(child, each) for child, each in known if each.role is Role.SHARD]
        self._require_order(leaves)
        if not partial and known:
            self._require_all_shards(len(topologies), leaves)

    def _require_same_placement(self, child: int, topology: Topology, first_child: int) -> None:
        reported = (topology.cluster, topology.placement_epoch, topology.shards_total)
        if reported != (self.cluster, self.epoch, self.shards_total):
            raise PlacementMismatch(
                f"downstream shard {child} belongs to cluster {topology.cluster} epoch "
                f"{topology.placement_epoch} of {topology.shards_total} shards, downstream shard "
                f"{first_child} to {self.cluster} epoch {self.epoch} of {self.shards_total}"
            )

    def _place(self, child: int, topology: Topology) -> None:
        for shard in topology.shards:
            number = shard.shard
            if number >= self.shards_total:
                raise PlacementMismatch(f"shard {number} is not in 0..{self.shards_total - 1}")
            if number in self._child_of_shard:
                raise PlacementMismatch(f"shard {number} is reached through two downstream shards")
            self._child_of_shard[number] = child
            for first, last in shard.slots:
                if not first <= last < SLOTS_TOTAL:
                    raise PlacementMismatch(
                        f"slots {first} to {last} are not a range within 0..{SLOTS_TOTAL - 1}"
                    )
                taken = self._child_of_slot[first : last + 1]
                if (taken != NO_CHILD).any():
                    raise PlacementMismatch(f"slots {first} to {last} have two owners")
                taken[:] = child
                self._shard_of_slot[first : last + 1] = number
                self.slots_of_child[child] += last + 1 - first

    @staticmethod
    def _require_order(leaves: Sequence[tuple[int, Topology]]) -> None:
        before = -1
        for child, topology in leaves:
            shard = topology.shards[0].shard
            if shard < before:
                raise PlacementMismatch(
                    f"downstream shard {child} is shard {shard}, and follows shard {before}: "
                    "name the shards in the order of their numbers"
                )
            before = shard

    def _require_all_shards(self, children: int, leaves: Sequence[tuple[int, Topology]]) -> None:
        if children > self.shards_total:
            raise PlacementMismatch(
                f"there are {counted(children, 'downstream shard')}, but "
                f"{counted(self.shards_total, 'shard')} in the placement"
            )
        for child, topology in leaves:
            shard = topology.shards[0].shard
            if children == self.shards_total and shard != child:  # so that all of them are leaves
                raise PlacementMismatch(
                    f"downstream shard {child} of {children} is shard {shard} of "
                    f"{self.shards_total}: name all shards, in the order of their numbers"
                )
        if len(leaves) == children and (missing := self.missing_shards):
            listed = ", ".join(map(str, missing))
            raise PlacementMismatch(
                f"no downstream shard is shard {listed} of {self.shards_total}: name all shards"
            )

    @property
    def missing_shards(self) -> list[int]:
        """The leaf shards of the placement that no known child reaches."""
        return [shard for shard in range(self.shards_total) if shard not in self._child_of_shard]

    def child_of_shard(self, shard: int) -> int | None:
        """Return the child that reaches a leaf shard, None if it is unknown."""
        return self._child_of_shard.get(shard)

    def shards_of_child(self, child: int) -> list[int]:
        """Return the leaf shards that a child reaches, as far as known, by number."""
        return [shard.shard for shard in self.shards if self._child_of_shard[shard.shard] == child]

    def shards_of(self, ids: IdArray) -> Int64Array:
        """Return the leaf shard that owns each id, (rows,); NO_CHILD where it is not known."""
        shards: Int64Array = self._shard_of_slot[slots_of(ids)]
        return shards

    def has_owners_of(self, other: Placement) -> bool:
        """Whether every slot has the same child and leaf shard as in another placement."""
        return (
            (self.cluster, self.epoch) == (other.cluster, other.epoch)
            and np.array_equal(self._child_of_slot, other._child_of_slot)
            and np.array_equal(self._shard_of_slot, other._shard_of_slot)
        )

    def split(self, ids: IdArray) -> Iterator[tuple[int, Int64Array]]:
        """Yield each child that owns some of the ids, with their indices (rows,), ascending.

        Raises ShardUnavailable if no known child owns the slot of an id. Nothing has been yielded
        then.
        """
        slots = slots_of(ids)
        children = self._child_of_slot[slots]
        if (children == NO_CHILD).any():
            slot = int(slots[children.argmin()])
            raise ShardUnavailable(f"no known shard owns slot {slot}")
        for child in np.unique(children).tolist():
            yield child, np.flatnonzero(children == child)
