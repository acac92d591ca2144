"""What is known to break an IVF index: each case by name, on a shard, after a restart, routed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, pairwise, product
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from tests.promises.cluster import Cluster
from tests.promises.lives import ALWAYS, HOLE, MOVING, PART
from tests.promises.truth import Judged
from vectorshard.shard.types import Float32Array, IndexKind, Metric

pytestmark = pytest.mark.usefixtures("stepped")

TARGET: Final = 0.95
PLACES: Final = ("shard", "restarted", "routed")
KINDS: Final = list(IndexKind)
METRICS: Final = (Metric.L2, Metric.INNER_PRODUCT, Metric.COSINE)


def dealt(*names: str, over: Sequence[Any], every: int = 1) -> pytest.MarkDecorator:
    """Parametrise a test by `names`, and deal the values out over PLACES; each gets some.

    `make test` has each `every`-th case, of each place; `make promises` has the others.
    """
    values = [each if isinstance(each, tuple) else (each,) for each in over]
    values *= -(-len(PLACES) // len(values))
    cases = [
        pytest.param(
            *case,
            id="-".join(str(getattr(part, "value", part)) for part in case),
            marks=pytest.mark.promises if number % every else (),
        )
        for number, case in enumerate(
            (place, *each) for place, each in zip(cycle(PLACES), values, strict=False)
        )
    ]
    return pytest.mark.parametrize(("known", *names), cases, indirect=["known"])


class Known:
    """A cluster of one of PLACES; the case fills it, and then asks it."""

    def __init__(self, where: str, path: Path) -> None:
        self.where = where
        self.path = path
        self.cluster: Cluster

    async def hold(
        self,
        rows: Float32Array,
        *,
        metric: Metric = Metric.L2,
        kind: IndexKind = IndexKind.IVF_PQ,
        shards: int = 0,
        min_training_size: int = 1_000,
        target: float = TARGET,
    ) -> Cluster:
        """Write rows, whose ids are their places, and let the index settle."""
        self.cluster = await Cluster.create(
            self.path,
            len(rows),
            rows.shape[1],
            metric=metric,
            kind=kind,
            target=target,
            shards=shards or (2 if self.where == "routed" else 1),
            min_training_size=min_training_size,
        )
        await self.cluster.write(np.arange(len(rows)), rows)
        self.cluster.settle()
        return self.cluster

    async def ask(self, queries: Float32Array, k: int = 10, *, least: float) -> Judged:
        """Search, after a restart where the case is that, and assert what the promises say."""
        if self.where == "restarted":
            await self.cluster.reopen()
        found = await self.cluster.judge(queries, k)
        assert not found.short.any(), f"{found.short.sum()} of {len(queries)} answers are short"
        assert found.recall >= least
        return found


@pytest.fixture
def known(request: pytest.FixtureRequest, tmp_path: Path) -> Known:
    """An empty place, by default a shard."""
    return Known(getattr(request, "param", "shard"), tmp_path)


def near(random: np.random.Generator, centers: Float32Array, rows: int) -> Float32Array:
    """Return rows (rows, dim) around centres, each of which has as many."""
    of = centers[np.arange(rows) % len(centers)]
    noise = random.standard_normal(of.shape)
    return (of + noise).astype(np.float32)


def normal(seed: int, rows: int, dim: int, scale: float = 1.0) -> Float32Array:
    """Return normal rows (rows, dim)."""
    return (scale * np.random.default_rng(seed).standard_normal((rows, dim))).astype(np.float32)


# ---- deletes ------------------------------------------------------------------------------------


@dealt("kind", over=KINDS)
async def test_half_of_the_space_deleted_is_a_hole_that_answers(
    known: Known, kind: IndexKind
) -> None:
    rows = normal(1, 4_000, 8)
    rows[2_000:] += 10
    cluster = await known.hold(rows, kind=kind)
    await cluster.train()
    await cluster.delete(np.arange(2_000))
    await known.ask(normal(2, 200, 8), least=TARGET - HOLE)


@dealt("metric", over=METRICS)
async def test_regions_deleted_are_holes_that_answer(known: Known, metric: Metric) -> None:
    random = np.random.default_rng(3)
    centers = normal(3, 60, 12, scale=3)
    cluster = await known.hold(near(random, centers, 12_000), metric=metric)
    await cluster.delete(np.flatnonzero(np.arange(12_000) % 60 < 25))
    await known.ask(near(random, centers[:25], 400), least=TARGET - HOLE)
    await known.ask(near(random, centers[25:], 1_000), least=TARGET - ALWAYS)


@dealt("left", over=[2_000, 200, 20, 3])
async def test_what_is_left_after_deletes_is_found(known: Known, left: int) -> None:
    random = np.random.default_rng(4)
    centers = normal(4, 80, 40, scale=3)
    cluster = await known.hold(near(random, centers, 8_000), metric=Metric.COSINE)
    await cluster.delete(random.permutation(8_000)[left:])
    await known.ask(near(random, centers, 500), least=TARGET - ALWAYS)


@dealt("size", "share", "k", over=[(11, 0.25, 10), (15, 0.45, 10), (40, 0.7, 10), (150, 0.45, 100)])
async def test_clusters_that_fall_below_k_are_left_for_others(
    known: Known, size: int, share: float, k: int
) -> None:
    """Until then few lists hold all hits, and no smooth growth tells how many do afterwards."""
    random = np.random.default_rng(6)
    centers = normal(6, 8_000 // size, 24, scale=8)
    cluster = await known.hold(near(random, centers, 8_000))
    await cluster.delete(np.flatnonzero(random.random(8_000) < share))
    await known.ask(near(random, centers, 500), k, least=TARGET - ALWAYS)


# ---- k ------------------------------------------------------------------------------------------


@dealt("kind", over=KINDS)
async def test_any_k_gets_its_hits_and_its_recall(known: Known, kind: IndexKind) -> None:
    """Also where clusters are smaller than k, and while k is not calibrated yet."""
    random = np.random.default_rng(5)
    centers = normal(5, 120, 32, scale=3)
    cluster = await known.hold(near(random, centers, 12_000), kind=kind)
    queries = near(random, centers, 20)
    for k in (31, 101, 500, 1_001, 10_000):
        await known.ask(queries, k, least=TARGET - ALWAYS)
    cluster.settle()
    for k in (101, 500, 1_001):
        await known.ask(queries, k, least=TARGET - ALWAYS)


# ---- equal and nearly equal rows ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "shards"),
    [
        (0.05, 2),
        (0.3, 8),
        pytest.param(0.05, 8, marks=pytest.mark.promises),
        pytest.param(0.3, 2, marks=pytest.mark.promises),
    ],
)
async def test_rows_overwritten_by_one_vector_cost_the_others_nothing(
    tmp_path: Path, shards: int, share: float
) -> None:
    known = Known("routed", tmp_path)
    rows = normal(6, 12_000, 24)
    rows[: int(share * len(rows))] = rows[0]
    await known.hold(np.random.default_rng(6).permutation(rows), shards=shards)
    await known.ask(normal(7, 1_000, 24), least=TARGET - ALWAYS)


@dealt("metric", over=METRICS)
async def test_the_rest_beside_equal_rows_is_found(known: Known, metric: Metric) -> None:
    rows = normal(8, 6_000, 24)
    rows[np.arange(6_000) % 20 > 0] = rows[1]
    await known.hold(rows, metric=metric)
    await known.ask(normal(9, 300, 24), least=TARGET - PART)


@dealt("metric", over=METRICS)
async def test_the_rest_beside_nearly_equal_rows_is_found(known: Known, metric: Metric) -> None:
    rows = normal(10, 6_000, 24)
    cloud = np.arange(6_000) % 10 > 0
    rows[cloud] = rows[1] + 2e-5 * rows[cloud]
    await known.hold(rows, metric=metric)
    await known.ask(normal(11, 300, 24), least=TARGET - PART)
    near_it = (rows[1] + 2e-5 * normal(12, 300, 24)).astype(np.float32)
    # Under INNER_PRODUCT all of these have the same ten hits: their recall comes in tenths.
    all_alike = metric is Metric.INNER_PRODUCT
    await known.ask(near_it, least=0.9 if all_alike else TARGET - ALWAYS)


@dealt("distinct", "metric", over=list(product([1, 2, 3, 16], METRICS)), every=2)
async def test_copies_of_few_vectors_are_found(known: Known, metric: Metric, distinct: int) -> None:
    vectors = normal(13, distinct, 32)
    cluster = await known.hold(vectors[np.arange(6_000) % distinct], metric=metric)
    await known.ask(vectors, least=1.0)
    assert (await cluster.explain(vectors[:1], 0)).exists


# ---- few rows, few dims, sparse rows ------------------------------------------------------------


@dealt("rows", "metric", over=list(product([1, 3, 10, 40, 80], METRICS[1:])))
async def test_train_on_few_rows_loses_none(known: Known, metric: Metric, rows: int) -> None:
    vectors = normal(14, rows, 24)
    cluster = await known.hold(vectors, metric=metric)
    await cluster.train()
    await known.ask(vectors, k=rows, least=1.0)
    for id_ in range(rows):
        assert (await cluster.explain(vectors[:1], id_)).exists


@dealt("dim", "metric", over=list(product([1, 2, 3, 6], METRICS)), every=2)
async def test_few_dims_lose_no_row(known: Known, metric: Metric, dim: int) -> None:
    cluster = await known.hold(normal(15, 2_500, dim), metric=metric)
    await cluster.train()
    await known.ask(normal(16, 500, dim), least=TARGET - ALWAYS)
    await known.ask(normal(17, 20, dim), k=2_500, least=1.0)


@dealt("words", "metric", over=list(product([1, 3], METRICS[1:])))
async def test_rows_that_share_nothing_with_the_query_fill_an_answer(
    known: Known, metric: Metric, words: int
) -> None:
    """One word is one-hot; their codes score lowest, and fast scan proposes none of them."""
    random = np.random.default_rng(18)
    rows = np.zeros((5_000, 100), np.float32)
    for _ in range(words):
        rows[np.arange(5_000), random.integers(100, size=5_000)] = 1
    await known.hold(rows, metric=metric)
    for k in (10, 1_000):
        await known.ask(rows[:100], k, least=TARGET - ALWAYS)


# ---- other rows than those that the index was trained on ----------------------------------------


@dealt("kind", over=KINDS)
async def test_rows_of_another_model_are_found_within_a_minute(
    known: Known, kind: IndexKind
) -> None:
    random = np.random.default_rng(19)
    old, new = normal(19, 90, 32, scale=2), normal(20, 90, 32, scale=2)
    cluster = await known.hold(near(random, old, 9_000), metric=Metric.COSINE, kind=kind)
    for share, least in ((0.1, TARGET - PART), (0.5, TARGET - ALWAYS), (1.0, TARGET - ALWAYS)):
        ids = random.permutation(9_000)[: int(share * 9_000)]
        await cluster.write(ids, near(random, new, len(ids)))
        cluster.settle()
        await known.ask(near(random, new, 1_000), least=least)


@pytest.mark.parametrize("known", ["routed"], indirect=True)
@pytest.mark.parametrize("last", [18, pytest.param(30, marks=pytest.mark.promises)])
async def test_a_window_that_moves_keeps_its_recall(known: Known, last: int) -> None:
    """A tenth of the rows a minute, each tenth one standard deviation further."""
    random = np.random.default_rng(21)
    step_rows = 800
    rows = near(random, np.zeros((1, 16), np.float32), 30 * step_rows)
    step_of = np.arange(len(rows)) // step_rows
    rows[:, 0] += np.maximum(0, step_of - 9)
    cluster = await known.hold(rows[step_of < 10])
    cluster.rows = np.concatenate([cluster.rows, np.full((20 * step_rows, 16), np.nan, np.float32)])
    for step in range(10, last):
        await cluster.write(np.flatnonzero(step_of == step), rows[step_of == step])
        await cluster.delete(np.flatnonzero(step_of == step - 10))
        queries = near(random, np.zeros((1, 16), np.float32), 300)
        queries[:, 0] += np.maximum(0, random.integers(step - 9, step + 1, size=300) - 9)
        if step % 4 == 1:
            await known.ask(queries, least=TARGET - MOVING)
        cluster.settle()
    await known.ask(queries, least=TARGET - ALWAYS)


# ---- growth -------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
async def test_an_index_that_grows_keeps_its_recall_until_it_is_trained_again(
    tmp_path: Path, metric: Metric
) -> None:
    """Rows alike are no drift; but more of them lie between a query and its last neighbour."""
    random = np.random.default_rng(22)
    centers = normal(22, 60, 24, scale=3)
    rows = near(random, centers, 12_000)
    known = Known("shard", tmp_path)
    cluster = await known.hold(rows[:3_500], metric=metric)
    cluster.rows = np.concatenate([cluster.rows, np.full((8_500, 24), np.nan, np.float32)])
    for last in (7_000, 12_000):
        ids = np.arange(len(rows))[cluster.living : last]
        await cluster.write(ids, rows[ids])  # without a pause, after which it is calibrated again
        await known.ask(near(random, centers, 1_000), least=TARGET - ALWAYS)


# ---- targets ------------------------------------------------------------------------------------


async def test_each_target_has_its_own_setting(known: Known) -> None:
    """Cost never falls as the target grows, and no step of a hundredth costs over 1.5 times."""
    cluster = await known.hold(normal(22, 16_000, 24))
    await cluster.train()
    queries = normal(23, 1_000, 24)
    probes: list[int] = []
    for target in (0.9, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98):
        (result,) = await cluster.search(queries[:1], target=target)
        (shard,) = result.receipt.shards
        found = await cluster.judge(queries, target=target)
        assert found.recall >= target - ALWAYS
        if shard.nprobe:  # otherwise an exact search is cheaper, at this target and above
            probes.append(shard.nprobe)
            assert found.recall <= target + 0.025
    assert len(probes) > 4
    assert probes == sorted(probes)
    assert all(after <= 1.5 * before for before, after in pairwise(probes) if before > 8)
