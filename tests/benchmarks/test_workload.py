"""Where the vectors of a run come from: spread queries in an order of the seed, and their truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.load import workload as workload_module
from benchmarks.load.plan import CallKind, Plan
from benchmarks.load.workload import Workload, open_workload, spread, why_no_recall
from tests.cli.client_in_memory import ClientInMemory
from vectorshard.cli.vector_files import UnreadableFile
from vectorshard.shard.types import IdType, Metric

ROWS, QUERIES = 50, 30
TRAIN = np.arange(2 * ROWS, dtype=np.float32).reshape(ROWS, 2)
TEST = np.repeat(np.arange(QUERIES, dtype=np.float32), 2).reshape(QUERIES, 2)
"""Each query says its own number."""
NEIGHBORS = np.arange(QUERIES)[:, None] + np.arange(5)
"""And so does each query's truth."""


def write(path: Path, **arrays: npt.NDArray[Any]) -> Path:
    """Write a file of named arrays of the kind that the suffix says."""
    if path.suffix == ".npz":
        np.savez(path, allow_pickle=False, **arrays)
    elif path.suffix == ".npy":
        np.save(path, arrays["train"])
    else:
        with h5py.File(path, "w") as datasets:
            datasets.attrs["distance"] = "euclidean"
            for name, array in arrays.items():
                datasets[name] = array
    return path


def ann_benchmarks(directory: Path) -> Path:
    """Write a file as ann-benchmarks has them."""
    return write(directory / "ann.hdf5", train=TRAIN, test=TEST, neighbors=NEIGHBORS)


def opened(path: Path | str, **changes: Any) -> Workload:
    """Open data and read what is in memory."""
    with open_workload(Plan(target="", data=str(path), **changes), None) as workload:
        return workload


def test_an_ann_benchmarks_file_gives_every_query_its_own_truth(tmp_path: Path) -> None:
    with open_workload(Plan(target="", data=str(ann_benchmarks(tmp_path))), None) as data:
        assert (data.source.rows, data.source.metric) == (ROWS, Metric.L2)
        assert data.truth is not None
        assert np.array_equal(data.sample[:, 0], data.truth[:, 0])
        assert sorted(data.sample[:, 0]) == list(range(QUERIES))


def test_the_order_is_that_of_the_seed_and_not_that_of_the_file(tmp_path: Path) -> None:
    path = ann_benchmarks(tmp_path)
    orders = [opened(path, seed=seed).sample[:, 0].tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert list(range(QUERIES)) not in orders


def test_a_sample_is_spread_from_the_first_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload_module.spread, "__defaults__", (10,))
    data = opened(ann_benchmarks(tmp_path))
    assert sorted(data.sample[:, 0]) == list(range(0, QUERIES, 3))
    assert data.truth is not None
    assert np.array_equal(data.sample[:, 0], data.truth[:, 0])


@pytest.mark.parametrize(("rows", "most", "step"), [(0, 5, 1), (5, 5, 1), (6, 5, 2), (100, 5, 20)])
def test_a_spread_has_even_steps_and_never_too_many(rows: int, most: int, step: int) -> None:
    assert spread(np.arange(rows)[:, None], most)[:, 0].tolist() == list(range(0, rows, step))


def test_a_npz_is_read_by_its_own_names_and_its_truth_is_in_its_ids(tmp_path: Path) -> None:
    ids = np.array([f"row {row}" for row in range(ROWS)])
    path = write(tmp_path / "a.npz", v=TRAIN, ids=ids, q=TEST, n=NEIGHBORS)
    data = opened(path, vectors_key="v", queries_key="q", neighbors_key="n")
    assert data.truth is not None
    first = data.sample[:, 0].astype(int)
    assert data.truth[:, 0].tolist() == [f"row {row}" for row in first]


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_without_queries_rows_are_asked_for_and_there_is_no_truth(
    tmp_path: Path, name: str
) -> None:
    data = opened(write(tmp_path / name, train=TRAIN, vectors=TRAIN))
    assert data.truth is None
    assert sorted(map(tuple, data.sample.tolist())) == sorted(map(tuple, TRAIN.tolist()))


