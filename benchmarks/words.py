"""Searches among real words, at a recall of 0.95: ours through gRPC, and FAISS in process.

One process with its shards, a router over two shard processes, and a plain fan-out over the same
two (`plain_router`), all loaded from another process; and FAISS in this process (`peers`), while
the servers rest. The compared runs alternate in every round. The picture of recall against
queries/s is drawn from the same run.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from benchmarks import glove, picture
from benchmarks.fanout import Calls, Kind, run_load
from benchmarks.load.plan import Plan
from benchmarks.load.requests import empty_calls, searches
from benchmarks.peers import (
    Codes,
    Int64Array,
    Search,
    Setting,
    batches_of,
    cheapest,
    curve,
    flat,
    hnsw,
    recall_of,
)
from benchmarks.report import Cell, Row, Table
from benchmarks.server import (
    SHARDS,
    scratch,
    serving,
    serving_fleet,
    start_command,
    wait_until_at_rest,
)
from benchmarks.start import cpu_of_children_s
from benchmarks.transport import THEIRS, posts
from benchmarks.vectors import SEED, Float32Array
from vectorshard.client.client import Client
from vectorshard.shard.types import IndexConfig, IndexKind, ShardReceipt

COLLECTION = "words"
FLAT_COLLECTION = "words-flat"
"""The collection of the plain fan-out."""
K = 10
BATCH = 64
TARGET_RECALL = 0.95
ROUNDS = 5
QUICK_ROUNDS = 1
QUICK_ROWS = 30_000
QUERIES = 2_048
"""Batches of a round in process."""
QUICK_QUERIES = 512
DURATION_S = 1.5
"""Duration of each run of the load generator."""
QUICK_DURATION_S = 0.5
AT_ONCE = 16
"""h2load posts one request repeatedly, so several run, each with its own query."""
EMPTY_CALLS, SEARCHES = 800, 300
"""Calls of each h2load in a round."""

PICTURE_TARGETS = (0.8, 0.9, 0.95, 0.99)
PICTURE_PASSES = 3
PICTURE_FROM, PICTURE_TO = 0.75, 0.99

EMBEDDED, FLEET, PLAIN = "embedded", "router + 2 shards", "plain fan-out, IVF_FLAT"
CODES, FLAT, HNSW = (
    "in process: same codes, re-ranked",
    "in process: IVF1024,Flat",
    "in process: HNSW32",
)
EFFORTS = {FLAT: "nprobe", HNSW: "efSearch"}
BY_H2LOAD = f"embedded, by {THEIRS}"

BATCHES = Calls("batches of 64, 4 in flight", 4, BATCH, COLLECTION)
SINGLES = Calls("single queries, 16 in flight", AT_ONCE, 1, COLLECTION)
EMPTY = Calls("empty calls, 16 in flight", AT_ONCE, 0, COLLECTION)
ALONE = Calls("one query at a time", 1, 1, COLLECTION)
EMPTY_ALONE = Calls("one empty call at a time", 1, 0, COLLECTION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One run: recall if it was measured, and the load generator's figures."""

    queries_per_s: float
    recall: float | None = None
    p50_ms: float | None = None
    client_us: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the table. `ours` names the row that is compared with this one, by `bar`."""

    load: str
    who: str
    ours: tuple[str, str] | None = None
    bar: float | None = None


LINES = (
    Line(BATCHES.name, EMBEDDED),
    Line(BATCHES.name, CODES, (BATCHES.name, EMBEDDED), 0.7),
    Line(BATCHES.name, FLAT, (BATCHES.name, EMBEDDED), 2.0),
    Line(BATCHES.name, HNSW, (BATCHES.name, EMBEDDED), 1.0),
    Line(BATCHES.name, FLEET),
    Line(BATCHES.name, PLAIN, (BATCHES.name, FLEET), 2.0),
    Line(SINGLES.name, BY_H2LOAD),
    Line(EMPTY.name, BY_H2LOAD, (SINGLES.name, BY_H2LOAD), 0.35),
    Line(SINGLES.name, EMBEDDED),
    Line(EMPTY.name, EMBEDDED, (SINGLES.name, EMBEDDED)),
    Line(SINGLES.name, FLEET),
    Line(SINGLES.name, PLAIN, (SINGLES.name, FLEET), 2.0),
)
"""The rates; a bar is the lowest accepted ratio of ours to this one."""

BEYOND_BAR_MS = 1.0
BEYOND_BAR = 0.7
"""The highest accepted ratio of the fleet's time over an empty call to the plain fan-out's."""

Runs = Mapping[tuple[str, str], Sequence[Figures]]
"""The rounds of each load on each of the compared."""


def measure(quick: bool) -> Table:
    """Measure every load on all servers and FAISS, and draw the picture."""
    with scratch() as directory:
        words, data = few_words(directory) if quick else (glove.load(), glove.FILE)
        with servers(directory, words) as kinds:
            rounds = Rounds(kinds, words, data, directory, quick)
            for round_ in range(QUICK_ROUNDS if quick else ROUNDS):
                rounds.run(round_)
            picture.draw(rounds.curves(), picture.QUICK_FILE if quick else picture.FILE)
    size = len(words.train.words)
    return Table(
        name="words",
        title=f"{size:,} words at a target recall of {TARGET_RECALL}",
        columns=(
            "load",
            "who",
            "effort",
            f"recall@{K}",
            "queries/s",
            "p50, ms",
            "p50 less the empty call's, ms",
            "load generator's CPU, µs a query",
            "ours / this one",
            "bar",
            "rounds",
        ),
        rows=[*rows_of_rates(rounds.runs, rounds.efforts), *rows_of_times(rounds.runs)],
        notes=(
            f"GloVe, d={words.train.vectors.shape[1]}, COSINE, k={K}, IVF_PQ, {SHARDS} shards; "
            "queries are a random held-out sample. Medians; a ratio is that of a round. Recall is "
            "relative to exact neighbours. In process: FAISS with the same cores as the shards, "
            "batches of 64; the same codes are in one index per shard, each with its own thread, "
            "and with the nlist, nprobe and candidates that the shards report; the others have the "
            "least effort that reaches the recall. "
            f"By {THEIRS}: {AT_ONCE} in parallel, each with one connection, one call in flight and "
            "its own query. vectorshard bench --closed loads all others over one connection, and "
            "shares their cores. Ours of a row is the row above it with the same load, or for "
            "empty calls the single queries. The plain fan-out is `plain_router.py`: a unary call "
            "to each shard per request, with grpc's default settings, on uvloop. Its shards are "
            "those of the router, so it still benefits from their transport and batching, and its "
            "index is IVF_FLAT."
        ),
    )


def few_words(directory: Path) -> tuple[glove.Glove, Path]:
    """Return some of the words with their neighbours, and the file they were written to."""
    words = glove.load()
    rows = np.sort(np.random.default_rng(SEED).permutation(len(words.train.words))[:QUICK_ROWS])
    train = glove.Words(words=words.train.words[rows], vectors=words.train.vectors[rows])
    test = glove.Words(
        words=words.test.words[:QUICK_QUERIES], vectors=words.test.vectors[:QUICK_QUERIES]
    )
    neighbors, distances = glove.nearest(train.vectors, test.vectors, glove.NEIGHBORS)
    few = glove.Glove(train=train, test=test, neighbors=neighbors, distances=distances)
    file = directory / "words.hdf5"
    glove.save(file, few)
    return few, file


# ---- the servers --------------------------------------------------------------------------------


@contextmanager
def servers(directory: Path, words: glove.Glove) -> Iterator[Mapping[str, Kind]]:
    """Run all servers over the words, trained on all of them and at rest."""
    with serving(directory / "rows") as server, serving_fleet(directory / "fleet") as fleet:
        router, *shards = fleet.values()
        with server.connect() as client:
            fill(client, COLLECTION, words, IndexKind.IVF_PQ)
        with router.connect() as client:
            fill(client, COLLECTION, words, IndexKind.IVF_PQ)
            fill(client, FLAT_COLLECTION, words, IndexKind.IVF_FLAT)
        command = [sys.executable, "-m", "benchmarks.plain_router"]
        plain = start_command(
            [*command, *(shard.target for shard in shards)], directory / "plain.log"
        )
        try:
            yield {
                EMBEDDED: Kind(EMBEDDED, {"embedded": server}),
                FLEET: Kind(FLEET, fleet),
                PLAIN: Kind(PLAIN, {"plain": plain}),
            }
        finally:
            plain.kill()


def fill(client: Client, name: str, words: glove.Glove, kind: IndexKind) -> None:
    """Write the words under their row numbers, and train on all of them."""
    vectors = words.train.vectors
    client.create_collection(
        name,
        dim=vectors.shape[1],
        index=IndexConfig(kind=kind),
        target_recall=TARGET_RECALL,
    )
    client.upsert(name, np.arange(len(vectors)), vectors)
    client.train(name, wait=True)
    wait_until_at_rest(client, name)


def settings_of(client: Client, name: str, queries: Float32Array) -> Sequence[ShardReceipt]:
    """Return the effort of each shard at the collection's target."""
    return client.search(name, queries, K).receipt.shards


