"""What holds for all tests: hypothesis counts no milliseconds; the machine has other work too.

The files that take longest are run first, so that no worker is left with one of them at the end.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("house", deadline=None)
settings.load_profile("house")

SEEDS_DEFAULT = 150
RESTORES_DEFAULT = 300
KILLS_DEFAULT = 500


TESTS = Path(__file__).parent
LONGEST = (
    "system/test_kill.py",
    "promises/test_known.py",
    "system/test_refusals.py",
    "promises/test_draws.py",
    "system/test_flow_control.py",
    "system/test_batch_search.py",
    "test_damage.py",
    "system/test_churn.py",
    "model/test_model.py",
    "system/test_lost_disks.py",
    "system/test_story.py",
    "system/test_rolling_restart.py",
    "system/test_restores.py",
    "system/test_demo.py",
    "system/test_bench.py",
    "system/test_backups.py",
    "test_crash_states.py",
)
"""Files below TESTS, the longest first; `make test` hands them out in this order."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; within a file, and of all others, the order stays."""
    places = {TESTS / file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the simulation be asked for other seeds; here, where pytest looks before it collects."""
    group = parser.getgroup("simulation")
    group.addoption("--seed", type=int, help="simulate this seed alone, and print what happens")
    group.addoption(
        "--seeds",
        type=int,
        default=SEEDS_DEFAULT,
        help=f"how many seeds to simulate, from 0 (default: {SEEDS_DEFAULT})",
    )
    parser.getgroup("backups").addoption(
        "--restores",
        type=int,
        default=RESTORES_DEFAULT,
        help=f"how many restores `make test-long` plays (default: {RESTORES_DEFAULT})",
    )
    parser.getgroup("kills").addoption(
        "--kills",
        type=int,
        default=KILLS_DEFAULT,
        help=f"how many kills `make test-long` plays (default: {KILLS_DEFAULT})",
    )
