"""Whatever the network does: no wrong answer, no call beyond its deadline, nothing left over.

pytest tests/simulation --seed 123      one seed, with all that happens
pytest tests/simulation --seeds 5000    more of them
"""

from __future__ import annotations

import subprocess
import sys
from random import Random

import pytest

from tests.conftest import SEEDS_DEFAULT
from tests.simulation.plan import WEATHERS, Fault, plan_of
from tests.simulation.simulation import simulate

SAME = 7
"""A seed with all kinds of calls."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have a test for each seed."""
    if "seed" in metafunc.fixturenames:
        one: int | None = metafunc.config.getoption("--seed")
        seeds = range(metafunc.config.getoption("--seeds")) if one is None else [one]
        metafunc.parametrize("seed", seeds)


def test_every_answer_is_right_and_in_time(
    seed: int, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    report = simulate(seed)
    if pytestconfig.getoption("--seed") is not None:
        with capsys.disabled():
            print(f"\n{report}")
    if report.wrong:
        pytest.fail(str(report), pytrace=False)


def test_a_seed_replays_to_the_last_line_whatever_python_hashes() -> None:
    replay = f"from tests.simulation.simulation import simulate; print(simulate({SAME}))"
    told = subprocess.run(
        [sys.executable, "-c", replay],
        env={"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert told.splitlines() == str(simulate(SAME)).splitlines()


def test_most_calls_succeed_and_every_fault_befalls_some() -> None:
    """A simulation in which nothing works, or nothing breaks, would prove nothing."""
    plans = [plan_of(Random(seed)) for seed in range(SEEDS_DEFAULT)]
    assert {fault for plan in plans for fault in plan.faults} == set(Fault)
    assert {plan.weather for plan in plans} == set(WEATHERS)
    reports = [simulate(seed) for seed in range(15)]
    calls = sum(report.calls for report in reports)
    assert 0.5 < sum(report.succeeded for report in reports) / calls < 0.9
