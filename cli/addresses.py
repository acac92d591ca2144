"""The addresses of a router's shards, from its command line.

Pure: text in, text out. No name is resolved here: the address of a name changes, so it is resolved
when a connection is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vectorshard.shard.errors import InvalidParameter

DEFAULT_ADDRESS: Final = "127.0.0.1:7700"
"""Where a server listens, and where the other commands look for it."""

DNS: Final = "dns:///"
"""The prefix that HOST:PORT may have: grpc's notation of its default."""

NUMBER: Final = "{shard}"
"""Stands for a shard's number in an address that is given once for all shards."""


def shard_addresses(given: Sequence[str], shards: int | None) -> tuple[str, ...]:
    """Return HOST:PORT of each shard, in the order of their numbers.

    Raises InvalidParameter if the two contradict each other, or an address has another scheme than
    DNS.

    Parameters
    ----------
    given
        The addresses, in that order; or a single one that contains NUMBER.
    shards
        How many shards there are; None for as many as there are addresses.
    """
    patterns = [address for address in given if NUMBER in address]
    if patterns and len(given) > 1:
        raise InvalidParameter(f"{patterns[0]!r} must be the only --shard", field="shard")
    if patterns:
        if shards is None:
            raise InvalidParameter(f"{patterns[0]!r} requires --shards", field="shard")
        given = [patterns[0].replace(NUMBER, str(number)) for number in range(shards)]
    elif shards not in {None, len(given)}:
        raise InvalidParameter(
            f"--shards {shards} requires {shards} --shard options, or one with {NUMBER}; "
            f"got {len(given)}",
            field="shards",
        )
    return tuple(_without_scheme(address) for address in given)


def _without_scheme(address: str) -> str:
    bare = address.removeprefix(DNS)
    if "/" in bare:
        raise InvalidParameter(f"{address!r} must be HOST:PORT or {DNS}HOST:PORT", field="shard")
    return bare
