"""The price of a candidate is a ratio of measured times, and decides between search parameters."""

from __future__ import annotations

import numpy as np
import pytest

from tests.shard.samples import some_vectors
from vectorshard.shard.index import prices
from vectorshard.shard.index.calibration import (
    CalibrationPoint,
    Reach,
    SearchParameters,
    calibrate,
    work,
)
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.index.prices import (
    PIECES,
    PRICE_MAX,
    PRICED_QUERIES,
    measured_candidate_price,
)
from vectorshard.shard.index.row_range import RowRange
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.types import IndexKind, Metric

DIM = 8
QUERIES = PIECES * PRICED_QUERIES


class Machine:
    """A timer of a machine on which lists and candidates take `factors` of the model.

    Every fifth search takes ten times as long: another program interferes.
    """

    def __init__(self, ivf: IvfIndex, a_list: float, a_candidate: float) -> None:
        self._ivf, self._a_list, self._price = ivf, a_list, a_candidate / a_list
        self._now_s, self._searches = 0.0, 0

    def __call__(self) -> float:
        return self._now_s

    def search(self, *arguments: object) -> None:
        parameters = arguments[2]
        assert isinstance(parameters, SearchParameters)
        shape = self._ivf.rows / self._ivf.nlist, self._ivf.code_bytes, DIM
        took = 40_000 + self._a_list * work(parameters, *shape, self._price)
        self._searches += 1
        self._now_s += took * (10 if self._searches % 5 == 0 else 1)


@pytest.fixture(params=[IndexKind.IVF_PQ, IndexKind.IVF_SQ8, IndexKind.IVF_FLAT])
def filled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> IvfIndex:
    """An index of each kind that counts as large."""
    monkeypatch.setattr(prices, "PRICED_ROWS_MIN", 600)
    vectors = some_vectors(600, DIM)
    ivf = IvfIndex.train(request.param, Metric.L2, vectors, 20, seed=1)
    ivf.add(np.arange(600), vectors)
    return ivf


def price_on(ivf: IvfIndex, machine: Machine, queries: int = QUERIES) -> float:
    """Return what is measured on a machine."""
    vectors = some_vectors(600, DIM)
    held = RowRange(vectors, np.vecdot(vectors, vectors), Tombstones(), 0, 600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IvfIndex, "proposed", lambda _, *each: machine.search(*each))
        return measured_candidate_price(ivf, held, some_vectors(queries, DIM), machine)


@pytest.mark.parametrize(
    ("a_list", "a_candidate", "price"),
    [(2.0, 3.0, 1.5), (1.0, 0.7, 0.7), (1.0, 50.0, PRICE_MAX), (9.0, 0.1, 1 / PRICE_MAX)],
)
def test_a_price_is_relative_to_that_of_lists_and_bounded(
    filled: IvfIndex, a_list: float, a_candidate: float, price: float
) -> None:
    expected = 1.0 if filled.kind is IndexKind.IVF_FLAT else price
    assert price_on(filled, Machine(filled, a_list, a_candidate)) == expected


def test_few_rows_few_queries_and_a_clock_that_stands_still_leave_the_model(
    filled: IvfIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    dear = Machine(filled, 1.0, 1.9)
    assert price_on(filled, dear, QUERIES - 1) == 1.0
    monkeypatch.setattr(dear, "search", lambda *_: None)
    assert price_on(filled, dear) == 1.0
    monkeypatch.setattr(prices, "PRICED_ROWS_MIN", 601)
    assert price_on(filled, Machine(filled, 1.0, 1.9)) == 1.0


def test_where_candidates_are_dear_more_lists_and_fewer_candidates_are_chosen() -> None:
    def reach_at(nprobe: int) -> dict[int, Reach]:
        # 40 lists with 100 candidates reach as much as 20 lists with 400.
        reached = np.array([1.0 if nprobe >= 40 else 0.0, 1.0 if nprobe >= 20 else 0.0])
        return {10: Reach(np.array([100, 400]), reached, reached, reached)}

    def chosen(price: float) -> CalibrationPoint:
        found = calibrate(reach_at, 60, lambda each: work(each, 300, 25, 100, price), [10])
        return found.points[-1]

    cheap, dear = chosen(0.3), chosen(2.0)
    assert cheap.parameters.candidates == 400
    assert dear.parameters.candidates == 100
