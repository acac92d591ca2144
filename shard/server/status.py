"""Errors to google.rpc.Status and back: the only module that maps errors to gRPC's codes.

A status names its error's class in ErrorInfo.reason, so that a client raises the same class;
clients in other languages switch on it. No message of the contract enters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError
from google.rpc import (  # type: ignore[import-untyped]  # it has stubs, but no py.typed
    error_details_pb2,
    status_pb2,
)

from vectorshard.shard import errors
from vectorshard.shard.errors import VectorShardError

Status = status_pb2.Status
"""google.rpc.Status."""

DOMAIN: Final = "vectorshard"
"""ErrorInfo.domain of every error of this service."""

DETAILS_KEY: Final = "grpc-status-details-bin"
"""The trailing metadata that carries a google.rpc.Status, as in gRPC's richer error model."""

RETRY_DELAY_S: Final = 0.1
"""RetryInfo of retryable errors: the time of some hundred searches, short for a caller."""

TEXT_BYTES: Final = 1_000
"""An error's text is cut to this. It is sent three times in the trailing metadata, once
percent-encoded (3 bytes a byte), and gRPC accepts 8 KiB of metadata."""

STATUS_BY_ERROR: Final[dict[type[VectorShardError], grpc.StatusCode]] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.MalformedMessage: grpc.StatusCode.INVALID_ARGUMENT,
    errors.DimensionMismatch: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidVector: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidId: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidParameter: grpc.StatusCode.INVALID_ARGUMENT,
    errors.CannotListen: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidConfig: grpc.StatusCode.INVALID_ARGUMENT,
    # Not RESOURCE_EXHAUSTED, which clients retry: the same request never fits.
    errors.LimitExceeded: grpc.StatusCode.INVALID_ARGUMENT,
    errors.CollectionNotFound: grpc.StatusCode.NOT_FOUND,
    errors.CollectionExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.IncarnationMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PlacementMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.ShardUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.ShardMissing: grpc.StatusCode.FAILED_PRECONDITION,
    # Not DATA_LOSS: a restart may read what is there. Not UNAVAILABLE, as for WritesStopped.
    errors.ReadFailed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.CollectionUnreadable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.DiskFailed: grpc.StatusCode.FAILED_PRECONDITION,
    # Not UNAVAILABLE, which clients retry: a call that fails with FAILED_PRECONDITION "should not
    # be retried until the system state has been explicitly fixed", here by a restart.
    errors.WritesStopped: grpc.StatusCode.FAILED_PRECONDITION,
    errors.WritesLost: grpc.StatusCode.FAILED_PRECONDITION,
    errors.CopyEnded: grpc.StatusCode.FAILED_PRECONDITION,
    errors.CorruptData: grpc.StatusCode.DATA_LOSS,
    errors.CollectionDamaged: grpc.StatusCode.DATA_LOSS,
    errors.RowsDamaged: grpc.StatusCode.DATA_LOSS,
    errors.RowFileCorrupt: grpc.StatusCode.DATA_LOSS,
    errors.RowStoreCorrupt: grpc.StatusCode.DATA_LOSS,
    errors.DataDirectoryError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DataDirectoryLocked: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DataDirectoryTooNew: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DataDirectoryForeign: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DataDirectoryFull: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DataDirectoryUnusable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.LimitsTooLow: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ClientUnusable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}

# For a status without an ErrorInfo of ours: from gRPC itself, or from a proxy.
_ERROR_BY_CODE: Final[dict[grpc.StatusCode, type[VectorShardError]]] = {
    grpc.StatusCode.NOT_FOUND: errors.CollectionNotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.CollectionExists,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unsupported,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.UNAVAILABLE: errors.ShardUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.DATA_LOSS: errors.CorruptData,
    # gRPC's own servers answer so when more calls wait than they allow, and proxies do.
    grpc.StatusCode.CANCELLED: errors.Overloaded,
}

# gRPC's text for a stream that the server has refused, REFUSED_STREAM of HTTP/2.
_REFUSED_STREAM: Final = re.compile(r"RST_STREAM with error code 7\b")

# gRPC's text for a message over the bound of a channel or server; no separate code exists.
_TOO_LARGE: Final = re.compile(r"(Received|Sent) message larger than max")


# gRPC's texts for a server that it does not reach: the address or name, then the reason.
_NO_SERVER: Final = re.compile(
    r".* (?:ipv[46]|unix):(\S+): "
    r"(?:Failed to connect to remote host: (?:connect: )?|connect failed: .* error: )([^:(]+).*"
)
_NO_ADDRESS: Final = re.compile(r"errors resolving (\S+): \[.*: ([^:\]]+)\]")