# ---- the rounds ---------------------------------------------------------------------------------


class Rounds:
    """All loads in turn, and the figures of each round."""

    def __init__(
        self,
        kinds: Mapping[str, Kind],
        words: glove.Glove,
        data: Path,
        directory: Path,
        quick: bool,
    ) -> None:
        self.runs: dict[tuple[str, str], list[Figures]] = {}
        self.efforts: dict[str, str] = {}
        self._kinds = kinds
        self._data = data
        self._directory = directory
        self._duration_s = QUICK_DURATION_S if quick else DURATION_S
        queries = glove.unit(words.test.vectors[: QUICK_QUERIES if quick else QUERIES])
        self._neighbors = words.neighbors[: len(queries), :K].astype(np.int64)
        self._queries = queries
        self._batches = batches_of(queries, BATCH)
        self._part = 4 if quick else 1
        self._passes = QUICK_ROUNDS if quick else PICTURE_PASSES
        self._settings = self._read_settings()
        vectors = glove.unit(words.train.vectors)
        nlist = self._settings[EMBEDDED][0].nlist
        self._codes = Codes(vectors, nlist, SHARDS)
        self._whole: Mapping[str, Search] = {FLAT: flat(vectors), HNSW: hnsw(vectors)}
        self._least: dict[str, int] = {}
        self._curves = self._curves_of_peers()
        self._peers = self._searches_of_peers()

    def run(self, round_: int) -> None:
        """Run every load on all of the compared."""
        timed: list[Callable[[], None]] = [
            *(partial(self._note_of_peer, who) for who in self._peers),
            *(
                partial(self._note_load, who, calls)
                for calls in (BATCHES, SINGLES, ALONE, EMPTY_ALONE, EMPTY)
                for who in self._kinds
            ),
        ]
        if shutil.which(THEIRS):
            timed.append(self._note_h2load)
        for each in timed if round_ % 2 else timed[::-1]:
            each()

    def curves(self) -> Sequence[picture.Curve]:
        """Return all curves of the picture: those in process, and ours at each target recall."""
        ours = []
        for name, calls in (
            ("vectorshard through gRPC, batches of 64", BATCHES),
            ("vectorshard through gRPC, single queries, 16 in flight", SINGLES),
        ):
            points = []
            for target in PICTURE_TARGETS:
                aimed = Calls(calls.name, calls.in_flight, calls.queries, COLLECTION, target)
                runs = [
                    run_load(self._kinds[EMBEDDED], aimed, self._data, self._duration_s)
                    for _ in range(self._passes)
                ]
                recall = median(run.recall for run in runs if run.recall is not None)
                points.append((recall, median(run.queries_per_s for run in runs)))
            ours.append(picture.Curve(name, tuple(points), is_ours=True))
        return [*ours, *self._curves]

    def _read_settings(self) -> Mapping[str, Sequence[ShardReceipt]]:
        settings = {}
        for who, kind in self._kinds.items():
            name = FLAT_COLLECTION if who == PLAIN else COLLECTION
            front = self._kinds[FLEET].front if who == PLAIN else kind.front
            with front.connect() as client:
                settings[who] = settings_of(client, name, self._batches[0])
            self.efforts[who] = described(settings[who])
        self.efforts[CODES] = self.efforts[EMBEDDED]
        return settings

    def _curves_of_peers(self) -> Sequence[picture.Curve]:
        curves = []
        of_receipts = self._settings[EMBEDDED][0]
        ratio = of_receipts.candidates / of_receipts.nprobe

        def codes(nprobe: int) -> Int64Array:
            setting = Setting(nprobe, max(K, round(ratio * nprobe)))
            return self._codes.search(self._batches, K, [setting] * SHARDS)

        for who, name, lowest, search in (
            (CODES, "FAISS in process, the same codes, re-ranked", 4, codes),
            (FLAT, "FAISS in process, IVF1024,Flat", 2, partial(self._search_whole, FLAT)),
            (HNSW, "FAISS in process, HNSW32", K, partial(self._search_whole, HNSW)),
        ):
            points = curve(
                search,
                self._neighbors,
                lowest=lowest,
                recall_from=PICTURE_FROM,
                recall_to=PICTURE_TO,
                passes=self._passes,
            )
            drawn = tuple((point.recall, point.queries_per_s) for point in points)
            curves.append(picture.Curve(name, drawn))
            if who != CODES:
                self._least[who] = cheapest(points, TARGET_RECALL).effort
                self.efforts[who] = f"{EFFORTS[who]} {self._least[who]}"
        return curves

    def _searches_of_peers(self) -> Mapping[str, Callable[[], Int64Array]]:
        settings = [Setting(shard.nprobe, shard.candidates) for shard in self._settings[EMBEDDED]]
        return {
            CODES: lambda: self._codes.search(self._batches, K, settings),
            FLAT: lambda: self._search_whole(FLAT, self._least[FLAT]),
            HNSW: lambda: self._search_whole(HNSW, self._least[HNSW]),
        }

    def _search_whole(self, who: str, effort: int) -> Int64Array:
        return self._whole[who](self._batches, K, effort)

    def _note_of_peer(self, who: str) -> None:
        start = perf_counter()
        found = self._peers[who]()
        took_s = perf_counter() - start
        recall = recall_of(found, self._neighbors)
        self._note(BATCHES.name, who, Figures(queries_per_s=len(found) / took_s, recall=recall))

    def _note_load(self, who: str, calls: Calls) -> None:
        if who == PLAIN:
            calls = Calls(calls.name, calls.in_flight, calls.queries, FLAT_COLLECTION)
        run = run_load(self._kinds[who], calls, self._data, self._duration_s)
        figures = Figures(
            queries_per_s=run.queries_per_s,
            recall=run.recall,
            p50_ms=run.p50_ms,
            client_us=run.client_us,
        )
        self._note(calls.name, who, figures)

    def _note_h2load(self) -> None:
        plan = Plan(target="", collection=COLLECTION, k=K)
        server = self._kinds[EMBEDDED].front
        for calls, requests, number in (
            (SINGLES, searches(plan, self._queries), SEARCHES),
            (EMPTY, empty_calls(), EMPTY_CALLS),
        ):
            number //= self._part
            asked = posts(self._directory, requests, server, AT_ONCE)
            before_s, start = cpu_of_children_s(), perf_counter()
            running = [
                subprocess.Popen(post.command(number, 1), stdout=subprocess.PIPE) for post in asked
            ]
            told = [child.communicate()[0] for child in running]
            took_s = perf_counter() - start
            used_s = cpu_of_children_s() - before_s
            for post, each in zip(asked, told, strict=True):
                post.check(number, each)
            every = AT_ONCE * number
            figures = Figures(queries_per_s=every / took_s, client_us=1e6 * used_s / every)
            self._note(calls.name, BY_H2LOAD, figures)

    def _note(self, load: str, who: str, figures: Figures) -> None:
        self.runs.setdefault((load, who), []).append(figures)


