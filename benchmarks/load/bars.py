"""Conditions that fail a run, as `--fail-if` has them: p99>20ms, qps<500, errors>0, recall<0.95.

Pure: text and a result in, text out.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vectorshard.shard.errors import InvalidParameter

if TYPE_CHECKING:
    from benchmarks.load.result import Result

_COMPARISONS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_MS_OF: Final[Mapping[str, float]] = {"": 1.0, "us": 0.001, "µs": 0.001, "ms": 1.0, "s": 1_000.0}
_LATENCIES: Final = {
    "p50": "latency_p50_ms",
    "p90": "latency_p90_ms",
    "p99": "latency_p99_ms",
    "p99.9": "latency_p99_9_ms",
    "max": "latency_max_ms",
    "mean": "latency_mean_ms",
}
_RATES: Final = {"qps": "queries_per_s", "rps": "rate_achieved_per_s"}
NAMES: Final = (*_LATENCIES, *_RATES, "errors", "recall")
_BAR: Final = re.compile(
    r"\s*([a-z0-9.]+)\s*(>=|<=|>|<)\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*(%|[a-zµ]*)\s*"
)


@dataclass(frozen=True, slots=True)
class Bar:
    """A condition: the run fails if `name` compares so with `limit`.

    `limit` is in ms for latencies, a share for `recall`, and for `errors` if `is_share`.
    """

    text: str
    name: str
    comparison: str
    limit: float
    is_share: bool = False

    def missed(self, result: Result) -> str:
        """Return why the run fails; empty if it does not. A figure that is unknown fails it."""
        value = self._value(result)
        if value is None:
            return f"{self.text}: {self.name} was not measured"
        if not _COMPARISONS[self.comparison](value, self.limit):
            return ""
        unit = " ms" if self.name in _LATENCIES else ""
        return f"{self.text}: {self.name} is {100 * value if self.is_share else value:,.6g}" + (
            "%" if self.is_share else unit
        )

    def _value(self, result: Result) -> float | None:
        if self.name == "errors":
            if not self.is_share:
                return result.calls_failed
            return result.calls_failed / result.calls if result.calls else None
        field = {**_LATENCIES, **_RATES}.get(self.name, self.name)
        value: float | None = getattr(result, field)
        return value


def bar_of(text: str) -> Bar:
    """Return the condition of a text.

    Raises InvalidParameter for an unknown name, comparison, number or unit.
    """
    found = _BAR.fullmatch(text)
    if found is None or found[1] not in NAMES:
        raise InvalidParameter(
            f"{text!r} is not a condition such as p99>20ms, qps<500, errors>0.1% or recall<0.95; "
            f"the names are {', '.join(NAMES)}",
            field="fail_if",
        )
    name, comparison, number, unit = found.groups()
    if unit == "%" and name in {"errors", "recall"}:
        return Bar(text.strip(), name, comparison, float(number) / 100, is_share=True)
    if unit not in (_MS_OF if name in _LATENCIES else {""}):
        raise InvalidParameter(f"{text!r}: {name} has no unit {unit!r}", field="fail_if")
    return Bar(text.strip(), name, comparison, float(number) * _MS_OF[unit])


def missed(bars: Sequence[Bar], result: Result) -> Iterator[str]:
    """Yield why a run fails, one text for each bar that it misses."""
    for bar in bars:
        if reason := bar.missed(result):
            yield reason
