"""Whatever befalls the disks of a fleet: no false alarm, and no loss that a witness held unsaid.

pytest tests/simulation/test_fleet.py --seed 123    one seed with and without faults, line by line
make test-long                                      20,000 histories
"""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from tests.simulation.fleet import Fleet, Outcome, live_through
from tests.simulation.fleet_mutations import MUTATIONS
from vectorshard.router.fan_out import memory

HISTORIES = 300
HISTORIES_LONG = 20_000
HISTORIES_OF_MUTATIONS = 600
"""So many are tried at most, after the one that showed it before."""


def histories(count: int, first: int = 0) -> list[Outcome]:
    """Live through so many histories, of which every second has faults."""
    return [live_through(seed // 2, faults=bool(seed % 2)) for seed in range(first, first + count)]


def check(outcomes: list[Outcome]) -> Counter[str]:
    """Require that nothing went wrong; return how often what happened."""
    wrong = [f"--seed {each.seed}: {each.wrong[0]}" for each in outcomes if each.wrong]
    assert not wrong, "\n".join(wrong)
    counts: Counter[str] = Counter()
    for each in outcomes:
        counts.update(each.counts)
    return counts


def test_no_loss_is_unnoticed_and_no_alarm_is_false(
    pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    seed: int | None = pytestconfig.getoption("--seed")
    if seed is not None:
        for faults in (False, True):
            outcome = live_through(seed, faults=faults, told=True)
            with capsys.disabled():
                print(f"\n{outcome}")
            check([outcome])
        return
    counts = check(histories(HISTORIES))
    assert counts["strict"] > HISTORIES  # a history in which nothing is served proves nothing
    assert counts["alarms"] > HISTORIES
    assert counts["accepted"] > HISTORIES / 5


def test_a_seed_is_a_history() -> None:
    once, again = (live_through(3, faults=True, told=True) for _ in range(2))
    assert once == again


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_rule_that_is_left_out_is_missed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out, found_before = MUTATIONS[name]
    leave_out(monkeypatch)
    tries = (found_before, *range(HISTORIES_OF_MUTATIONS))
    assert any(live_through(each // 2, faults=bool(each % 2)).wrong for each in tries)


class InOrder(Random):
    """Leaves shards in their order."""

    def shuffle(self, x: object) -> None:
        """Change nothing."""


def alarms_of_a_drop_during_a_round() -> list[str]:
    """Have a router hear shard 0 before a drop, and shard 1 after it was forgotten."""
    fleet = Fleet.quiet(InOrder(0))
    slow, fast = fleet.routers
    for router in fleet.routers:
        fleet.finish(router, "create", router.create("a"))
    asking = slow.round()
    heard = slow.memory.former[0]
    while slow.memory.former[0] is heard:
        next(asking)  # the round has begun
    for _ in range(2):
        next(asking)  # shard 0 has answered
    fleet.finish(fast, "drop", fast.drop("a"))
    for _ in range(4):
        fleet.finish(fast, "round", fast.round())
    for _ in asking:
        pass
    assert not slow.named("a")
    return fleet.judge.wrong


def test_a_tombstone_outlives_the_rounds_of_other_routers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert alarms_of_a_drop_during_a_round() == []
    monkeypatch.setattr(memory, "FORGET_AFTER_S", 0.0)
    assert alarms_of_a_drop_during_a_round() == []  # the tombstone returns
    MUTATIONS["finished drops are forgotten"][0](monkeypatch)
    with pytest.raises(AssertionError):
        alarms_of_a_drop_during_a_round()


@pytest.mark.system_long
def test_no_loss_is_unnoticed_in_twenty_thousand_histories() -> None:
    counts: Counter[str] = Counter()
    for first in range(0, HISTORIES_LONG, 1_000):
        counts += check(histories(1_000, first))
    print(f"\n{HISTORIES_LONG} histories: {dict(counts)}")