def described(shards: Sequence[ShardReceipt]) -> str:
    """Return the efforts of all shards as short text."""
    told = sorted({f"nprobe {each.nprobe}, candidates {each.candidates}" for each in shards})
    return " / ".join(told)


# ---- the rows -----------------------------------------------------------------------------------


def rows_of_rates(runs: Runs, efforts: Mapping[str, str]) -> Iterator[Row]:
    """Yield the rows of the measured LINES."""
    for line in LINES:
        of_line = runs.get((line.load, line.who), ())
        if not of_line:
            yield (line.load, f"{line.who}: not installed", *("-",) * 8, 0)
            continue
        ratio: Cell = "-"
        bar = "-"
        if line.ours is not None:
            pairs = zip(runs[line.ours], of_line, strict=True)
            ratio = median(ours.queries_per_s / this.queries_per_s for ours, this in pairs)
            if line.bar is not None:
                bar = f">= {line.bar:g}, {'met' if ratio >= line.bar else 'missed'}"
        yield (
            line.load,
            line.who,
            "-" if "empty" in line.load else efforts.get(line.who, efforts[EMBEDDED]),
            median_of([each.recall for each in of_line]),
            median(each.queries_per_s for each in of_line),
            median_of([each.p50_ms for each in of_line]),
            "-",
            median_of([each.client_us for each in of_line]),
            ratio,
            bar,
            len(of_line),
        )