# gRPC's texts for a port that answers in another protocol, or not at all, while it connects.
_NO_HANDSHAKE: Final = re.compile(
    r".*last error: \w+: (?:ipv[46]|unix):(\S+): (Failed parsing HTTP/2|recvmsg:|Socket closed|"
    r"connection attempt timed out).*"
)
_WHY_NO_HANDSHAKE: Final = {
    "Failed parsing HTTP/2": "does not speak gRPC: it is the port of another service, such as HTTP",
    "recvmsg:": "closed the connection: it is a TLS port, or its server is stopping",
    "Socket closed": "closed the connection: it is a TLS port, or its server is stopping",
    "connection attempt timed out": "accepts connections and answers nothing",
}


def _in_our_words(message: str) -> str:
    """Return gRPC's text for a server that it does not reach in our words; others unchanged."""
    if found := _NO_HANDSHAKE.fullmatch(message):
        return f"{unquote(found[1])} {_WHY_NO_HANDSHAKE[found[2]]}"
    for pattern, what in (
        (_NO_SERVER, "no server answers at {}"),
        (_NO_ADDRESS, "{} has no address"),
    ):
        if found := pattern.fullmatch(message):
            reason = found[2].strip()
            return f"{what.format(unquote(found[1]))}: {reason[:1].lower()}{reason[1:]}"
    return message


def _reason_of(error: type[VectorShardError]) -> str:
    """Return the class's name in UPPER_SNAKE: COLLECTION_NOT_FOUND."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", error.__name__).upper()


CODE_BY_NUMBER: Final[dict[int, grpc.StatusCode]] = {
    code.value[0]: code for code in grpc.StatusCode
}
"""gRPC's codes by their numbers in google.rpc.Status."""

_ERROR_BY_REASON: Final = {_reason_of(error): error for error in STATUS_BY_ERROR}


def _listed_class(error: Exception) -> type[VectorShardError]:
    """Return the error's class or its nearest base that the table lists; else InternalError."""
    for base in type(error).__mro__:
        if base in STATUS_BY_ERROR:
            return base
    return errors.InternalError


