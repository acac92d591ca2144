"""Manifests and blocks that the tests of backups share."""

from __future__ import annotations

from dataclasses import replace

from vectorshard.backup.layout import manifest_object, number_of
from vectorshard.backup.manifest import (
    NO_DEAD_ROWS,
    CollectionBackup,
    Manifest,
    Scope,
    ShardBackup,
    StoredBlock,
)
from vectorshard.backup.targets import Target
from vectorshard.shard.membership import Member, Stage
from vectorshard.shard.types import (
    CollectionConfig,
    FieldType,
    FilterField,
    IdType,
    IndexConfig,
    IndexKind,
    Ledger,
    Metric,
)

CONFIG = CollectionConfig(
    name="words",
    dim=4,
    metric=Metric.COSINE,
    id_type=IdType.STRING,
    index=IndexConfig(kind=IndexKind.IVF_PQ),
    target_recall=0.9,
    filter_fields=(FilterField("tag", FieldType.KEYWORD),),
)

BLOCK = StoredBlock(
    name="blocks/i/0-d-1/0-3-0000abcd.block",
    first_row=0,
    next_row=3,
    rows=3,
    size_bytes=300,
    crc32c=7,
)

SHARD = ShardBackup(
    shard=0,
    directory="d",
    life=1,
    first_sequences=(1, 5),
    sessions=("00000000000000ff", "ffffffffffffffff"),
    sequence=6,
    rows=4,
    live=2,
    ledger=Ledger(accepted=4, buffered=2, deleted=1, replaced=1),
    content_sum="00" * 16,
    blocks=(BLOCK,),
    dead=NO_DEAD_ROWS,
)

MANIFEST = Manifest(
    number=1,
    scope=Scope.ALL,
    cluster="cluster",
    shards_total=1,
    slots_total=4096,
    version="0.1.0",
    begun="2026-01-01T00:00:00Z",
    ended="2026-01-01T00:01:00Z",
    previous="",
    collections=(
        CollectionBackup(
            config=CONFIG,
            incarnation="i",
            stage=Stage.COMPLETE,
            members=(Member(shard=0, directory="d", life=1),),
            token="",
            content_sum="00" * 16,
            live=2,
            shards=(SHARD,),
        ),
    ),
)


def put_manifest(target: Target, name: str, manifest: Manifest) -> None:
    """Store a manifest under the name of a backup, with the number of that name."""
    numbered = replace(manifest, number=number_of(name))
    target.put(manifest_object(name), numbered.encode())
