"""Readers together, a writer alone, and neither starved."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.shard.samples import DEADLINE_S, poll_until
from vectorshard.shard.engine.read_write_lock import ReadWriteLock


class Crowd:
    """Threads that take a lock, write down when they are in, and leave when told to."""

    def __init__(self, lock: ReadWriteLock, threads: ThreadPoolExecutor) -> None:
        self.lock = lock
        self.threads = threads
        self.entered: list[str] = []
        self.leave = {name: threading.Event() for name in "abcdef"}

    def _enter(self, name: str, write: bool) -> None:
        with self.lock.write() if write else self.lock.read():
            self.entered.append(name)
            assert self.leave[name].wait(DEADLINE_S)

    def reads(self, name: str) -> Future[None]:
        return self.threads.submit(self._enter, name, False)

    def writes(self, name: str) -> Future[None]:
        return self.threads.submit(self._enter, name, True)

    def until_entered(self, *names: str) -> None:
        poll_until(lambda: len(self.entered) == len(names))
        assert sorted(self.entered) == sorted(names)

    def until_waiting(self, *, readers: int, writers: int) -> None:
        lock = self.lock
        poll_until(lambda: (lock._readers_waiting, lock._writers_waiting) == (readers, writers))


@pytest.fixture
def crowd() -> Crowd:
    return Crowd(ReadWriteLock(), ThreadPoolExecutor(6))


def finish(crowd: Crowd, *futures: Future[None]) -> None:
    for event in crowd.leave.values():
        event.set()
    for future in futures:
        future.result(DEADLINE_S)
    crowd.threads.shutdown()


def test_readers_are_in_together(crowd: Crowd) -> None:
    readers = [crowd.reads("a"), crowd.reads("b"), crowd.reads("c")]
    crowd.until_entered("a", "b", "c")
    finish(crowd, *readers)


def test_a_writer_waits_for_every_reader_to_leave(crowd: Crowd) -> None:
    readers = [crowd.reads("a"), crowd.reads("b")]
    crowd.until_entered("a", "b")
    writer = crowd.writes("c")
    crowd.until_waiting(readers=0, writers=1)
    crowd.leave["a"].set()
    readers[0].result(DEADLINE_S)
    assert "c" not in crowd.entered
    crowd.leave["b"].set()
    crowd.until_entered("a", "b", "c")
    finish(crowd, *readers, writer)


def test_a_writer_keeps_out_readers_and_writers(crowd: Crowd) -> None:
    first = crowd.writes("a")
    crowd.until_entered("a")
    others = [crowd.reads("b"), crowd.writes("c")]
    crowd.until_waiting(readers=1, writers=1)
    assert crowd.entered == ["a"]
    finish(crowd, first, *others)


def test_a_waiting_writer_holds_back_new_readers(crowd: Crowd) -> None:
    reader = crowd.reads("a")
    crowd.until_entered("a")
    writer = crowd.writes("b")
    crowd.until_waiting(readers=0, writers=1)
    late = crowd.reads("c")
    crowd.until_waiting(readers=1, writers=1)
    crowd.leave["a"].set()
    crowd.until_entered("a", "b")
    crowd.leave["b"].set()
    crowd.until_entered("a", "b", "c")
    finish(crowd, reader, writer, late)


def test_a_leaving_writer_lets_all_waiting_readers_go_before_the_next_writer(
    crowd: Crowd,
) -> None:
    first = crowd.writes("a")
    crowd.until_entered("a")
    second = crowd.writes("b")
    crowd.until_waiting(readers=0, writers=1)
    readers = [crowd.reads("c"), crowd.reads("d"), crowd.reads("e")]
    crowd.until_waiting(readers=3, writers=1)
    crowd.leave["a"].set()
    crowd.until_entered("a", "c", "d", "e")
    for name in "cde":
        crowd.leave[name].set()
    crowd.until_entered("a", "b", "c", "d", "e")
    finish(crowd, first, second, *readers)


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
def test_an_exception_inside_releases_the_lock(crowd: Crowd, write: bool) -> None:
    lock = crowd.lock
    with pytest.raises(KeyError), lock.write() if write else lock.read():
        raise KeyError
    writer = crowd.writes("a")
    crowd.until_entered("a")
    finish(crowd, writer)


def test_nothing_is_lost_and_nobody_starves_in_a_crowd() -> None:
    lock = ReadWriteLock()
    total = readers_inside = 0
    broken: list[str] = []
    counting = threading.Lock()

    def write() -> None:
        nonlocal total
        for _ in range(200):
            with lock.write():
                if readers_inside:
                    broken.append("a reader beside a writer")
                before = total
                total = before + 1

    def read() -> None:
        nonlocal readers_inside
        for _ in range(200):
            with lock.read():
                with counting:
                    readers_inside += 1
                seen = total
                if total != seen:
                    broken.append("a writer beside a reader")
                with counting:
                    readers_inside -= 1

    with ThreadPoolExecutor(6) as threads:
        for future in [threads.submit(work) for work in (write, read) * 3]:
            future.result(DEADLINE_S)
    assert not broken
    assert total == 3 * 200
