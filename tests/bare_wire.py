"""What a client in any language sends, as messages of the contract, and how it reads a status."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import grpc
import numpy as np
import numpy.typing as npt
from google.rpc import (  # type: ignore[import-untyped]  # it has stubs, but no py.typed
    error_details_pb2,
    status_pb2,
)

from vectorshard.v1 import vectorshard_pb2 as v1


@dataclass(frozen=True, slots=True)
class Refusal:
    """The status of a call that failed, as a client in any language reads it."""

    code: grpc.StatusCode
    message: str
    fields: tuple[str, ...] = ()
    """Of BadRequest.field_violations."""
    descriptions: tuple[str, ...] = ()
    reason: str = ""
    """Of ErrorInfo."""
    facts: dict[str, str] = field(default_factory=dict)
    """ErrorInfo.metadata."""


def refusal_of(error: grpc.RpcError) -> Refusal:
    """Read a failed call's status and its google.rpc details."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    bad_request, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            assert status.code == error.code().value[0]
            for detail in status.details:
                for message in (bad_request, info):
                    detail.Unpack(message)
    return Refusal(
        code=error.code(),
        message=error.details() or "",
        fields=tuple(violation.field for violation in bad_request.field_violations),
        descriptions=tuple(violation.description for violation in bad_request.field_violations),
        reason=info.reason,
        facts=dict(info.metadata),
    )


def check(refusal: Refusal, field: str, row: int | None = None) -> None:
    """Assert that a call was refused as the caller's mistake, naming field and row."""
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT, refusal
    assert refusal.fields == (field,)
    assert refusal.facts["field"] == field
    assert refusal.facts.get("row") == (None if row is None else str(row))
    assert refusal.descriptions[0].startswith(f"row {row}: ") is (row is not None)
    # A text that is a sentence about the field does not repeat its name before it.
    assert re.match(rf"{re.escape(field)}: |([a-z]+ )*{re.escape(field)} [a-z]", refusal.message)
    assert re.fullmatch(r"[A-Z]+(_[A-Z]+)*", refusal.reason)


def matrix(vectors: npt.ArrayLike) -> v1.Matrix:
    """Return vectors (rows, dim) as FLOAT32, as a client in any language writes them."""
    array = np.asarray(vectors, dtype="<f4")
    return v1.Matrix(data=array.tobytes(), dim=array.shape[1], dtype=v1.D_TYPE_FLOAT32)


def int64s(*ids: int) -> v1.Ids:
    """Return ids that are integers."""
    return v1.Ids(int64s=v1.Int64Ids(values=ids))


def strings(*ids: str) -> v1.Ids:
    """Return ids that are strings."""
    return v1.Ids(strings=v1.StringIds(values=ids))
