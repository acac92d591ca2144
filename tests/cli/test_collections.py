"""The commands about collections and rows: what is asked of the client, and what is shown."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.cli.client_in_memory import ClientInMemory
from tests.cli.conftest import Run
from vectorshard.cli import app, asking, tables
from vectorshard.cli.output import LOG_WIDTH, terminal
from vectorshard.shard.descriptions import CollectionDescription, ShardDescription
from vectorshard.shard.errors import CollectionDamaged, DeadlineExceeded
from vectorshard.shard.types import (
    FieldType,
    FilterField,
    IdType,
    IndexConfig,
    IndexKind,
    Ledger,
    Metric,
    NlistRule,
    ShardState,
)


@pytest.fixture
def words(client: ClientInMemory) -> ClientInMemory:
    """A client of a collection w with the rows a, b and c."""
    client.create_collection("w", dim=2, metric=Metric.COSINE, id_type=IdType.STRING)
    ids = np.array(["a", "b", "c"], dtype=object)
    client.upsert(
        "w", ids, np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32), [{"n": 1}, {}, {}]
    )
    return client


def test_create_states_everything_of_a_configuration(run: Run, client: ClientInMemory) -> None:
    ended = run(
        *("create", "w", "--dim", 3, "--metric", "l2", "--id-type", "string"),
        *("--index", "ivf_flat", "--nlist", 9, "--min-training-size", 50),
        *("--target-recall", 0.9, "--filter-field", "lang:keyword", "--filter-field", "n:INT64"),
    )
    assert ended.exit_code == 0, ended.output
    config = client.collections["w"]
    assert (config.dim, config.metric, config.id_type) == (3, Metric.L2, IdType.STRING)
    assert config.index == IndexConfig(
        kind=IndexKind.IVF_FLAT, nlist=9, nlist_rule=NlistRule.FIXED, min_training_size=50
    )
    assert config.filter_fields == (
        FilterField("lang", FieldType.KEYWORD),
        FilterField("n", FieldType.INT64),
    )
    assert re.search(r"w +L2 +STRING +IVF_FLAT +3 +0\.9", ended.output)


@pytest.mark.parametrize("field", ["lang", "lang:text"])
def test_a_field_without_a_type_is_a_usage_error(run: Run, field: str) -> None:
    ended = run("create", "w", "--dim", 3, "--filter-field", field)
    assert ended.exit_code == 2
    assert "is not NAME:TYPE" in ended.output


def test_drop_asks_unless_it_is_told_yes(
    run: Run, words: ClientInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = run("drop", "w")
    assert (refused.exit_code, "w" in words.collections) == (1, True)
    assert "--yes is required" in refused.stderr
    monkeypatch.setattr(asking, "on_a_terminal", lambda: True)
    asked: list[str] = []

    def confirm(text: str, *, abort: bool, err: bool) -> bool:
        asked.append(text)
        return abort and err

    monkeypatch.setattr("typer.confirm", confirm)
    assert run("drop", "w").output == "dropped w\n"
    assert asked == ["Drop w with its 3 rows?"]
    words.create_collection("w", dim=2, metric=Metric.COSINE, id_type=IdType.STRING)
    assert run("drop", "w", "--yes", "--json").output == '{"dropped": "w"}\n'
    assert run("drop", "w", "--yes").exit_code == 1


def test_rows_are_got_counted_listed_and_deleted(run: Run, words: ClientInMemory) -> None:
    assert run("count", "w").output == "3\n"
    got = run("get", "w", "a", "c", "--vectors")
    assert got.exit_code == 0
    assert re.search(r'a +\{"n": 1\} +1 0', got.output)
    listed = run("list", "w", "--limit", 2)
    assert re.findall(r"^ +([abc]) ", listed.output, re.MULTILINE) == ["a", "b"]
    assert run("delete", "w", "a", "x").output == "1 row deleted\n"
    assert run("delete", "w", "--filter", "n exists").output == "2 rows deleted\n"
    assert words.filters[-1] == "n exists"


@pytest.mark.usefixtures("words")
def test_an_id_without_a_row_is_named(run: Run) -> None:
    ended = run("get", "w", "a", "x", "y")
    assert ended.exit_code == 1
    assert ended.stderr == "there is no row with the id 'x', nor with 1 other id\n"


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("command", ["get", "delete"])
@pytest.mark.parametrize("selected", [[], ["a", "--filter", "n exists"]])
def test_a_selection_is_ids_or_a_filter(run: Run, command: str, selected: list[str]) -> None:
    assert run(command, "w", *selected).exit_code == 2


def test_ids_are_read_as_the_collection_has_them(run: Run, client: ClientInMemory) -> None:
    client.create_collection("n", dim=1, metric=Metric.L2, id_type=IdType.INT64)
    client.upsert("n", np.array([7, -8]), np.ones((2, 1), dtype=np.float32))
    assert run("delete", "n", "--", "-8").output == "1 row deleted\n"
    wrong = run("get", "n", "seven")
    assert wrong.exit_code == 2
    assert "'seven' is not an int64" in wrong.output


def test_train_is_asked_for(run: Run, words: ClientInMemory) -> None:
    assert run("train", "w", "--wait").exit_code == 0
    assert words.trainings == [("w", True)]


def test_describe_lists_collections_that_cannot_be_described(
    run: Run, words: ClientInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: object) -> CollectionDescription:
        raise CollectionDamaged("it is")

    monkeypatch.setattr(ClientInMemory, "describe", damaged)
    assert re.search(r"w +CollectionDamaged .* - +2 +0\.95", run("describe").output)
    assert words.collections


def as_json(run: Run, *command: object) -> Any:
    """Return what a command prints with --json, and that it is one line of JSON."""
    ended = run(*command, "--json")
    assert ended.exit_code == 0, ended.output
    [line] = ended.stdout.splitlines()
    return json.loads(line)


@pytest.mark.usefixtures("words")
def test_every_command_about_rows_and_collections_prints_json(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "w.npz"
    exported = as_json(run, "export", "w", "--to", file)
    assert exported == {"file": str(file), "rows": 3, "damaged": []}
    assert as_json(run, "count", "w") == {"rows": 3}
    [row] = as_json(run, "get", "w", "a", "--vectors")
    assert row == {"id": "a", "vector": [1.0, 0.0], "metadata": {"n": 1}}
    [listed] = as_json(run, "describe")["collections"]
    assert (listed["name"], listed["rows"], listed["state"]) == ("w", 3, "BUFFERING")
    described = as_json(run, "describe", "w")
    assert (described["ledger"]["accepted"], described["shards"][0]["state"]) == (3, "buffering")
    found = as_json(run, "search", "--collection", "w", "--id", "a", "--k", 1, "--metadata")
    [query] = found["queries"]
    assert query["hits"][0]["id"] == "a"
    assert query["hits"][0]["metadata"] == {"n": 1}
    assert found["receipt"]["shards_answered"] == 1
    explained = as_json(run, "explain", "--collection", "w", "--id", "a", "--query-id", "b")
    assert explained["id"] == "a"
    assert as_json(run, "train", "w")["config"]["name"] == "w"
    assert as_json(run, "update", "w", "--target-recall", 0.9)["target_recall"] == 0.9
    assert as_json(run, "create", "v", "--dim", 2)["metric"] == "cosine"
    lines = run("list", "w", "--json").stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["a", "b", "c"]
    assert as_json(run, "delete", "w", "a") == {"deleted": 1}


def test_tables_are_readable_at_60_columns() -> None:
    shards = [
        ShardDescription(
            shard=number,
            state=state,
            training=False,
            ledger=Ledger(accepted=1_234_567, buffered=234_567, indexed=1_000_000),
            nlist=1_024,
            index_kind=IndexKind.IVF_PQ,
        )
        for number, state in enumerate((ShardState.TRAINING, ShardState.TRAINED))
    ]
    client = ClientInMemory()
    config = client.create_collection("w", dim=2, metric=Metric.COSINE, id_type=IdType.INT64)
    description = CollectionDescription(
        config=config, incarnation="", shards=tuple(shards), recommended_batch_size=64
    )
    for width in (60, 80, 110):
        console = Console(width=width, file=io.StringIO(), record=True)
        for table in (
            tables.ledger_table(description),
            tables.index_table(description),
            tables.recall_table(description),
        ):
            console.print(table)
        shown = console.export_text()
        assert "…" not in shown
        assert {"TRAINING", "TRAINED"} <= set(shown.split())
        assert "1,234,567" in shown.split()
        assert max(map(len, shown.splitlines())) <= width


@pytest.mark.parametrize("width", [60, 72, 80, 100, 132])
def test_no_table_breaks_a_word(width: int) -> None:
    name = "00000001-20261201T040745Z-e6da2f49"
    table = tables.plain_table("t", ["backup", "what to do"], ["= buffered", "+ replaced"])
    table.add_row(name, "put its disk back, or accept the loss", "1,234,567", "0")
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table)
    shown = console.export_text()
    assert {name, "accept", "1,234,567"} <= set(shown.split())
    assert max(map(len, shown.splitlines())) <= width
    assert ("─" in shown) is (width >= 72)


@pytest.mark.parametrize(("width", "is_table"), [(60, True), (56, True), (55, False)])
def test_the_columns_of_a_table_move_together_before_it_becomes_records(
    width: int, is_table: bool
) -> None:
    config = ClientInMemory().create_collection(
        "words", dim=100, metric=Metric.COSINE, id_type=IdType.STRING
    )
    table = tables.collections_table([(config, tables.CollectionSummary(20_000, "BUFFERING"))])
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table)
    shown = console.export_text()
    assert ("─" in shown) is is_table
    assert {"BUFFERING", "20,000", "0.95"} <= set(shown.split())
    assert max(map(len, shown.splitlines())) <= width


def test_output_without_a_terminal_is_as_wide_as_columns_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal().width == LOG_WIDTH
    monkeypatch.setenv("COLUMNS", "60")
    assert terminal().width == 60


def test_the_help_of_flags_names_no_type() -> None:
    for words in ([], ["search"], ["backup"], ["backup", "list"], ["bench"], ["restore"]):
        shown = CliRunner().invoke(app.app, [*words, "--help"], env={"COLUMNS": "120"}).stdout
        assert "--help" in shown
        assert "<bool>" not in shown


def test_the_shell_completes_commands() -> None:
    words = {"COMP_WORDS": "vectorshard des", "COMP_CWORD": "1"}
    ended = CliRunner().invoke(
        app.app,
        [],
        prog_name="vectorshard",
        env={"_VECTORSHARD_COMPLETE": "complete_bash", **words},
    )
    assert ended.stdout.split() == ["describe"]


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize(
    ("method", "command", "told"),
    [
        ("train", ("train", "w", "--wait"), "the server goes on with the training"),
        ("delete", ("delete", "w", "a"), "some of the rows may be deleted"),
        ("list_rows", ("recall", "w"), "nothing was measured"),
        ("list_rows", ("export", "w", "--to", "w.npz"), "w.npz is not written"),
    ],
)
def test_an_interrupted_command_says_what_is_done_and_how_to_go_on(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    method: str,
    command: tuple[str, ...],
    told: str,
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ClientInMemory, method, interrupt)
    monkeypatch.chdir(tmp_path)
    ended = run(*command)
    assert (ended.exit_code, ended.stderr.splitlines()[-1][:9]) == (130, "stopped: ")
    assert told in ended.stderr
    assert not [*tmp_path.iterdir()]


@pytest.mark.usefixtures("words")
def test_a_wait_for_a_training_ends_without_the_training(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_too_long(*_: object, **__: object) -> None:
        raise DeadlineExceeded("no answer within 0.5 s")

    monkeypatch.setattr(ClientInMemory, "train", take_too_long)
    ended = run("train", "w", "--wait", "--timeout", "0.5")
    assert ended.exit_code == 1
    assert ended.stderr == (
        "error: not trained within 0.5 s: the server goes on with the training; "
        "`vectorshard describe w` shows its state\n"
    )
