"""What every message needs: parsing, enum tables, and decimals as the caller stated them."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Iterable
from dataclasses import fields
from enum import Enum
from functools import cache
from typing import Any, Final, Generic, SupportsIndex, TypeVar

import numpy as np
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError, Message

from vectorshard.internal.v1 import internal_pb2 as twins
from vectorshard.shard import membership, types
from vectorshard.shard.errors import InvalidRequest, MalformedMessage
from vectorshard.v1 import vectorshard_pb2 as v1

_MessageT = TypeVar("_MessageT", bound=Message)
_EnumT = TypeVar("_EnumT", bound=Enum)


TIMES: Final = (np.datetime64, np.timedelta64)
"""Times of numpy, whose units decide whether numpy converts them to a date or to a bare number."""


def is_table(value: object) -> bool:
    """Whether a value has columns, as a DataFrame or a table of Arrow: iterated, it is names."""
    return hasattr(type(value), "columns") or hasattr(type(value), "column_names")


class _Shown(reprlib.Repr):
    """Bounds the length of a text, and writes the numbers of numpy as Python's."""

    def repr1(self, x: Any, level: int) -> str:
        """Return the text of a value, or of one inside of it."""
        if isinstance(x, TIMES):
            return f"{type(x).__name__}({str(x)!r})"
        return super().repr1(x.item() if isinstance(x, np.generic) else x, level)


_SHOWN: Final = _Shown()


def shown(value: object) -> str:
    """Return a value as an error names it: 9 for numpy's 9, in one line of a bounded length."""
    text = _SHOWN.repr(value)
    return " ".join(text.split()) if "\n" in text else text


def parse(
    message: type[_MessageT], payload: bytes, original: type[Message] | None = None
) -> _MessageT:
    """Return the message, or the twin of `original`; raise MalformedMessage with its name."""
    try:
        return message.FromString(payload)
    except DecodeError as error:
        expected = with_article((original or message).DESCRIPTOR.name)
        _, _, reason = str(error).rpartition(": ")
        raise MalformedMessage(f"not {expected}: {reason}", field="message") from None


def with_article(noun: str) -> str:
    """Return the noun after "a" or "an", by its first letter."""
    return f"an {noun}" if noun[0] in "AEIOUaeiou" else f"a {noun}"


def uint32_of(value: SupportsIndex, largest: int, field: str, refuse: type[InvalidRequest]) -> int:
    """Return an integer that a message can hold; raise `refuse`, which states 1..`largest`.

    A bool is not an integer: it is a flag in the wrong place.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise refuse(f"{shown(value)} is not an integer", field=field) from None
    if not 0 <= number < 2**32:
        raise refuse(f"{number:,} is not in 1..{largest:,}", field=field)
    return number


def str_of(value: str, field: str, refuse: type[InvalidRequest]) -> str:
    """Return a string that a message can hold; raise `refuse` for anything else."""
    if not isinstance(value, str):
        raise refuse(f"{shown(value)} is not a string", field=field)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise refuse(f"{shown(value)} has a lone surrogate", field=field) from None
    return value


def float_of(value: float, field: str, refuse: type[InvalidRequest]) -> float:
    """Return a number as a float; raise `refuse` for anything else, also for a bool."""
    try:
        if isinstance(value, bool | np.timedelta64):
            raise TypeError
        return float(operator.pos(value))  # without it, float would parse a string
    except (TypeError, ValueError, OverflowError):
        raise refuse(f"{shown(value)} is not a number", field=field) from None


def copied(source: object, dataclass: type[Any], *converted: str) -> dict[str, Any]:
    """Return the fields of `dataclass` by name, from an instance or its message.

    Only for a dataclass and a message with the same fields, except those that are `converted`.
    """
    return {name: getattr(source, name) for name in _copied_names(dataclass, converted)}  # type: ignore[arg-type]


@cache
def _copied_names(dataclass: type[Any], converted: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(dataclass) if field.name not in converted)


def shortest_decimal(value: float) -> float:
    """Return the shortest decimal of this float32: 0.95, not 0.949999988079071.

    A value that a caller stated is returned as stated, and equals the same default.
    """
    return float(str(np.float32(value)))


def check_recall(recall: float, field: str, refuse: type[InvalidRequest]) -> None:
    """Raise `refuse` unless the recall is in (0, 1]. NaN is refused."""
    if not 0.0 < recall <= 1.0:
        raise refuse(f"{recall} is not in (0, 1]", field=field)


def unknown(number: int, allowed: Iterable[str]) -> str:
    """Return the error text for an enum's number that is unspecified or unknown."""
    what = f"unknown value {number}" if number else "value is unspecified"
    return f"{what}: use one of {', '.join(allowed)}"


class EnumTable(Generic[_EnumT]):
    """The numbers of an enum of the contract, by the vocabulary's enum of that name, and back.

    `file` is the descriptor of the .proto that has it.
    """

    def __init__(self, enum: type[_EnumT], file: FileDescriptor = v1.DESCRIPTOR) -> None:
        contract = file.enum_types_by_name[enum.__name__]
        prefix = contract.values_by_number[0].name.removesuffix("UNSPECIFIED")
        # Any: each enum of the contract has a separate type for its numbers.
        self.number: dict[_EnumT, Any] = {
            member: contract.values_by_name[prefix + member.name].number for member in enum
        }
        self._member = {number: member for member, number in self.number.items()}

    def member(
        self, number: int, field: str, refuse: type[InvalidRequest], row: int | None = None
    ) -> _EnumT:
        """Return the member of `number`; raise `refuse` if it is unspecified or unknown."""
        member = self._member.get(number)
        if member is None:
            raise refuse(unknown(number, (each.name for each in self.number)), field=field, row=row)
        return member


METRICS = EnumTable(types.Metric)
ID_TYPES = EnumTable(types.IdType)
INDEX_KINDS = EnumTable(types.IndexKind)
NLIST_RULES = EnumTable(types.NlistRule)
FIELD_TYPES = EnumTable(types.FieldType)
EXACT_REASONS = EnumTable(types.ExactReason)
FILTER_PLANS = EnumTable(types.FilterPlan)
WRITE_MODES = EnumTable(types.WriteMode)
SHARD_STATES = EnumTable(types.ShardState)
ROLES = EnumTable(types.Role)
PROBLEM_KINDS = EnumTable(membership.ProblemKind)
STAGES = EnumTable(membership.Stage, twins.DESCRIPTOR)
COLLECTION_STATES = EnumTable(membership.CollectionState, twins.DESCRIPTOR)
