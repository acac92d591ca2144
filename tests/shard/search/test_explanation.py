"""Explanations beside brute force: the rank, and what every single nprobe really finds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.shard.samples import config_of, ids_of, int64s, some_vectors
from vectorshard.shard.index.calibration import Calibration, CalibrationPoint, SearchParameters
from vectorshard.shard.index.exact import Candidates, costs_of, exact_scores
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.rows.id_column import IdColumn
from vectorshard.shard.rows.row_map import RowMap
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.search.explanation import (
    ROWS_AT_ONCE,
    candidates_needed,
    exact_rank,
    explained,
)
from vectorshard.shard.search.snapshot import Snapshot, TrainedIndex
from vectorshard.shard.types import Float32Array, IdArray, IdType, IndexKind, Int64Array, Metric

EVERY_METRIC = pytest.mark.parametrize("metric", list(Metric))
NLIST = 12
CANDIDATES = 15
"""What a search by nprobe takes in these tests: so few that codes often look too bad."""


def unit(vectors: Float32Array) -> Float32Array:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def snapshot_of(
    vectors: Float32Array,
    *,
    kind: IndexKind | None = None,
    metric: Metric = Metric.L2,
    absorbed_until: int | None = None,
    dead: Int64Array | None = None,
    ids: IdArray | None = None,
) -> Snapshot:
    """Return a snapshot of these rows; with a `kind`, an index holds those before the buffer."""
    absorbed_until = len(vectors) if absorbed_until is None else absorbed_until
    index = None
    if kind is not None:
        ivf = IvfIndex.train(kind, metric, vectors, NLIST, seed=1)
        ivf.add(np.arange(absorbed_until), vectors[:absorbed_until])
        point = CalibrationPoint(
            k=10,
            target_recall=0.99,
            parameters=SearchParameters(6, CANDIDATES),
            measured_recall=0.99,
        )
        index = TrainedIndex(
            ivf=ivf,
            generation=1,
            calibration=Calibration((point,)),
            live_when_trained=len(vectors),
            rows_trained_on=len(vectors),
            trained_at=0.0,
            training_s=0.0,
        )
    ids = np.arange(len(vectors)) if ids is None else ids
    column = IdColumn(IdType.INT64 if ids.dtype == np.int64 else IdType.STRING)
    column.append(ids)
    return Snapshot(
        sequence=1,
        ids=column,
        vectors=vectors,
        squared_norms=np.einsum("ij,ij->i", vectors, vectors),
        tombstones=Tombstones().with_dead(int64s() if dead is None else dead),
        index=index,
        absorbed_until=absorbed_until if kind is not None else 0,
    )


def costs(metric: Metric, vectors: Float32Array, query: Float32Array) -> Float32Array:
    rows = np.arange(len(vectors))
    scores = exact_scores(metric, query, vectors, Candidates(np.zeros_like(rows), rows))
    return costs_of(metric, scores)


# ---- ranks --------------------------------------------------------------------------------------


@EVERY_METRIC
@pytest.mark.parametrize("id_type", list(IdType))
def test_the_rank_is_that_of_an_exact_search_ties_by_id(metric: Metric, id_type: IdType) -> None:
    vectors = unit(some_vectors(40))[np.arange(120) % 40]  # each vector three times
    ids = ids_of(id_type, np.random.default_rng(3).permutation(120).tolist())
    dead = int64s(3, 44, 85, 119)
    snapshot = snapshot_of(vectors, dead=dead, ids=ids)
    query = unit(some_vectors(1, seed=5))
    cost = costs(metric, vectors, query)
    live = np.setdiff1d(np.arange(120), dead)
    order = sorted(live.tolist(), key=lambda row: (cost[row], ids[row]))

    def rank_of(score: float, id_: IdArray) -> int:
        return exact_rank(metric, snapshot, query, score, id_)

    scores = costs_of(metric, cost)
    ranks = [rank_of(float(scores[row]), ids[row : row + 1]) for row in order]
    assert ranks == list(range(1, 117))
    far, near = (1e30, -1e30) if metric is Metric.L2 else (-1e30, 1e30)
    assert (rank_of(near, ids[:1]), rank_of(far, ids[:1])) == (1, 117)


def test_rows_are_counted_over_all_pieces() -> None:
    vectors = np.arange(2 * ROWS_AT_ONCE + 5, dtype=np.float32)[:, None]
    snapshot = snapshot_of(vectors, dead=int64s(0, ROWS_AT_ONCE, 2 * ROWS_AT_ONCE))
    query = np.zeros((1, 1), np.float32)
    score = float((2 * ROWS_AT_ONCE + 2) ** 2)
    rank = exact_rank(Metric.L2, snapshot, query, score, int64s(7))
    assert rank == 2 * ROWS_AT_ONCE + 2 - 3 + 1


# ---- what an nprobe finds -----------------------------------------------------------------------


@EVERY_METRIC
@pytest.mark.parametrize("kind", list(IndexKind))
def test_nprobe_needed_finds_it_and_no_smaller_one_does(kind: IndexKind, metric: Metric) -> None:
    vectors, query = some_vectors(600, dim=7), some_vectors(1, dim=7, seed=9)
    if metric is Metric.COSINE:
        vectors, query = unit(vectors), unit(query)
    dead = np.arange(5, 600, 17)
    snapshot = snapshot_of(vectors, kind=kind, metric=metric, dead=dead)
    assert snapshot.index is not None
    ivf, config = snapshot.index.ivf, config_of(dim=7, metric=metric, kind=kind)
    wanted = 600 if kind is IndexKind.IVF_FLAT else CANDIDATES
    found_by = {
        nprobe: set(ivf.nearest(query, wanted, nprobe, snapshot.tombstones)[0].tolist())
        for nprobe in range(1, NLIST + 1)
    }
    hopeless = 0
    for row in np.setdiff1d(np.arange(600), dead).tolist():
        told = explained(config, snapshot, query, row)
        assert (told.exists, told.buffered) == (True, False)
        finds = [nprobe for nprobe in found_by if row in found_by[nprobe]]
        assert told.nprobe_needed == min(finds, default=0)
        hopeless += not finds
        if kind is IndexKind.IVF_FLAT:
            assert (told.candidates_needed, told.candidates) == (0, 0)
            assert told.centroid_rank == told.nprobe_needed
        else:
            assert told.candidates == CANDIDATES
            assert (told.candidates_needed > CANDIDATES) == (not finds)
    assert (hopeless > 0) == (kind is not IndexKind.IVF_FLAT)


@pytest.mark.parametrize("usual", [1, 10, 600])
def test_candidates_needed_are_the_place_of_the_code_whatever_the_first_look(usual: int) -> None:
    """Of IVF_SQ8, where no two codes look alike."""
    vectors, query = some_vectors(600), some_vectors(1, seed=9)
    ivf = IvfIndex.train(IndexKind.IVF_SQ8, Metric.L2, vectors, NLIST, seed=1)
    ivf.add(np.arange(600), vectors)
    nobody = Tombstones()
    for nprobe in (1, 5, NLIST):
        (rows,) = ivf.nearest(query, 600, nprobe, nobody)
        for place in range(0, int(np.count_nonzero(rows >= 0)), 7):
            needed = candidates_needed(ivf, query, int(rows[place]), nprobe, nobody, usual)
            assert needed == place + 1


def test_the_list_is_the_one_that_holds_the_row_even_if_another_is_nearer() -> None:
    vectors = some_vectors(200)
    ivf = IvfIndex.train(IndexKind.IVF_FLAT, Metric.L2, vectors, NLIST, seed=1)
    ivf.add(np.arange(200), vectors)
    lists = [ivf.list_of(row, vectors[row : row + 1]) for row in range(200)]
    assert set(lists) == set(range(NLIST))
    ranks = [ivf.centroid_rank(vectors[row : row + 1], lists[row]) for row in range(200)]
    assert ranks == [1] * 200
    assert [ivf.list_of(row, -vectors[row : row + 1]) for row in range(200)] == lists
    with pytest.raises(LookupError, match="200"):
        ivf.list_of(200, vectors[:1])


def test_a_row_that_is_never_proposed_needs_more_candidates_than_there_are_rows() -> None:
    vectors = some_vectors(200)
    ivf = IvfIndex.train(IndexKind.IVF_PQ, Metric.L2, vectors, NLIST, seed=1)
    ivf.add(np.arange(200), vectors)
    assert candidates_needed(ivf, vectors[:1], 200, NLIST, Tombstones(), 10) == 201


@EVERY_METRIC
def test_a_buffered_row_needs_no_list(metric: Metric) -> None:
    vectors, query = unit(some_vectors(100)), unit(some_vectors(1, seed=9))
    config = config_of(metric=metric, kind=IndexKind.IVF_PQ)
    scores = costs_of(metric, costs(metric, vectors, query))
    for snapshot in (
        snapshot_of(vectors),
        snapshot_of(vectors, kind=IndexKind.IVF_PQ, metric=metric, absorbed_until=60),
    ):
        told = explained(config, snapshot, query, 60)
        assert (told.exists, told.buffered, told.score) == (True, True, float(scores[60]))
        needs = (told.list, told.centroid_rank, told.nprobe_needed, told.candidates_needed)
        assert needs == (0, 0, 0, 0)
    assert not explained(config, snapshot, query, 59).buffered


def test_fewer_rows_than_candidates_are_all_taken() -> None:
    snapshot = snapshot_of(some_vectors(60), kind=IndexKind.IVF_PQ, absorbed_until=12)
    told = explained(config_of(kind=IndexKind.IVF_PQ), snapshot, some_vectors(1, seed=9), 3)
    assert told.candidates == 12
    assert told.nprobe_needed == told.centroid_rank


@pytest.mark.parametrize("kind", list(IndexKind))
def test_a_rebuild_that_left_dead_rows_out_changes_no_explanation(kind: IndexKind) -> None:
    vectors, query = some_vectors(300), some_vectors(1, seed=9)
    dead = np.arange(2, 280, 3)
    before = snapshot_of(vectors, kind=kind, dead=dead, absorbed_until=250)
    kept = np.setdiff1d(np.arange(290), dead)
    positions = RowMap.of_kept(kept, 290)
    held = np.concatenate([kept, np.arange(290, 300)])
    ids = IdColumn(IdType.INT64)
    ids.append(held)
    after = replace(
        before,
        vectors=vectors[held],
        squared_norms=before.squared_norms[held],
        ids=ids,
        positions=positions,
    )
    for row in (0, 1, 3, 100, 249, 250, 289, 291, 299):
        told = explained(config_of(kind=kind), before, query, row)
        assert explained(config_of(kind=kind), after, query, row) == told
        ranks = [
            exact_rank(Metric.L2, each, query, told.score, int64s(row)) for each in (before, after)
        ]
        assert ranks[0] == ranks[1]
