"""Where rows live: id -> slot -> child. Pure.

The slots are cut into contiguous ranges, one a leaf shard. A router learns which child owns which
slots from the children themselves and never guesses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from shard.config import SLOTS_TOTAL
from shard.errors import PlacementMismatch, ShardUnavailable
from shard.slots import slots_of
from shard.types import IdArray, Int64Array, Topology

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
        One a child, in order.

    Raises
    ------
    PlacementMismatch
        If two children own a slot, or belong to different clusters or placements.
    """

    def __init__(self, topologies: Sequence[Topology]) -> None:
        self.cluster = topologies[0].cluster
        self.epoch = topologies[0].placement_epoch
        self.shards = tuple(
            sorted(
                (shard for topology in topologies for shard in topology.shards),
                key=lambda shard: shard.shard,
            )
        )
        self.slots_of_child = np.zeros(len(topologies), dtype=np.int64)
        self._child_of_slot = np.full(SLOTS_TOTAL, NO_CHILD, dtype=np.int64)
        self._child_of_shard: dict[int, int] = {}
        for child, topology in enumerate(topologies):
            self._place(child, topology)

    def _place(self, child: int, topology: Topology) -> None:
        if (topology.cluster, topology.placement_epoch) != (self.cluster, self.epoch):
            raise PlacementMismatch(
                f"child {child} belongs to cluster {topology.cluster} epoch "
                f"{topology.placement_epoch}, child 0 to {self.cluster} epoch {self.epoch}"
            )
        for shard in topology.shards:
            if shard.shard in self._child_of_shard:
                raise PlacementMismatch(f"shard {shard.shard} is reached through two children")
            self._child_of_shard[shard.shard] = child
            for first, last in shard.slots:
                taken = self._child_of_slot[first : last + 1]
                if (taken != NO_CHILD).any():
                    raise PlacementMismatch(f"slots {first} to {last} have two owners")
                taken[:] = child
                self.slots_of_child[child] += last + 1 - first

    def child_of_shard(self, shard: int) -> int | None:
        """Return the child that leads to a leaf shard."""
        return self._child_of_shard.get(shard)

    def split(self, ids: IdArray) -> Iterator[tuple[int, Int64Array]]:
        """Yield each child that owns some of the ids, with their indices (rows,), ascending.

        Raises
        ------
        ShardUnavailable
            If no child owns an id's slot.
        """
        slots = slots_of(ids)
        children = self._child_of_slot[slots]
        if (children == NO_CHILD).any():
            slot = int(slots[children.argmin()])
            raise ShardUnavailable(f"no shard is known that owns slot {slot}")
        for child in np.unique(children).tolist():
            yield child, np.flatnonzero(children == child)
