"""Shapes of data: what users store, each as one small generator.

A generator draws rows; those held out become queries, so that these are like the rows. The label
of a row is its part of the data: a region that a test deletes, a step of a window, or the part
whose recall must not be given up for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from vectorshard.shard.types import Float32Array, Float64Array, Int64Array

Vectors = tuple[Float64Array, Int64Array]
"""Vectors (rows, dim) and the part of each (rows,)."""

Generator = Callable[[np.random.Generator, int, int], Vectors]
"""Draws `rows` of `dim`."""

REGIONS: Final = 60
WINDOW_STEPS: Final = 20


def clusters(random: np.random.Generator, rows: int, dim: int) -> Vectors:
    """Far apart, so that one to four lists hold the answer: what deletes hurt most."""
    centers = 8 * random.standard_normal((max(4, rows // 300), dim))
    part = random.integers(len(centers), size=rows)
    return centers[part] + random.standard_normal((rows, dim)), part


def regions(random: np.random.Generator, rows: int, dim: int) -> Vectors:
    """Regions that overlap: a query's neighbours lie in several lists."""
    centers = 2 * random.standard_normal((REGIONS, dim))
    part = random.integers(REGIONS, size=rows)
    return centers[part] + random.standard_normal((rows, dim)), part


def normal(random: np.random.Generator, rows: int, dim: int) -> Vectors:
    """No structure at all."""
    return random.standard_normal((rows, dim)), np.zeros(rows, np.int64)


def window(random: np.random.Generator, rows: int, dim: int) -> Vectors:
    """Rows in order of time, whose mean moves by one standard deviation a step."""
    direction = random.standard_normal(dim)
    direction /= np.linalg.norm(direction)
    part = np.sort(random.integers(WINDOW_STEPS, size=rows))
    return random.standard_normal((rows, dim)) + part[:, None] * direction, part


def duplicates(random: np.random.Generator, rows: int, dim: int) -> Vectors:
    """A share of the rows is one vector, such as that of an empty text."""
    vectors, _ = regions(random, rows, dim)
    part = (random.random(rows) < random.choice([0.05, 0.1, 0.3, 0.8, 0.95, 0.99])).astype(np.int64)
    vectors[part == 1] = vectors[0]
    return vectors, part


def near_duplicates(random: np.random.Generator, rows: int, dim: int) -> Vectors:
    """A share of the rows lies within 1e-4 of one vector."""
    vectors = random.standard_normal((rows, dim))
    part = (random.random(rows) < random.choice([0.5, 0.9])).astype(np.int64)
    near = 1e-4 / np.sqrt(dim) * random.standard_normal((rows, dim))
    vectors[part == 1] = (vectors[0] + near)[part == 1]
    return vectors, part


def unequal(random: np.random.Generator, rows: int, dim: int) -> Vectors:
    """Nine tenths in narrow clusters, and one tenth broad: the mean hides it."""
    vectors, _ = clusters(random, rows, dim)
    part = (random.random(rows) < 0.1).astype(np.int64)
    broad = 8 * random.standard_normal((rows, dim))
    vectors[part == 1] = broad[part == 1]
    return vectors, part


def few_distinct(random: np.random.Generator, rows: int, dim: int) -> Vectors:
    """Copies of 2 to 128 vectors."""
    distinct = random.standard_normal((random.choice([2, 3, 16, 64, 128]), dim))
    part = random.integers(len(distinct), size=rows)
    return distinct[part], part


def one_hot(random: np.random.Generator, rows: int, dim: int) -> Vectors:
    """One component is 1."""
    part = random.integers(dim, size=rows)
    return np.eye(dim)[part], part


def binary(random: np.random.Generator, rows: int, dim: int) -> Vectors:
    """Bits, of which a tenth or a half is set."""
    bits = random.random((rows, dim)) < random.choice([0.1, 0.5])
    bits[np.arange(rows), random.integers(dim, size=rows)] = True  # COSINE takes no zeros
    return bits.astype(np.float64), np.zeros(rows, np.int64)


