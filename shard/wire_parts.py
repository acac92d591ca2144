"""What the messages of vectorshard.v1 are made of: enums, tokens, configurations, receipts.

Part of shard.wire. A part that a request brings is checked here, and its defaults are filled in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from typing import Any, Generic, TypeVar

import numpy as np
from google.protobuf import duration_pb2, timestamp_pb2
from google.protobuf.message import DecodeError
from vectorshard.internal.v1 import internal_pb2 as twins
from vectorshard.v1 import vectorshard_pb2 as v1

from shard import types
from shard.config import Limits
from shard.errors import (
    InvalidConfig,
    InvalidParameter,
    InvalidRequest,
    MalformedMessage,
    Unsupported,
)

DEFAULT_MIN_TRAINING_SIZE = 1_000
DEFAULT_TARGET_RECALL = 0.95

COLLECTION_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

_EnumT = TypeVar("_EnumT", bound=Enum)


# ---- enums ---------------------------------------------------------------------------------------


class _EnumTable(Generic[_EnumT]):
    """The numbers of one enum of the contract, by the vocabulary's enum and back."""

    def __init__(self, enum: type[_EnumT], numbers: Mapping[str, int], prefix: str) -> None:
        # Any: each enum of the contract has a type of its own for its numbers.
        self.number: dict[_EnumT, Any] = {
            member: numbers[f"{prefix}_{member.name}"] for member in enum
        }
        self._member = {number: member for member, number in self.number.items()}

    def member(
        self, number: int, field: str, refuse: type[InvalidRequest], row: int | None = None
    ) -> _EnumT:
        """Return the member of `number`; raise `refuse` when it is unspecified or unknown."""
        member = self._member.get(number)
        if member is None:
            raise refuse(
                "unspecified" if number == 0 else f"unknown value {number}", field=field, row=row
            )
        return member


METRICS = _EnumTable(types.Metric, dict(v1.Metric.items()), "METRIC")
ID_TYPES = _EnumTable(types.IdType, dict(v1.IdType.items()), "ID_TYPE")
_INDEX_KINDS = _EnumTable(types.IndexKind, dict(v1.IndexKind.items()), "INDEX_KIND")
_NLIST_RULES = _EnumTable(types.NlistRule, dict(v1.NlistRule.items()), "NLIST_RULE")
_FIELD_TYPES = _EnumTable(types.FieldType, dict(v1.FieldType.items()), "FIELD_TYPE")
WRITE_MODES = _EnumTable(types.WriteMode, dict(v1.WriteMode.items()), "WRITE_MODE")
_SHARD_STATES = _EnumTable(types.ShardState, dict(v1.ShardState.items()), "SHARD_STATE")
ROLES = _EnumTable(types.Role, dict(v1.Role.items()), "ROLE")


# ---- numbers -------------------------------------------------------------------------------------


def shortest_float(value: float) -> float:
    """Return the shortest decimal that is this float32: 0.95, not 0.949999988079071.

    A value that a person stated comes out as it was stated, and equals the same default.
    """
    return float(str(np.float32(value)))


def fraction(value: float, field: str, refuse: type[InvalidRequest]) -> float:
    """Return a recall in (0, 1]; NaN is refused too."""
    if not 0.0 < value <= 1.0:
        raise refuse(f"{shortest_float(value)} is not in (0, 1]", field=field)
    return shortest_float(value)


# ---- tokens and cursors --------------------------------------------------------------------------


def encode_token(token: types.Token) -> bytes:
    """Return the opaque bytes of a token; b"" for one without an incarnation, which means none."""
    if not token.incarnation:
        return b""
    return twins.Token(
        incarnation=token.incarnation, sequences=dict(token.sequences)
    ).SerializeToString(deterministic=True)


def decode_token(token: bytes) -> types.Token:
    """Return the token of `encode_token`'s bytes; b"" is one without an incarnation.

    Raises
    ------
    InvalidParameter
        If `encode_token` did not write these bytes.
    """
    try:
        message = twins.Token.FromString(token)
    except DecodeError:
        raise InvalidParameter("not a token of this service", field="token") from None
    decoded = types.Token(incarnation=message.incarnation, sequences=dict(message.sequences))
    if encode_token(decoded) != token:
        raise InvalidParameter("not a token of this service", field="token")
    return decoded


def encode_cursor(cursor: types.Cursor) -> bytes:
    """Return the opaque bytes of a List cursor."""
    return twins.Cursor(
        incarnation=cursor.incarnation, shard=cursor.shard, row=cursor.row
    ).SerializeToString(deterministic=True)


def decode_cursor(cursor: bytes) -> types.Cursor:
    """Return the cursor of `encode_cursor`'s bytes.

    Raises
    ------
    InvalidParameter
        If `encode_cursor` did not write these bytes.
    """
    try:
        message = twins.Cursor.FromString(cursor)
    except DecodeError:
        raise InvalidParameter("not a cursor of this service", field="cursor") from None
    decoded = types.Cursor(incarnation=message.incarnation, shard=message.shard, row=message.row)
    if not decoded.incarnation or encode_cursor(decoded) != cursor:
        raise InvalidParameter("not a cursor of this service", field="cursor")
    return decoded


