"""The best numbers of lists and sub-quantizers of IVF_PQ: each choice at its cheapest setting.

`shard.index.calibration.nlist_for` and `shard.index.fast_scan.PQ_WIDE_DIM` rest on these figures.
No server takes part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import numpy as np

from benchmarks import glove
from benchmarks.peers import Codes, Setting, batches_of
from benchmarks.report import Cell, Row, Table
from benchmarks.targets import Corpus, fastest, shown, sweep, synthetic, wide
from benchmarks.timing import in_turn
from benchmarks.vectors import SEED, Float32Array, clustered

K = 10
TARGET = 0.95
FACTORS = (0.5, 1, 2, 4)
"""Multiples of sqrt(rows)."""
COMPONENTS = (2, 4)
BATCHES = (8, 64)
TIMED_QUERIES = 256
ROWS, QUICK_ROWS = 150_000, 10_000
QUERIES, QUICK_QUERIES = 1_024, 256
BUDGET_S, QUICK_BUDGET_S = 2.0, 0.3
"""Time budget of all rounds of a set and a batch size."""


def measure(quick: bool) -> Table:
    """Measure every choice on every set."""
    return Table(
        name="codes",
        title=f"Lists and sub-quantizers of IVF_PQ, at a recall of {TARGET}",
        columns=(
            "set",
            "components a sub-quantizer",
            "lists / sqrt(rows)",
            "nlist",
            "trained and filled, s",
            "nprobe, candidates",
            *(f"µs a query, batches of {size}" for size in BATCHES),
            "time / the first's",
        ),
        rows=[row for corpus in sets(quick) for row in rows_of(corpus, quick)],
        notes=(
            f"FAISS in process with one core, inner products of unit vectors, k={K}; each choice "
            "with the fastest of a sweep of nprobe, each with the fewest candidates that reach the "
            "recall; medians, in turn. The ratio is that of the larger batches."
        ),
    )


def sets(quick: bool) -> Iterator[Corpus]:
    """Yield the sets: words, as many as a shard has, and a wide synthetic set."""
    rows, asked = (QUICK_ROWS, QUICK_QUERIES) if quick else (ROWS, QUERIES)
    words = glove.load()
    chosen = np.random.default_rng(SEED).permutation(len(words.train.vectors))[:rows]
    vectors, queries = words.train.vectors[np.sort(chosen)], words.test.vectors[:asked]
    neighbors, _ = glove.nearest(vectors, queries, K)
    name = f"{rows:,} words, d={vectors.shape[1]}"
    yield Corpus(name, glove.unit(vectors), glove.unit(queries), wide(neighbors))
    rows //= 3
    yield synthetic("clusters", clustered(rows, 768), clustered(asked, 768, part=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Codes of one choice, and the fastest setting that reaches the recall, or None."""

    components: int
    factor: float
    nlist: int
    codes: Codes
    took_s: float
    setting: Setting | None

    def search(self, batches: Sequence[Float32Array], round_: int) -> None:
        """Search all batches with the setting."""
        assert self.setting is not None
        self.codes.search(batches, K, [self.setting])


def choose(corpus: Corpus, components: int, factor: float) -> Choice:
    """Train and fill codes, and find their fastest setting."""
    nlist = int(factor * math.sqrt(len(corpus.vectors)))
    start = perf_counter()
    codes = Codes(corpus.vectors, nlist, 1, components)
    took_s = perf_counter() - start
    return Choice(
        components=components,
        factor=factor,
        nlist=nlist,
        codes=codes,
        took_s=took_s,
        setting=cheapest(codes, corpus, nlist),
    )


def rows_of(corpus: Corpus, quick: bool) -> Iterator[Row]:
    """Yield the rows of a set."""
    choices = [
        choose(corpus, components, factor) for components in COMPONENTS for factor in FACTORS
    ]
    timed = {str(place): choice for place, choice in enumerate(choices) if choice.setting}
    samples = []
    for size in BATCHES:
        batches = batches_of(corpus.queries[:TIMED_QUERIES], size)
        searches = {name: partial(choice.search, batches) for name, choice in timed.items()}
        samples.append(in_turn(searches, QUICK_BUDGET_S if quick else BUDGET_S))
    first = next(iter(timed))
    for place, choice in enumerate(choices):
        name = str(place)
        cells: list[Cell] = ["-"] * (len(BATCHES) + 1)
        if name in timed:
            queries = len(corpus.queries[:TIMED_QUERIES])
            cells = [1e3 * each.median_ms(name) / queries for each in samples]
            cells.append(samples[-1].ratio(name, first))
        setting = "none" if choice.setting is None else shown(choice.setting)
        yield (
            corpus.name,
            choice.components,
            f"{choice.factor:g}",
            choice.nlist,
            choice.took_s,
            setting,
            *cells,
        )


def cheapest(codes: Codes, corpus: Corpus, nlist: int) -> Setting | None:
    """Return the fastest setting that reaches the recall, or None."""
    batches = batches_of(corpus.queries[:TIMED_QUERIES], BATCHES[-1])
    settings = sweep(codes, corpus, nlist).reaching(TARGET, K)
    found = fastest(lambda setting: codes.search(batches, K, [setting]), settings)
    return found[0] if found else None
