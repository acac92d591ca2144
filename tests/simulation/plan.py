"""What happens in a simulation: drawn from its seed, before it begins.

Each seed has its own kind of trouble, and none has all of it: one fault would hide another.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Final

from tests.simulation.network import Weather


class Fault(StrEnum):
    """What befalls an address, for a while."""

    STALL = "stall"
    """Nothing goes in or out: a process that was stopped, or a network that swallows packets."""
    KILL = "kill"
    """Its server dies, and comes back with what it had committed."""
    RESTART = "restart"
    """Its server drains, ends, and comes back."""
    SLOW = "slow"
    """All that it does takes a hundred times as long."""
    CUT = "cut"
    """Its connections break."""
    SWAP = "swap"
    """It and another exchange their addresses."""
    STRANGER = "stranger"
    """A shard of the same number, of another cluster, has its address."""
    ROUTER = "router"
    """A router ends, and another takes its place."""


TAKES_AN_ADDRESS: Final = frozenset({Fault.SWAP, Fault.STRANGER})

CLEAR: Final = Weather()

WEATHERS: Final = (
    CLEAR,
    CLEAR,
    Weather(delay_s=0.005, late=0.02),
    Weather(delay_s=0.02, late=0.05),
    Weather(delay_s=0.002, lost_request=0.02, lost_answer=0.02),
    Weather(delay_s=0.002, cut=0.03),
    Weather(delay_s=0.002, copied=0.1),
    Weather(delay_s=0.005, late=0.01, lost_request=0.01, lost_answer=0.01, cut=0.02, copied=0.02),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Who takes part, and what befalls them."""

    shards: int
    routers: int
    clients: int
    calls_each: int
    recreates: bool
    """Whether somebody drops the collection and creates it anew, all the time."""
    weather: Weather
    faults: tuple[Fault, ...]

    @property
    def calm(self) -> bool:
        """Whether every call must succeed that asks for what is there."""
        return not self.faults and self.weather is CLEAR

    @property
    def strangers(self) -> bool:
        """Whether addresses change hands."""
        return not TAKES_AN_ADDRESS.isdisjoint(self.faults)


def plan_of(random: Random) -> Plan:
    """Draw a plan."""
    kinds = random.choices((0, 1, 2, 3), weights=(1, 3, 3, 1))[0]
    shards = random.choices((1, 2, 3, 4), weights=(1, 3, 4, 2))[0]
    # Whoever has the address of the only shard is the fleet.
    known = [fault for fault in Fault if shards > 1 or fault not in TAKES_AN_ADDRESS]
    return Plan(
        shards=shards,
        routers=random.choices((1, 2, 3), weights=(1, 4, 2))[0],
        clients=random.randint(2, 3),
        calls_each=random.randint(5, 9),
        recreates=random.random() < 0.6,
        weather=random.choice(WEATHERS),
        faults=tuple(random.sample(known, kinds)),
    )
