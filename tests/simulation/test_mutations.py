"""The simulation finds a router that is broken on purpose, within seeds that are run anyway."""

from __future__ import annotations

import pytest

from tests.simulation.mutations import MUTATIONS
from tests.simulation.simulation import simulate

SEEDS = 120
"""So many are tried at most; most mutations are found by one of the first ten."""
TRIED_FIRST = {
    "nobody decides about names": 38,
    "writes are repeated though parts may be done": 27,
}
"""Seeds that find the others."""


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_router_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[name](monkeypatch)
    seeds = (TRIED_FIRST.get(name, 0), *range(SEEDS))
    assert any(simulate(seed).wrong for seed in seeds)
