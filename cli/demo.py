"""The demonstration: real words into a real server, searched while its index trains.

It is an ordinary client: the server is a child process, asked over gRPC alone. Every promise that
is shown is also checked, and the last lines name those that were broken.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import IO

import numpy as np
from rich.console import Console
from rich.table import Table

import vectorshard
from vectorshard.cli import tables
from vectorshard.cli.output import rows_progress
from vectorshard.cli.vector_files import UnreadableFile, open_vectors
from vectorshard.client.client import Client
from vectorshard.client.results import Hits
from vectorshard.shard.config import LISTENING
from vectorshard.shard.errors import ShardUnavailable
from vectorshard.shard.texts import counted
from vectorshard.shard.types import IdArray, IdType, IndexConfig, Metric, VectorArray

WORDS = Path(vectorshard.__file__).parent / "words-20k.npz"
"""examples/words-20k.npz is a link to it."""
COLLECTION = "words"
SHOWN_WORDS = ("coffee", "paris", "guitar", "physics", "river", "monday")

WRITE_ROWS = 500
"""Rows in each call: few, so that searches see the collection grow."""
MIN_TRAINING_SIZE = 8_000
"""Rows of a shard before it trains: above the default, to show searches of the training buffer."""
WATCH_QUERIES = 32
"""Words in each search of the watcher."""
BATCH = 8
TIMED_ROUNDS = 40
TIMEOUT_S = 30.0
TRAINING_S = 600.0
"""Longest wait for the training, which yields to everything else that the machine does."""
START_S = 30.0
STOP_S = 30.0


@dataclass(slots=True)
class Sighting:
    """What searches saw while the shards were in one state: sums, and the largest row counts."""

    searches: int = 0
    asked: int = 0
    found: int = 0
    rows_exact: int = 0
    rows_visible: int = 0


@dataclass(slots=True)
class Watch:
    """Searches for words already written.

    `sightings` is by state, in the order of the states. `broken` names the broken promises.
    """

    words: IdArray
    vectors: VectorArray
    sightings: dict[str, Sighting] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)

    def look(self, client: Client, rows_written: int, rng: np.random.Generator) -> None:
        """Search for a sample of the first `rows_written` words, and record the answer."""
        description = client.describe(COLLECTION)
        state = " / ".join(tables.state_of(shard) for shard in description.shards)
        sample = rng.choice(rows_written, size=min(WATCH_QUERIES, rows_written), replace=False)
        hits = client.search(COLLECTION, self.vectors[sample], 1)
        found = found_themselves(hits, self.words[sample])
        seen = self.sightings.setdefault(state, Sighting())
        seen.searches += 1
        seen.asked += len(sample)
        seen.found += found
        rows_exact = sum(shard.rows_exact for shard in hits.receipt.shards)
        rows_visible = sum(shard.rows_visible for shard in hits.receipt.shards)
        seen.rows_exact = max(seen.rows_exact, rows_exact)
        seen.rows_visible = max(seen.rows_visible, rows_visible)
        if found < len(sample):
            self.broken.add(f"a word did not find itself while the shards were {state}")
        if rows_visible < rows_written:
            self.broken.add(f"a written word was not visible while the shards were {state}")
        if not tables.adds_up(description):
            self.broken.add(f"the ledger did not add up while the shards were {state}")


def found_themselves(hits: Hits, words: Sequence[str] | IdArray) -> int:
    """Return how many words are their own nearest hit."""
    return sum(
        bool(of_word) and of_word[0].id == word for of_word, word in zip(hits, words, strict=True)
    )


@contextmanager
def running_server(shards: int) -> Iterator[str]:
    """Run `vectorshard serve` over an empty directory; yield the address that it serves.

    When the context ends, SIGTERM stops the server. Raises ShardUnavailable if it does not serve
    within START_S, does not stop within STOP_S, or fails.
    """
    with tempfile.TemporaryDirectory(prefix="vectorshard-demo-") as scratch:
        log = Path(scratch) / "log"
        command = [sys.executable, "-m", "vectorshard.cli", "serve", "--shards", str(shards)]
        command += ["--data", str(Path(scratch) / "rows"), "--listen", "127.0.0.1:0"]
        with (
            log.open("wb") as stderr,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as server,
        ):
            try:
                assert server.stdout is not None
                yield served_address(server.stdout, log)
                server.send_signal(signal.SIGTERM)
                if code := server.wait(STOP_S):
                    raise ShardUnavailable(f"the server exited with code {code}: {tail(log)}")
            except subprocess.TimeoutExpired:
                raise ShardUnavailable(f"the server did not stop: {tail(log)}") from None
            finally:
                if server.poll() is None:
                    server.kill()


def served_address(stdout: IO[str], log: Path) -> str:
    """Return HOST:PORT from the server's first line of output."""
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.append(stdout.readline()), daemon=True)
    reader.start()
    reader.join(START_S)
    if not lines or not lines[0].startswith(LISTENING):
        raise ShardUnavailable(f"the server did not start: {tail(log)}")
    return lines[0].removeprefix(LISTENING).strip()