def bag_of_words(random: np.random.Generator, rows: int, dim: int) -> Vectors:
    """Counts of three words: most rows share nothing with a query."""
    vectors = np.zeros((rows, dim))
    for _ in range(3):
        vectors[np.arange(rows), random.integers(dim, size=rows)] += random.integers(1, 4, rows)
    return vectors, np.zeros(rows, np.int64)


def heavy_tails(random: np.random.Generator, rows: int, dim: int) -> Vectors:
    """Norms of very different magnitude."""
    norms = np.exp(random.standard_normal((rows, 1)))
    return norms * random.standard_normal((rows, dim)), np.zeros(rows, np.int64)


def huge_cluster(random: np.random.Generator, rows: int, dim: int) -> Vectors:
    """One cluster holds 95 % of the rows."""
    part = (random.random(rows) < 0.05).astype(np.int64)
    spread = np.where(part[:, None] == 1, 10.0, 1.0)
    return 10 + spread * random.standard_normal((rows, dim)), part


def low_rank(random: np.random.Generator, rows: int, dim: int) -> Vectors:
    """Four directions explain nearly everything."""
    basis = random.standard_normal((min(4, dim), dim))
    vectors = random.standard_normal((rows, len(basis))) @ basis
    return vectors + 0.01 * random.standard_normal((rows, dim)), np.zeros(rows, np.int64)


def integers(random: np.random.Generator, rows: int, dim: int) -> Vectors:
    """Small integers, so that many distances tie."""
    vectors = random.integers(0, 4, size=(rows, dim)).astype(np.float64)
    vectors[:, 0] += 1  # COSINE takes no zeros
    return vectors, np.zeros(rows, np.int64)


def by_difficulty(random: np.random.Generator, rows: int, dim: int) -> Vectors:
    """First narrow clusters and then ever broader rows, as a dictionary by frequency is."""
    centers = 4 * random.standard_normal((max(4, rows // 300), dim))
    spread = np.linspace(0.2, 4, rows)[:, None]
    chosen = centers[random.integers(len(centers), size=rows)]
    return chosen + spread * random.standard_normal((rows, dim)), np.arange(rows) * 4 // rows


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape, and what the order and the parts of its rows mean."""

    generator: Generator
    ordered: bool = False  # rows arrive as they are drawn
    has_regions: bool = False  # the parts are many, and a test may delete some


SHAPES: Final[Mapping[str, Shape]] = {
    "clusters": Shape(clusters, has_regions=True),
    "regions": Shape(regions, has_regions=True),
    "normal": Shape(normal),
    "window": Shape(window, ordered=True, has_regions=True),
    "duplicates": Shape(duplicates),
    "near_duplicates": Shape(near_duplicates),
    "unequal": Shape(unequal),
    "few_distinct": Shape(few_distinct, has_regions=True),
    "one_hot": Shape(one_hot, has_regions=True),
    "binary": Shape(binary),
    "bag_of_words": Shape(bag_of_words),
    "heavy_tails": Shape(heavy_tails),
    "huge_cluster": Shape(huge_cluster),
    "low_rank": Shape(low_rank),
    "integers": Shape(integers),
    "by_difficulty": Shape(by_difficulty, ordered=True),
}


@dataclass(frozen=True, slots=True)
class Pool:
    """Rows in the order of their arrival, and held-out queries, each with the part it is from."""

    rows: Float32Array
    row_parts: Int64Array
    queries: Float32Array
    query_parts: Int64Array


def pool_of(shape: Shape, random: np.random.Generator, rows: int, dim: int, held_out: int) -> Pool:
    """Draw rows (rows, dim) and queries (held_out, dim) together."""
    drawn, part = shape.generator(random, rows + held_out, dim)
    vectors = drawn.astype(np.float32)
    order = random.permutation(rows + held_out)
    kept, out = order[:rows], order[rows:]
    if shape.ordered:
        kept = np.sort(kept)
    return Pool(vectors[kept], part[kept], vectors[out], part[out])
