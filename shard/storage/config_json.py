"""The resolved configuration of a collection as JSON, the form in which a row store keeps it.

Pure: dataclasses in, text out. No protobuf: what is on disk must not change with the contract.
"""

from __future__ import annotations

import json
from typing import Any

from vectorshard.shard.errors import RowStoreCorrupt
from vectorshard.shard.types import (
    CollectionConfig,
    FieldType,
    FilterField,
    IdType,
    IndexConfig,
    IndexKind,
    Metric,
    NlistRule,
)


def config_to_json(config: CollectionConfig) -> str:
    """Return `config` as one line of JSON; equal configurations give equal text."""
    return json.dumps(
        {
            "name": config.name,
            "dim": config.dim,
            "metric": config.metric.value,
            "id_type": config.id_type.value,
            "index": {
                "kind": config.index.kind.value,
                "min_training_size": config.index.min_training_size,
                "nlist_rule": config.index.nlist_rule.value,
                "nlist": config.index.nlist,
            },
            "target_recall": config.target_recall,
            "filter_fields": [
                {"name": field.name, "type": field.type.value} for field in config.filter_fields
            ],
        },
        sort_keys=True,
        separators=(",", ":"),
    )


def config_from_json(text: str) -> CollectionConfig:
    """Return the configuration that `config_to_json` wrote.

    Raises
    ------
    RowStoreCorrupt
        If `text` is not what `config_to_json` writes.
    """
    try:
        return _config_from_parsed(json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise RowStoreCorrupt(f"not a collection's configuration: {error!r}") from error


def _config_from_parsed(parsed: Any) -> CollectionConfig:
    index = parsed["index"]
    return CollectionConfig(
        name=str(parsed["name"]),
        dim=int(parsed["dim"]),
        metric=Metric(parsed["metric"]),
        id_type=IdType(parsed["id_type"]),
        index=IndexConfig(
            kind=IndexKind(index["kind"]),
            min_training_size=int(index["min_training_size"]),
            nlist_rule=NlistRule(index["nlist_rule"]),
            nlist=int(index["nlist"]),
        ),
        target_recall=float(parsed["target_recall"]),
        filter_fields=tuple(
            FilterField(field["name"], FieldType(field["type"]))
            for field in parsed["filter_fields"]
        ),
    )
