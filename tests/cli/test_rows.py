"""The commands about rows: what is asked of the client, and what is shown."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.cli.client_in_memory import ClientInMemory
from tests.cli.conftest import Run
from vectorshard.cli import ingest
from vectorshard.shard.descriptions import Explanation
from vectorshard.shard.types import IdType, IndexKind, Metric


@pytest.fixture
def words_file(tmp_path: Path) -> Path:
    """Seven words on the unit circle, 10 degrees apart."""
    angles = np.deg2rad(np.arange(7) * 10)
    path = tmp_path / "words.npz"
    vectors = np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float16)
    np.savez(path, vectors=vectors, words=np.array(list("abcdefg")))
    return path


def test_ingest_creates_the_collection_and_writes_every_row_once(
    run: Run, client: ClientInMemory, words_file: Path
) -> None:
    ended = run("ingest", words_file, "--collection", "w", "--ids-key", "words", "--batch", 3)
    assert ended.exit_code == 0, ended.output
    config = client.collections["w"]
    assert (config.dim, config.metric, config.id_type) == (2, Metric.COSINE, IdType.STRING)
    assert sorted(map(str, client.rows["w"])) == list("abcdefg")
    assert "7 rows accepted, 0 refused" in ended.output
    assert "7 accepted, adds up" in ended.output


def test_ingest_without_ids_numbers_the_rows(
    run: Run, client: ClientInMemory, words_file: Path
) -> None:
    assert run("ingest", words_file, "--collection", "w", "--metric", "l2").exit_code == 0
    assert client.collections["w"].metric is Metric.L2
    assert list(client.rows["w"]) == list(range(7))


def test_ingest_tells_the_refused_rows_by_their_number_in_the_file(
    run: Run, client: ClientInMemory, words_file: Path
) -> None:
    client.refused_rows = (1,)
    ended = run("ingest", words_file, "--collection", "w", "--batch", 3)
    assert ended.exit_code == 1
    assert "5 rows accepted, 2 refused" in ended.output
    assert re.findall(r"row (\d+): exists", ended.output) == ["1", "4"]


@pytest.fixture
def waits_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Take note of the waits of the command line instead of waiting."""
    waited_s: list[float] = []
    monkeypatch.setattr("time.sleep", waited_s.append)
    return waited_s


def test_ingest_writes_again_what_a_shard_was_missing_for(
    run: Run, client: ClientInMemory, words_file: Path, waits_s: list[float]
) -> None:
    client.missing_shard = 2
    ended = run("ingest", words_file, "--collection", "w", "--batch", 3)
    assert ended.exit_code == 0
    assert "7 rows accepted, 0 refused" in ended.output
    assert len(waits_s) == 2


def test_ingest_gives_up_on_a_shard_that_stays_missing_and_tells_which_rows_are_missing(
    run: Run, client: ClientInMemory, words_file: Path, waits_s: list[float]
) -> None:
    client.missing_shard = ingest.WRITE_ATTEMPTS
    ended = run("ingest", words_file, "--collection", "w", "--batch", 3)
    assert ended.exit_code == 1
    assert "1 of 3 rows are not written" in ended.stderr
    assert 20 < sum(waits_s) < 60


@pytest.mark.parametrize(
    ("dim", "metric", "id_type", "options", "told"),
    [
        (3, Metric.COSINE, IdType.INT64, [], "dim is 2; the dim of collection 'w' is 3"),
        (2, Metric.L2, IdType.INT64, ["--metric", "cosine"], "exists with metric l2"),
        (2, Metric.L2, IdType.STRING, [], "exists with string ids"),
    ],
)
def test_ingest_refuses_a_collection_that_the_file_does_not_fit(
    run: Run,
    client: ClientInMemory,
    words_file: Path,
    dim: int,
    metric: Metric,
    id_type: IdType,
    options: list[str],
    told: str,
) -> None:
    client.create_collection("w", dim=dim, metric=metric, id_type=id_type)
    ended = run("ingest", words_file, "--collection", "w", *options)
    assert ended.exit_code == 1
    assert told in ended.stderr
    assert not client.rows["w"]


def test_ingest_adds_to_a_collection_that_fits_whatever_its_metric(
    run: Run, client: ClientInMemory, words_file: Path
) -> None:
    client.create_collection("w", dim=2, metric=Metric.L2, id_type=IdType.INT64)
    assert run("ingest", words_file, "--collection", "w").exit_code == 0
    assert len(client.rows["w"]) == 7


def test_ingest_of_a_missing_file_is_one_line(run: Run, tmp_path: Path) -> None:
    ended = run("ingest", tmp_path / "absent.npy", "--collection", "w")
    assert ended.exit_code == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "absent.npy" in ended.stderr


@pytest.fixture
def filled(run: Run, words_file: Path) -> None:
    """The words, in collection w."""
    assert run("ingest", words_file, "--collection", "w", "--ids-key", "words").exit_code == 0


