"""Manifests: read as written, and refused when damaged or too new."""

from __future__ import annotations

import json
import struct
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from tests.backup.samples import BLOCK, MANIFEST, SHARD, put_manifest
from vectorshard.backup.failures import BackupDamaged, FormatUnknown
from vectorshard.backup.layout import (
    backup_names,
    manifest_object,
    manifests,
    newest_number,
    read_block,
    read_dead_rows,
    unknown_names,
)
from vectorshard.backup.manifest import (
    CollectionBackup,
    DeadRows,
    LeftOut,
    Manifest,
    ShardBackup,
    StoredBlock,
)
from vectorshard.backup.targets import DirectoryTarget
from vectorshard.shard.rows.row_bitmap import encode_rows
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.row_block import RowBlock
from vectorshard.shard.types import IdType


def test_a_manifest_is_read_as_it_was_written() -> None:
    assert Manifest.decode(MANIFEST.encode(), "here") == MANIFEST
    assert SHARD.session == 2**64 - 1
    assert list(MANIFEST.objects()) == [BLOCK.name]


def test_every_changed_byte_of_a_manifest_is_noticed() -> None:
    stored = MANIFEST.encode()
    for place in range(len(stored) - 1):  # the last is the end of the line
        with pytest.raises((BackupDamaged, FormatUnknown)):
            Manifest.decode(stored[:place] + bytes([stored[place] ^ 1]) + stored[place + 1 :], "x")


def test_a_later_format_is_refused() -> None:
    fields = json.loads(MANIFEST.encode())
    fields["format_version"] = 3
    del fields["crc32c"]
    canonical = json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()
    with pytest.raises(FormatUnknown, match="here: format_version is 3"):
        Manifest.decode(json.dumps({**fields, "crc32c": checksum(canonical)}).encode(), "here")


def test_a_backup_with_something_left_out_is_not_complete() -> None:
    left_out = LeftOut(collection="words", shard=1, reason="missing")
    assert MANIFEST.complete
    assert not replace(MANIFEST, left_out=(left_out,)).complete


def test_dead_rows_are_read_from_the_manifest_or_from_an_object(tmp_path: object) -> None:
    rows = np.array([1, 5, 2**40], dtype=np.int64)
    dead = DeadRows.inline(encode_rows(rows))
    np.testing.assert_array_equal(dead.rows(), rows)
    outside = replace(dead, bitmap="", name="blocks/dead")
    np.testing.assert_array_equal(outside.rows(encode_rows(rows)), rows)
    with pytest.raises(BackupDamaged, match="blocks/dead: checksum mismatch"):
        outside.rows(encode_rows(rows[:2]))


@pytest.fixture
def target(tmp_path_factory: pytest.TempPathFactory) -> DirectoryTarget:
    """Return an empty target."""
    return DirectoryTarget(tmp_path_factory.mktemp("target"), paced=False)


def put(target: DirectoryTarget, day: int, manifest: Manifest = MANIFEST) -> str:
    """Store a manifest under a day's name, and return the name."""
    name = f"{day:08}-202601{day:02}T000000Z-0000000a"
    put_manifest(target, name, manifest)
    return name


def test_backups_are_found_the_newest_first(target: DirectoryTarget) -> None:
    names = [put(target, day) for day in (2, 1, 3)]
    target.put("backups/00000004-20260104T000000Z-0000000a.json.new", b"unfinished")
    target.put("backups/notes.json", b"of a person")
    assert backup_names(target) == sorted(names, reverse=True)
    target.put(manifest_object(names[0]), b"damaged")
    found = dict(manifests(target))
    assert found[names[1]] == MANIFEST
    later, of_format_1 = "100000000-20250101T000000Z-0000000a", "20990101T000000Z-0000000a"
    for name in (later, of_format_1):
        put_manifest(target, name, MANIFEST)
    assert backup_names(target) == [later, *sorted(names, reverse=True), of_format_1]
    assert newest_number(target) == 100_000_000
    assert unknown_names(target) == ["notes"]
    assert isinstance(found[names[0]], BackupDamaged)


def test_a_manifest_under_the_name_of_another_backup_is_damaged(target: DirectoryTarget) -> None:
    old, new = put(target, 1), "00000009-20270101T000000Z-0000000a"
    target.put(manifest_object(new), target.get(manifest_object(old)))
    found = dict(manifests(target))
    assert isinstance(found[old], Manifest)
    assert "is the manifest of backup number 1" in str(found[new])


def test_a_block_is_checked_against_its_manifest(target: DirectoryTarget) -> None:
    rows = RowBlock(
        id_type=IdType.INT64,
        rows=np.array([3, 5], dtype=np.int64),
        ids=np.array([30, 50], dtype=np.int64),
        content_hashes=np.zeros((2, 2), dtype=np.uint64),
        vectors=np.zeros((2, 4), dtype=np.float32),
        metadata=[b"", b""],
    )
    stored = rows.encode()
    target.put("blocks/one.block", stored)
    block = replace(
        BLOCK,
        name="blocks/one.block",
        first_row=3,
        next_row=6,
        rows=2,
        size_bytes=len(stored),
        crc32c=checksum(stored),
    )
    np.testing.assert_array_equal(read_block(target, block).ids, rows.ids)
    for wrong, said in (
        (replace(block, crc32c=block.crc32c ^ 1), "checksum"),
        (replace(block, size_bytes=block.size_bytes - 1), "checksum"),
        (replace(block, next_row=5), "other rows"),
        (replace(block, first_row=4), "other rows"),
        (replace(block, rows=3), "other rows"),
        (replace(block, name="blocks/two.block"), "missing"),
    ):
        with pytest.raises(BackupDamaged, match=said):
            read_block(target, wrong)
    with pytest.raises(BackupDamaged, match="missing"):
        read_dead_rows(target, replace(SHARD.dead, bitmap="", name="blocks/dead"))


def test_the_page_of_formats_names_every_field_and_the_layout_of_a_block() -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text().split("# Backups")[1]
    for record in (Manifest, CollectionBackup, ShardBackup, StoredBlock, DeadRows, LeftOut):
        for field in fields(record):
            assert f"`{field.name}`" in page, f"{record.__name__}.{field.name}"
    block = RowBlock(
        id_type=IdType.STRING,
        rows=np.array([7], dtype=np.int64),
        ids=np.array(["a"], dtype=object),
        content_hashes=np.zeros((1, 2), dtype=np.uint64),
        vectors=np.ones((1, 3), dtype=np.float32),
        metadata=[b"xy"],
    ).encode()
    magic, id_type, dim, *lengths = struct.unpack_from("<8s2I6Q", block)
    assert (magic, id_type, dim) == (b"VSBLOCK1", 1, 3)
    assert (lengths[0], lengths[2], lengths[3], lengths[4], lengths[5]) == (8, 16, 12, 4, 2)
    assert struct.unpack_from("<q", block, 64) == (7,)
    assert block[:-4].endswith(b"xy")
    assert struct.unpack("<I", block[-4:])[0] == checksum(block[:-4])
