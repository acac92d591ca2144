"""The addresses of a router's shards, as they are told."""

from __future__ import annotations

import pytest

from vectorshard.cli.addresses import shard_addresses
from vectorshard.shard.errors import InvalidParameter


def test_addresses_are_taken_in_their_order() -> None:
    told = ["b:7700", "dns:///a.fleet:7700", "[::1]:7700"]
    assert shard_addresses(told, None) == ("b:7700", "a.fleet:7700", "[::1]:7700")
    assert shard_addresses(told, 3) == shard_addresses(told, None)


def test_one_address_with_a_number_in_it_stands_for_all() -> None:
    told = ["dns:///vectorshard-shard-{shard}.vectorshard:7700"]
    assert shard_addresses(told, 11)[9:] == (
        "vectorshard-shard-9.vectorshard:7700",
        "vectorshard-shard-10.vectorshard:7700",
    )
    assert shard_addresses(["shard-{shard}:7700"], 1) == ("shard-0:7700",)
    assert shard_addresses(["10.0.0.{shard}:77{shard}0"], 2)[1] == "10.0.0.1:7710"


@pytest.mark.parametrize(
    ("told", "shards", "field", "reason"),
    [
        (
            ["a:1", "b:1"],
            3,
            "shards",
            "--shards 3 requires 3 --shard options, or one with",
        ),
        (["shard-{shard}:1"], None, "shard", "requires --shards"),
        (["shard-{shard}:1", "b:1"], 2, "shard", "must be the only --shard"),
        (["xds:///a:1"], None, "shard", "must be HOST:PORT or"),
        (["dns://10.0.0.1/a:1"], None, "shard", "must be HOST:PORT or"),
    ],
)
def test_what_contradicts_itself_is_refused(
    told: list[str], shards: int | None, field: str, reason: str
) -> None:
    with pytest.raises(InvalidParameter, match=reason) as caught:
        shard_addresses(told, shards)
    assert caught.value.field == field
