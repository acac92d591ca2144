"""Mistakes that everybody makes once, against a real server.

In Python each is a class of `vectorshard.errors` that names the argument and what to do; on the
command line it is one line and an exit code.
"""

from __future__ import annotations

import datetime
import decimal
import shutil
import socket
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.system.conftest import VECTORSHARD, Server, ServerProcess, new_name
from vectorshard import Client, errors
from vectorshard.cli import app

pytestmark = pytest.mark.system

EYE = np.eye(3)
NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
Mistake = Callable[[Any, str], object]
"""What somebody does with a client, and a collection of int64 ids with two declared fields."""


@pytest.fixture(scope="module")
def name(embedded_server: Server) -> str:
    """Return a collection of three rows."""
    name = new_name()
    with embedded_server.client() as client:
        client.create_collection(name, dim=3, filter_fields={"lang": "keyword", "year": "int64"})
        client.upsert(name, [1, 2, 3], EYE, [{"lang": "en", "year": 1990}, {}, {}])
    return name


def closed(client: Client, _name: str) -> object:
    """Call a client that is closed."""
    other = Client("127.0.0.1:1")
    other.close()
    return other.server_info()


def nobody_listens(client: Client, name: str) -> object:
    """Ask at a port that is free."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with Client(f"127.0.0.1:{unused.getsockname()[1]}", timeout_s=5) as other:
            return other.count(name)


MISTAKES: dict[str, tuple[Mistake, type[Exception], str]] = {
    "wrong port": (nobody_listens, errors.ShardUnavailable, r"no server answers at 127.0.0.1:\d+"),
    "a URL": (
        lambda client, name: Client("http://localhost:7700"),
        errors.InvalidParameter,
        "target 'http://localhost:7700' is a URL; expected HOST:PORT, such as localhost:7700",
    ),
    "after close": (closed, errors.ClientUnusable, "the client is closed"),
    "a typo in the collection": (
        lambda client, name: client.count(f"{name}x"),
        errors.CollectionNotFound,
        "collection '.*x' does not exist",
    ),
    "a name with blanks": (
        lambda client, name: client.create_collection("My Words", dim=3),
        errors.InvalidConfig,
        "config.name: name 'My Words' does not match",
    ),
    "another dim under the name": (
        lambda client, name: client.create_collection(name, dim=4),
        errors.CollectionExists,
        "already exists with dim 3, not 4",
    ),
    "a metric of another product": (
        lambda client, name: client.create_collection("v", dim=3, metric="dot"),
        errors.InvalidConfig,
        "config.metric: 'dot' is not one of l2, inner_product, cosine",
    ),
    "a recall in percent": (
        lambda client, name: client.create_collection("v", dim=3, target_recall=95),
        errors.InvalidConfig,
        r"config.target_recall: 95.0 is not in \(0, 1\]",
    ),
    "vectors of another dim": (
        lambda client, name: client.upsert(name, [1, 2, 3], np.ones((3, 4))),
        errors.DimensionMismatch,
        "vectors: dim is 4; the collection's dim is 3",
    ),
    "a query of another dim": (
        lambda client, name: client.search(name, [1, 0]),
        errors.DimensionMismatch,
        "queries: dim is 2; the collection's dim is 3",
    ),
    "NaN in a vector": (
        lambda client, name: client.upsert(name, [1, 2], [[1, 2, 3], [1, 2, np.nan]]),
        errors.InvalidVector,
        "vectors: row 1: contains NaN",
    ),
    "a vector of zeros": (
        lambda client, name: client.upsert(name, 1, [0, 0, 0]),
        errors.InvalidVector,
        "vectors: row 0: a zero vector has no direction",
    ),
    "a float64 that float32 cannot hold": (
        lambda client, name: client.upsert(name, [1, 2], [[1, 2, 3], [1, 2, 1e300]]),
        errors.InvalidVector,
        r"vectors: row 1: 1e\+300 does not fit in float32",
    ),
    "float64 as ids, as pandas makes them beside a missing one": (
        lambda client, name: client.upsert(name, np.array([1.0, 2.0, 3.0]), EYE),
        errors.InvalidId,
        r"ids: row 0: 1.0 is not an integer: pass int\(id\)",
    ),
    "a masked array": (
        lambda client, name: client.search(name, np.ma.array([1, 0, 0], mask=[False, True, False])),
        errors.InvalidVector,
        r"queries: a masked array is not accepted: pass .filled\(0\), or .data",
    ),
    "UUIDs as ids": (
        lambda client, name: client.upsert(name, [uuid.UUID(int=1)], [[1, 0, 0]]),
        errors.InvalidId,
        "ids: row 0: UUID.* is not an integer: pass a string, such as str",
    ),
    "strings of numpy as ids, where they are integers": (
        lambda client, name: client.upsert(name, np.array(["a", "b", "c"]), EYE),
        errors.InvalidId,
        "ids are STRING; the collection's ids are INT64",
    ),
    "a set of ids": (
        lambda client, name: client.upsert(name, {1, 2, 3}, EYE),
        errors.InvalidId,
        "ids: set has no order, .* pass a list",
    ),
    "an id twice": (
        lambda client, name: client.upsert(name, [1, 1, 2], EYE),
        errors.InvalidId,
        "ids: row 1: id 1 occurs twice",
    ),
    "fewer ids than vectors": (
        lambda client, name: client.upsert(name, [1, 2], EYE),
        errors.MalformedMessage,
        "vectors: 3 rows for 2 ids: give one for each",
    ),
    "a datetime in metadata": (
        lambda client, name: client.upsert(name, 1, [1, 0, 0], {"t": NOW}),
        errors.InvalidParameter,
        r"metadata: row 0: key t: type datetime .*: use value.isoformat\(\)",
    ),
    "a Decimal in metadata": (
        lambda client, name: client.upsert(name, 1, [1, 0, 0], {"p": decimal.Decimal("9.5")}),
        errors.InvalidParameter,
        r"metadata: row 0: key p: type Decimal .*: use float\(value\)",
    ),
    "NaN in metadata": (
        lambda client, name: client.upsert(name, 1, [1, 0, 0], {"x": float("nan")}),
        errors.InvalidParameter,
        "metadata: row 0: key x: nan is not a number of JSON",
    ),
    "text in a field of integers": (
        lambda client, name: client.upsert(name, 1, [1, 0, 0], {"year": "1990"}),
        errors.InvalidParameter,
        r"metadata.year: row 0: expected a 64-bit integer \(INT64\), got '1990'",
    ),
    "k as a float": (
        lambda client, name: client.search(name, [1, 0, 0], 10.0),
        errors.InvalidParameter,
        "k: 10.0 is not an integer",
    ),
    "a k of millions": (
        lambda client, name: client.search(name, [1, 0, 0], 10**6),
        errors.InvalidParameter,
        "k: 1,000,000 is not in 1..10,000",
    ),
    "a typo in a filter's field": (
        lambda client, name: client.search(name, [1, 0, 0], filter='langg = "en"'),
        errors.InvalidParameter,
        "'langg' is not a declared field; declared fields: lang, year",
    ),
    "a filter without quotes": (
        lambda client, name: client.search(name, [1, 0, 0], filter="lang = en"),
        errors.InvalidParameter,
        'filter: column 8: expected a value; text needs quotes: "en"',
    ),
    "a filter of another type": (
        lambda client, name: client.search(name, [1, 0, 0], filter={"year": "1990"}),
        errors.InvalidParameter,
        "an INT64 field does not accept '1990'",
    ),
    "two efforts": (
        lambda client, name: client.search(name, [1, 0, 0], exact=True, nprobe=3),
        errors.InvalidParameter,
        "exact, nprobe and target_recall are mutually exclusive",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_an_error_that_names_the_argument_and_the_cure(
    embedded_server: Server, name: str, mistake: str
) -> None:
    commit, kind, text = MISTAKES[mistake]
    with embedded_server.client() as client, pytest.raises(kind, match=text) as caught:
        commit(client, name)
    assert isinstance(caught.value, errors.VectorShardError)
    assert "np." not in str(caught.value)


def test_no_mistake_wrote_anything(embedded_server: Server, name: str) -> None:
    with embedded_server.client() as client:
        assert client.count(name) == 3
        assert client.get(name, 1).metadata == [{"lang": "en", "year": 1990}]


def test_float64_vectors_and_strings_of_numpy_are_no_mistake(embedded_server: Server) -> None:
    name = new_name()
    with embedded_server.client() as client:
        client.create_collection(name, dim=3, id_type="string")
        assert client.upsert(name, np.array(["a", "b", "c"]), EYE).accepted == 3
        assert client.search(name, EYE[1], k=1)[0][0].id == "b"


@pytest.mark.parametrize(
    ("command", "code", "line"),
    [
        (
            ["count", "absent"],
            1,
            "error: collection 'absent' does not exist - `vectorshard describe`",
        ),
        (
            ["count", "NAME", "--target", "127.0.0.1:1"],
            1,
            "error: no server answers at 127.0.0.1:1: ",
        ),
        (["count", "NAME", "--target", "http://a:1"], 1, "error: target 'http://a:1' is a URL"),
        (["ingest", "absent.npy", "--collection", "NAME"], 1, "error: absent.npy: "),
        (["search", "--collection", "NAME", "--vector", "1,2"], 1, "error: queries: dim is 2; "),
        (["search", "--collection", "NAME", "--id", "9"], 1, "error: collection 'NAME' has no row"),
        (
            ["count", "NAME", "--filter", "lang = en"],
            1,
            "error: filter: column 8: expected a value",
        ),
        (["drop", "NAME"], 1, "error: without a terminal to ask on, --yes is required"),
    ],
    ids=lambda value: " ".join(value[:1]) if isinstance(value, list) else None,
)
def test_a_mistake_on_the_command_line_is_one_line_and_its_code(
    embedded_server: Server, name: str, command: list[str], code: int, line: str
) -> None:
    words = [name if word == "NAME" else word for word in command]
    target = [] if "--target" in words else ["--target", embedded_server.address]
    ended = CliRunner().invoke(app.app, [*words, *target])
    assert ended.exit_code == code
    [said] = ended.stderr.splitlines()
    assert said.startswith(line.replace("NAME", name))


def test_ctrl_c_ends_an_ingest_with_what_is_written(
    embedded_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "v.npy", np.ones((30, 3)))
    write = Client.upsert
    writes = iter(range(100))

    def upsert(client: Client, *arguments: Any) -> Any:
        if next(writes) == 2:
            raise KeyboardInterrupt
        return write(client, *arguments)

    monkeypatch.setattr(Client, "upsert", upsert)
    options = ["--collection", new_name(), "--batch", "10", "--target", embedded_server.address]
    ended = CliRunner().invoke(app.app, ["ingest", str(tmp_path / "v.npy"), *options])
    assert ended.exit_code == 130
    [said] = ended.stderr.splitlines()
    assert said.startswith("stopped: the first 20 of 30 rows are written; go on with --from-row 20")


def test_a_directory_of_another_shard_count_is_one_line_and_its_code(
    embedded_server: ServerProcess, tmp_path: Path
) -> None:
    live = shutil.ignore_patterns("collections")  # the server writes there
    shutil.copytree(embedded_server.data, tmp_path / "data", ignore=live)
    ended = subprocess.run(
        [
            *(VECTORSHARD, "serve", "--shards", "3", "--data", tmp_path / "data"),
            *("--listen", "127.0.0.1:0"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 13
    said = ended.stderr.splitlines()[-1]
    assert said.startswith("error: ")
    assert "shards" in said
