"""vectorshard: a distributed vector search service over gRPC.

    from vectorshard import Client

    with Client("127.0.0.1:7700") as client:
        client.create_collection("words", dim=100)

`open_local()` returns such a client without a server to start, for tests and notebooks.

This module exports everything that a caller needs, `vectorshard.errors` every exception, and
`vectorshard.v1` is the generated contract. A name is loaded when it is first used, so a program may
still set the environment variables of numpy and grpc after `import vectorshard`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vectorshard import errors
    from vectorshard.cli.local import open_local
    from vectorshard.client.async_client import AsyncClient
    from vectorshard.client.client import Client
    from vectorshard.client.results import (
        Hit,
        HitMatrix,
        Hits,
        Row,
        RowsView,
        ServerInfo,
        UpsertSummary,
    )
    from vectorshard.client.retry import Retry
    from vectorshard.client.streams import SearchStream
    from vectorshard.shard.config import Limits
    from vectorshard.shard.descriptions import (
        CollectionDescription,
        Explanation,
        ShardDescription,
        ShardPlacement,
        Topology,
    )
    from vectorshard.shard.errors import (
        ClientUnusable,
        CollectionExists,
        CollectionNotFound,
        DeadlineExceeded,
        DimensionMismatch,
        InternalError,
        InvalidConfig,
        InvalidId,
        InvalidParameter,
        InvalidRequest,
        InvalidVector,
        LimitExceeded,
        Overloaded,
        ShardUnavailable,
        VectorShardError,
        WritesStopped,
    )
    from vectorshard.shard.filters import And, Equals, Exists, Filter, In, Not, Or, Range
    from vectorshard.shard.types import (
        CollectionConfig,
        ExactReason,
        FieldType,
        FilterField,
        FilterPlan,
        IdType,
        IndexConfig,
        IndexKind,
        Ledger,
        Metric,
        NlistRule,
        Receipt,
        Role,
        RowError,
        RowErrorCode,
        ShardReceipt,
        ShardState,
        Token,
        WriteMode,
    )

__version__ = "0.1.0"
"""The version of the project: pyproject.toml reads it here."""

_NAMES: Final = {
    "vectorshard.cli.local": ("open_local",),
    "vectorshard.client.async_client": ("AsyncClient",),
    "vectorshard.client.client": ("Client",),
    "vectorshard.client.results": (
        "Hit",
        "HitMatrix",
        "Hits",
        "Row",
        "RowsView",
        "ServerInfo",
        "UpsertSummary",
    ),
    "vectorshard.client.retry": ("Retry",),
    "vectorshard.client.streams": ("SearchStream",),
    "vectorshard.shard.config": ("Limits",),
    "vectorshard.shard.errors": (
        "ClientUnusable",
        "CollectionExists",
        "CollectionNotFound",
        "DeadlineExceeded",
        "DimensionMismatch",
        "InternalError",
        "InvalidConfig",
        "InvalidId",
        "InvalidParameter",
        "InvalidRequest",
        "InvalidVector",
        "LimitExceeded",
        "Overloaded",
        "ShardUnavailable",
        "VectorShardError",
        "WritesStopped",
    ),
    "vectorshard.shard.filters": (
        "And",
        "Equals",
        "Exists",
        "Filter",
        "In",
        "Not",
        "Or",
        "Range",
    ),
    "vectorshard.shard.descriptions": (
        "CollectionDescription",
        "Explanation",
        "ShardDescription",
        "ShardPlacement",
        "Topology",
    ),
    "vectorshard.shard.types": (
        "CollectionConfig",
        "ExactReason",
        "FieldType",
        "FilterField",
        "FilterPlan",
        "IdType",
        "IndexConfig",
        "IndexKind",
        "Ledger",
        "Metric",
        "NlistRule",
        "Receipt",
        "Role",
        "RowError",
        "RowErrorCode",
        "ShardReceipt",
        "ShardState",
        "Token",
        "WriteMode",
    ),
}
"""The public names, by the module that defines them."""

_HOME: Final = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "And",
    "AsyncClient",
    "Client",
    "ClientUnusable",
    "CollectionConfig",
    "CollectionDescription",
    "CollectionExists",
    "CollectionNotFound",
    "DeadlineExceeded",
    "DimensionMismatch",
    "Equals",
    "ExactReason",
    "Exists",
    "Explanation",
    "FieldType",
    "Filter",
    "FilterField",
    "FilterPlan",
    "Hit",
    "HitMatrix",
    "Hits",
    "IdType",
    "In",
    "IndexConfig",
    "IndexKind",
    "InternalError",
    "InvalidConfig",
    "InvalidId",
    "InvalidParameter",
    "InvalidRequest",
    "InvalidVector",
    "Ledger",
    "LimitExceeded",
    "Limits",
    "Metric",
    "NlistRule",
    "Not",
    "Or",
    "Overloaded",
    "Range",
    "Receipt",
    "Retry",
    "Role",
    "Row",
    "RowError",
    "RowErrorCode",
    "RowsView",
    "SearchStream",
    "ServerInfo",
    "ShardDescription",
    "ShardPlacement",
    "ShardReceipt",
    "ShardState",
    "ShardUnavailable",
    "Token",
    "Topology",
    "UpsertSummary",
    "VectorShardError",
    "WriteMode",
    "WritesStopped",
    "__version__",
    "errors",
    "open_local",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name == "errors":
        return import_module("vectorshard.errors")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    """Return the public names, loaded or not."""
    return sorted({*globals(), *__all__})
