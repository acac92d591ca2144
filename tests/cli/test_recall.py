"""The command `recall`: what it asks, what it counts as found, and what it shows."""

from __future__ import annotations

import re

import numpy as np
import pytest
from rich.progress import Progress

from tests.cli.client_in_memory import ClientInMemory
from tests.cli.conftest import Run
from vectorshard.cli.recall import Answers, Measurement
from vectorshard.shard.types import IdType, Metric, Receipt, ShardReceipt


def put(client: ClientInMemory, degrees: list[float]) -> None:
    """Hold a collection `w` of words a, b, c ... on the unit circle."""
    angles = np.deg2rad(degrees)
    client.create_collection("w", dim=2, metric=Metric.COSINE, id_type=IdType.STRING)
    ids = np.array(list("abcdefghijklmnopqrstuvwxyz")[: len(degrees)], dtype=object)
    client.upsert("w", ids, np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32))


@pytest.fixture
def words(client: ClientInMemory) -> ClientInMemory:
    """Seven words, each a little farther from the one before."""
    put(client, [0, 10, 21, 33, 46, 60, 75])
    return client


def measured(output: str) -> list[list[str]]:
    """Return the cells of the table's rows."""
    lines = re.findall(r"^ *(\d+ +(?:exact|0\.\d+) .*)$", output, re.MULTILINE)
    return [re.split(r" {2,}", line.strip()) for line in lines]


def test_the_row_that_asks_does_not_count_and_each_neighbour_does(
    run: Run, words: ClientInMemory
) -> None:
    """Without d, half of the two neighbours of c, e and f are lost, and none of d itself."""
    words.only_exact = frozenset("d")
    ended = run("recall", "w", "--k", "3", "--targets", "0.9")
    assert ended.exit_code == 0, ended.output
    exact, row = measured(ended.output)
    assert exact[:4] == ["3", "exact", "1.000", "0.000"]
    lost = sum("d" in neighbours for neighbours in ("bc", "ac", "bd", "ce", "df", "eg", "fe"))
    assert row[:3] == ["3", "0.9", f"{1 - lost / 2 / 7:.3f}"]


def test_another_row_of_the_same_score_counts_as_found(run: Run, client: ClientInMemory) -> None:
    put(client, [30] * 9)
    client.only_exact = frozenset("ab")
    (_, row) = measured(run("recall", "w", "--k", "4", "--targets", "0.9").output)
    assert row[2] == "1.000"


def test_every_number_of_hits_is_measured_exactly_and_for_each_target(
    run: Run, words: ClientInMemory
) -> None:
    ended = run("recall", "w", "--k", "5,2", "--targets", "0.9,0.8", "--batch", 4)
    shown = [(row[0], row[1]) for row in measured(ended.output)]
    assert shown == [(k, target) for k in "25" for target in ("exact", "0.8", "0.9")]
    assert all(row[5] == "all rows" for row in measured(ended.output))
    asked = [(each["k"], each.get("exact"), each.get("target_recall")) for each in words.searches]
    efforts = ((True, None), (None, 0.8), (None, 0.9))
    assert asked == [(k, *effort) for k in (2, 5) for effort in efforts for _ in range(2)]


def test_the_collections_own_target_is_measured_by_default(run: Run, words: ClientInMemory) -> None:
    ended = run("recall", "w", "--k", "2")
    assert [row[1] for row in measured(ended.output)] == ["exact", "0.8", "0.9", "0.95", "0.99"]


def test_rows_are_drawn_from_the_whole_collection_and_alike_each_time(
    run: Run, client: ClientInMemory
) -> None:
    put(client, list(range(26)))
    for _ in range(2):
        assert "5 of its rows" in run("recall", "w", "--queries", 5, "--k", "3").output
    drawn = [str(each["queries"]) for each in client.searches]
    assert len(set(drawn)) == 1
    queries = np.array(client.searches[0]["queries"])
    assert np.rad2deg(np.arctan2(queries[:, 1], queries[:, 0])).max() > 10


def test_a_query_costs_its_share_of_the_time(words: ClientInMemory) -> None:
    vectors = np.array([words.rows["w"][id_] for id_ in "abcd"])
    times = iter([1.0, 1.5, 3.0, 5.0])
    measure = Measurement(
        words,  # type: ignore[arg-type]
        "w",
        Metric.COSINE,
        np.array(list("abcd"), dtype=object),
        vectors,
        64,
        lambda: next(times),
    )
    progress = Progress(disable=True)
    figures = list(measure.run(3, [0.9], progress, progress.add_task("")))
    assert [each.query_s for each in figures] == [0.125, 0.5]


@pytest.mark.parametrize(
    "option",
    [("--k", "1"), ("--k", "ten"), ("--k", ","), ("--targets", "1.5"), ("--targets", "x")],
    ids=" ".join,
)
def test_numbers_that_mean_nothing_are_refused(
    run: Run, words: ClientInMemory, option: tuple[str, str]
) -> None:
    ended = run("recall", "w", *option)
    assert ended.exit_code == 2
    assert not words.searches


def test_one_row_has_no_neighbour_to_find(run: Run, client: ClientInMemory) -> None:
    put(client, [0])
    ended = run("recall", "w")
    assert ended.exit_code == 1
    assert "measuring recall needs at least 2" in ended.output


@pytest.mark.parametrize(("metric", "sign"), [(Metric.L2, 1), (Metric.INNER_PRODUCT, -1)])
def test_a_hit_worse_than_the_last_exact_one_is_not_a_neighbour(
    words: ClientInMemory, metric: Metric, sign: int
) -> None:
    ids = np.array(list("ab"), dtype=object)
    measure = Measurement(words, "w", metric, ids, np.eye(2, dtype=np.float32), 64)  # type: ignore[arg-type]
    receipt = Receipt(shards=(ShardReceipt(shard=0),), coverage=1.0)
    scores = sign * np.array([1, 2, 3], dtype=np.float32)
    neighbours = [np.array(list(each), dtype=object) for each in ("acd", "bcd")]
    truth = Answers(neighbours, [scores, scores], receipt, 1.0)
    worse = sign * np.array([1, 2, 4], dtype=np.float32)
    found = Answers(neighbours, [scores, worse], receipt, 1.0)
    assert measure.shares(found, truth).tolist() == [1.0, 0.5]
