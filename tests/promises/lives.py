"""Run a draw, and write down what the promises say about each of its moments."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from tests.promises.cluster import LOTS, Cluster
from tests.promises.draws import Draw
from tests.promises.shapes import SHAPES, WINDOW_STEPS, Pool, pool_of
from tests.promises.truth import Judged, contents_of
from vectorshard.shard.filters import Equals, Range
from vectorshard.shard.types import (
    BoolArray,
    Float32Array,
    Float64Array,
    Int64Array,
    SearchResult,
)

QUERIES: Final = 1_000
"""Held-out queries of a check; fewer where `SCORES` or `HITS` says so."""

SCORES: Final = 20_000_000
"""Queries x living rows of a check, each of which the truth computes."""

HITS: Final = 60_000
"""Queries x k of a check."""

COMMON: Final = 0.01
"""How far below its target the recall of 19 of 20 draws may be."""

ALWAYS: Final = 0.02
HOLE: Final = 0.05
MOVING: Final = 0.10
PART: Final = 0.25
TOLD: Final = 0.02

PART_SHARE: Final = 0.1
"""Of the distinct rows: the parts whose recall must not be given up for the others."""

PART_QUERIES: Final = 50
TOLD_QUERIES: Final = 300
"""The fewest queries that measure a part, or what a description reports."""

FILTERED_QUERIES: Final = 300

ALONE: Final = 12
"""Queries that are also asked alone and in a small batch."""


@dataclass
class Verdict:
    """What became of a draw: broken promises, in words, and the worst recall against its target."""

    broken: list[str] = field(default_factory=list)
    shortfall: float = -1.0
    checks: int = 0

    def hold(self, holds: bool, text: str) -> None:
        """Write down a promise that does not hold."""
        self.checks += 1
        if not holds:
            self.broken.append(text)


class Life:
    """One draw under way."""

    def __init__(self, draw: Draw, cluster: Cluster) -> None:
        self.draw = draw
        self.cluster = cluster
        self.random = np.random.default_rng([draw.seed, 2])
        self.pool: Pool = pool_of(
            SHAPES[draw.shape], self.random, draw.rows, draw.dim, held_out=2 * QUERIES
        )
        self.parts = self.pool.row_parts.copy()  # of each id
        self.gone_parts = np.empty(0, np.int64)
        self.verdict = Verdict()

    async def run(self) -> Verdict:
        """Write the rows, let things happen, and check at each moment."""
        if self.draw.life == "window":
            await self._move_a_window()
            return self.verdict
        await self.cluster.write(np.arange(self.draw.rows), self.pool.rows)
        if self.draw.rows > 50 and self.draw.seed % 3 == 0:
            await self.cluster.train()
        self.cluster.settle()
        await self.check("written")
        await self._check_what_is_told()
        if self.draw.life == "still":
            return self.verdict
        await getattr(self, f"_{self.draw.life}")()
        await self._check_the_truth()
        return self.verdict

    # ---- what happens ---------------------------------------------------------------------------

    async def _thinned(self) -> None:
        """Delete half to nine tenths of the rows at random."""
        await self._delete(self.random.random(self.draw.rows) < self.random.uniform(0.5, 0.9))
        await self._check_after("thinned")

    async def _few_left(self) -> None:
        """Delete until forty rows are left, and then four, without a pause."""
        for left in (40, 4):
            living = np.flatnonzero(self.cluster.alive)
            if len(living) > left:
                doomed = np.zeros(self.draw.rows, np.bool_)
                doomed[self.random.permutation(living)[left:]] = True
                await self._delete(doomed)
                await self.check(f"{left} left")
        self.cluster.settle()
        await self.check("few left, a minute later")

    async def _holes(self) -> None:
        """Delete two fifths of the regions."""
        present = np.unique(self.parts)
        self.gone_parts = self.random.permutation(present)[: len(present) * 2 // 5]
        await self._delete(np.isin(self.parts, self.gone_parts))
        await self._check_after("holes")

    async def _replaced(self) -> None:
        """Overwrite half of the ids by rows of the same kind, in random order."""
        await self._replace(0.5)
        self.cluster.settle()
        await self.check("replaced")

    async def _mixed(self) -> None:
        """Replace, delete and replace, in an order that chance decides."""
        for step in self.random.permutation(3).tolist():
            if step == 0:
                await self._delete(self.random.random(self.draw.rows) < 0.4)
            else:
                await self._replace(0.2)
        self.cluster.settle()
        await self._check_after("mixed")

    async def _move_a_window(self) -> None:
        """Write a tenth of a window and delete another, a minute a step."""
        width = WINDOW_STEPS // 2
        for step in range(WINDOW_STEPS):
            ids = np.flatnonzero(self.pool.row_parts == step)
            if len(ids):
                await self.cluster.write(ids, self.pool.rows[ids])
            if step >= width:
                await self._delete(self.parts == step - width)
            self.gone_parts = np.setdiff1d(np.arange(WINDOW_STEPS), self._present())
            if step >= width and step % 3 == 1:
                await self.check(f"step {step} of a window", MOVING)
            self.cluster.settle()
        await self.check("the window rests")

    async def _delete(self, doomed: BoolArray) -> None:
        ids = np.flatnonzero(doomed & self.cluster.alive)
        if len(ids):
            await self.cluster.delete(self.random.permutation(ids))

    async def _replace(self, share: float) -> None:
        living = np.flatnonzero(self.cluster.alive)
        ids = self.random.permutation(living)[: int(share * len(living))]
        sources = self.random.permutation(living)[: len(ids)]
        if len(ids):
            vectors = self.pool.rows[sources]
            self.parts[ids] = self.pool.row_parts[sources]
            await self.cluster.write(ids, vectors)

    def _present(self) -> Int64Array:
        return np.unique(self.parts[self.cluster.alive])

    # ---- what must hold -------------------------------------------------------------------------

    async def _check_after(self, moment: str) -> None:
        """Check at once, in the holes too, with a filter, and a minute later."""
        await self.check(moment)
        await self._check_holes(moment)
        if self.draw.filtered:
            await self._check_filters(moment)
        self.cluster.settle()
        await self.check(f"{moment}, a minute later")

    async def check(self, moment: str, allowed: float = ALWAYS) -> None:
        """Check queries like the living rows."""
        chosen = np.flatnonzero(~np.isin(self.pool.query_parts, self.gone_parts))
        if not len(chosen):
            return  # the only row of a window has moved out of it
        for k in dict.fromkeys((10, self.draw.k)):
            queries = self._affordable(chosen, k)
            found = await self._judge(f"{moment}, k={k}", queries, k, allowed)
            if found is not None and k == 10:
                self._check_parts(moment, queries, found)
        await self._check_batches(moment, self.pool.queries[chosen[:ALONE]])

    async def _judge(
        self, moment: str, queries: Int64Array, k: int, allowed: float
    ) -> Judged | None:
        if not len(queries):
            return None
        target = self.draw.target
        found = await self.cluster.judge(self.pool.queries[queries], k)
        short = np.count_nonzero(found.short)
        self.verdict.hold(short == 0, f"{moment}: {short} of {len(queries)} answers are short")
        doubt = 0.0 if len(queries) == QUERIES else 2 * found.standard_error
        self.verdict.hold(
            found.recall >= target - allowed - doubt,
            f"{moment}: recall {found.recall:.4f} of {len(queries)} queries, target {target}",
        )
        if allowed == ALWAYS:
            self.verdict.shortfall = max(self.verdict.shortfall, target - found.recall - doubt)
        return found

    def _check_parts(self, moment: str, queries: Int64Array, found: Judged) -> None:
        """Check each part that is a tenth of the distinct rows."""
        alive = self.cluster.alive
        _, first = np.unique(contents_of(self.cluster.rows[alive]), return_index=True)
        parts, sizes = np.unique(self.parts[alive][first], return_counts=True)
        for part in parts[sizes >= PART_SHARE * sizes.sum()].tolist():
            of_part = found.recalls[self.pool.query_parts[queries] == part]
            self.verdict.hold(
                len(of_part) < PART_QUERIES or of_part.mean() >= self.draw.target - PART,
                f"{moment}: recall {of_part.mean() if len(of_part) else 1:.4f} in part {part}, "
                f"target {self.draw.target}",
            )

    async def _check_batches(self, moment: str, queries: Float32Array) -> None:
        """An answer does not depend on the queries that come with it."""
        together = await self.cluster.search(queries, self.draw.k)
        for batch in (1, 5):
            apart = await self.cluster.search(queries, self.draw.k, batch=batch)
            self.verdict.hold(
                _bits(together) == _bits(apart),
                f"{moment}: batches of {batch} answer otherwise than one of {len(queries)}",
            )

    async def _check_holes(self, moment: str) -> None:
        chosen = np.flatnonzero(np.isin(self.pool.query_parts, self.gone_parts))
        await self._judge(f"{moment}, in a hole", self._affordable(chosen, 10), 10, HOLE)

    async def _check_filters(self, moment: str) -> None:
        """Check a filter that a tenth passes, and one that nine tenths pass."""
        lots = np.arange(self.draw.rows) % LOTS
        chosen = np.flatnonzero(~np.isin(self.pool.query_parts, self.gone_parts))
        queries = self._affordable(chosen, self.draw.k)[:FILTERED_QUERIES]
        if not len(queries):
            return
        for filter_, passing in ((Equals("lot", 3), lots == 3), (Range("lot", gte=1), lots >= 1)):
            found = await self.cluster.judge(
                self.pool.queries[queries], self.draw.k, filter_=filter_, passing=passing
            )
            text = f"{moment}, {filter_}: recall {found.recall:.4f}, target {self.draw.target}"
            self.verdict.hold(not found.short.any(), f"{moment}, {filter_}: short answers")
            doubt = 2 * found.standard_error
            self.verdict.hold(found.recall >= self.draw.target - ALWAYS - doubt, text)

    async def _check_what_is_told(self) -> None:
        """Compare what a description reports with queries like the distinct rows."""
        description = await self.cluster.describe()
        queries = self._affordable(np.arange(len(self.pool.queries)), 10)
        (receipt, *_) = [each.receipt for each in await self.cluster.search(self.pool.queries[:1])]
        weights = self._weights(queries)
        if any(not shard.nprobe for shard in receipt.shards):
            return  # exact, on some shard
        if weights.sum() ** 2 / (weights**2).sum() < TOLD_QUERIES:
            return
        found = await self.cluster.judge(self.pool.queries[queries])
        told = float(np.mean([shard.measured_recall for shard in description.shards]))
        measured = float(np.average(found.recalls, weights=weights))
        text = f"measured_recall {told:.4f}, but {measured:.4f} for queries like the distinct rows"
        self.verdict.hold(told <= measured + TOLD, text)
        if not any(shard.rows_changed_since for shard in description.shards):
            # Rows written since are scored exactly, or with more candidates: more is found.
            asked = sum(shard.calibration_queries for shard in description.shards)
            error = float(found.recalls.std()) * np.sqrt(1 / len(queries) + 1 / asked)
            self.verdict.hold(told >= measured - TOLD - 2 * error, text)

    async def _check_the_truth(self) -> None:
        """An exact search finds all: otherwise the engine's scores or this suite are wrong."""
        found = await self.cluster.judge(self.pool.queries[:20], self.draw.k, exact=True)
        recall = found.recall
        self.verdict.hold(recall == 1 and not found.short.any(), f"an exact search: {recall:.4f}")

    def _weights(self, queries: Int64Array) -> Float64Array:
        """Return the weight of each query, so that together they are like the distinct rows."""
        everything = contents_of(np.concatenate([self.pool.rows, self.pool.queries[queries]]))
        _, inverse, copies = np.unique(everything, return_inverse=True, return_counts=True)
        return 1 / copies[inverse[len(self.pool.rows) :]]

    def _affordable(self, queries: Int64Array, k: int) -> Int64Array:
        """Return as many of the queries as a check may take."""
        living = max(1, self.cluster.living)
        return queries[: max(1, min(QUERIES, SCORES // living, HITS // min(k, living)))]


def _bits(results: list[SearchResult]) -> tuple[bytes, bytes, bytes]:
    """Return all of several answers, to compare bit by bit."""
    hits = [result.hits for result in results]
    return (
        np.concatenate([each.counts for each in hits]).tobytes(),
        np.concatenate([each.ids for each in hits]).tobytes(),
        np.concatenate([each.scores for each in hits]).tobytes(),
    )


async def verdict_of(draw: Draw, path: Path) -> Verdict:
    """Run a draw on an empty directory."""
    cluster = await Cluster.create(
        path,
        draw.rows,
        draw.dim,
        metric=draw.metric,
        kind=draw.kind,
        target=draw.target,
        shards=draw.shards,
        filtered=draw.filtered,
    )
    try:
        return await Life(draw, cluster).run()
    finally:
        await cluster.shard.close()