def rows_of_times(runs: Runs) -> Iterator[Row]:
    """Yield the rows of one query at a time: its p50 less that of an empty call of the round."""
    beyond_ms = {
        who: [
            search.p50_ms - empty.p50_ms
            for search, empty in zip(
                runs[ALONE.name, who], runs[EMPTY_ALONE.name, who], strict=True
            )
            if search.p50_ms is not None and empty.p50_ms is not None
        ]
        for who in (EMBEDDED, FLEET, PLAIN)
    }
    fleet = median(
        ours / this for ours, this in zip(beyond_ms[FLEET], beyond_ms[PLAIN], strict=True)
    )
    for who, of_who in beyond_ms.items():
        took_ms = median(of_who)
        bar, ratio = "-", "-"
        if who == EMBEDDED:
            bar = f"<= {BEYOND_BAR_MS:g} ms, {'met' if took_ms <= BEYOND_BAR_MS else 'missed'}"
        runs_of_who = runs[ALONE.name, who]
        yield (
            ALONE.name,
            who,
            "-",
            median_of([each.recall for each in runs_of_who]),
            median(each.queries_per_s for each in runs_of_who),
            median_of([each.p50_ms for each in runs_of_who]),
            took_ms,
            median_of([each.client_us for each in runs_of_who]),
            fleet if who == PLAIN else ratio,
            f"<= {BEYOND_BAR:g}, {'met' if fleet <= BEYOND_BAR else 'missed'}"
            if who == PLAIN
            else bar,
            len(of_who),
        )


def median_of(figures: Sequence[float | None]) -> Cell:
    """Return the median of the existing figures; "-" if there are no figures."""
    there = [each for each in figures if each is not None]
    return median(there) if there else "-"