def _cut(text: str) -> str:
    """Return the text cut to TEXT_BYTES of UTF-8, with an ellipsis at the cut."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= TEXT_BYTES:
        return encoded.decode("utf-8")
    return encoded[: TEXT_BYTES - len("…".encode())].decode("utf-8", "ignore") + "…"


def status_code(error: Exception) -> grpc.StatusCode:
    """Return the code of an error; INTERNAL for an unexpected one."""
    return STATUS_BY_ERROR[_listed_class(error)]


def status_of(error: VectorShardError) -> status_pb2.Status:
    """Return an error as a status with google.rpc details.

    ErrorInfo always, BadRequest for the caller's mistakes, RetryInfo for retryable ones.
    """
    status = status_pb2.Status(code=status_code(error).value[0], message=_cut(str(error)))
    facts: dict[str, str] = {}
    if isinstance(error, errors.InvalidRequest):
        facts["field"] = error.field
        prefix = ""
        if error.row is not None:
            facts["row"] = str(error.row)
            prefix = f"row {error.row}: "
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=_cut(prefix + error.reason)
        )
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.error_id:
        facts["error_id"] = error.error_id
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(
            domain=DOMAIN, reason=_reason_of(_listed_class(error)), metadata=facts
        )
    )
    if error.retryable:
        retry = error_details_pb2.RetryInfo()
        delay_s = RETRY_DELAY_S if error.retry_delay_s is None else error.retry_delay_s
        retry.retry_delay.FromNanoseconds(round(delay_s * 1e9))
        status.details.add().Pack(retry)
    return status


def opaque_status(error: Exception, error_id: str) -> status_pb2.Status:
    """Return the status of the server's own failure: its kind, and the id of its log event.

    The error's text stays on the server. An unexpected failure is INTERNAL.
    """
    kind = _listed_class(error)
    what = "Internal error." if kind is errors.InternalError else (kind.__doc__ or "").strip()
    status = status_pb2.Status(
        code=STATUS_BY_ERROR[kind].value[0],
        message=f"{what} See the server's log for error_id={error_id}.",
    )
    facts = {"error_id": error_id}
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(domain=DOMAIN, reason=_reason_of(kind), metadata=facts)
    )
    return status


def cancelled_status() -> status_pb2.Status:
    """Return the status of a request of a stream that its caller cancelled."""
    return status_pb2.Status(
        code=grpc.StatusCode.CANCELLED.value[0], message="the caller cancelled the request"
    )


def read_status(payload: bytes) -> tuple[grpc.StatusCode, VectorShardError]:
    """Return the code of a google.rpc.Status and its error, as `error_from_status` does.

    Bytes that do not parse are an InternalError.
    """
    try:
        status = status_pb2.Status.FromString(payload)
    except DecodeError:
        status = status_pb2.Status(message="not a google.rpc.Status")
    code = CODE_BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    return code, error_from_status(code, status.message, status)


def error_from_status(
    code: grpc.StatusCode, message: str, details: bytes | status_pb2.Status | None = None
) -> VectorShardError:
    """Return the error of a status, by its ErrorInfo or else by its code.

    The error has the delay of RetryInfo. CANCELLED counts as a server's refusal: callers that
    cancel calls themselves check the code first. `details` is a google.rpc.Status, or its bytes;
    bytes that do not parse count as no details.
    """
    if isinstance(details, bytes):
        try:
            details = status_pb2.Status.FromString(details)
        except DecodeError:
            details = None
    info, violation, retry = _details_of(details)
    kind = _ERROR_BY_REASON.get(info.reason) if info.domain == DOMAIN else None
    if kind is not None and issubclass(kind, errors.InvalidRequest):
        return _invalid_request(kind, message, info, violation)
    error = _error_of_code(code, message, violation) if kind is None else kind(message)
    if error_id := info.metadata.get("error_id"):
        error.error_id = error_id
    if retry.HasField("retry_delay"):
        error.retry_delay_s = max(0.0, retry.retry_delay.ToNanoseconds() / 1e9)
    return error


def _details_of(
    status: status_pb2.Status | None,
) -> tuple[
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest.FieldViolation,
    error_details_pb2.RetryInfo,
]:
    """Return the ErrorInfo, the first field violation and the RetryInfo; empty if absent."""
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details if status is not None else ():
        for message in (info, bad_request, retry):
            if detail.Is(message.DESCRIPTOR):
                try:
                    detail.Unpack(message)
                except DecodeError:
                    message.Clear()
    violation = error_details_pb2.BadRequest.FieldViolation()
    if bad_request.field_violations:
        violation = bad_request.field_violations[0]
    return info, violation, retry


def _invalid_request(
    kind: type[errors.InvalidRequest],
    message: str,
    info: error_details_pb2.ErrorInfo,
    violation: error_details_pb2.BadRequest.FieldViolation,
) -> errors.InvalidRequest:
    text = info.metadata.get("row", "")
    # Another service may send any text; this one sends ASCII digits.
    row = int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None
    reason = violation.description or message
    if row is not None:
        reason = reason.removeprefix(f"row {row}: ")
    return kind(reason, field=info.metadata.get("field", violation.field), row=row)


def _error_of_code(
    code: grpc.StatusCode, message: str, violation: error_details_pb2.BadRequest.FieldViolation
) -> VectorShardError:
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return errors.InvalidRequest(
            violation.description or message, field=violation.field or "request"
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE.search(message):
        return errors.LimitExceeded(message, field="message")
    if code is grpc.StatusCode.UNAVAILABLE:
        if _REFUSED_STREAM.search(message):
            return errors.Overloaded(f"the server refused the call: {message}")
        message = _in_our_words(message)
    if code is grpc.StatusCode.CANCELLED:
        message = f"the server cancelled the call: {message}"
    if code is grpc.StatusCode.UNIMPLEMENTED and message == "Method not found!":
        message = "the server does not have this call: it is another service, or an earlier release"
    kind = _ERROR_BY_CODE.get(code)
    return errors.InternalError(f"{code.name}: {message}") if kind is None else kind(message)


def error_from_rpc(error: grpc.RpcError) -> VectorShardError:
    """Return the error of a failed call, as `error_from_status` does.

    Accepts the errors of grpc and of grpc.aio.
    """
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return errors.InternalError(f"call failed without a status: {error!r}")
    details = next(_status_details(error), None)
    parsed = error_from_status(error.code(), error.details() or "", details)
    # A server of ours adds details to each of its errors.
    unanswered = details is None and isinstance(parsed, errors.ShardUnavailable)
    return errors.mark_unanswered(parsed) if unanswered else parsed


def _status_details(error: grpc.Call | grpc.aio.AioRpcError) -> Iterator[bytes]:
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            yield value
