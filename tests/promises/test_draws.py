"""Shapes of data from fixed seeds: each draw must keep every promise at every moment."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.promises.draws import Draw, draw_of
from tests.promises.lives import COMMON, Verdict, verdict_of

DEAR: Final = frozenset({5, 6, 9, 21, 34, 35, 36, 39, 46, 48})
"""Seeds whose draws take half of the time of all: `make promises` has them."""

DRAWS: Final = [
    pytest.param(draw_of(seed), marks=pytest.mark.promises if seed in DEAR else ())
    for seed in range(60)
]

_verdicts: dict[int, Verdict] = {}


@pytest.mark.usefixtures("stepped")
@pytest.mark.parametrize("draw", DRAWS, ids=str)
async def test_a_draw_keeps_every_promise(draw: Draw, tmp_path: Path) -> None:
    verdict = _verdicts[draw.seed] = await verdict_of(draw, tmp_path)
    assert verdict.checks
    if verdict.broken:
        pytest.fail("\n".join([str(draw), *verdict.broken]), pytrace=False)


def test_nineteen_of_twenty_draws_come_within_a_hundredth_of_their_target() -> None:
    """Over the draws that ran before it, in this process."""
    below = {seed for seed, verdict in _verdicts.items() if verdict.shortfall > COMMON}
    assert len(below) <= max(1, len(_verdicts) // 20), sorted(below)