def decode_optional_cursor(cursor: bytes) -> types.Cursor | None:
    """Return a cursor, or None for no bytes; see `decode_cursor`."""
    return decode_cursor(cursor) if cursor else None


# ---- parts of messages ---------------------------------------------------------------------------


def refuse_filter(
    request: v1.DeleteRequest | v1.GetRequest | v1.CountRequest | v1.ListRequest | v1.SearchRequest,
) -> None:
    """Raise Unsupported when a request carries a filter."""
    if request.HasField("filter"):
        raise Unsupported("filters are not part of this release")


def encode_include(include: types.Include) -> v1.Include:
    """Write what an answer brings along."""
    return v1.Include(vectors=include.vectors, metadata=include.metadata)


def decode_include(include: v1.Include) -> types.Include:
    """Read what an answer brings along."""
    return types.Include(vectors=include.vectors, metadata=include.metadata)


def encode_index(index: types.IndexConfig) -> v1.IndexConfig:
    """Write how a collection is indexed."""
    return v1.IndexConfig(
        kind=_INDEX_KINDS.number[index.kind],
        min_training_size=index.min_training_size,
        nlist_rule=_NLIST_RULES.number[index.nlist_rule],
        nlist=index.nlist,
    )


def encode_filter_fields(declared: Iterable[types.FilterField]) -> list[v1.FilterField]:
    """Write the declared fields."""
    return [
        v1.FilterField(name=field.name, type=_FIELD_TYPES.number[field.type]) for field in declared
    ]


def encode_config(config: types.CollectionConfig) -> v1.CollectionConfig:
    """Write a resolved configuration."""
    return v1.CollectionConfig(
        name=config.name,
        dim=config.dim,
        metric=METRICS.number[config.metric],
        id_type=ID_TYPES.number[config.id_type],
        index=encode_index(config.index),
        target_recall=config.target_recall,
        filter_fields=encode_filter_fields(config.filter_fields),
    )


def resolve_config(config: v1.CollectionConfig, limits: Limits) -> types.CollectionConfig:
    """Check a collection's configuration and fill in the defaults."""
    if not COLLECTION_NAME.fullmatch(config.name):
        raise InvalidConfig(
            f"the name {config.name[:80]!r} is not {COLLECTION_NAME.pattern}", field="config.name"
        )
    if not 1 <= config.dim <= limits.dim:
        raise InvalidConfig(f"{config.dim} is not in 1..{limits.dim:,}", field="config.dim")
    return types.CollectionConfig(
        name=config.name,
        dim=config.dim,
        metric=METRICS.member(config.metric, "config.metric", InvalidConfig),
        id_type=ID_TYPES.member(config.id_type, "config.id_type", InvalidConfig),
        index=_resolve_index(config.index, limits),
        target_recall=(
            fraction(config.target_recall, "config.target_recall", InvalidConfig)
            if config.target_recall
            else DEFAULT_TARGET_RECALL
        ),
        filter_fields=_resolve_filter_fields(config.filter_fields),
    )


def _resolve_index(index: v1.IndexConfig, limits: Limits) -> types.IndexConfig:
    kind = _INDEX_KINDS.member(
        index.kind or v1.INDEX_KIND_IVF_FLAT, "config.index.kind", InvalidConfig
    )
    default_rule = v1.NLIST_RULE_FIXED if index.nlist else v1.NLIST_RULE_SQRT_4
    rule = _NLIST_RULES.member(
        index.nlist_rule or default_rule, "config.index.nlist_rule", InvalidConfig
    )
    fixed = rule is types.NlistRule.FIXED
    if fixed != (index.nlist > 0):
        raise InvalidConfig(
            "FIXED needs it" if fixed else f"only FIXED takes it, not {rule.name}",
            field="config.index.nlist",
        )
    if index.nlist > limits.nlist:
        raise InvalidConfig(
            f"{index.nlist:,} lists, at most {limits.nlist:,}", field="config.index.nlist"
        )
    if kind is types.IndexKind.IVF_PQ:
        raise Unsupported("the index kind IVF_PQ is not part of this release")
    return types.IndexConfig(
        kind=kind,
        min_training_size=index.min_training_size or DEFAULT_MIN_TRAINING_SIZE,
        nlist_rule=rule,
        nlist=index.nlist,
    )


def _resolve_filter_fields(declared: Iterable[v1.FilterField]) -> tuple[types.FilterField, ...]:
    names: set[str] = set()
    resolved = []
    for row, field in enumerate(declared):
        if not field.name or field.name in names:
            raise InvalidConfig(
                f"the name {field.name!r} comes twice" if field.name else "a name is empty",
                field="config.filter_fields",
                row=row,
            )
        names.add(field.name)
        kind = _FIELD_TYPES.member(field.type, "config.filter_fields", InvalidConfig, row)
        resolved.append(types.FilterField(field.name, kind))
    return tuple(resolved)


