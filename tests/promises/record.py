"""What long runs found, kept in `build/promises.jsonl`, so that a run can be resumed.

Each line is one case: its name, what of its promises is broken, and figures. A case that kept all
is not run again; remove the file after a change of the code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

Record = Callable[..., None]
"""Records the case of a test: see `record_case`, whose name it gives."""

FILE: Final = Path(__file__).parents[2] / "build" / "promises.jsonl"


def lines() -> dict[str, dict[str, Any]]:
    """Return the newest line of each case, by its name."""
    if not FILE.exists():
        return {}
    parsed = map(json.loads, FILE.read_text().splitlines())
    return {line["name"]: line for line in parsed}


def kept() -> set[str]:
    """Return the names of the cases that kept all of their promises."""
    return {name for name, line in lines().items() if not line["broken"]}


def record_case(name: str, broken: list[str], **figures: object) -> None:
    """Append a case, and fail the test if anything is broken."""
    FILE.parent.mkdir(exist_ok=True)
    with FILE.open("a") as file:
        file.write(json.dumps({"name": name, "broken": broken, **figures}) + "\n")
    if broken:
        pytest.fail("\n".join([name, *broken]), pytrace=False)


def table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a table of all cases: those that are broken, and the figures of those with some."""
    rows = []
    for name, line in found.items():
        figures = [f"{key} {value}" for key, value in line.items() if key not in ("name", "broken")]
        rows.append(f"{'broken' if line['broken'] else 'kept':6}  {name}  {', '.join(figures)}")
    broken = sum(bool(line["broken"]) for line in found.values())
    return [*sorted(rows), f"{len(found)} cases, {broken} broken"]
