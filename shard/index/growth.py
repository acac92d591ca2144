"""How the effort of a search grows as fewer of the rows live, or pass a filter. Pure.

With a share s of the rows left at random, the k best of them are among the best k / s of all. So a
search needs the lists that find k / s hits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from vectorshard.shard.index.calibration import SearchParameters
from vectorshard.shard.types import Float64Array

_MUCH: Final = 1.25  # times as many lists, or candidates: less is within a calibration's reserve


def probed_odds(nprobe: int, nlist: int) -> float:
    """Return lists probed by lists left out, one more than there are: all of them are finite."""
    probed = min(nprobe, nlist)
    return probed / (nlist + 1 - probed)


@dataclass(frozen=True, slots=True)
class Growth:
    """How search parameters grow.

    Parameters
    ----------
    parameters
        Those that suffice for all rows.
    exponent
        The odds of nprobe grow as this power of the number of hits. For few lists that is nprobe
        itself; for nearly all, no power of nprobe would be left below nlist.
    more_hits
        The parameters calibrated for more hits: how many times as many, ascending, and which. Rows
        in small clusters need few lists as long as the hits are of one cluster, and then many: no
        power tells where.
    """

    parameters: SearchParameters
    exponent: float = 0.0
    more_hits: tuple[tuple[float, SearchParameters], ...] = ()

    def nprobe(self, nlist: int, shares: Float64Array | float) -> Float64Array:
        """Return the lists that find among each share of the rows what suffices for all."""
        odds = probed_odds(self.parameters.nprobe, nlist) * _times(shares) ** self.exponent
        lists: Float64Array = (nlist + 1) * odds / (1 + odds)
        return np.maximum(lists, self._for_more_hits("nprobe", shares))

    def candidates(self, share: float) -> int:
        """Return the candidates that do so for a share of the rows.

        Only living rows that pass are candidates: of those that hold the best k / s hits of all, a
        share s.
        """
        found = share * self._for_more_hits("candidates", share)
        return max(self.parameters.candidates, math.ceil(found))

    def is_much(self, nlist: int, share: float) -> bool:
        """Whether a share of the rows needs far more lists or candidates than all of them."""
        parameters = self.parameters
        return (
            float(self.nprobe(nlist, share)) > _MUCH * min(parameters.nprobe, nlist)
            or self.candidates(share) > _MUCH * parameters.candidates
        )

    def _for_more_hits(self, of: str, shares: Float64Array | float) -> Float64Array:
        """Return a parameter for 1 / share times the hits, from what is calibrated.

        Between two, it is that of the greater from half-way on: a cluster may end anywhere.
        """
        known, numbers = [1.0], [getattr(self.parameters, of)]
        for times, more in self.more_hits:
            known += [(known[-1] + times) / 2, times]
            numbers += 2 * [max(numbers[-1], getattr(more, of))]
        found: Float64Array = np.interp(_times(shares), known, numbers)
        return found


def _times(shares: Float64Array | float) -> Float64Array:
    """Return 1 / share; finite."""
    return np.asarray(1 / np.maximum(shares, 1e-9), np.float64)