def decode_config(config: v1.CollectionConfig) -> types.CollectionConfig:
    """Read a resolved configuration, as a server answers it."""
    return types.CollectionConfig(
        name=config.name,
        dim=config.dim,
        metric=METRICS.member(config.metric, "config.metric", MalformedMessage),
        id_type=ID_TYPES.member(config.id_type, "config.id_type", MalformedMessage),
        index=types.IndexConfig(
            kind=_INDEX_KINDS.member(config.index.kind, "config.index.kind", MalformedMessage),
            min_training_size=config.index.min_training_size,
            nlist_rule=_NLIST_RULES.member(
                config.index.nlist_rule, "config.index.nlist_rule", MalformedMessage
            ),
            nlist=config.index.nlist,
        ),
        target_recall=shortest_float(config.target_recall),
        filter_fields=tuple(
            types.FilterField(
                field.name,
                _FIELD_TYPES.member(field.type, "config.filter_fields", MalformedMessage, row),
            )
            for row, field in enumerate(config.filter_fields)
        ),
    )


def copied(source: object, names: Sequence[str]) -> dict[str, Any]:
    """Return the named fields, for a message and a dataclass whose fields are the same."""
    return {name: getattr(source, name) for name in names}


def _names(dataclass: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(dataclass))


LEDGER_FIELDS = _names(types.Ledger)
LIMITS_FIELDS = _names(Limits)
ROW_ERROR_FIELDS = _names(types.RowError)
SHARD_RECEIPT_FIELDS = _names(types.ShardReceipt)


def encode_shard(shard: types.ShardDescription) -> v1.ShardDescription:
    """Write one shard's part of a collection; times of 0 are left out."""
    message = v1.ShardDescription(
        shard=shard.shard,
        state=_SHARD_STATES.number[shard.state],
        training=shard.training,
        ledger=v1.Ledger(**copied(shard.ledger, LEDGER_FIELDS)),
        nlist=shard.nlist,
        nprobe=shard.nprobe,
        measured_recall=shard.measured_recall,
        generation=shard.generation,
        rows_trained_on=shard.rows_trained_on,
        list_imbalance=shard.list_imbalance,
        memory_bytes=shard.memory_bytes,
        disk_bytes=shard.disk_bytes,
    )
    if shard.last_training_s:
        message.last_training_duration.CopyFrom(
            duration_pb2.Duration(**_seconds_and_nanos(shard.last_training_s))
        )
    if shard.last_trained_at:
        message.last_trained_at.CopyFrom(
            timestamp_pb2.Timestamp(**_seconds_and_nanos(shard.last_trained_at))
        )
    return message


def _seconds_and_nanos(seconds: float) -> dict[str, int]:
    nanos = round(math.fmod(seconds, 1.0) * 1e9)
    return {"seconds": int(seconds) + nanos // 10**9, "nanos": nanos % 10**9}


def decode_shard(shard: v1.ShardDescription) -> types.ShardDescription:
    """Read one shard's part of a collection."""
    training, trained = shard.last_training_duration, shard.last_trained_at
    return types.ShardDescription(
        shard=shard.shard,
        state=_SHARD_STATES.member(shard.state, "shards.state", MalformedMessage),
        training=shard.training,
        ledger=types.Ledger(**copied(shard.ledger, LEDGER_FIELDS)),
        nlist=shard.nlist,
        nprobe=shard.nprobe,
        measured_recall=shortest_float(shard.measured_recall),
        generation=shard.generation,
        rows_trained_on=shard.rows_trained_on,
        list_imbalance=shortest_float(shard.list_imbalance),
        # Divided once as integers: the nearest double, which is the one that was sent.
        last_training_s=(training.seconds * 10**9 + training.nanos) / 10**9,
        last_trained_at=(trained.seconds * 10**9 + trained.nanos) / 10**9,
        memory_bytes=shard.memory_bytes,
        disk_bytes=shard.disk_bytes,
    )


def encode_receipt(receipt: types.Receipt) -> v1.Receipt:
    """Write what an answer covers."""
    return v1.Receipt(
        shards_total=receipt.shards_total,
        shards_answered=receipt.shards_answered,
        coverage=receipt.coverage,
        shards=[v1.ShardReceipt(**copied(shard, SHARD_RECEIPT_FIELDS)) for shard in receipt.shards],
    )


def decode_receipt(receipt: v1.Receipt) -> types.Receipt:
    """Read what an answer covers."""
    return types.Receipt(
        coverage=shortest_float(receipt.coverage),
        shards=tuple(
            types.ShardReceipt(**copied(shard, SHARD_RECEIPT_FIELDS)) for shard in receipt.shards
        ),
    )