@pytest.mark.usefixtures("filled")
def test_search_shows_hits_and_receipt(run: Run, client: ClientInMemory) -> None:
    ended = run("search", "--collection", "w", "--id", "c", "--k", 3, "--exact")
    assert ended.exit_code == 0, ended.output
    assert re.findall(r"\b([a-g]) +[123] +[01]\.?\d*", ended.output) in (
        ["c", "b", "d"],
        ["c", "d", "b"],
    )
    assert "1 of 1 shard answered, coverage 100%" in ended.output
    assert client.searches[-1]["exact"] is True
    assert (client.searches[-1]["k"], client.searches[-1]["nprobe"]) == (3, None)


@pytest.mark.usefixtures("filled")
def test_a_search_with_a_filter_shows_how_many_rows_pass_and_the_way_taken(
    run: Run, client: ClientInMemory
) -> None:
    ended = run("search", "--collection", "w", "--id", "c", "--filter", 'lang = "en"')
    assert ended.exit_code == 0, ended.output
    assert client.searches[-1]["filter"] == 'lang = "en"'
    assert re.search(r"rows passing +filter plan", ended.output)
    assert re.search(r"7 +EXACT", ended.output)
    assert "filter plan" not in run("search", "--collection", "w", "--id", "c").output


@pytest.mark.usefixtures("filled")
def test_search_asks_with_a_typed_vector_or_with_a_file(
    run: Run, client: ClientInMemory, tmp_path: Path
) -> None:
    assert run("search", "--collection", "w", "--vector", "1, 0", "--nprobe", 4).exit_code == 0
    assert client.searches[-1]["queries"] == [[1.0, 0.0]]
    assert client.searches[-1]["nprobe"] == 4
    np.save(tmp_path / "q.npy", np.eye(2))
    ended = run("search", "--collection", "w", "--file", tmp_path / "q.npy", "--k", 1)
    assert client.searches[-1]["queries"] == [[1.0, 0.0], [0.0, 1.0]]
    assert re.findall(r"row (\d) +([a-g])", ended.output) == [("0", "a"), ("1", "g")]


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--id", "a", "--vector", "1,2"],
        ["--vector", "1,x"],
        ["--id", "a", "--exact", "--nprobe", "3"],
        ["--id", "a", "--nprobe", "3", "--target-recall", "0.9"],
        ["--id", "a", "--k", "0"],
    ],
)
def test_a_search_that_makes_no_sense_is_a_usage_error(
    run: Run, client: ClientInMemory, arguments: list[str]
) -> None:
    ended = run("search", "--collection", "w", *arguments)
    assert ended.exit_code == 2
    assert "Traceback" not in ended.output
    assert not client.searches


@pytest.mark.usefixtures("filled")
def test_explain_says_a_sentence_and_shows_its_figures(run: Run, client: ClientInMemory) -> None:
    client.explanation = Explanation(
        exists=True, list=17, centroid_rank=5, nprobe_needed=5, exact_rank=3, score=0.75
    )
    ended = run("explain", "--collection", "w", "--id", "c", "--query-id", "a")
    assert ended.exit_code == 0, ended.output
    told = " ".join(ended.output.split())
    assert "'c' ranks 3rd of 7 for 'a'. It is in list 17 of shard 0" in told
    assert "the 5th nearest to the query: nprobe 5 finds it, and a smaller nprobe does not." in told
    assert "The default search scores every row and finds it." in told
    assert re.search(r"score +0\.75", ended.output)
    [(query, id_, filter_)] = client.explains
    assert (len(query), id_, filter_) == (1, "c", None)
    assert client.searches[-1]["filter"] is None


@pytest.mark.usefixtures("filled")
def test_explain_asks_and_searches_with_the_filter(run: Run, client: ClientInMemory) -> None:
    client.explanation = Explanation(exists=True, centroid_rank=1, nprobe_needed=1, exact_rank=3)
    command = ("explain", "--collection", "w", "--id", "c", "--query-id", "a", "--filter", "n > 1")
    assert run(*command).exit_code == 0
    assert client.explains[-1][2] == client.searches[-1]["filter"] == "n > 1"


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("query", ["[0.5, -1]", "0.5 -1"])
def test_explain_asks_with_a_typed_query_and_searches_only_where_it_must(
    run: Run, client: ClientInMemory, query: str
) -> None:
    client.explanation = Explanation(exists=True, buffered=True, exact_rank=2)
    ended = run("explain", "--collection", "w", "--id", "c", "--query", query)
    assert ended.exit_code == 0, ended.output
    assert "ranks 2nd of 7 for the query" in ended.output
    assert client.explains == [([[0.5, -1.0]], "c", None)]
    assert not client.searches


