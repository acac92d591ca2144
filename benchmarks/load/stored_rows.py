"""Whether a collection holds the rows of a source: their number, and a sample of their vectors."""

from __future__ import annotations

import numpy as np

from vectorshard.cli.vector_files import VectorFile
from vectorshard.client.client import Client
from vectorshard.shard.descriptions import CollectionDescription
from vectorshard.shard.types import CollectionConfig, Metric

SAMPLE_ROWS = 256
"""Rows that are compared, evenly spaced over the source."""

TOLERANCE = 1e-5
"""Relative to the largest component: scaling to norm 1 rounds; other rows differ far more."""


def why_other_kind(config: CollectionConfig, source: VectorFile) -> str:
    """Return why a collection does not fit the rows of a source; "" if it does."""
    if source.metric not in {None, config.metric}:
        return f"the data has metric {source.metric.value}, the collection {config.metric.value}"
    if source.dim != config.dim:
        return f"the data has dim {source.dim}, the collection {config.dim}"
    if source.id_type is not config.id_type:
        return f"the collection has {config.id_type.value} ids, the data {source.id_type.value}"
    return ""


def why_other_rows(client: Client, description: CollectionDescription, source: VectorFile) -> str:
    """Return why a collection does not hold exactly the rows of a source; "" if it does."""
    config, live = description.config, description.ledger.live
    if other_kind := why_other_kind(config, source):
        return other_kind
    if live != source.rows:
        return f"the collection holds {live:,} rows, the data {source.rows:,}"
    step = max(1, -(-source.rows // SAMPLE_ROWS))
    ids = np.arange(source.rows)[::step] if source.ids is None else source.ids[::step]
    vectors = np.asarray(source.vectors[::step], dtype=np.float64)
    if config.metric is Metric.COSINE:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    stored = client.get(config.name, ids)
    assert stored.vectors is not None
    if len(stored.ids) < len(ids):
        missing = min(set(ids.tolist()).difference(stored.ids.tolist()))
        return f"the collection does not hold row {missing!r} of the data"
    differs = np.abs(stored.vectors - vectors) > TOLERANCE * np.abs(vectors).max(axis=1)[:, None]
    rows = np.flatnonzero(differs.any(axis=1)).tolist()
    return (
        f"row {ids.tolist()[rows[0]]!r} of the collection differs from the data's" if rows else ""
    )
