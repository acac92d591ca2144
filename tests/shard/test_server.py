"""What of the server needs no process; the rest is in tests/system."""

from __future__ import annotations

import pytest

from shard.errors import InvalidParameter
from shard.server import join_address, split_address


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:7700", "127.0.0.1", 7700),
        ("localhost:0", "localhost", 0),
        ("[::1]:65535", "::1", 65_535),
        (":7700", "0.0.0.0", 7700),
    ],
)
def test_an_address_is_split_at_its_last_colon(address: str, host: str, port: int) -> None:
    assert split_address(address, "listen") == (host, port)


@pytest.mark.parametrize(
    "address", ["", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:-1", "127.0.0.1:65536"]
)
def test_what_is_no_address_is_refused_by_its_field(address: str) -> None:
    with pytest.raises(InvalidParameter, match="HOST:PORT") as caught:
        split_address(address, "listen")
    assert caught.value.field == "listen"


@pytest.mark.parametrize("address", ["127.0.0.1:7700", "localhost:1", "[::1]:38537"])
def test_an_address_is_told_as_it_is_given(address: str) -> None:
    assert join_address(*split_address(address, "listen")) == address
