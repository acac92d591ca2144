"""What the contract tells clients in other languages: no less than the code does."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from vectorshard.shard.config import PAGE_SIZE_DEFAULT, Limits
from vectorshard.shard.errors import (
    CannotListen,
    ClientUnusable,
    DataDirectoryError,
    LimitsTooLow,
    VectorShardError,
)
from vectorshard.shard.server.status import STATUS_BY_ERROR

CONTRACT = Path(__file__).resolve().parents[3] / "protos/vectorshard/v1/vectorshard.proto"
TEXT = CONTRACT.read_text()
HEAD = TEXT.partition("syntax = ")[0]


TOLD_ON_THE_SPOT = (DataDirectoryError, CannotListen, LimitsTooLow, ClientUnusable)
"""Of a start, and of a client; these never travel."""


@pytest.mark.parametrize(
    "error",
    [error for error in STATUS_BY_ERROR if not issubclass(error, TOLD_ON_THE_SPOT)],
    ids=lambda error: error.__name__,
)
def test_every_reason_that_travels_is_at_the_head_under_its_code(
    error: type[VectorShardError],
) -> None:
    reason = re.sub(r"(?<!^)(?=[A-Z])", "_", error.__name__).upper()
    sections = re.split(r"^//   (?=[A-Z])", HEAD, flags=re.MULTILINE)
    [section] = [part for part in sections if part.startswith(STATUS_BY_ERROR[error].name + " ")]
    assert re.search(rf"\b{reason}\b", section)


@pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
def test_every_limit_states_its_default(name: str) -> None:
    message = TEXT.partition("message Limits {")[2].partition("\n}")[0]
    found = re.search(rf"Default: ([\d,]+)\.\n  uint\d\d {name} =", message)
    assert found
    assert int(found[1].replace(",", "")) == getattr(Limits(), name)


def test_the_default_page_is_stated() -> None:
    assert f"Default: {PAGE_SIZE_DEFAULT:,}; at most {Limits().page_size:,}" in TEXT
