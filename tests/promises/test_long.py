"""What takes long: larger draws, draws that hypothesis chooses, costs, and real time.

`make promises` runs it, and resumes it: see `record`.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.promises.cluster import NAME, Cluster, SteppedThreads
from tests.promises.draws import FULL, KS, LIVES, TARGETS, Draw, draw_of
from tests.promises.lives import ALWAYS, verdict_of
from tests.promises.record import Record
from tests.promises.shapes import SHAPES
from vectorshard.shard.engine import local_shard
from vectorshard.shard.types import (
    Effort,
    Float32Array,
    Float64Array,
    IndexKind,
    Metric,
    SearchRequest,
)

pytestmark = pytest.mark.promises

DRAWS: Final = [draw_of(seed, FULL) for seed in range(1_000, 1_200)]
GLOVE: Final = Path(__file__).parents[2] / "build" / "glove-100.hdf5"
ROUNDS: Final = 5
"""Of a measurement; the quickest counts."""

BORDER: Final = 1.6
LARGE_K: Final = 1.3
SETTLED_S: Final = 60.0


@pytest.mark.usefixtures("stepped")
@pytest.mark.parametrize("draw", DRAWS, ids=str)
async def test_a_large_draw_keeps_every_promise(draw: Draw, tmp_path: Path, record: Record) -> None:
    begun = time.process_time()
    verdict = await verdict_of(draw, tmp_path)
    cpu_s = round(time.process_time() - begun, 1)
    record(verdict.broken, shortfall=round(verdict.shortfall, 4), cpu_s=cpu_s)


@st.composite
def draws(chosen: st.DrawFn) -> Draw:
    """Choose any draw of at most 300,000 components."""
    shape = chosen(st.sampled_from(list(SHAPES)))
    lives = [life for life in LIVES if life != "holes" or SHAPES[shape].has_regions]
    dim = chosen(st.integers(1, 128))
    return Draw(
        seed=chosen(st.integers(0, 2**16)),
        shape=shape,
        life="window" if shape == "window" else chosen(st.sampled_from(lives)),
        metric=chosen(st.sampled_from(list(Metric))),
        kind=chosen(st.sampled_from(list(IndexKind))),
        dim=dim,
        rows=chosen(st.integers(1, 300_000 // max(dim, 25))),
        shards=chosen(st.sampled_from([1, 2, 8])),
        k=chosen(st.sampled_from(sorted(set(KS)))),
        target=chosen(st.sampled_from(sorted(set(TARGETS)))),
        filtered=chosen(st.booleans()),
    )


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(draw=draws())
def test_a_draw_of_any_kind_keeps_every_promise(
    monkeypatch: pytest.MonkeyPatch, draw: Draw
) -> None:
    monkeypatch.setattr(local_shard, "BackgroundThreads", SteppedThreads)
    with tempfile.TemporaryDirectory() as path:
        verdict = asyncio.run(verdict_of(draw, Path(path)))
    assert not verdict.broken, "\n".join([str(draw), *verdict.broken])


# ---- costs --------------------------------------------------------------------------------------


def cost_us(cluster: Cluster, queries: Float32Array, k: int, effort: Effort, batch: int) -> float:
    """Return the CPU of a query on the only shard, without the batcher: us, the best of ROUNDS."""
    collection = cluster.leaves[0]._collections.served[NAME].collection
    request = SearchRequest(collection=NAME, queries=queries, k=k, effort=effort)
    best = np.inf
    for _ in range(ROUNDS):
        begun = time.thread_time()
        for first in range(0, len(queries), batch):
            collection.reads.search(replace(request, queries=queries[first : first + batch]))
        best = min(best, time.thread_time() - begun)
    return float(1e6 * best / len(queries))


def around(random: np.random.Generator, centers: Float64Array, rows: int) -> Float32Array:
    """Return normal rows (rows, dim) around centres that chance chooses."""
    chosen = centers[random.integers(len(centers), size=rows)]
    return (chosen + random.standard_normal(chosen.shape)).astype(np.float32)


async def some_clusters(
    path: Path, rows: int, dim: int, clusters: int, target: float = 0.95
) -> tuple[Cluster, Float32Array]:
    """Return a trained collection of clusters, and 64 queries like its rows."""
    random = np.random.default_rng(rows + dim)
    centers = 3 * random.standard_normal((clusters, dim))
    drawn = around(random, centers, rows + 64)
    cluster = await Cluster.create(path, rows, dim, target=target)
    await cluster.write(np.arange(rows), drawn[:rows])
    await cluster.train()
    cluster.settle()
    return cluster, drawn[rows:]


@pytest.mark.usefixtures("stepped")
@pytest.mark.parametrize("k", [10, 100])
@pytest.mark.parametrize("dim", [8, 100, 384, 1_536])
@pytest.mark.parametrize("rows", [200, 700, 2_000, 7_000, 20_000, 50_000])
async def test_a_search_costs_little_more_than_the_cheaper_of_exact_and_index(
    tmp_path: Path, rows: int, dim: int, k: int, record: Record
) -> None:
    cluster, queries = await some_clusters(tmp_path, rows, dim, 100)
    shard = (await cluster.describe()).shards[0]
    efforts = {"default": Effort(), "exact": Effort(exact=True)}
    if shard.nprobe:
        efforts["index"] = Effort(nprobe=shard.nprobe)
    costs = {key: cost_us(cluster, queries, k, each, 16) for key, each in efforts.items()}
    await cluster.shard.close()
    cheaper = min(cost for key, cost in costs.items() if key != "default")
    ratio = costs["default"] / cheaper
    broken = [f"{ratio:.2f} times the cheaper"] if ratio > BORDER else []
    record(broken, **{key: round(cost, 1) for key, cost in costs.items()})


@pytest.mark.usefixtures("stepped")
@pytest.mark.parametrize("k", [300, 1_000, 4_000, 10_000])
async def test_a_large_k_costs_little_more_than_an_exact_search(
    tmp_path: Path, k: int, record: Record
) -> None:
    """20,000 rows in clusters smaller than k, after the first search that asked for this k."""
    cluster, queries = await some_clusters(tmp_path, 20_000, 32, 200)
    await cluster.search(queries[:1], k)
    cluster.settle()
    found = await cluster.judge(queries, k)
    costs = [cost_us(cluster, queries, k, each, 16) for each in (Effort(), Effort(exact=True))]
    await cluster.shard.close()
    broken = ["short answers"] if found.short.any() else []
    if found.recall < 0.95 - ALWAYS:
        broken.append(f"recall {found.recall:.4f}")
    if costs[0] > LARGE_K * costs[1]:
        broken.append(f"{costs[0] / costs[1]:.2f} times an exact search")
    record(broken, recall=round(found.recall, 4), us=round(costs[0]), exact=round(costs[1]))


@pytest.mark.usefixtures("stepped")
@pytest.mark.parametrize("dead", [0.0, 0.1, 0.5] if GLOVE.exists() else [])
async def test_words_deleted_at_random(tmp_path: Path, dead: float, record: Record) -> None:
    """336,479 words, if `make glove` made them; the costs are to compare with another build's."""
    with h5py.File(GLOVE) as file:
        rows, queries = file["train"][:], file["test"][:1_000]
    cluster = await Cluster.create(tmp_path, len(rows), rows.shape[1], metric=Metric.COSINE)
    await cluster.write(np.arange(len(rows)), rows)
    await cluster.train()
    chosen = np.random.default_rng(0).permutation(len(rows))[: int(dead * len(rows))]
    if len(chosen):
        await cluster.delete(chosen)
    found = await cluster.judge(queries)
    figures = {
        f"us_k{k}_batch{batch}": round(cost_us(cluster, queries[:256], k, Effort(), batch))
        for k, batch in ((10, 64), (10, 1), (300, 16))
    }
    await cluster.search(queries[:1], 300)
    cluster.settle()
    figures["us_k300_batch16_measured"] = round(cost_us(cluster, queries[:256], 300, Effort(), 16))
    await cluster.shard.close()
    broken = ["short answers"] if found.short.any() else []
    if found.recall < 0.95 - ALWAYS:
        broken.append(f"recall {found.recall:.4f}")
    record(broken, recall=round(found.recall, 4), **figures)


# ---- real time ----------------------------------------------------------------------------------


async def test_another_model_is_served_within_a_minute_of_real_time(
    tmp_path: Path, record: Record
) -> None:
    """The background threads are the shard's own here: all ids are written again."""
    random = np.random.default_rng(5)
    cluster = await Cluster.create(tmp_path, 20_000, 32, metric=Metric.COSINE, own_threads=True)
    for _ in range(2):
        centers = 2 * random.standard_normal((100, 32))
        rows = around(random, centers, 21_000)
        await cluster.write(np.arange(20_000), rows[:20_000])
    written = time.monotonic()
    recall = 0.0
    while recall < 0.95 - ALWAYS and time.monotonic() - written < SETTLED_S:
        recall = (await cluster.judge(rows[20_000:])).recall
    took_s = time.monotonic() - written
    await cluster.shard.close()
    broken = [f"recall {recall:.4f} after a minute"] if recall < 0.95 - ALWAYS else []
    record(broken, recall=round(recall, 4), took_s=round(took_s, 1))
