"""The addresses of a router's shards, from what its command line says.

Pure: text in, text out. Nothing is looked up here: a name's address changes, and whoever connects
looks it up then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vectorshard.shard.errors import InvalidParameter

DNS: Final = "dns:///"
"""What may stand before HOST:PORT: grpc's notation of what is meant anyway."""

NUMBER: Final = "{shard}"
"""What stands for a shard's number in an address that is one for each of several."""


def shard_addresses(told: Sequence[str], shards: int | None) -> tuple[str, ...]:
    """Return HOST:PORT of each shard, in the order of their numbers.

    Parameters
    ----------
    told
        The addresses, in that order; or a single one in which NUMBER stands for the number.
    shards
        How many shards there are; None for as many as there are addresses.

    Raises
    ------
    InvalidParameter
        If the two contradict each other, or an address is of a scheme that is not DNS.
    """
    patterns = [address for address in told if NUMBER in address]
    if patterns and len(told) > 1:
        raise InvalidParameter(f"{patterns[0]!r} must stand alone", field="shard")
    if patterns:
        if shards is None:
            raise InvalidParameter(f"{patterns[0]!r} needs --shards, their number", field="shard")
        told = [patterns[0].replace(NUMBER, str(number)) for number in range(shards)]
    elif shards not in {None, len(told)}:
        raise InvalidParameter(f"{shards}, but --shard is given {len(told)} times", field="shards")
    return tuple(_without_scheme(address) for address in told)


def _without_scheme(address: str) -> str:
    bare = address.removeprefix(DNS)
    if "/" in bare:
        raise InvalidParameter(
            f"{address!r} is neither HOST:PORT nor {DNS}HOST:PORT", field="shard"
        )
    return bare
