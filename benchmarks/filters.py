"""Searches with filters: their recall, and their time compared with the same search without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from benchmarks import glove
from benchmarks.report import Row, Table
from benchmarks.server import described, scratch, serving, wait_until_at_rest
from benchmarks.timing import Samples, in_turn
from benchmarks.vectors import SEED, Float32Array, clustered
from vectorshard import Client, Hits
from vectorshard.shard.types import FieldType, FilterField

COLLECTION = "filters"
DIM = 100
K = 10
BATCH = 64
SHARES = (0.01, 0.1, 0.5)
ROWS = 200_000
QUICK_ROWS = 30_000
QUERIES = 1_024
QUICK_QUERIES = 256
REGIONS = 100
UNFILTERED = "none"

FILTERS: Mapping[str, str] = {
    f"{name} {share:.0%}": f"{name} < {share}"
    for name in ("independent", "region")
    for share in SHARES
}
"""Filters by name. `independent` is a random number; `region` numbers the rows region by region of
the space, so that a filter keeps whole regions."""


def measure(quick: bool) -> Table:
    """Measure filters of several selectivities, in turn with the search without a filter."""
    vectors, queries, source = vectors_and_queries(quick)
    with scratch() as directory, serving(directory / "rows") as server, server.connect() as client:
        client.create_collection(
            COLLECTION,
            dim=DIM,
            filter_fields=[
                FilterField("independent", FieldType.DOUBLE),
                FilterField("region", FieldType.DOUBLE),
            ],
        )
        metadata = [
            {"independent": number, "region": place}
            for number, place in zip(
                np.random.default_rng(SEED).random(len(vectors)).tolist(),
                places_by_region(vectors).tolist(),
                strict=True,
            )
        ]
        client.upsert(COLLECTION, np.arange(len(vectors)), vectors, metadata)
        client.train(COLLECTION, wait=True)
        index = described(wait_until_at_rest(client, COLLECTION))
        filters: dict[str, str | None] = {UNFILTERED: None, **FILTERS}
        found = {
            name: (
                recall(client, queries, filter_),
                client.search(COLLECTION, queries[:BATCH], K, filter=filter_),
            )
            for name, filter_ in filters.items()
        }
        timed: dict[str, Callable[[int], object]] = {
            f"{name}, {at_once}": partial(ask, client, queries, at_once, filter_)
            for name, filter_ in filters.items()
            for at_once in (1, BATCH)
        }
        samples = in_turn(timed, budget_s=3.0 if quick else 20.0)
    return Table(
        name="filters",
        title="Searches with filters compared with the same search without one",
        columns=(
            "filter keeps",
            "rows that pass",
            "filter plan",
            "nprobe",
            "recall@10",
            "one query, ms",
            "/ without",
            f"{BATCH} queries, ms",
            "/ without",
            "rounds",
        ),
        rows=[row_of(name, *found[name], samples) for name in filters],
        notes=(
            f"{len(vectors):,} {source}, d={DIM}, cosine, k={K}, 2 shards, one client; {index}. "
            "Recall is relative to the exact search with the same filter, over "
            f"{len(queries):,} held-out queries, in batches of {BATCH}. "
            "`independent` is a random number; `region` numbers the rows through "
            f"{REGIONS} regions of the space, so most queries lie far from the rows that pass. "
            "nprobe is that of the first step on the first shard. Medians; the ratios are the "
            "medians of the rounds' ratios."
        ),
    )


def vectors_and_queries(quick: bool) -> tuple[Float32Array, Float32Array, str]:
    """Return vectors, queries and their name: words if `make glove` has fetched them."""
    rows, asked = (QUICK_ROWS, QUICK_QUERIES) if quick else (ROWS, QUERIES)
    if not glove.FILE.exists():
        return clustered(rows, DIM), clustered(asked, DIM, part=1), "clustered vectors"
    words = glove.load()
    vectors, queries = words.train.vectors, words.test.vectors[:asked]
    if quick:  # the words are ordered by frequency
        vectors = vectors[np.random.default_rng(SEED).permutation(len(vectors))[:rows]]
    return vectors, queries, "GloVe words"


def places_by_region(vectors: Float32Array) -> npt.NDArray[np.float64]:
    """Return the place of each row when rows are numbered region by region, in [0, 1).

    A region is the rows nearest to one of REGIONS rows.
    """
    unit = glove.unit(vectors)
    random = np.random.default_rng(SEED)
    centres = unit[random.choice(len(unit), REGIONS, replace=False)]
    region = np.concatenate(
        [(part @ centres.T).argmax(axis=1) for part in np.array_split(unit, 64)]
    )
    places = np.empty(len(vectors))
    places[np.argsort(region, kind="stable")] = np.arange(len(vectors)) / len(vectors)
    return places


def ask(
    client: Client, queries: Float32Array, at_once: int, filter_: str | None, round_: int
) -> None:
    """Search the queries of a round in one call."""
    first = round_ * at_once % (len(queries) - at_once + 1)
    client.search(COLLECTION, queries[first : first + at_once], K, filter=filter_)


def recall(client: Client, queries: Float32Array, filter_: str | None) -> float:
    """Return the mean share of the true k best that a search finds."""
    found = right = 0
    for first in range(0, len(queries), BATCH):
        batch = queries[first : first + BATCH]
        best = client.search(COLLECTION, batch, K, filter=filter_, exact=True)
        for hits, truth in zip(
            client.search(COLLECTION, batch, K, filter=filter_), best, strict=True
        ):
            right += len(truth)
            found += len({hit.id for hit in hits} & {hit.id for hit in truth})
    return found / right


def row_of(name: str, recall_: float, hits: Hits, samples: Samples) -> Row:
    """Return the table's row of one filter."""
    shards = hits.receipt.shards
    plans = sorted({shard.filter_plan.name for shard in shards if shard.filter_plan})
    one, many = f"{name}, 1", f"{name}, {BATCH}"
    return (
        name,
        sum(shard.rows_passing for shard in shards) if plans else "all",
        " / ".join(plans) or "-",
        shards[0].nprobe or "-",
        recall_,
        samples.median_ms(one),
        samples.ratio(one, f"{UNFILTERED}, 1"),
        samples.median_ms(many),
        samples.ratio(many, f"{UNFILTERED}, {BATCH}"),
        samples.rounds,
    )
