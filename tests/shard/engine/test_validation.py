"""What a collection takes, and in which form; what it refuses, and which row it names."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tests.shard.samples import config_of, int64s, some_vectors, strings
from vectorshard.shard.engine.validation import (
    admit_vectors,
    already_exists,
    check_filter,
    check_ids,
    check_vectors,
)
from vectorshard.shard.errors import (
    DimensionMismatch,
    InvalidId,
    InvalidParameter,
    InvalidRequest,
    InvalidVector,
)
from vectorshard.shard.filters import Equals, Filter, In, Range
from vectorshard.shard.index.exact import SQUARED_NORM_MAX
from vectorshard.shard.types import (
    FieldType,
    FilterField,
    Float32Array,
    IdArray,
    IdType,
    IndexKind,
    Metric,
    VectorArray,
)

OF_BOTH_DTYPES = pytest.mark.parametrize(
    "vectors", [some_vectors(20), some_vectors(20).astype(np.float16)], ids=["float32", "float16"]
)


def refused(vectors: VectorArray, metric: Metric = Metric.L2) -> InvalidRequest:
    """Return how a collection of dim 8 refuses vectors; both ways of asking must agree."""
    config = config_of(dim=8, metric=metric)
    errors = []
    for ask in (check_vectors, admit_vectors):
        with pytest.raises(InvalidRequest) as caught:
            ask(config, vectors, "queries")
        errors.append(caught.value)
    assert type(errors[0]) is type(errors[1])
    assert str(errors[0]) == str(errors[1])
    assert errors[0].field == "queries"
    return errors[0]


@pytest.mark.parametrize("metric", [Metric.L2, Metric.INNER_PRODUCT])
@OF_BOTH_DTYPES
def test_finite_vectors_are_kept_number_by_number(metric: Metric, vectors: VectorArray) -> None:
    admitted = admit_vectors(config_of(metric=metric), vectors, "vectors")
    assert admitted.dtype == np.float32
    assert admitted.flags.c_contiguous
    np.testing.assert_array_equal(admitted, vectors.astype(np.float32))


@OF_BOTH_DTYPES
def test_cosine_keeps_unit_vectors_rounded_once_from_float64(
    vectors: VectorArray,
) -> None:
    admitted = admit_vectors(config_of(metric=Metric.COSINE), vectors, "vectors")
    exact = vectors.astype(np.float64)
    exact /= np.sqrt(np.sum(exact * exact, axis=1))[:, None]
    assert admitted.dtype == np.float32
    np.testing.assert_allclose(admitted, exact, rtol=1e-7)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1.0, 1e18])
def test_cosine_forgets_the_length_of_a_vector(scale: float) -> None:
    config, vectors = config_of(metric=Metric.COSINE), some_vectors(50)
    admitted = admit_vectors(config, (vectors * scale).astype(np.float32), "vectors")
    np.testing.assert_allclose(admitted, admit_vectors(config, vectors, "vectors"), atol=2e-7)


@given(npst.arrays(np.float32, (3, 4), elements=st.floats(width=32)))
def test_whatever_is_admitted_has_a_squared_norm_that_scores_can_bear(
    vectors: Float32Array,
) -> None:
    for metric in Metric:
        try:
            admitted = admit_vectors(config_of(dim=4, metric=metric), vectors, "vectors")
        except InvalidVector:
            continue
        norms = np.einsum("ij,ij->i", admitted, admitted, dtype=np.float64)
        assert (norms <= SQUARED_NORM_MAX).all()
        if metric is Metric.COSINE:
            np.testing.assert_allclose(norms, 1, rtol=1e-6)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", list(Metric))
def test_the_first_row_that_is_not_finite_is_named(metric: Metric, number: float) -> None:
    vectors = some_vectors(9)
    vectors[[4, 7], 2] = number
    error = refused(vectors, metric)
    assert isinstance(error, InvalidVector)
    assert (error.row, error.reason) == (4, "contains NaN or Inf; every component must be finite")


def test_a_row_of_opposite_infinities_is_not_finite() -> None:
    vectors = some_vectors(3)
    vectors[1] = [math.inf, -math.inf, 0, 0, 0, 0, 0, 0]
    assert refused(vectors).reason == "contains NaN or Inf; every component must be finite"


def test_the_largest_squared_norm_is_admitted_and_what_is_beyond_is_not() -> None:
    vectors = np.zeros((2, 8), dtype=np.float32)
    vectors[1, 3] = math.sqrt(SQUARED_NORM_MAX) * (1 - 1e-7)
    check_vectors(config_of(), vectors, "vectors")
    vectors[1, 3] *= np.float32(1 + 3e-7)
    error = refused(vectors)
    assert error.row == 1
    assert error.reason.endswith("exceeds 8.51e+37; scores would overflow float32")


def test_norm_0_is_refused_under_cosine_only() -> None:
    vectors = some_vectors(4)
    vectors[2] = 0
    check_vectors(config_of(metric=Metric.L2), vectors, "vectors")
    check_vectors(config_of(metric=Metric.INNER_PRODUCT), vectors, "vectors")
    error = refused(vectors, Metric.COSINE)
    assert isinstance(error, InvalidVector)
    assert error.row == 2


@pytest.mark.parametrize("shape", [(3, 7), (3, 9), (1, 0)])
def test_another_dim_is_refused(shape: tuple[int, int]) -> None:
    assert isinstance(refused(np.ones(shape, np.float32)), DimensionMismatch)


def test_vectors_that_are_no_matrix_are_refused() -> None:
    assert isinstance(refused(np.ones(8, np.float32)), DimensionMismatch)


@pytest.mark.parametrize("shape", [(0, 8), (0, 0)])
def test_no_vectors_are_admitted_as_no_rows_of_the_collections_dim(shape: tuple[int, int]) -> None:
    for metric in Metric:
        admitted = admit_vectors(config_of(metric=metric), np.ones(shape, np.float32), "vectors")
        assert admitted.shape == (0, 8)
        assert admitted.dtype == np.float32


@pytest.mark.parametrize(
    ("id_type", "ids"),
    [
        (IdType.INT64, int64s(1, -1)),
        (IdType.STRING, strings("a")),
        (IdType.INT64, strings()),
        (IdType.STRING, int64s()),
    ],
)
def test_ids_of_the_right_kind_and_no_ids_at_all_are_taken(id_type: IdType, ids: IdArray) -> None:
    check_ids(config_of(id_type=id_type), ids)


@pytest.mark.parametrize(
    ("id_type", "ids"), [(IdType.INT64, strings("1")), (IdType.STRING, int64s(1))]
)
def test_ids_of_the_other_kind_are_refused(id_type: IdType, ids: IdArray) -> None:
    with pytest.raises(InvalidId) as caught:
        check_ids(config_of(id_type=id_type), ids)
    assert caught.value.field == "ids"


# ---- a name that is in use -----------------------------------------------------------------------


def test_a_configuration_that_differs_is_described_by_its_differences() -> None:
    declared = (FilterField("lang", FieldType.KEYWORD),)
    existing = replace(config_of(dim=3, kind=IndexKind.IVF_PQ), filter_fields=declared)
    asked = replace(
        existing,
        dim=4_000,
        metric=Metric.COSINE,
        index=replace(existing.index, kind=IndexKind.IVF_FLAT, nlist=7),
        filter_fields=(),
    )
    assert str(already_exists(existing, asked)) == (
        f"collection {existing.name!r} already exists with dim 3, not 4,000; metric l2, not "
        f"cosine; index.kind ivf_pq, not ivf_flat; index.nlist 0, not 7; "
        "filter_fields (lang: keyword), not ()"
    )


def test_texts_of_refused_ids_and_filter_values() -> None:
    config = replace(config_of(), filter_fields=(FilterField("year", FieldType.INT64),))
    with pytest.raises(InvalidRequest, match=r"^ids are STRING; the collection's ids are INT64$"):
        check_ids(config, strings("a"))
    with pytest.raises(InvalidRequest) as caught:
        check_filter(config, Equals("year", True))
    assert str(caught.value) == (
        "filter.equals.value: an INT64 field does not accept True (a bool); "
        "it accepts a 64-bit integer"
    )


@pytest.mark.parametrize(
    ("filter_", "path"),
    [
        (Equals("year", 2**53 + 1), "filter.equals.value"),
        (Equals("year", 2.0**53 + 2), "filter.equals.value"),
        (In("year", (0.0, -(2**53) - 1)), "filter.in.values[1]"),
        (Range("year", gt=0.0, lte=2**53 + 1), "filter.range.lte"),
        (Range("rating", gte=-(2**53) - 1), "filter.range.gte"),
    ],
)
def test_an_integer_that_may_be_another_one_is_refused(filter_: Filter, path: str) -> None:
    fields = (FilterField("year", FieldType.INT64), FilterField("rating", FieldType.DOUBLE))
    with pytest.raises(InvalidParameter) as caught:
        check_filter(replace(config_of(), filter_fields=fields), filter_)
    assert caught.value.field == path


@pytest.mark.parametrize(
    "filter_",
    [
        In("year", (2.0**53, -(2.0**53), 2**53)),
        Range("year", lt=float("inf"), gte=-1e300),
        Range("year", lt=2**53),
        Equals("rating", 1e300),
    ],
)
def test_a_number_that_is_exact_or_a_double_on_purpose_is_taken(filter_: Filter) -> None:
    fields = (FilterField("year", FieldType.INT64), FilterField("rating", FieldType.DOUBLE))
    check_filter(replace(config_of(), filter_fields=fields), filter_)