@pytest.mark.usefixtures("filled")
def test_explain_of_an_id_that_is_not_there_is_a_sentence_alone(run: Run) -> None:
    ended = run("explain", "--collection", "w", "--id", "[red]x", "--query-id", "a")
    assert ended.exit_code == 0
    assert ended.output.startswith("There is no '[red]x' in w: ")
    assert "exact rank" not in ended.output


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--query-id", "a", "--query", "1,2"],
        ["--query", "[1,x]"],
    ],
)
def test_an_explanation_that_makes_no_sense_is_a_usage_error(
    run: Run, client: ClientInMemory, arguments: list[str]
) -> None:
    ended = run("explain", "--collection", "w", "--id", "a", *arguments)
    assert ended.exit_code == 2
    assert not client.explains


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    "command", [["search", "--id", "absent"], ["explain", "--id", "a", "--query-id", "absent"]]
)
def test_an_id_without_a_row_is_an_error_in_one_line(
    run: Run, client: ClientInMemory, command: list[str]
) -> None:
    ended = run(*command, "--collection", "w")
    assert (ended.exit_code, ended.stderr) == (
        1,
        "error: collection 'w' has no row with id 'absent'\n",
    )
    assert not client.searches
    assert not client.explains


@pytest.mark.usefixtures("filled")
def test_brackets_in_ids_are_shown_as_they_are(run: Run, client: ClientInMemory) -> None:
    client.rows["w"]["[red]x"] = np.array([1.0, 0.0], dtype=np.float32)
    assert "[red]x" in run("search", "--collection", "w", "--id", "a", "--k", 2).output


@pytest.mark.usefixtures("filled")
def test_describe_shows_the_ledger_or_lists_the_collections(run: Run) -> None:
    ledger = run("describe", "w")
    assert ledger.exit_code == 0
    assert re.search(r"0 +BUFFERING +7 +7 +0 +0 +0", ledger.output)
    assert re.search(r"w +BUFFERING +COSINE +STRING +IVF_PQ +7 +2 +0.95", run("describe").output)


@pytest.mark.usefixtures("filled")
def test_a_list_leaves_damaged_rows_out_on_request_and_names_them(
    run: Run, client: ClientInMemory
) -> None:
    client.damaged = ("c",)
    assert run("list", "w").stdout == ""
    ended = run("list", "w", "--skip-damaged", "--json")
    assert ended.exit_code == 1, "it is not all"
    assert ended.stdout.count("\n") == 6
    assert ended.stderr == "1 damaged row left out, with the ids: 'c'\n"
    client.damaged = tuple("abcdefg")
    assert "7 damaged rows left out" in run("list", "w", "--skip-damaged").stderr


@pytest.mark.usefixtures("filled")
def test_describe_shows_the_recall_of_live_queries_once_it_is_known(
    run: Run, client: ClientInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert re.search(r"0( +-){5} +0 +- *\n", run("describe", "w").output)
    buffering = client.describe("w")
    measured = replace(
        buffering.shards[0],
        nlist=40,
        measured_recall=0.953,
        measured_recall_balanced=0.961,
        calibration_queries=256,
        calibration_rows=20_000,
        rows_changed_since=1_234,
        live_recall=0.941,
        live_queries=200,
        index_kind=IndexKind.IVF_SQ8,
        drift=1.5,
    )
    described = replace(buffering, shards=(measured,))
    monkeypatch.setattr(ClientInMemory, "describe", lambda *_: described)
    assert re.search(
        r"0 +0\.953 +0\.961 +256 of 20,000 +1,234 +0\.941 +200 +1\.50", run("describe", "w").output
    )
    assert re.search(r"index: IVF_PQ.*\n(.*\n)+?.*0 +IVF_SQ8 +40 ", run("describe", "w").output)


@pytest.mark.usefixtures("filled")
def test_describe_shows_the_backup_that_a_collection_came_from(
    run: Run, client: ClientInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "restored from" not in run("describe", "w").output
    created = client.describe("w")
    restored = replace(created.shards[0], restored_from="20261201T020000Z-1234abcd")
    monkeypatch.setattr(
        ClientInMemory, "describe", lambda *_: replace(created, shards=(restored, restored))
    )
    assert run("describe", "w").output.count("restored from 20261201T020000Z-1234abcd;") == 1


@pytest.mark.usefixtures("filled")
def test_describe_fails_when_the_ledger_does_not_add_up(run: Run, client: ClientInMemory) -> None:
    client.lose_rows = 2
    ended = run("describe", "w")
    assert ended.exit_code == 1
    assert "DOES NOT ADD UP" in ended.output


@pytest.mark.usefixtures("filled")
def test_an_update_changes_the_target_recall_and_shows_it(run: Run, client: ClientInMemory) -> None:
    ended = run("update", "w", "--target-recall", ".97")
    assert ended.exit_code == 0, ended.output
    assert ended.output == "w: target_recall 0.97\n"
    assert client.collections["w"].target_recall == 0.97
    assert run("update", "w").exit_code == 2