def tail(log: Path) -> str:
    """Return the last line of the server's log."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "its log is empty"


def run(console: Console, *, words: Path, shards: int) -> Watch:
    """Show everything on `console`; return what searches saw, and the broken promises.

    `words` is a .npz with `vectors` (rows, dim) and `words` (rows,), as in examples/README.md.
    Raises UnreadableFile if it is not, and what `running_server` raises.
    """
    with open_vectors(words, ids_key="words") as source:
        if source.id_type is not IdType.STRING or not source.rows:
            raise UnreadableFile(f"{words}: the array words must contain strings")
        [(ids, vectors)] = source.batches(source.rows)
    with running_server(shards) as target, Client(target, timeout_s=TIMEOUT_S) as client:
        console.print(f"a server with {counted(shards, 'shard')} listens on {target}\n")
        watch = show(console, lambda: Client(target, timeout_s=TIMEOUT_S), client, ids, vectors)
    console.print("the server exited with code 0")
    for promise in sorted(watch.broken):
        console.print(f"BROKEN: {promise}", style="bold red")
    if not watch.broken:
        console.print("every promise was kept", style="bold green")
    return watch


def show(
    console: Console,
    reconnect: Callable[[], Client],
    client: Client,
    ids: IdArray,
    vectors: VectorArray,
) -> Watch:
    """Write, watch and search on an empty server; return what searches saw."""
    watch = Watch(words=ids, vectors=vectors)
    client.create_collection(
        COLLECTION,
        dim=vectors.shape[1],
        metric=Metric.COSINE,
        id_type=IdType.STRING,
        index=IndexConfig(min_training_size=MIN_TRAINING_SIZE),
    )
    write_and_watch(console, reconnect, client, watch)
    console.print(sightings_table(watch))
    watch.broken |= show_neighbours(console, client, ids, vectors)
    description = client.describe(COLLECTION)
    console.print(tables.ledger_table(description))
    if not tables.adds_up(description) or description.ledger.live != len(ids):
        watch.broken.add("the ledger does not account for every word")
    watch.broken |= show_times(console, client, vectors)
    return watch


def write_and_watch(
    console: Console, reconnect: Callable[[], Client], client: Client, watch: Watch
) -> None:
    """Write all words, then train again, while a thread with a second client searches."""
    written = 0
    finished = threading.Event()
    failures: list[Exception] = []

    def keep_looking() -> None:
        rng = np.random.default_rng(7)
        try:
            with reconnect() as watcher:
                while not finished.is_set():
                    if written:
                        watch.look(watcher, written, rng)
        except Exception as failure:  # raised by the thread that joins this one
            failures.append(failure)

    thread = threading.Thread(target=keep_looking, name="watcher")
    thread.start()
    try:
        with rows_progress(console) as progress:
            task = progress.add_task("writing words", total=len(watch.words))
            for first in range(0, len(watch.words), WRITE_ROWS):
                span = slice(first, first + WRITE_ROWS)
                summary = client.upsert(COLLECTION, watch.words[span], watch.vectors[span])
                written += summary.accepted
                progress.advance(task, summary.accepted)
        client.train(COLLECTION, wait=True, timeout_s=TRAINING_S)
    finally:
        finished.set()
        thread.join()
    if failures:
        raise failures[0]
    if written != len(watch.words):
        watch.broken.add(f"refused: {counted(len(watch.words) - written, 'word')}")


def sightings_table(watch: Watch) -> Table:
    """Return what the searches saw, one row per state of the shards."""
    table = tables.plain_table(
        "words that found themselves, while words were written and the index was trained",
        ["state of the shards"],
        ["searches", "words", "found", "rows visible", "rows exact"],
    )
    for state, seen in watch.sightings.items():
        figures = (seen.searches, seen.asked, seen.found, seen.rows_visible, seen.rows_exact)
        table.add_row(state, *(f"{figure:,}" for figure in figures))
    return table


def show_neighbours(
    console: Console, client: Client, ids: IdArray, vectors: VectorArray
) -> set[str]:
    """Print the nearest words of a few words, and the receipt; return the broken promises."""
    row_of = {word: row for row, word in enumerate(ids)}
    asked = [word for word in SHOWN_WORDS if word in row_of] or list(ids[:1])
    hits = client.search(COLLECTION, vectors[[row_of[word] for word in asked]], 7)
    table = tables.plain_table("nearest words", ["word", "nearest, by cosine"], [])
    for word, of_word in zip(asked, hits, strict=True):
        others = (hit for hit in of_word if hit.id != word)
        table.add_row(word, "  ".join(f"{hit.id} {hit.score:.2f}" for hit in others))
    console.print(table)
    console.print(tables.receipt_table(hits.receipt))
    all_found = found_themselves(hits, asked) == len(asked)
    return set() if all_found else {"a word did not find itself in the finished collection"}


def show_times(console: Console, client: Client, vectors: VectorArray) -> set[str]:
    """Time a batch and its queries one by one, alternately; return the broken promises."""
    rng = np.random.default_rng(11)
    batch_ms, singles_ms = [], []
    for _ in range(TIMED_ROUNDS):
        queries = vectors[rng.choice(len(vectors), size=BATCH)]
        start = perf_counter()
        client.search(COLLECTION, queries, 10)
        between = perf_counter()
        for row in range(BATCH):
            client.search(COLLECTION, queries[row : row + 1], 10)
        batch_ms.append((between - start) * 1e3)
        singles_ms.append((perf_counter() - between) * 1e3)
    ratio = median(singles_ms) / median(batch_ms)
    console.print(
        f"a batch of {BATCH} takes {median(batch_ms):.2f} ms, {BATCH} single calls take "
        f"{median(singles_ms):.2f} ms: {ratio:.1f} times as long "
        f"(medians of {TIMED_ROUNDS} rounds)\n"
    )
    return set() if ratio >= 1 else {"a batch was slower than its queries one by one"}
