"""Sets of row numbers as bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorshard.shard.errors import CorruptData
from vectorshard.shard.rows.row_bitmap import decode_rows, encode_rows


@given(st.sets(st.integers(0, 2**62) | st.integers(0, 200_000)))
def test_rows_are_read_as_they_were_written(rows: set[int]) -> None:
    found = decode_rows(encode_rows(np.array(sorted(rows), dtype=np.int64)))
    assert found.dtype == np.int64
    assert found.tolist() == sorted(rows)


def test_a_bitmap_that_was_cut_is_refused() -> None:
    serialized = encode_rows(np.arange(0, 1000, 3))
    for length in range(0, len(serialized), 7):
        with pytest.raises(CorruptData):
            decode_rows(serialized[:length])
