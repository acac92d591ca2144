"""Filters: the contract's messages to shard.filters, and back.

The structure of a filter is validated here: its depth, its size, that no node is empty. Whether
the collection declares its fields, and with which type, is validated in shard.engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from google.protobuf import struct_pb2

from vectorshard.shard.config import Limits
from vectorshard.shard.errors import InvalidParameter, LimitExceeded
from vectorshard.shard.filters import And, Equals, Exists, Filter, FilterValue, In, Not, Or, Range
from vectorshard.shard.wire.metadata import check_exact
from vectorshard.shard.wire.primitives import TIMES, is_table, shown
from vectorshard.v1 import vectorshard_pb2 as v1

_BOUNDS: Final = ("gt", "gte", "lt", "lte")
_SENT_DEPTH_MAX: Final = 40  # a node is up to two messages, and protobuf nests about a hundred


def encode_filter(filter_: Filter) -> v1.Filter:
    """Write a filter.

    Raises InvalidParameter if it nests too deep for a message, or has a value of another type, or
    an integer that a double does not hold exactly.
    """
    message = v1.Filter()
    try:
        _write(filter_, message, 1)
    except (TypeError, ValueError) as error:
        raise InvalidParameter(str(error), field="filter") from None
    return message


def _write(filter_: Filter, message: v1.Filter, depth: int) -> None:
    if depth > _SENT_DEPTH_MAX:
        raise ValueError(f"filter nests deeper than {_SENT_DEPTH_MAX} levels")
    if not isinstance(filter_, Filter):
        raise TypeError(f"{shown(filter_)} is not a filter")
    _check_shape(filter_)
    target = getattr(message, filter_.kind)  # three of the names are keywords of Python
    target.SetInParent()
    if isinstance(filter_, And | Or):
        for each in filter_.filters:
            _write(each, target.filters.add(), depth + 1)
    elif isinstance(filter_, Not):
        _write(filter_.filter, target, depth + 1)
    elif isinstance(filter_, Equals):
        target.field = filter_.field
        _write_value(filter_.value, target.value)
    elif isinstance(filter_, In):
        target.field = filter_.field
        for value in filter_.values:
            _write_value(value, target.values.add())
    elif isinstance(filter_, Range):
        target.field = filter_.field
        for bound in _BOUNDS:
            if (value := getattr(filter_, bound)) is not None:
                setattr(target, bound, _checked_number(value, filter_.field))
    elif isinstance(filter_, Exists):
        target.field = filter_.field


def _check_shape(filter_: Filter) -> None:
    """Raise TypeError for a filter whose parts are not of the types that it declares."""
    field = getattr(filter_, "field", "")
    if not isinstance(field, str):
        raise TypeError(f"field {shown(field)} is not a string")
    _utf8(field, "field")
    if isinstance(filter_, And | Or) and not isinstance(filter_.filters, tuple | list):
        raise TypeError(f"filters {shown(filter_.filters)} is not a tuple of filters")
    if isinstance(filter_, In) and not _has_values(filter_.values):
        raise TypeError(f"values {shown(filter_.values)} of {field!r} is not a tuple of values")


def _has_values(values: object) -> bool:
    """Whether values are a container of values, and not text, a mapping or a table."""
    if isinstance(values, str | bytes | bytearray | memoryview | Mapping):
        return False
    return isinstance(values, Iterable) and not is_table(values)


def _checked_number(value: float, field: str) -> float:
    """Return a number; raise TypeError for another type, ValueError for an integer that rounds."""
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"bound {shown(value)} of {field!r} is not a number: ranges are of numbers")
    check_exact(value)
    return value


def _plain(value: Any) -> Any:
    """Return a scalar of numpy as Python's; a time stays what it is, also where it is a number."""
    return value.item() if isinstance(value, np.generic) and not isinstance(value, TIMES) else value


def _utf8(text: str, what: str) -> str:
    """Return text that a message can hold; raise ValueError for other text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} {shown(text)} has a lone surrogate") from None
    return text


def _write_value(value: FilterValue, target: struct_pb2.Value) -> None:
    value = _plain(value)
    if isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, str):
        target.string_value = _utf8(value, "value")
    elif isinstance(value, int | float):
        check_exact(value)
        target.number_value = value
    elif value is None:
        raise TypeError("value None is not a string, a number or a bool: use Not(Exists(field))")
    else:
        raise TypeError(f"value {shown(value)} is not a string, a number or a bool")


def decode_filter(message: v1.Filter, limits: Limits) -> Filter:
    """Return the validated filter of a request's field ``filter``.

    Raises
    ------
    LimitExceeded
        If it nests too deep, or has too many nodes or values.
    InvalidParameter
        For an empty node, an ``and`` or ``or`` without filters, a value of another type, or NaN.
        The error's field is the path to it.
    """
    return _Reader(limits).read(message, "filter", 1)


@dataclass(slots=True)
class _Reader:
    """Reads one filter; counts its nodes and values."""

    limits: Limits
    nodes: int = 0
    values: int = 0

    def read(self, message: v1.Filter, path: str, depth: int) -> Filter:
        """Return the filter at `path`, `depth` nodes from the top."""
        self.nodes += 1
        if depth > self.limits.filter_depth:
            raise LimitExceeded(
                f"filter nests deeper than {self.limits.filter_depth} levels", field=path
            )
        if self.nodes > self.limits.filter_nodes:
            raise LimitExceeded(
                f"filter has more than {self.limits.filter_nodes} nodes", field=path
            )
        kind = message.WhichOneof("node")
        if kind is None:
            raise InvalidParameter("filter node is empty", field=path)
        node, path = getattr(message, kind), f"{path}.{kind}"
        if kind in ("and", "or"):
            filters = tuple(
                self.read(each, f"{path}.filters[{place}]", depth + 1)
                for place, each in enumerate(node.filters)
            )
            if not filters:
                reason = f"an {kind!r} filter requires at least one filter"
                raise InvalidParameter(reason, field=f"{path}.filters")
            return And(filters) if kind == "and" else Or(filters)
        if kind == "not":
            return Not(self.read(node, path, depth + 1))
        if kind == "equals":
            return Equals(node.field, _value_of(node.value, f"{path}.value"))
        if kind == "in":
            self.values += len(node.values)
            if self.values > self.limits.filter_values:
                raise LimitExceeded(
                    f"filter has more than {self.limits.filter_values:,} values",
                    field=f"{path}.values",
                )
            return In(
                node.field,
                tuple(
                    _value_of(value, f"{path}.values[{place}]")
                    for place, value in enumerate(node.values)
                ),
            )
        if kind == "range":
            return Range(node.field, **_bounds_of(node, path))
        return Exists(node.field)


def _value_of(value: struct_pb2.Value, path: str) -> FilterValue:
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        return _number(value.number_value, path)
    if kind == "string_value":
        return value.string_value
    if kind == "bool_value":
        return value.bool_value
    raise InvalidParameter("value is not a string, a number or a bool", field=path)


def _bounds_of(message: v1.FieldRange, path: str) -> dict[str, float]:
    return {
        bound: _number(getattr(message, bound), f"{path}.{bound}")
        for bound in _BOUNDS
        if message.HasField(bound)
    }


def _number(number: float, path: str) -> float:
    if math.isnan(number):
        raise InvalidParameter("NaN is not allowed", field=path)
    return number