def test_a_run_that_writes_takes_the_rows_and_not_the_queries(tmp_path: Path) -> None:
    data = opened(ann_benchmarks(tmp_path), call=CallKind.upsert)
    assert sorted(map(tuple, data.sample.tolist())) == sorted(map(tuple, TRAIN.tolist()))


@pytest.mark.parametrize(
    ("changes", "arrays", "told"),
    [
        ({"queries_key": "x"}, {}, "no array 'x'"),
        ({"neighbors_key": "x"}, {}, "no array 'x'"),
        ({}, {"neighbors": NEIGHBORS[1:]}, "for 30 queries"),
        ({}, {"neighbors": NEIGHBORS + ROWS}, "row numbers that do not exist"),
        ({}, {"neighbors": NEIGHBORS.astype(np.float32)}, "row numbers"),
        ({}, {"test": TEST[:, 0]}, "queries must be"),
        ({}, {"test": TEST[:0]}, "queries must be"),
        ({}, {"train": TRAIN[:0]}, "contains no vectors"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused_with_words(
    tmp_path: Path, changes: dict[str, str], arrays: dict[str, npt.NDArray[Any]], told: str
) -> None:
    path = write(
        tmp_path / "a.hdf5", **{"train": TRAIN, "test": TEST, "neighbors": NEIGHBORS, **arrays}
    )
    with pytest.raises(UnreadableFile, match=told):
        opened(path, **changes)


def test_synthetic_data_has_a_truth_for_the_dim_of_the_collection() -> None:
    plan = Plan(target="", rows=300, k=5)
    with open_workload(plan, 16) as data:
        assert (data.source.rows, data.source.dim) == (300, 16)
        assert data.truth is not None
        assert data.truth.shape == (len(data.sample), 5)
        vectors = data.source.vectors[0:300]
    distances = ((data.sample[3] - vectors) ** 2).sum(axis=1)
    assert np.array_equal(data.truth[3], np.argsort(distances)[:5])


def client_of(metric: Metric = Metric.L2, id_type: IdType = IdType.INT64) -> Any:
    """Return a client of a server whose collection c holds the rows of the files."""
    client = ClientInMemory()
    client.create_collection("c", dim=2, metric=metric, id_type=id_type)
    client.upsert("c", np.arange(ROWS), TRAIN)
    return client


def test_the_truth_of_the_file_holds_for_a_collection_with_its_rows(tmp_path: Path) -> None:
    path = ann_benchmarks(tmp_path)
    client = client_of()
    with open_workload(Plan(target="", data=str(path)), None) as workload:
        assert why_no_recall(client, workload, client.describe("c"), k=5) == ""


@pytest.mark.parametrize(
    ("kind", "k", "told"),
    [
        ({"metric": Metric.COSINE}, 5, "has metric l2, the collection cosine"),
        ({"id_type": IdType.STRING}, 5, "has string ids"),
        ({}, 6, "has 5 rows a query, not 6"),
    ],
)
def test_recall_is_not_measured_against_a_truth_of_something_else(
    tmp_path: Path, kind: dict[str, Any], k: int, told: str
) -> None:
    path = ann_benchmarks(tmp_path)
    client = client_of(**kind)
    with open_workload(Plan(target="", data=str(path)), None) as workload:
        assert told in why_no_recall(client, workload, client.describe("c"), k)


def test_recall_is_not_measured_on_as_many_rows_that_are_others(tmp_path: Path) -> None:
    path = ann_benchmarks(tmp_path)
    client = client_of()
    client.upsert("c", np.array([31]), np.full((1, 2), 7, dtype=np.float32))
    with open_workload(Plan(target="", data=str(path)), None) as workload:
        told = why_no_recall(client, workload, client.describe("c"), 5)
    assert told == "row 31 of the collection differs from the data's"
