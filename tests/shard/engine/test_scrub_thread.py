"""The thread of the scrub: one collection after the other, and none that is detached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from tests.shard.samples import poll_until
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.scrub_thread import LOOK_S, ScrubThread


class Steps:
    """A scrub of so many pieces; `on_step` is called in each."""

    def __init__(self, name: str, pieces: int, seen: list[str]) -> None:
        self.name, self.left, self.seen = name, pieces, seen
        self.on_step: Callable[[], None] = lambda: None

    @property
    def due_in_s(self) -> float:
        return 0.0 if self.left else 30.0

    def step(self) -> float | None:
        if not self.left:
            return None
        self.seen.append(self.name)
        self.on_step()
        self.left -= 1
        return 0.0


class Scrubbed:
    """As much of a collection as the thread sees."""

    def __init__(self, name: str, pieces: int, seen: list[str]) -> None:
        self.scrub = Steps(name, pieces, seen)
        self.closed = False
        self.entry: Any = None


def thread_of(*collections: Scrubbed) -> ScrubThread:
    thread = ScrubThread()
    for each in collections:
        thread.attach(cast(Collection, each))
    return thread


def test_a_pass_ends_before_that_of_the_next_collection_begins() -> None:
    seen: list[str] = []
    thread = thread_of(Scrubbed("a", 3, seen), Scrubbed("b", 2, seen))
    assert thread.run_due() == 30.0
    assert seen == ["a", "a", "a", "b", "b"]


def test_a_collection_that_is_detached_is_not_scrubbed_any_further() -> None:
    seen: list[str] = []
    dropped, other = Scrubbed("a", 3, seen), Scrubbed("b", 1, seen)
    thread = thread_of(dropped, other)
    dropped.scrub.on_step = lambda: thread.detach(cast(Collection, dropped))
    thread.run_due()
    assert seen == ["a", "b"]


def test_a_scrub_that_fails_does_not_end_the_thread() -> None:
    seen: list[str] = []
    failing, other = Scrubbed("a", 3, seen), Scrubbed("b", 1, seen)
    failing.closed = True  # as of a collection that is dropped just now: nothing is logged

    def fail() -> None:
        raise RuntimeError("closed")

    failing.scrub.on_step = fail
    thread_of(failing, other).run_due()
    assert seen == ["a", "b"]


def test_without_a_collection_the_thread_sleeps() -> None:
    assert thread_of().run_due() == LOOK_S


def test_a_stop_ends_a_pass() -> None:
    seen: list[str] = []
    endless = Scrubbed("a", 1_000_000_000, seen)
    thread = thread_of(endless)
    thread.start()
    poll_until(lambda: bool(seen))
    thread.stop()
    assert endless.scrub.left > 0
