"""An event loop whose time passes only by being waited for: every time in a test is exact."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from benchmarks.load.engine import Clock

T = TypeVar("T")


class _InstantSelector(selectors.SelectSelector):
    """Instead of waiting, it moves the time on."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everybody waits, for nothing that has a time"
        self.now_s += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time starts at 0."""

    def __init__(self) -> None:
        self._instant = _InstantSelector()
        super().__init__(self._instant)

    def time(self) -> float:
        """Return the seconds that were waited for."""
        return self._instant.now_s


def virtual_clock() -> Clock:
    """Return the clock of the running loop."""
    return Clock(now=asyncio.get_running_loop().time, sleep=asyncio.sleep)


def run_virtually(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)
