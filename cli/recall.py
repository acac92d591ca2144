"""The command `recall`: how much of an exact answer searches find, and what that costs.

It asks with rows of the collection, because a target recall holds for queries like the rows. A row
is its own nearest neighbour, which every search finds, so it does not count. Every search states
its target, so that none of them enters the sample of live queries.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Final

import numpy as np
import typer
from rich.progress import Progress, TaskID

from vectorshard.cli import asking, tables
from vectorshard.cli.addresses import DEFAULT_ADDRESS
from vectorshard.cli.interruption import told_when_interrupted
from vectorshard.cli.json_output import print_json
from vectorshard.cli.output import steps_progress, terminal
from vectorshard.shard.errors import VectorShardError
from vectorshard.shard.types import Float32Array, IdArray, Metric, Receipt

if TYPE_CHECKING:
    from vectorshard.client.client import Client
    from vectorshard.client.results import Hits

LISTED_ROWS: Final = 10_000
"""Ids in a page of the listing that draws the queries."""

TARGETS: Final = (0.80, 0.90, 0.95, 0.99)
"""Measured unless the caller names others; the collection's own target joins them."""

SEED: Final = 0
"""The same rows each time, so that two measurements differ by the index alone."""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Answers:
    """The hits of each query: its ids and its scores, best first, and what they cost."""

    ids: Sequence[IdArray]
    scores: Sequence[Float32Array]
    receipt: Receipt
    query_s: float


def recall(
    collection: asking.Name,
    target: asking.Target = DEFAULT_ADDRESS,
    k: Annotated[str, typer.Option(help='Numbers of hits: "10,100", each at least 2.')] = "10,100",
    targets: Annotated[
        str | None,
        typer.Option(
            help='Target recalls: "0.9,0.95". Default: 0.8, 0.9, 0.95, 0.99 and the collection\'s.'
        ),
    ] = None,
    queries: Annotated[
        int, typer.Option(min=1, max=2_000, help="Rows that serve as queries.")
    ] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Queries in each call.")] = 64,
    timeout: asking.Timeout = 60.0,
    as_json: asking.AsJson = False,
) -> None:
    """Measure the recall of searches against exact ones, and what each costs."""
    wanted_k = [int(number) for number in numbers(k, "--k", 2, float("inf"), int)]
    wanted_targets = None if targets is None else numbers(targets, "--targets", 0.01, 1, float)
    console = terminal(silent=as_json)
    with asking.connect(target, timeout) as client:
        config = client.describe(collection).config
        aims = wanted_targets or sorted({*TARGETS, round(config.target_recall, 6)})
        with (
            told_when_interrupted(lambda: "nothing was measured; fewer --queries take less time"),
            steps_progress(console) as progress,
        ):
            ids, vectors = sampled_rows(client, collection, queries, progress)
            task = progress.add_task("searching", total=len(wanted_k) * (1 + len(aims)))
            measure = Measurement(client, collection, config.metric, ids, vectors, batch)
            figures = [
                each for hits in wanted_k for each in measure.run(hits, aims, progress, task)
            ]
    if as_json:
        print_json({"queries": len(ids), "figures": figures})
    else:
        console.print(tables.measured_recall_table(collection, len(ids), figures))


def numbers(
    text: str, option: str, least: float, most: float, kind: Callable[[str], float]
) -> list[float]:
    """Return the numbers of a text with commas between them, in ascending order.

    Raises typer.BadParameter for a text without any, or a number outside [least, most].
    """
    try:
        parsed = sorted({kind(part) for part in text.split(",") if part.strip()})
    except ValueError:
        parsed = []
    if not parsed or not all(least <= number <= most for number in parsed):
        bounds = f"of at least {least}" if most == float("inf") else f"from {least} to {most}"
        raise typer.BadParameter(f"{option}: {text!r} is not a list of numbers {bounds}")
    return parsed


def sampled_rows(
    client: Client, collection: str, wanted: int, progress: Progress
) -> tuple[IdArray, Float32Array]:
    """Return ids (rows,) and vectors (rows, dim) of at most `wanted` rows, each as likely.

    Raises VectorShardError if the collection has fewer than two rows.
    """
    random = np.random.default_rng(SEED)
    task = progress.add_task("drawing rows", total=client.describe(collection).ledger.live)
    ids: IdArray = np.empty(0, dtype=object)
    keys = np.empty(0)
    listed = 0
    for page in client.list_rows(collection, page_size=LISTED_ROWS):
        progress.advance(task, len(page.ids))
        listed += len(page.ids)
        ids = np.concatenate([ids, page.ids.astype(object)])
        keys = np.concatenate([keys, random.random(len(page.ids))])
        kept = np.argsort(keys)[:wanted]
        ids, keys = ids[kept], keys[kept]
    if listed < 2:
        raise VectorShardError(
            f"measuring recall needs at least 2 rows; collection {collection!r} has {listed}"
        )
    found = client.get(collection, ids.tolist(), metadata=False)
    assert found.vectors is not None
    return found.ids, found.vectors


@dataclass(frozen=True, slots=True)
class Measurement:
    """Compares searches by target recall with exact ones, on the same queries.

    `ids` (queries,) and `vectors` (queries, dim) are rows of the collection. `clock` is in seconds.
    """

    client: Client
    collection: str
    metric: Metric
    ids: IdArray
    vectors: Float32Array
    batch: int
    clock: Clock = time.perf_counter

    def run(
        self, k: int, targets: Sequence[float], progress: Progress, task: TaskID
    ) -> Iterator[tables.MeasuredRecall]:
        """Yield the figures of an exact search, and of one for each target recall."""
        truth = self._search(k, exact=True)
        progress.advance(task)
        yield tables.MeasuredRecall(k, None, 1.0, 0.0, truth.query_s, truth.receipt)
        for target in targets:
            found = self._search(k, target_recall=target)
            progress.advance(task)
            shares = self.shares(found, truth)
            error = float(shares.std() / np.sqrt(len(shares)))
            yield tables.MeasuredRecall(
                k, target, float(shares.mean()), error, found.query_s, found.receipt
            )

    def _search(self, k: int, **effort: Any) -> Answers:
        ids: list[IdArray] = []
        scores: list[Float32Array] = []
        begun = self.clock()
        for first in range(0, len(self.vectors), self.batch):
            queries = self.vectors[first : first + self.batch]
            hits: Hits = self.client.search(self.collection, queries, k, **effort)
            for begin, end in pairwise([0, *np.cumsum(hits.counts, dtype=np.int64).tolist()]):
                ids.append(hits.ids[begin:end])
                scores.append(hits.scores[begin:end])
        return Answers(ids, scores, hits.receipt, (self.clock() - begun) / len(self.vectors))

    def shares(self, found: Answers, truth: Answers) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the share of each query's neighbours that was found, equal scores included."""
        shares = np.ones(len(self.ids))
        for query, own in enumerate(self.ids.tolist()):
            scores, worst = found.scores[query], truth.scores[query][-1:]
            good = scores <= worst if self.metric.smaller_is_better else scores >= worst
            good_ids = found.ids[query][good]
            is_own = own in truth.ids[query] or own in good_ids
            wanted = len(truth.ids[query]) - is_own
            if wanted:
                shares[query] = min(int(np.count_nonzero(good_ids != own)), wanted) / wanted
        return shares


COMMANDS: Final = (recall,)
