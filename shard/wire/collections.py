"""CreateCollection, DropCollection, UpdateCollection, ListCollections, and the configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from vectorshard.shard import types
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import (
    InvalidConfig,
    InvalidParameter,
    InvalidRequest,
    MalformedMessage,
)
from vectorshard.shard.texts import counted
from vectorshard.shard.wire.primitives import (
    FIELD_TYPES,
    ID_TYPES,
    INDEX_KINDS,
    METRICS,
    NLIST_RULES,
    check_recall,
    float_of,
    parse,
    shortest_decimal,
    shown,
    str_of,
    uint32_of,
)
from vectorshard.v1 import vectorshard_pb2 as v1

_COLLECTION_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_FIELD_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""Of a new collection. Earlier releases took any name, and their collections are served."""


# ---- the configuration ---------------------------------------------------------------------------


def encode_config(config: types.CollectionConfig) -> v1.CollectionConfig:
    """Write a resolved configuration."""
    return v1.CollectionConfig(
        name=config.name,
        dim=config.dim,
        metric=METRICS.number[config.metric],
        id_type=ID_TYPES.number[config.id_type],
        index=_encode_index(config.index),
        target_recall=config.target_recall,
        filter_fields=_encode_filter_fields(config.filter_fields),
    )


def _encode_index(index: types.IndexConfig) -> v1.IndexConfig:
    return v1.IndexConfig(
        kind=INDEX_KINDS.number[index.kind],
        min_training_size=index.min_training_size,
        nlist_rule=NLIST_RULES.number[index.nlist_rule],
        nlist=index.nlist,
    )


def _encode_filter_fields(declared: Iterable[types.FilterField]) -> list[v1.FilterField]:
    return [
        v1.FilterField(name=field.name, type=FIELD_TYPES.number[field.type]) for field in declared
    ]


def decode_config(
    config: v1.CollectionConfig, refuse: type[InvalidRequest] = MalformedMessage
) -> types.CollectionConfig:
    """Return a resolved configuration; raise `refuse` for an unknown enum value."""
    return types.CollectionConfig(
        name=config.name,
        dim=config.dim,
        metric=METRICS.member(config.metric, "config.metric", refuse),
        id_type=ID_TYPES.member(config.id_type, "config.id_type", refuse),
        index=types.IndexConfig(
            kind=INDEX_KINDS.member(config.index.kind, "config.index.kind", refuse),
            min_training_size=config.index.min_training_size,
            nlist_rule=NLIST_RULES.member(
                config.index.nlist_rule, "config.index.nlist_rule", refuse
            ),
            nlist=config.index.nlist,
        ),
        target_recall=shortest_decimal(config.target_recall),
        filter_fields=tuple(
            types.FilterField(
                field.name, FIELD_TYPES.member(field.type, "config.filter_fields", refuse, row)
            )
            for row, field in enumerate(config.filter_fields)
        ),
    )


_DEFAULTS = encode_config(
    types.CollectionConfig(name="", dim=0, metric=types.Metric.L2, id_type=types.IdType.INT64)
)
"""Only the optional fields are read."""


def _fill_in_defaults(config: v1.CollectionConfig) -> None:
    config.target_recall = config.target_recall or _DEFAULTS.target_recall
    index, default = config.index, _DEFAULTS.index
    index.kind = index.kind or default.kind
    index.min_training_size = index.min_training_size or default.min_training_size
    default_rule = v1.NLIST_RULE_FIXED if index.nlist else default.nlist_rule
    index.nlist_rule = index.nlist_rule or default_rule


def _check_name_and_dim(config: v1.CollectionConfig, limits: Limits) -> None:
    if not _COLLECTION_NAME.fullmatch(config.name):
        raise InvalidConfig(
            f"name {config.name[:80]!r} does not match {_COLLECTION_NAME.pattern}",
            field="config.name",
        )
    if not 1 <= config.dim <= limits.dim:
        raise InvalidConfig(f"{config.dim:,} is not in 1..{limits.dim:,}", field="config.dim")


def _check_index(index: types.IndexConfig, limits: Limits) -> None:
    fixed = index.nlist_rule is types.NlistRule.FIXED
    if fixed != (index.nlist > 0):
        raise InvalidConfig(
            "nlist is required when nlist_rule is FIXED"
            if fixed
            else f"nlist is allowed only when nlist_rule is FIXED, not {index.nlist_rule.name}",
            field="config.index.nlist",
        )
    if index.nlist > limits.nlist:
        raise InvalidConfig(
            f"{index.nlist:,} exceeds the limit of {limits.nlist:,}", field="config.index.nlist"
        )


def _check_filter_fields(declared: Sequence[types.FilterField], limits: Limits) -> None:
    if len(declared) > limits.filter_fields:
        raise InvalidConfig(
            f"{len(declared):,} fields exceed the limit of {limits.filter_fields}",
            field="config.filter_fields",
        )
    names: set[str] = set()
    for row, field in enumerate(declared):
        reason = ""
        if not field.name:
            reason = "name must not be empty"
        elif field.name in names:
            reason = f"duplicate name {field.name!r}"
        elif not _FIELD_NAME.fullmatch(field.name):
            reason = f"name {shown(field.name)} is not 1 to 64 of the characters A-Z a-z 0-9 _ . -"
        if reason:
            raise InvalidConfig(reason, field="config.filter_fields", row=row)
        names.add(field.name)


# ---- CreateCollection ----------------------------------------------------------------------------


