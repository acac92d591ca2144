"""The stores that were used last are open, and those in use stay so."""

from __future__ import annotations

import threading
from random import Random

from vectorshard.shard.storage.open_stores import OpenStores


class FakeStore:
    """A store that is open or not."""

    def __init__(self, stores: OpenStores) -> None:
        self.is_open = False
        self.is_busy = False
        self._stores = stores
        self._lock = threading.Lock()

    def use(self) -> None:
        """Open the files if they are closed."""
        with self._lock:
            self.is_open = True
            self._stores.used(self)

    def try_to_close_files(self) -> bool:
        if self.is_busy or not self._lock.acquire(blocking=False):
            return False
        self.is_open = False
        self._lock.release()
        return True


def stores_of(most: int, count: int) -> tuple[OpenStores, list[FakeStore]]:
    """Return a bound, and stores that are all closed."""
    stores = OpenStores(most)
    return stores, [FakeStore(stores) for _ in range(count)]


def test_the_store_that_was_used_longest_ago_is_closed() -> None:
    _, (first, second, third) = stores_of(2, 3)
    first.use()
    second.use()
    first.use()
    third.use()
    assert [first.is_open, second.is_open, third.is_open] == [True, False, True]


def test_a_store_in_use_stays_open_and_is_closed_once_it_is_free() -> None:
    stores, (first, second, third) = stores_of(1, 3)
    first.use()
    first.is_busy = True
    second.use()
    assert first.is_open
    assert len(stores) == 2
    first.is_busy = False
    third.use()
    assert [first.is_open, second.is_open, third.is_open] == [False, False, True]


def test_a_store_that_was_forgotten_counts_no_more() -> None:
    stores, (first, second, _) = stores_of(1, 3)
    first.use()
    stores.forget(first)
    second.use()
    assert first.is_open


def test_no_more_stay_open_than_threads_use_at_a_time() -> None:
    stores, made = stores_of(4, 40)

    def use(seed: int) -> None:
        chance = Random(seed)
        for _ in range(500):
            chance.choice(made).use()

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made[0].use()
    assert sum(store.is_open for store in made) <= 4
    assert len(stores) <= 4
