"""Metadata as a caller hands it over, converted to the bytes of each row. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from vectorshard.client.id_arguments import is_listed, why_not_rows
from vectorshard.client.vector_arguments import library_of
from vectorshard.shard.errors import InvalidParameter, MalformedMessage
from vectorshard.shard.texts import counted
from vectorshard.shard.wire.metadata import metadata_from_mapping
from vectorshard.shard.wire.primitives import shown

Metadata: TypeAlias = Mapping[str, Any] | Iterable[Mapping[str, Any] | None]
"""The metadata of rows as a caller may pass it; a DataFrame counts as one mapping a row."""


def metadata_bytes(metadata: Metadata | None, rows: int) -> list[bytes] | None:
    """Return the metadata of each row as bytes; None and {} are b"".

    Raises InvalidParameter for a value that metadata cannot hold, and names the row and the key.
    Raises MalformedMessage unless there is one mapping for each of the `rows`.
    """
    if metadata is None:
        return None
    mappings = _mappings(metadata, rows)
    if len(mappings) != rows:
        raise MalformedMessage(
            f"{counted(len(mappings), 'row')} for {counted(rows, 'id')}: give one for each",
            field="metadata",
        )
    return [_row_bytes(mapping, row) for row, mapping in enumerate(mappings)]


def _row_bytes(mapping: Any, row: int) -> bytes:
    if mapping is None:
        return b""
    if not isinstance(mapping, Mapping):
        cure = ": pass json.loads(text)" if isinstance(mapping, str) else ""
        reason = f"{shown(mapping)} is not a mapping{cure}"
        raise InvalidParameter(reason, field="metadata", row=row)
    return metadata_from_mapping(mapping, row) if mapping else b""


def _mappings(metadata: Any, rows: int) -> Sequence[Any]:
    """Return one mapping (or None) for each row."""
    if isinstance(metadata, Mapping):
        if rows != 1:
            raise MalformedMessage(
                f"1 mapping does not match {rows:,} ids: pass a list with one for each row",
                field="metadata",
            )
        return [metadata]
    library, kind = library_of(metadata), type(metadata).__name__
    if library == "pandas" and kind == "DataFrame":
        _check_names(metadata.columns)
        return _of_frame(metadata)
    if library == "polars" and kind == "DataFrame":
        return list(metadata.to_dicts())
    if library == "pyarrow" and hasattr(metadata, "to_pylist"):
        _check_names(getattr(metadata, "column_names", ()))
        return list(metadata.to_pylist())
    if reason := why_not_rows(metadata):
        raise InvalidParameter(reason, field="metadata")
    if isinstance(metadata, str | bytes):
        reason = f"{kind} is not a sequence of mappings: pass a list with one for each row"
        raise InvalidParameter(reason, field="metadata")
    if not is_listed(metadata):
        reason = f"{shown(metadata)} is not a mapping, or a sequence of one for each row"
        raise InvalidParameter(reason, field="metadata")
    return list(metadata)


def _check_names(names: Iterable[Any]) -> None:
    """Raise InvalidParameter for two columns of one name: a row could keep only one of them."""
    found = set()
    for name in names:
        if name in found:
            raise InvalidParameter(f"column {shown(name)} occurs twice", field="metadata")
        found.add(name)


def _of_frame(frame: Any) -> list[dict[str, Any]]:
    """Return the rows of a DataFrame; what pandas counts as missing is left out."""
    missing = frame.isna().to_numpy().tolist()
    return [
        {
            name: value
            for (name, value), is_missing in zip(row.items(), of_row, strict=True)
            if not is_missing
        }
        for row, of_row in zip(frame.to_dict("records"), missing, strict=True)
    ]
