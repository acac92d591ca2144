"""The lines that docs/operations.md shows, held against those that are seen."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
DIFFERS: Final = "…"


def lines_shown(heading: str) -> list[str]:
    """Return the lines of the first block below a heading, each with single blanks."""
    [section] = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
    block, *_ = re.findall(r"^```text\n(.*?)^```$", section, re.M | re.S)
    return [" ".join(line.split()) for line in block.splitlines()]


def never_seen(heading: str, seen: Iterable[str]) -> list[str]:
    """Return the lines below a heading that no line of `seen` is an example of."""
    lines = list(seen)
    return [
        shown
        for shown in lines_shown(heading)
        if not any(
            re.fullmatch(re.escape(shown).replace(DIFFERS, ".*"), line, re.S) for line in lines
        )
    ]
