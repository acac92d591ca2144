"""Record how words are written, searched and trained, and draw it: the pictures of the README.

    python -m benchmarks.story

A client of one server: it writes 20,000 words at a steady pace, and a second client searches words
that are written already, and describes the collection, until the index holds all of them.
docs/words.svg has a map of words with the rows of their collection, docs/demo.svg the run as an
animation.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt

from benchmarks.server import scratch, start_command
from benchmarks.story_pictures import Moment, Word, animation, picture
from vectorshard.cli.vector_files import open_vectors
from vectorshard.client.client import Client
from vectorshard.shard.types import Float32Array, IdArray, IdType, IndexConfig, VectorArray

ROOT = Path(__file__).resolve().parent.parent
WORDS = ROOT / "examples" / "words-20k.npz"
COLLECTION = "words"
SEEDS = ("coffee", "doctor", "guitar", "physics", "river", "monday", "paris", "football", "tiger")
NEIGHBOURS = 11
WRITE_ROWS = 250
ASKED_ROWS = 32
WRITE_EVERY_S = 0.1
MIN_TRAINING_SIZE = 4_000
WAITS_AT = 15_000
"""The rest is written once the index is trained, to show how new rows enter it."""
TIMEOUT_S = 120.0

FloatArray = npt.NDArray[np.float64]


@dataclass(slots=True)
class Story:
    """What a watcher saw while `written` rows grew; `ids` (rows,) and `vectors` (rows, dim)."""

    ids: IdArray
    vectors: VectorArray
    written: int = 0
    moments: list[Moment] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def is_trained(self) -> bool:
        """Whether a watcher has seen an index."""
        return bool(self.moments) and self.moments[-1].state == "TRAINED"

    def watch(self, target: str) -> None:
        """Search words that are written, and describe the collection, until it is all indexed."""
        rng = np.random.default_rng(7)
        begun = perf_counter()
        with Client(target, timeout_s=TIMEOUT_S) as client:
            while not self.done.is_set():
                if rows := self.written:
                    self.moments.append(self._look(client, rows, rng, begun))
                    latest = self.moments[-1]
                    if latest.indexed == len(self.ids):
                        return

    def _look(self, client: Client, rows: int, rng: np.random.Generator, begun: float) -> Moment:
        chosen = rng.choice(rows, size=min(ASKED_ROWS, rows), replace=False)
        hits = client.search(COLLECTION, self.vectors[chosen], 1)
        found = sum(of[0].id == self.ids[row] for of, row in zip(hits, chosen, strict=True) if of)
        description = client.describe(COLLECTION)
        [shard] = description.shards
        return Moment(
            at_s=perf_counter() - begun,
            buffered=shard.ledger.buffered,
            indexed=shard.ledger.indexed,
            state=shard.state.name,
            asked=len(chosen),
            found=found,
        )


def record(target: str, story: Story) -> None:
    """Write all words while a thread watches."""
    with Client(target, timeout_s=TIMEOUT_S) as client:
        client.create_collection(
            COLLECTION,
            dim=story.vectors.shape[1],
            id_type=IdType.STRING,
            index=IndexConfig(min_training_size=MIN_TRAINING_SIZE),
        )
        watcher = threading.Thread(target=story.watch, args=(target,))
        watcher.start()
        try:
            for first in range(0, len(story.ids), WRITE_ROWS):
                while first == WAITS_AT and not story.is_trained and watcher.is_alive():
                    story.done.wait(WRITE_EVERY_S)
                story.done.wait(WRITE_EVERY_S)
                span = slice(first, first + WRITE_ROWS)
                story.written += client.upsert(
                    COLLECTION, story.ids[span], story.vectors[span]
                ).accepted
            watcher.join(TIMEOUT_S)
        finally:
            story.done.set()
            watcher.join()


def neighbourhoods(client: Client) -> tuple[list[tuple[str, str]], Float32Array]:
    """Return (seed, word) of the nearest words of each seed, and their vectors (words, dim)."""
    named: dict[str, tuple[str, Float32Array]] = {}
    seeds = client.get(COLLECTION, SEEDS)
    assert seeds.vectors is not None
    hits = client.search(COLLECTION, seeds.vectors, NEIGHBOURS, vectors=True)
    for seed, of_seed in zip(SEEDS, hits, strict=True):
        for hit in of_seed:
            assert hit.vector is not None
            named.setdefault(str(hit.id), (seed, hit.vector))
    return [(seed, word) for word, (seed, _) in named.items()], np.array(
        [vector for _, vector in named.values()]
    )


def projected(vectors: Float32Array, groups: Sequence[str]) -> FloatArray:
    """Return places (words, 2) in [0, 1]: near words lie near each other.

    Stress majorization of the distances, from the two directions that part the groups' means most.
    Distances within a group count more, so that groups stay together.
    """
    wide = vectors.astype(np.float64)
    wanted = np.sqrt(np.maximum(0.0, 2 - 2 * wide @ wide.T))
    names = np.array(groups)
    same = names[:, None] == names[None, :]
    weights = np.where(same, 6.0, 1.0) / np.maximum(wanted, 0.2) ** 2
    wanted = np.where(same, 0.45 * wanted, wanted)
    np.fill_diagonal(weights, 0.0)
    means = np.array([wide[names == name].mean(axis=0) for name in names])
    _, _, axes = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
    places = (wide - wide.mean(axis=0)) @ axes[:2].T
    laplacian = np.diag(weights.sum(axis=1)) - weights
    inverse = np.linalg.pinv(laplacian)
    for _ in range(300):
        apart = np.linalg.norm(places[:, None] - places[None, :], axis=2)
        ratio = weights * wanted / np.maximum(apart, 1e-9)
        moved = np.diag(ratio.sum(axis=1)) - ratio
        places = inverse @ moved @ places
    low, high = places.min(axis=0), places.max(axis=0)
    scaled: FloatArray = (places - low) / (high - low)
    return scaled


@contextmanager
def served() -> Iterator[str]:
    """Run a server of one shard; yield its address."""
    command = [str(Path(sys.executable).with_name("vectorshard")), "serve", "--shards", "1"]
    with scratch() as folder:
        listen = ["--data", str(folder / "rows"), "--listen", "127.0.0.1:0"]
        server = start_command([*command, *listen], folder / "log")
        try:
            yield server.target
        finally:
            server.stop()


def main() -> None:
    """Record a run, and write both pictures."""
    with open_vectors(WORDS, ids_key="words") as source:
        [(ids, vectors)] = source.batches(source.rows)
    story = Story(ids, vectors)
    with served() as target:
        record(target, story)
        with Client(target, timeout_s=TIMEOUT_S) as client:
            named, near = neighbourhoods(client)
    places = projected(near, [seed for seed, _ in named])
    words = [
        Word(word, seed, float(x), float(y))
        for (seed, word), (x, y) in zip(named, places, strict=True)
    ]
    (ROOT / "docs" / "words.svg").write_text(picture(words, story.moments))
    (ROOT / "docs" / "demo.svg").write_text(animation(story.moments))
    asked = sum(each.asked for each in story.moments)
    found = sum(each.found for each in story.moments)
    print(f"{found:,} of {asked:,} words found, {story.moments[-1].at_s:.1f} s")


if __name__ == "__main__":
    main()
