"""The links to one server: the one that is searched over, and those that end with their answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import grpc

from vectorshard.client.link import Link, open_link
from vectorshard.router.remote.connection import Connection

LINK_AGE_S: Final = 60.0
"""How long a link is used. It stays on its connection even when the server has asked the client to
leave it, and would keep a router at an old address forever."""


class SearchLinks:
    """Links over the connection to the server `target`. Must be closed. `clock` is in seconds."""

    def __init__(self, target: str, connection: Connection, clock: Callable[[], float]) -> None:
        self._target = target
        self._connection = connection
        self._clock = clock
        self._link: Link | None = None
        self._link_for: tuple[grpc.aio.Channel, str] | None = None
        self._link_until = 0.0
        self._ending: set[Link] = set()

    def to(self, placement: str) -> Link:
        """Return the link for a placement; open one if it is missing, broken or old."""
        link, channel, now = self._link, self._connection.channel, self._clock()
        is_good = link is not None and not link.broken and self._link_for == (channel, placement)
        if link is not None and is_good and now < self._link_until:
            return link
        self._link = open_link(channel, self._target, placement, clock=self._clock)
        self._link_for, self._link_until = (channel, placement), now + LINK_AGE_S
        if link is not None:
            self._ending = {each for each in (*self._ending, link) if not each.broken}
            if is_good:
                link.drain()
            else:
                link.end()
        return self._link

    async def close(self) -> None:
        """End all links."""
        for link in (self._link, *self._ending):
            if link is not None:
                await link.close()
