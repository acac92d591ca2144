"""The comparison: its command on ours alone, and what its tables and picture say."""

from __future__ import annotations

import json
import re
import sys
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import h5py
import numpy as np
import pytest

from benchmarks.compare import __main__ as command
from benchmarks.compare import measure, report, running
from benchmarks.compare.dataset import Dataset, nearest
from benchmarks.compare.environment import DISTRIBUTIONS, LOCK
from benchmarks.compare.systems import NAMES, padded
from benchmarks.compare.worker import recall_among
from benchmarks.vectors import clustered
from vectorshard.errors import CollectionNotFound

ROWS, DIM = 3_000, 16


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the layout of ann-benchmarks, of another distance than the words."""
    path = tmp_path_factory.mktemp("dataset") / "small.hdf5"
    train, test = clustered(ROWS, DIM), clustered(150, DIM, part=1)
    with h5py.File(path, "w") as datasets:
        datasets.attrs["distance"] = "euclidean"
        datasets["train"], datasets["test"] = train, test
        datasets["neighbors"] = nearest(train, test, "l2").astype(np.int32)
    return path


@pytest.mark.system
def test_one_command_measures_ours_alone(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running, "WORKERS", 1)
    monkeypatch.setattr(measure, "AHEAD_S", 0.3)
    monkeypatch.setattr(measure, "CURVE", (0,))
    monkeypatch.setattr(measure, "QUIET_S", 0.2)
    told = tmp_path / "compare.json"
    options = ["--quick", "--data", str(file), "--seconds", "0.1", "--json", str(told)]
    command.main(options)
    ours = json.loads(told.read_text())["systems"]["ours"]
    assert ours["rows"] == ROWS
    assert ours["recall_of_sample"] >= measure.TARGET
    for kind in ours["kinds"].values():
        assert kind["queries_per_s"] > 0
        assert kind["p50_ms"] <= kind["p99_ms"]
    assert ours["pss_bytes"] > 10 << 20
    growing, recovery = ours["harm"]["growing"], ours["harm"]["recovery"]
    assert growing["refused"] == 0
    assert growing["answered"] > 0
    assert recovery["count"] == recovery["acknowledged"] == ROWS
    assert recovery["all_found_s"] >= recovery["served_s"] > 0
    assert report.LABELS["ours"] in capsys.readouterr().out


def test_a_part_of_a_file_has_exact_neighbours(file: Path) -> None:
    whole, part = Dataset.read(file, None, 7), Dataset.read(file, 500, 7)
    assert whole.metric == part.metric == "l2"
    squared = ((part.queries[:, None] - part.train[None]) ** 2).sum(axis=2)
    assert (part.neighbors[:, 0] == squared.argmin(axis=1)).all()
    tuning, held_out = part.sample(True, 1_000)[0], part.sample(False, 1_000)[0]
    assert len(tuning) + len(held_out) == len(part.queries)
    assert not (tuning[:, None] == held_out[None]).all(axis=2).any()


@pytest.mark.parametrize(
    ("found", "rows", "recall"),
    [
        ([5, 3, 9], 10, 2 / 3),
        ([5, 3, 12], 10, 1.0),  # 12 came in the meantime, and displaced one
        ([5, 3, 9], 4, 1.0),  # of 3 alone: 5 and 9 were not acknowledged
        ([3, 9, 8], 2, None),
    ],
)
def test_recall_while_rows_are_written_is_that_of_the_acknowledged(
    found: list[int], rows: int, recall: float | None
) -> None:
    truth = np.array([5, 3, 7, 9])
    assert recall_among(np.array(found), truth, rows) == recall


def figures(factor: float) -> dict[str, Any]:
    """Return the report of a system."""
    kind = {"queries_per_s": 1000 * factor, "p50_ms": 1.0, "p99_ms": 2.0, "cpu_us": 300.0}
    kinds = {name: {**kind, "of_ours": factor} for name in report.PANELS}
    seen = {"answered": 90, "refused": 10, "recall": None, "p50_ms": 1.0, "p99_ms": 2.0}
    lost = {"acknowledged": 100, "count": 40, "found": 0.5}
    return {
        "rows": 100,
        "recall": 0.951,
        "kinds": kinds,
        "load_s": 6.0,
        "pss_bytes": 2e8,
        "load_average": (1, 1, 1),
        "curve": [{"recall": r, **dict.fromkeys(report.PANELS, 500.0)} for r in (0.9, 0.99)],
        "harm": {"growing": {**seen, "took_s": 3.0}, "quiet": seen, "recovery": lost},
    }


TOLD = {
    "asked": {
        "file": "x.hdf5",
        **{"rows": 400, "dim": 8, "metric": "l2", "target_recall": 0.95, "seed": 7},
        "machine": {"cores": 2, "cpu": "a CPU"},
    },
    "started": "a day",
    "systems": {"ours": figures(1.0), "chroma": figures(0.25)},
    "absent": {"zvec": "it did not start"},
}


def test_tables_say_who_has_fewer_rows_who_is_absent_and_what_was_lost() -> None:
    shown = report.table(TOLD)
    assert "| Chroma, 100 rows | 0.951 | 250 (0.25); 1, 2 |" in shown
    assert "zvec, in process: it did not start." in shown
    assert "10 of 100" in report.harms(TOLD)
    assert "40 of 100 counted, 50 % of probes found" in report.harms(TOLD)


def test_the_pictures_name_every_system_and_differ_in_their_colours_alone(tmp_path: Path) -> None:
    for theme in report.THEMES:
        report.draw(TOLD, theme, tmp_path / f"{theme}.svg")
    light, dark = ((tmp_path / f"{theme}.svg").read_text() for theme in report.THEMES)
    assert light != dark
    for one, other in zip(report.THEMES["light"], report.THEMES["dark"], strict=True):
        light = light.replace(one, other)
    named = re.compile(r"\b[mp][0-9a-f]{10}\b")  # of markers and clips, by their looks
    assert named.sub("", light) == named.sub("", dark)
    assert all(label in dark for label in ("vectorshard, gRPC", "Chroma", "16 callers"))


def test_tables_go_between_their_marks_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x -->\nold\n<!-- end of x -->\nafter\n")
    report.put(page, "x", "new")
    assert page.read_text() == "before\n<!-- x -->\nnew\n<!-- end of x -->\nafter\n"
    with pytest.raises(ValueError, match="no marks of y"):
        report.put(page, "y", "new")


def test_every_other_system_is_locked_and_labelled() -> None:
    locked = {line.partition("==")[0] for line in LOCK.read_text().splitlines()}
    assert set(DISTRIBUTIONS) == set(NAMES) == set(report.LABELS)
    assert all(set(DISTRIBUTIONS[name]) <= locked for name in NAMES[1:])


def test_missing_hits_are_padded() -> None:
    assert padded([[4, 5], []], 3).tolist() == [[4, 5, -1], [-1, -1, -1]]


def test_the_client_of_vectordbbench_makes_our_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    api = ModuleType("vectordb_bench.backend.clients.api")
    for base in ("DBCaseConfig", "DBConfig", "VectorDB"):
        setattr(api, base, type(base, (), {}))
    metrics = Enum("metrics", ["COSINE", "L2"])
    vars(api)["MetricType"] = metrics
    monkeypatch.setitem(sys.modules, api.__name__, api)
    opened = MagicMock()
    monkeypatch.setattr("vectorshard.Client", MagicMock(return_value=opened))
    client = opened.__enter__.return_value
    client.search.return_value.ids = np.array([7, 9])
    from benchmarks.compare.vectordbbench import VectorShard, VectorShardCase

    case = VectorShardCase(metric_type=metrics.L2)
    database = VectorShard(2, {"target": "here:1"}, case, drop_old=True)
    with database.init():
        assert database.insert_embeddings([[1.0, 2.0]], [7]) == (1, None)
        database.optimize()
        assert database.search_embedding([1.0, 2.0], 2) == [7, 9]
        client.upsert.side_effect = CollectionNotFound("gone")
        assert database.insert_embeddings([[1.0, 2.0]], [8])[0] == 0
    made = [name for name, _, _ in client.method_calls]
    assert made == ["drop_collection", "create_collection", "upsert", "train", "search", "upsert"]
    assert client.create_collection.call_args.kwargs["metric"] == "l2"
    assert client.search.call_args.kwargs == {"target_recall": 0.95}
