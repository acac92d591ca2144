"""How two builds are compared."""

from __future__ import annotations

from benchmarks.against import AGAIN, EMBEDDED, OTHER, THIS, Load, Round, row_of


async def _no_call(*_: object) -> object:
    return None


def test_a_ratio_is_the_median_of_rounds_and_above_one_where_this_build_is_cheaper() -> None:
    measured = {
        THIS: [Round(100, 50), Round(100, 50), Round(400, 50)],
        OTHER: [Round(200, 100), Round(150, 100), Round(400, 25)],
        AGAIN: [Round(200, 100), Round(200, 100), Round(400, 25)],
    }
    recalls = {THIS: 0.95, OTHER: 0.96, AGAIN: 0.96}
    row = row_of(EMBEDDED, Load("a load", 1, 1, _no_call), measured, recalls)
    assert row == (EMBEDDED, "a load", 100, 200, 1.5, 1.0, 2.0, "0.950 / 0.960")
