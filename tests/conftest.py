"""What holds for all tests: hypothesis counts no milliseconds; the machine has other work too."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("house", deadline=None)
settings.load_profile("house")

SEEDS_DEFAULT = 150
RESTORES_DEFAULT = 300


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
