"""The result of a target recall: the recall of held-out queries, and its cost.

The shards choose nprobe and candidates. Their choice is compared with the cheapest setting of a
sweep over both that reaches the target: each setting is timed with the same codes in this process,
so that only the choices are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import numpy as np
import numpy.typing as npt

from benchmarks import glove
from benchmarks.peers import (
    Codes,
    Int64Array,
    Setting,
    batches_of,
    efforts,
    recall_of,
)
from benchmarks.report import Cell, Row, Table
from benchmarks.server import SHARDS, scratch, serving, wait_until_at_rest
from benchmarks.timing import in_turn
from benchmarks.vectors import SEED, Float32Array, clustered
from vectorshard.client.client import Client
from vectorshard.shard.types import ShardReceipt

COLLECTION = "targets"
K = (10, 100)
TARGETS = (0.90, 0.95, 0.99)
BATCH = 64
ROWS = 50_000
QUICK_ROWS = 10_000
QUERIES = 1_024
QUICK_QUERIES = 256
TIMED_BATCHES = 4
"""Batches of a round."""
FINALISTS = 3
"""Settings of the sweep that are timed in turn: the fastest of a first pass over all."""
CANDIDATES_MAX = 2_000
"""The most candidates that are tried, for each shard."""
BEYOND_ENOUGH = 2
"""How far nprobe goes beyond the first that reaches the highest target with many candidates."""
BUDGET_S, QUICK_BUDGET_S = 2.0, 0.3
"""Time budget of the rounds of a row."""
CHOSEN, OF_TARGET, OF_SAME = "chosen", "reaching the target", "of the same recall"
BELOW_BAR = 0.02
TIME_BAR = 1.3


@dataclass(frozen=True, slots=True)
class Corpus:
    """Unit vectors (rows, dim), queries (queries, dim), and the rows nearest to those, (., 100)."""

    name: str
    vectors: Float32Array
    queries: Float32Array
    neighbors: Int64Array


def measure(quick: bool) -> Table:
    """Measure every target on every set."""
    rows: list[Row] = []
    for corpus in sets(quick):
        with (
            scratch() as directory,
            serving(directory / "rows") as server,
            server.connect() as client,
        ):
            fill(client, corpus)
            asked = {(target, k): ask(client, corpus, target, k) for k in K for target in TARGETS}
            nlist = client.describe(COLLECTION).shards[0].nlist
        codes = Codes(corpus.vectors, nlist, SHARDS)
        swept = sweep(codes, corpus, nlist)
        budget_s = QUICK_BUDGET_S if quick else BUDGET_S
        rows += [
            row_of(codes, corpus, swept, target, k, of_target, budget_s)
            for (target, k), of_target in asked.items()
        ]
    return Table(
        name="targets",
        title="The recall and the cost of a target recall",
        columns=(
            "set",
            "k",
            "target",
            "recall",
            f"bar: >= target - {BELOW_BAR}",
            "nprobe, candidates chosen",
            "cheapest that reaches the target",
            "time / that",
            f"bar: <= {TIME_BAR}",
            "time / cheapest of the same recall",
        ),
        rows=rows,
        notes=(
            f"COSINE, IVF_PQ, {SHARDS} shards; recall through gRPC, against exact neighbours, of "
            f"{QUICK_QUERIES if quick else QUERIES:,} held-out queries. The times "
            f"are those of both settings with the same codes in process, {TIMED_BATCHES} batches "
            f"of {BATCH}, in turn; medians of the rounds' ratios. The sweep takes nprobe in steps "
            "of a fifth, each with the fewest candidates that do. The same recall is that of the "
            "chosen setting in process; it may be above or below the target."
        ),
    )


def sets(quick: bool) -> Iterator[Corpus]:
    """Yield the words and two synthetic sets."""
    rows, asked = (QUICK_ROWS, QUICK_QUERIES) if quick else (ROWS, QUERIES)
    words = glove.load()
    vectors, neighbors = words.train.vectors, words.neighbors[:asked]
    if quick:  # the words are ordered by frequency
        chosen = np.random.default_rng(SEED).permutation(len(vectors))[:rows]
        vectors = vectors[np.sort(chosen)]
        neighbors, _ = glove.nearest(vectors, words.test.vectors[:asked], K[-1])
    queries = glove.unit(words.test.vectors[:asked])
    yield Corpus(f"{len(vectors):,} words, d=100", glove.unit(vectors), queries, wide(neighbors))
    yield synthetic("clusters", clustered(rows, 128), clustered(asked, 128, part=1))
    random = np.random.default_rng(SEED)
    gaussian = random.standard_normal((rows + asked, 64), dtype=np.float32)
    yield synthetic("gaussian", gaussian[:rows], gaussian[rows:])


def synthetic(name: str, vectors: Float32Array, queries: Float32Array) -> Corpus:
    """Return vectors and queries of any norms with the ground truth."""
    rows, dim = vectors.shape
    neighbors, _ = glove.nearest(vectors, queries, K[-1])
    name = f"{rows:,} {name}, d={dim}"
    return Corpus(name, glove.unit(vectors), glove.unit(queries), wide(neighbors))


def wide(neighbors: npt.NDArray[np.int32]) -> Int64Array:
    """Return row numbers in the type of FAISS."""
    return neighbors.astype(np.int64)


# ---- the servers' choice ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """The result of a target through gRPC: the recall, and the effort of each shard."""

    recall: float
    shards: Sequence[ShardReceipt]

    @property
    def settings(self) -> list[Setting]:
        """The choice of each shard."""
        return [Setting(shard.nprobe, max(1, shard.candidates)) for shard in self.shards]


def fill(client: Client, corpus: Corpus) -> None:
    """Write the vectors under their row numbers, and train on all of them."""
    client.create_collection(COLLECTION, dim=corpus.vectors.shape[1])
    client.upsert(COLLECTION, np.arange(len(corpus.vectors)), corpus.vectors)
    client.train(COLLECTION, wait=True)
    wait_until_at_rest(client, COLLECTION)


def ask(client: Client, corpus: Corpus, target: float, k: int) -> Asked:
    """Search all queries with a target."""
    found = []
    for batch in batches_of(corpus.queries, BATCH):
        hits = client.search(COLLECTION, batch, k, target_recall=target)
        found.append(np.asarray(hits.ids).reshape(len(batch), k))
    recall = recall_of(np.concatenate(found), corpus.neighbors[:, :k])
    return Asked(recall, hits.receipt.shards)


# ---- the sweep ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sweep:
    """The ranks of the true neighbors among the candidates, at each nprobe that was tried.

    `places` are int64 (queries, 100) from 0; CANDIDATES_MAX or more for those not proposed. A true
    neighbor that is re-ranked is found, so the places give the recall of every setting.
    """

    places: Mapping[int, Int64Array]

    def reaching(self, recall: float, k: int) -> list[Setting]:
        """Return the fewest candidates that reach a recall, for each nprobe that can."""
        settings = []
        for nprobe, places in self.places.items():
            ascending = np.sort(places[:, :k], axis=None)
            place = int(ascending[max(0, math.ceil(recall * len(ascending)) - 1)])
            if place < CANDIDATES_MAX:
                settings.append(Setting(nprobe, max(k, place + 1)))
        return settings


def sweep(codes: Codes, corpus: Corpus, nlist: int) -> Sweep:
    """Try growing nprobe until more lists gain nothing."""
    batches = batches_of(corpus.queries, BATCH)
    places: dict[int, Int64Array] = {}
    enough_from = 0
    for nprobe in efforts(1):
        nprobe = min(nprobe, nlist)
        places[nprobe] = codes.places(batches, corpus.neighbors, nprobe, CANDIDATES_MAX)
        if not enough_from and (places[nprobe] < CANDIDATES_MAX).mean() >= TARGETS[-1]:
            enough_from = nprobe
        if nprobe == nlist or (enough_from and nprobe >= BEYOND_ENOUGH * enough_from):
            break
    return Sweep(places)


def row_of(
    codes: Codes, corpus: Corpus, swept: Sweep, target: float, k: int, asked: Asked, budget_s: float
) -> Row:
    """Return the table's row of a target."""
    bar = "met" if asked.recall >= target - BELOW_BAR else "missed"
    if not all(shard.nprobe for shard in asked.shards):
        reason = asked.shards[0].exact_reason
        exact = f"every row: {reason.name}" if reason else "every row"
        return (corpus.name, k, f"{target:.2f}", asked.recall, bar, exact, "-", "-", "-", "-")
    batches = batches_of(corpus.queries, BATCH)
    found = codes.search(batches, k, asked.settings)
    recall = recall_of(found, corpus.neighbors[:, :k])
    timed_batches = batches[:TIMED_BATCHES]

    def search(settings: Sequence[Setting], round_: int) -> None:
        codes.search(timed_batches, k, settings)

    timed: dict[str, Callable[[int], object]] = {CHOSEN: partial(search, asked.settings)}
    finalists: dict[str, list[Setting]] = {}
    for name, wanted in ((OF_TARGET, target), (OF_SAME, recall)):
        reaching = swept.reaching(wanted, k)
        finalists[name] = fastest(lambda setting: search([setting] * SHARDS, 0), reaching)
        for place, setting in enumerate(finalists[name]):
            timed[f"{name} {place}"] = partial(search, [setting] * SHARDS)
    samples = in_turn(timed, budget_s)

    def winner(name: str) -> tuple[Cell, Cell]:
        places = range(len(finalists[name]))
        best = min(places, key=lambda place: samples.median_ms(f"{name} {place}"), default=None)
        if best is None:
            return "none", "-"
        return shown(finalists[name][best]), samples.ratio(CHOSEN, f"{name} {best}")

    cheapest, ratio = winner(OF_TARGET)
    return (
        corpus.name,
        k,
        f"{target:.2f}",
        asked.recall,
        bar,
        " / ".join(sorted({shown(setting) for setting in asked.settings})),
        cheapest,
        ratio,
        "-" if isinstance(ratio, str) else "met" if ratio <= TIME_BAR else "missed",
        winner(OF_SAME)[1],
    )


def fastest(search: Callable[[Setting], object], settings: Sequence[Setting]) -> list[Setting]:
    """Return the FINALISTS fastest settings of a first pass."""
    took_s = {}
    for setting in settings:
        start = perf_counter()
        search(setting)
        took_s[setting] = perf_counter() - start
    return sorted(settings, key=lambda setting: took_s[setting])[:FINALISTS]


def shown(setting: Setting) -> str:
    """Return a setting as short text."""
    return f"{setting.nprobe}, {setting.candidates}"
