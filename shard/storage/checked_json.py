"""A JSON file whose checksum is part of it: damage is told apart from what was written.

Whole files, written atomically. docs/formats.md describes the form. What the fields mean must not
enter here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.json_records import InvalidRecord, parsed_object
from vectorshard.shard.storage.store_files import read_file

CRC32C: Final = "crc32c"
"""The field with the checksum of all others."""


def write_checked(disk: Disk, path: Path, fields: Mapping[str, object]) -> None:
    """Write a file durably, in place of the one that may be there."""
    whole = {CRC32C: checksum_of(fields), **fields}
    disk.write_new_file(path, json.dumps(whole, separators=(",", ":")).encode() + b"\n")


def read_checked(path: Path, format_version: int) -> dict[str, object] | None:
    """Return the fields of a file without version and checksum, or None if it is absent.

    Raises InvalidRecord if it is damaged, or of another format version; OSError if the disk fails.
    """
    try:
        contents = read_file(path)
    except FileNotFoundError:
        return None
    fields = parsed_object(contents, str(path))
    if fields.pop(CRC32C, None) != checksum_of(fields):
        raise InvalidRecord(f"{path}: checksum mismatch")
    if (version := fields.pop("format_version", None)) != format_version:
        raise InvalidRecord(f"{path}: format_version is {version!r}, not {format_version}")
    return fields


def checksum_of(fields: Mapping[str, object]) -> int:
    """Return the checksum of fields, whatever the layout of their file."""
    return checksum(json.dumps(fields, separators=(",", ":"), sort_keys=True).encode())
