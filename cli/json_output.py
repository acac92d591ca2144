"""What `--json` prints: dataclasses, enums and arrays as JSON, in the fields' own names."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np
import typer

from vectorshard.shard.types import Receipt


def print_json(value: object) -> None:
    """Print a value as one line of JSON."""
    typer.echo(json.dumps(plain(value), ensure_ascii=False))


def plain(value: Any) -> Any:
    """Return what JSON holds of a value. NaN and infinity become null, bytes hexadecimal."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        members = {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        if isinstance(value, Receipt):
            counted = {"shards_total": value.shards_total, "shards_answered": value.shards_answered}
            return {**counted, **members}
        return members
    return value
