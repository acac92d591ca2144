"""Which stores have their files open: those that were used last, up to a number.

A store and its row file cost seven descriptors while they are open, and a server of a thousand
collections may have few. Opening a store again takes a third of a millisecond. Searches need no
store unless they return metadata.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final, Protocol

OPEN_STORES: Final = 256
"""The default for a process. More: fewer stores are opened again, more descriptors are needed."""


class Store(Protocol):
    """A store whose files may be closed while nothing uses them."""

    def try_to_close_files(self) -> bool:
        """Close the files, or return False if that must not be now. They may be closed already."""
        ...


class OpenStores:
    """The stores of a process that have their files open. Any thread may use it."""

    def __init__(self, most: int = OPEN_STORES) -> None:
        self.most = most
        """How many stay open, besides those that are in use."""
        self._by_use: OrderedDict[Store, None] = OrderedDict()  # the one used last comes last
        self._newest: Store | None = None  # which is the last to be closed
        self._changing = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_use)

    def used(self, store: Store) -> None:
        """Note that a store is open and used now; close the files of others beyond `most`.

        Those that were used longest ago come first. A store that is in use stays open.
        """
        if store is self._newest and len(self._by_use) <= self.most:
            return
        with self._changing:
            self._newest = store
            self._by_use[store] = None
            self._by_use.move_to_end(store)
            excess = len(self._by_use) - self.most
        for _ in range(2 * max(0, excess)):  # some may be in use; the next call tries again
            if not self._close_oldest_but(store):
                return

    def _close_oldest_but(self, store: Store) -> bool:
        """Close the files of the store used longest ago; return whether too many are open still."""
        with self._changing:
            if len(self._by_use) <= self.most:
                return False
            oldest, _ = self._by_use.popitem(last=False)
        # Without the lock, as it may take a while. If the store is used meanwhile, it comes back.
        if oldest is store or not oldest.try_to_close_files():
            with self._changing:
                self._by_use[oldest] = None
        return True

    def forget(self, store: Store) -> None:
        """Forget a store that is closed forever."""
        with self._changing:
            self._by_use.pop(store, None)
            self._newest = None
