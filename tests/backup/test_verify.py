"""The verification of a backup: whatever was changed in it is found, and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.backup.made import FIRST, SECOND, back_up, fleet
from tests.backup.test_restore import ENTRIES, PICTURES, ROWS, WORDS, ids_of, write
from vectorshard.backup.failures import BackupDamaged
from vectorshard.backup.manifest import DeadRows, Manifest, StoredBlock
from vectorshard.backup.targets import DirectoryTarget
from vectorshard.backup.verify import verify, verify_quickly
from vectorshard.shard.rows.row_bitmap import encode_rows
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.row_block import RowBlock
from vectorshard.shard.types import IdType


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A target with two backups of two shards, and the newer one's manifest."""
    path = tmp_path_factory.mktemp("verify")
    target = DirectoryTarget(path / "target", create=True, paced=False)
    with fleet(path / "old", 2, *ENTRIES) as written:
        for name in (WORDS, PICTURES):
            write(written, name, range(ROWS), 1)
        first = back_up(target, FIRST, written)
        written.delete(WORDS, ids_of(IdType.STRING, range(30)))
        write(written, PICTURES, range(20), 2)
        return path / "target", back_up(target, SECOND, written, first)


def findings(made: tuple[Path, Manifest]) -> list[str]:
    path, manifest = made
    return verify(DirectoryTarget(path), manifest).findings


def with_first_shard(manifest: Manifest, **changes: object) -> Manifest:
    """Return a manifest with other statements about its first collection's first shard."""
    first, *others = manifest.collections
    shards = (replace(first.shards[0], **changes), *first.shards[1:])  # type: ignore[arg-type]
    return replace(manifest, collections=(replace(first, shards=shards), *others))


def test_a_sound_backup_has_no_findings(made: tuple[Path, Manifest]) -> None:
    path, manifest = made
    steps: list[int] = []
    found = verify(DirectoryTarget(path), manifest, steps.append)
    assert not found.findings
    assert found.rows == sum(steps) == manifest.live == 2 * ROWS - 30
    assert found.objects == len(list(manifest.blocks()))
    assert found.size_bytes == manifest.size_bytes
    quick = verify_quickly(DirectoryTarget(path), manifest)
    assert (quick.objects, quick.size_bytes) == (found.objects, found.size_bytes)
    assert not quick.findings


def harmed_objects(made: tuple[Path, Manifest]) -> list[Path]:
    path, manifest = made
    return [path / block.name for block in manifest.blocks()]


@pytest.mark.parametrize("seed", range(12))
def test_one_flipped_bit_of_an_object_is_found(made: tuple[Path, Manifest], seed: int) -> None:
    random = np.random.default_rng(seed)
    victim = harmed_objects(made)[int(random.integers(len(harmed_objects(made))))]
    good = victim.read_bytes()
    harmed = bytearray(good)
    harmed[int(random.integers(len(good)))] ^= 1 << int(random.integers(8))
    victim.write_bytes(harmed)
    try:
        (finding,) = findings(made)
        assert victim.name in finding
    finally:
        victim.write_bytes(good)


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_an_object_that_is_gone_or_empty_is_found_quickly_too(
    made: tuple[Path, Manifest], harm: Callable[[Path], object]
) -> None:
    path, manifest = made
    victim = harmed_objects(made)[-1]
    good = victim.read_bytes()
    harm(victim)
    try:
        for found in (findings(made), verify_quickly(DirectoryTarget(path), manifest).findings):
            assert len(found) == 1
            assert victim.name in found[0]
    finally:
        victim.write_bytes(good)


def rewritten(path: Path, block: StoredBlock, **changes: object) -> StoredBlock:
    """Change rows of a block as a faulty writer would: all checksums of bytes match."""
    rows = RowBlock.decode((path / block.name).read_bytes())
    stored = replace(rows, **changes).encode()  # type: ignore[arg-type]
    (path / block.name).write_bytes(stored)
    return replace(block, size_bytes=len(stored), crc32c=checksum(stored))


def test_a_row_that_does_not_match_its_content_hash_is_named(made: tuple[Path, Manifest]) -> None:
    path, manifest = made
    shard = manifest.collections[0].shards[0]
    block = shard.blocks[-1]
    good = (path / block.name).read_bytes()
    rows = RowBlock.decode(good)
    vectors = rows.vectors.copy()
    vectors[-1, 3] += 1
    harmed = rewritten(path, block, vectors=vectors)
    changed = with_first_shard(manifest, blocks=(*shard.blocks[:-1], harmed))
    try:
        (finding,) = findings((path, changed))
        assert repr(rows.ids[-1]) in finding
    finally:
        (path / block.name).write_bytes(good)


def test_damaged_rows_that_a_partial_backup_left_out_are_no_finding(
    made: tuple[Path, Manifest],
) -> None:
    path, manifest = made
    shard = manifest.collections[0].shards[0]
    block = shard.blocks[-1]
    good = (path / block.name).read_bytes()
    rows = RowBlock.decode(good)
    all_but_last = {
        name: getattr(rows, name)[:-1]
        for name in ("rows", "ids", "content_hashes", "vectors", "metadata")
    }
    left = rewritten(path, block, **all_but_last)
    left = replace(left, rows=block.rows - 1)
    partial = with_first_shard(
        manifest, blocks=(*shard.blocks[:-1], left), damaged=(int(rows.rows[-1]),)
    )
    try:
        assert not findings((path, partial))
        (finding,) = findings((path, with_first_shard(partial, damaged=())))
        assert "live rows, and the manifest states" in finding
    finally:
        (path / block.name).write_bytes(good)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"live": 1}, "and the manifest states 1"),
        ({"content_sum": "11" * 16}, "the content sum of the blocks is"),
        ({"blocks": ()}, "the blocks hold 0 live rows"),
        ({"dead": DeadRows.inline(encode_rows(np.arange(5)))}, "live rows, and the manifest"),
        ({"dead": DeadRows(bitmap="AAAA", crc32c=1)}, "checksum mismatch"),
        ({"rows": 3}, "a block ends at row"),
    ],
)
def test_what_a_manifest_states_is_compared_with_the_rows(
    made: tuple[Path, Manifest], changes: dict[str, object], text: str
) -> None:
    path, manifest = made
    assert any(text in each for each in findings((path, with_first_shard(manifest, **changes))))


def test_an_id_with_two_live_rows_is_found(made: tuple[Path, Manifest]) -> None:
    path, manifest = made
    for collection in manifest.collections:
        again = collection.shards[0]
        twice = replace(collection, shards=(*collection.shards, again))
        found = findings((path, replace(manifest, collections=(twice,))))
        assert any(f"several live rows of {again.live:,} ids" in each for each in found)


def test_blocks_that_overlap_are_found(made: tuple[Path, Manifest]) -> None:
    path, manifest = made
    shard = manifest.collections[1].shards[0]
    again = replace(manifest.collections[1], shards=(replace(shard, blocks=shard.blocks * 2),))
    found = findings((path, replace(manifest, collections=(again,))))
    assert any("holds rows below" in each for each in found)


def test_a_manifest_of_a_later_format_or_a_flipped_one_is_refused(
    made: tuple[Path, Manifest],
) -> None:
    path, manifest = made
    stored = json.loads(manifest.encode())
    stored["shards_total"] = 9
    with pytest.raises(BackupDamaged, match="checksum mismatch"):
        Manifest.decode(json.dumps(stored).encode(), "backup")
    assert path
