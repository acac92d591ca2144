"""Draws: a shape, a collection, what happens to its rows, and what is asked. One seed, one draw.

Sizes are limited by rows * dim, so that a draw takes seconds: `EASY` for every run of the tests,
`FULL` for the long ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from tests.promises.shapes import SHAPES
from vectorshard.shard.types import IndexKind, Metric

EASY: Final = 320_000
FULL: Final = 2_000_000
"""Components of all rows of a draw."""

ROWS_MAX: Final = 50_000
DIMS: Final = ((8, 40), (8, 40), (40, 128), (1, 8), (128, 1_536))
"""Ranges of dims, each as likely as the others."""

LIVES: Final = ("still", "thinned", "holes", "few_left", "replaced", "mixed")
"""What happens to the rows once they are indexed; a window moves instead."""

KS: Final = (10, 1, 11, 100, 10, 30, 1_000, 31, 10, 101, 300, 10, 301, 3_000, 10, 1_001, 10_000)
"""Also just above each calibrated one, and often 10."""

TARGETS: Final = (0.95, 0.90, 0.80, 0.99, 0.95, 0.85, 0.93, 0.97)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One case. `seed` draws the rows, the queries, and what is deleted."""

    seed: int
    shape: str
    life: str
    metric: Metric
    kind: IndexKind
    dim: int
    rows: int
    shards: int
    k: int
    target: float
    filtered: bool

    def __str__(self) -> str:
        """Return a name for a report."""
        return (
            f"{self.seed}-{self.shape}-{self.life}-{self.metric.value}-{self.kind.value}"
            f"-{self.rows}x{self.dim}-{self.shards}shards-k{self.k}-{self.target}"
        )


def draw_of(seed: int, components: int = EASY) -> Draw:
    """Return the draw of a seed: all shapes in turn, and the other choices by chance."""
    random = np.random.default_rng([seed, 1])
    shape = list(SHAPES)[seed % len(SHAPES)]
    least, most = DIMS[int(random.integers(len(DIMS)))]
    dim = int(np.exp(random.uniform(np.log(least), np.log(most + 1))))
    if shape in ("one_hot", "bag_of_words", "binary"):
        dim = max(dim, 4)
    shards = int(random.choice([1, 1, 2, 8]))
    rows_max = min(ROWS_MAX, components // max(dim, 25))
    rows = int(
        np.exp(random.uniform(np.log(rows_max / (4 if shards < 8 else 1.5)), np.log(rows_max)))
    )
    if random.random() < 0.1:
        rows = int(np.exp(random.uniform(0, np.log(1_500))))
    lives = LIVES if SHAPES[shape].has_regions else tuple(life for life in LIVES if life != "holes")
    return Draw(
        seed=seed,
        shape=shape,
        life="window" if shape == "window" else str(random.choice(lives)),
        metric=list(Metric)[int(random.integers(3))],
        kind=IndexKind(random.choice(["ivf_pq", "ivf_pq", "ivf_pq", "ivf_sq8", "ivf_flat"])),
        dim=dim,
        rows=rows,
        shards=shards,
        k=KS[seed % len(KS)],
        target=float(random.choice(TARGETS)),
        filtered=bool(random.random() < 0.3),
    )
