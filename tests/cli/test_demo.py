"""The demonstration: it says so when a promise is not kept, and when its server does not serve."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest

from tests.cli.client_in_memory import ClientInMemory
from vectorshard.cli import demo
from vectorshard.cli.output import terminal
from vectorshard.client.client import Client
from vectorshard.shard.errors import ShardUnavailable
from vectorshard.shard.types import Float32Array, IdArray, IdType, Metric

SLOW_BATCH = "a batch was slower than its queries one by one"


@pytest.fixture
def client() -> ClientInMemory:
    """A client whose server knows nothing yet."""
    return ClientInMemory()


@pytest.fixture
def ids() -> IdArray:
    """Seven words."""
    return np.array(["coffee", "tea", "beer", "paris", "rome", "oslo", "bern"], dtype=object)


@pytest.fixture
def vectors() -> Float32Array:
    """Their vectors, on the unit circle, 10 degrees apart."""
    angles = np.deg2rad(np.arange(7) * 10)
    return np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


def show(client: ClientInMemory, ids: IdArray, vectors: Float32Array) -> tuple[set[str], str]:
    """Return the promises broken, and what was shown."""
    console = terminal()
    asked = cast(Client, client)  # it has as much of a client as the demonstration needs
    with console.capture() as captured:
        watch = demo.show(console, lambda: asked, asked, ids, vectors)
    return watch.broken, captured.get()


def test_every_word_is_written_shown_and_accounted_for(
    client: ClientInMemory, ids: IdArray, vectors: Float32Array
) -> None:
    broken, shown = show(client, ids, vectors)
    assert broken <= {SLOW_BATCH}  # nothing is promised of the time of a client in memory
    assert "7 accepted, adds up" in shown
    assert "tea 0.98  beer 0.94" in shown
    assert "1 of 1 shard answered" in shown
    assert set(client.rows["words"]) == set(ids)
    assert client.training_timeout_s == 600  # a training may take minutes on a busy machine


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"forget_everything": True}, "did not find itself"),
        ({"lose_rows": 1}, "the ledger does not account"),
        ({"refused_rows": (1,)}, "refused: 1 word"),
    ],
)
def test_a_broken_promise_is_named(
    client: ClientInMemory,
    ids: IdArray,
    vectors: Float32Array,
    fault: dict[str, object],
    told: str,
) -> None:
    for name, value in fault.items():
        setattr(client, name, value)
    broken, _ = show(client, ids, vectors)
    assert any(told in promise for promise in broken)


def test_a_written_word_that_no_search_could_see_is_noticed(
    client: ClientInMemory, ids: IdArray, vectors: Float32Array
) -> None:
    client.create_collection("words", dim=2, metric=Metric.COSINE, id_type=IdType.STRING)
    client.upsert("words", ids[:6], vectors[:6])
    watch = demo.Watch(words=ids, vectors=vectors)
    watch.look(cast(Client, client), 7, np.random.default_rng(0))
    assert any("not visible" in promise for promise in watch.broken)


def test_a_server_that_does_not_start_is_told_with_the_last_line_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first\nthe port is taken\n")
    with (
        Path("/dev/null").open() as stdout,
        pytest.raises(ShardUnavailable, match="did not start: the port is taken"),
    ):
        demo.served_address(stdout, log)


def test_the_address_is_read_from_the_line_that_a_server_prints(tmp_path: Path) -> None:
    stdout = tmp_path / "stdout"
    stdout.write_text("listening on 127.0.0.1:7700\n")
    with stdout.open() as lines:
        assert demo.served_address(lines, tmp_path / "log") == "127.0.0.1:7700"