def encode_create_collection_request(
    *,
    name: str,
    dim: int,
    metric: types.Metric,
    id_type: types.IdType,
    index: types.IndexConfig | None = None,
    target_recall: float | None = None,
    filter_fields: Iterable[types.FilterField] = (),
) -> bytes:
    """Request a collection; for None the server uses its default.

    Raises InvalidConfig if `dim` is not a uint32, or a name is not UTF-8.
    """
    if target_recall is not None:
        target_recall = float_of(target_recall, "config.target_recall", InvalidConfig)
        if target_recall == 0.0:  # in a message, it asks for the default
            raise InvalidConfig("0 is not in (0, 1]", field="config.target_recall")
    try:
        config = v1.CollectionConfig(
            name=str_of(name, "config.name", InvalidConfig),
            dim=uint32_of(dim, Limits().dim, "config.dim", InvalidConfig),
            metric=METRICS.number[metric],
            id_type=ID_TYPES.number[id_type],
            index=None if index is None else _encode_index(index),
            target_recall=target_recall,
            filter_fields=_encode_filter_fields(filter_fields),
        )
    except (ValueError, TypeError) as error:
        raise InvalidConfig(str(error), field="config") from None
    return v1.CreateCollectionRequest(config=config).SerializeToString()


def decode_create_collection_request(payload: bytes, limits: Limits) -> types.CollectionConfig:
    """Return the resolved configuration, with the defaults filled in.

    Raises MalformedMessage or InvalidConfig for bytes that do not parse, or an invalid
    configuration.
    """
    request = parse(v1.CreateCollectionRequest, payload)
    if not request.HasField("config"):
        raise InvalidConfig("config is required", field="config")
    _check_name_and_dim(request.config, limits)
    _fill_in_defaults(request.config)
    config = decode_config(request.config, InvalidConfig)
    _check_index(config.index, limits)
    check_recall(config.target_recall, "config.target_recall", InvalidConfig)
    _check_filter_fields(config.filter_fields, limits)
    return config


def encode_create_collection_response(entry: types.CollectionEntry, created: bool) -> bytes:
    """Answer with the resolved configuration, its incarnation, and whether it is new."""
    return v1.CreateCollectionResponse(
        config=encode_config(entry.config), created=created, incarnation=entry.incarnation
    ).SerializeToString()


def decode_create_collection_response(payload: bytes) -> tuple[types.CollectionEntry, bool]:
    """Return the collection, its configuration resolved, and whether it is new."""
    response = parse(v1.CreateCollectionResponse, payload)
    entry = types.CollectionEntry(
        config=decode_config(response.config), incarnation=response.incarnation
    )
    return entry, response.created


def encode_drop_collection_request(collection: str) -> bytes:
    """Name the collection to drop."""
    return v1.DropCollectionRequest(collection=collection).SerializeToString()


def decode_drop_collection_request(payload: bytes) -> str:
    """Return the name of the collection to drop."""
    return parse(v1.DropCollectionRequest, payload).collection


def encode_drop_collection_response() -> bytes:
    """Answer that the collection is dropped."""
    return v1.DropCollectionResponse().SerializeToString()


def decode_drop_collection_response(payload: bytes) -> None:
    """Check that the bytes parse."""
    parse(v1.DropCollectionResponse, payload)


def encode_update_collection_request(request: types.UpdateRequest) -> bytes:
    """Name the collection and its new target recall.

    Raises InvalidParameter if the target is not a number.
    """
    target_recall = float_of(request.target_recall, "target_recall", InvalidParameter)
    return v1.UpdateCollectionRequest(
        collection=request.collection, target_recall=target_recall
    ).SerializeToString()


def decode_update_collection_request(payload: bytes) -> types.UpdateRequest:
    """Return the validated request.

    Raises MalformedMessage for bytes that do not parse, InvalidParameter without a target, or for
    one outside (0, 1].
    """
    request = parse(v1.UpdateCollectionRequest, payload)
    if not request.HasField("target_recall"):
        raise InvalidParameter("target_recall is required", field="target_recall")
    target_recall = shortest_decimal(request.target_recall)
    check_recall(target_recall, "target_recall", InvalidParameter)
    return types.UpdateRequest(collection=request.collection, target_recall=target_recall)


def encode_update_collection_response(entry: types.CollectionEntry) -> bytes:
    """Answer with the configuration as updated, and its incarnation."""
    return v1.UpdateCollectionResponse(
        config=encode_config(entry.config), incarnation=entry.incarnation
    ).SerializeToString()


def decode_update_collection_response(payload: bytes) -> types.CollectionEntry:
    """Return the collection as updated."""
    response = parse(v1.UpdateCollectionResponse, payload)
    return types.CollectionEntry(
        config=decode_config(response.config), incarnation=response.incarnation
    )


def encode_list_collections_request() -> bytes:
    """Request all collections."""
    return v1.ListCollectionsRequest().SerializeToString()


def decode_list_collections_request(payload: bytes) -> None:
    """Check that the bytes parse."""
    parse(v1.ListCollectionsRequest, payload)


def encode_list_collections_response(entries: Sequence[types.CollectionEntry]) -> bytes:
    """Answer with the collections, in the order given."""
    return v1.ListCollectionsResponse(
        collections=[encode_config(entry.config) for entry in entries],
        incarnations=[entry.incarnation for entry in entries],
    ).SerializeToString()


def decode_list_collections_response(payload: bytes) -> list[types.CollectionEntry]:
    """Return the collections, by name, with resolved configurations.

    Raises MalformedMessage if the numbers of collections and incarnations differ.
    """
    response = parse(v1.ListCollectionsResponse, payload)
    if len(response.incarnations) != len(response.collections):
        raise MalformedMessage(
            f"{len(response.incarnations)} incarnations do not match "
            f"{counted(len(response.collections), 'collection')}",
            field="incarnations",
        )
    return [
        types.CollectionEntry(config=decode_config(config), incarnation=incarnation)
        for config, incarnation in zip(response.collections, response.incarnations, strict=True)
    ]
