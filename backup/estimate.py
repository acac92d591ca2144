"""How long the training that follows a restore takes, roughly. Pure.

The constants come from one core of an Intel server; a factor of three either way is possible.
"""

from __future__ import annotations

from typing import Final

from vectorshard.shard.types import CollectionConfig

SECONDS_AT_LEAST: Final = 1.0
SECONDS_A_NUMBER: Final = 2.0e-7
"""For one component of one vector: k-means, encoding and calibration together."""


def training_estimate_s(config: CollectionConfig, rows: int) -> float:
    """Return seconds of one core until a shard's rows are in an index; 0 if it trains none."""
    if rows < config.index.min_training_size:
        return 0.0
    return SECONDS_AT_LEAST + SECONDS_A_NUMBER * rows * config.dim
