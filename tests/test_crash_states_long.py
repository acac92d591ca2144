"""20,000 crash states of 200 histories; see `tests/test_crash_states.py`. `make test-long` runs it.

It resumes: histories without violations are in `build/crash-states.jsonl`.
"""

from __future__ import annotations

import pytest

from tests.crash_recorder.__main__ import RESULTS, checked, run
from tests.crash_recorder.breakages import BREAKAGES
from tests.crash_recorder.live import Order
from tests.crash_recorder.recorder import compiler

HISTORIES = 200
A_TEST = 20
STATES = 100

pytestmark = [
    pytest.mark.system_long,
    pytest.mark.skipif(
        compiler() is None, reason="needs a C compiler: .ci/prerequisites --compiler"
    ),
]


@pytest.mark.parametrize("first", range(0, HISTORIES, A_TEST))
def test_every_acknowledged_write_is_there_whenever_the_power_fails(first: int) -> None:
    found = run(range(first, first + A_TEST), STATES, RESULTS)
    violations = [violation for each in found for violation in each["violations"]]
    print(f"{len(found)} histories, {sum(each['states'] for each in found)} states")
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize("breakage", [name for name in BREAKAGES if name])
def test_what_is_left_out_is_noticed(breakage: str) -> None:
    faults = 0.3 if breakage == "repeated-sync" else 0.0
    order = Order(11, rounds=40, cuts=0, breakage=breakage, faults=faults)
    violations = checked(order, STATES).violations
    assert any(each.startswith(order.name) for each in violations), violations
