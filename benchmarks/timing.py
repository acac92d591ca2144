"""Times of several functions in turn, so that other work of the machine affects all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter

ROUNDS_MIN = 5
ROUNDS_MAX = 200


@dataclass(frozen=True, slots=True)
class Samples:
    """Seconds of each function by name, one per round, in the order of the rounds."""

    seconds: Mapping[str, list[float]]

    @property
    def rounds(self) -> int:
        """How often each was timed."""
        return len(next(iter(self.seconds.values())))

    def median_ms(self, name: str) -> float:
        """Return the median of one function, in milliseconds."""
        return 1e3 * median(self.seconds[name])

    def ratio(self, over: str, under: str) -> float:
        """Return the median of the rounds' ratios: the two runs of a round are adjacent."""
        pairs = zip(self.seconds[over], self.seconds[under], strict=True)
        return median(upper / lower for upper, lower in pairs)


def in_turn(timed: Mapping[str, Callable[[int], object]], budget_s: float) -> Samples:
    """Call each function with the number of the round, in turn, until the budget is spent.

    Every function runs once, untimed, before the first round; each round starts with a different
    one. There are at least ROUNDS_MIN rounds, whatever they cost, and at most ROUNDS_MAX.
    """
    names = list(timed)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        timed[name](0)
    end = perf_counter() + budget_s
    round_ = 0
    while round_ < ROUNDS_MIN or (round_ < ROUNDS_MAX and perf_counter() < end):
        turn = round_ % len(names)
        for name in names[turn:] + names[:turn]:
            start = perf_counter()
            timed[name](round_)
            seconds[name].append(perf_counter() - start)
        round_ += 1
    return Samples(seconds)
