"""A shard whose packets are dropped in both directions, without a word to anybody."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest

from tests.net.conftest import CALL_S, LACKING, LATE_S, NetFleet

pytestmark = [pytest.mark.system_net, pytest.mark.skipif(bool(LACKING), reason=LACKING)]

COVERED_S = 5.0
"""Within which all shards answer again once nothing is dropped any more."""


@pytest.mark.parametrize("hole_s", [3.0, 8.0, 25.0])
def test_a_black_hole_delays_no_call_and_is_forgotten_when_it_is_over(
    fleet: NetFleet, hole_s: float
) -> None:
    """3 s: the connection may survive; 8 s: it is given up; 25 s: TCP would wait for as long."""
    strict, lenient = [], []
    with fleet.hosts[1].black_hole():
        until = time.monotonic() + hole_s
        while time.monotonic() < until:
            strict.append(fleet.search())
            lenient.append(fleet.search(min_coverage=0.5))
    covered_s = fleet.covered_within(COVERED_S)
    slowest_s = max(search.took_s for search in strict)
    print(
        f"black hole of {hole_s:g} s: {len(strict)} strict calls, the slowest {slowest_s:.3f} s; "
        f"lenient ones up to {max(search.took_s for search in lenient):.3f} s; "
        f"full coverage {covered_s:.2f} s after its end"
    )
    for search in strict:
        assert search.failed
        assert "missing: shard 1: " in search.told
        assert search.took_s < CALL_S + LATE_S
    for search in lenient:
        assert search.answered == {0}
        assert "shard-1.bed:7700" in search.told
        assert search.took_s < CALL_S


def test_what_is_seen_of_a_black_hole(fleet: NetFleet) -> None:
    with ExitStack() as seen:
        with fleet.hosts[1].black_hole():
            seen.enter_context(fleet.shown("A network that swallows packets"))
        fleet.covered_within(COVERED_S)
