"""Which kind of index serves: the configured one, or another where its codes would lose rows. Pure.

IVF_PQ orders rows by 4-bit codes. These fail for some data, and then another kind is built:

* FAISS's fast scan drops a row whose code scores lowest in all sub-quantizers. With inner products
  and fewer than four sub-quantizers that affects many rows: 158 of 1,000 in two dimensions.
* The codebooks of few rows describe those rows alone: of 5,000 rows that were added to an index
  trained on 10, .905 are found, with all lists probed.
* Under L2, near duplicates and heavy-tailed norms have codes that do not rank them. Calibration
  then finds no search parameters for the target, at any nprobe.
"""

from __future__ import annotations

from typing import Final

from vectorshard.shard.types import CollectionConfig, IndexKind, Metric

PQ_DIM_MIN: Final = 8
"""Below this dim, COSINE and INNER_PRODUCT get no IVF_PQ. Normal rows are lost up to dim 7, and
none from 8 on. L2 loses none at any dim."""

_FALLBACKS: Final = {
    IndexKind.IVF_PQ: (IndexKind.IVF_PQ, IndexKind.IVF_SQ8, IndexKind.IVF_FLAT),
    IndexKind.IVF_SQ8: (IndexKind.IVF_SQ8, IndexKind.IVF_FLAT),
    IndexKind.IVF_FLAT: (IndexKind.IVF_FLAT,),
}


def kinds_to_try(config: CollectionConfig, rows: int, pq_rows_min: int) -> tuple[IndexKind, ...]:
    """Return the kinds of index for a training on `rows` live rows, in order of preference.

    A kind is passed over if its calibration has no search parameters for the collection's target.
    The last one, IVF_FLAT, needs no codes and serves in any case. Fewer rows than `pq_rows_min` get
    IVF_FLAT instead of IVF_PQ.
    """
    kind = config.index.kind
    if kind is IndexKind.IVF_PQ:
        narrow = config.dim < PQ_DIM_MIN and config.metric is not Metric.L2
        if narrow or rows < pq_rows_min:
            kind = IndexKind.IVF_FLAT
    return _FALLBACKS[kind]
