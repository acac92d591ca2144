"""What a shard says of its part of a collection. Pure."""

from __future__ import annotations

from vectorshard.shard.index.calibration import CALIBRATED_K
from vectorshard.shard.search.live_recall import LiveRecall
from vectorshard.shard.search.snapshot import Snapshot
from vectorshard.shard.types import CollectionConfig, Ledger, ShardDescription, ShardState


def described(
    shard: int,
    config: CollectionConfig,
    snapshot: Snapshot,
    ledger: Ledger,
    live: LiveRecall,
    *,
    training: bool,
    memory_bytes: int,
    disk_bytes: int,
) -> ShardDescription:
    """Describe what is published.

    Parameters
    ----------
    ledger
        The snapshot's, taken while nothing was absorbed.
    training
        Whether an index is being trained.
    memory_bytes, disk_bytes
        Of the rows' columns, to which is added what the snapshot and `live` hold; of all files.
    """
    index = snapshot.index
    memory_bytes += snapshot.tombstones.bits.nbytes + snapshot.columns.memory_bytes
    memory_bytes += live.memory_bytes
    if index is None:
        return ShardDescription(
            shard=shard,
            state=ShardState.TRAINING if training else ShardState.BUFFERING,
            training=training,
            ledger=ledger,
            memory_bytes=memory_bytes,
            disk_bytes=disk_bytes,
        )
    point = index.calibration.point_for(config.target_recall, CALIBRATED_K[0])
    measured = live.measured_of(index)
    return ShardDescription(
        shard=shard,
        state=ShardState.TRAINED,
        training=training,
        ledger=ledger,
        nlist=index.ivf.nlist,
        nprobe=0 if point is None else point.setting.nprobe,
        candidates=0 if point is None else point.setting.candidates,
        measured_recall=1.0 if point is None else point.measured_recall,
        live_recall=0.0 if measured is None else measured.recall,
        live_queries=0 if measured is None else measured.queries,
        generation=index.generation,
        rows_trained_on=index.rows_trained_on,
        list_imbalance=snapshot.list_imbalance,
        last_training_s=index.training_s,
        last_trained_at=index.trained_at,
        memory_bytes=memory_bytes + index.ivf.memory_bytes,
        disk_bytes=disk_bytes,
    )
