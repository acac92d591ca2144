"""Errors become statuses and come back as the same errors."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import grpc
import pytest
from google.rpc import (  # type: ignore[import-untyped]  # it has stubs, but no py.typed
    error_details_pb2,
    status_pb2,
)
from hypothesis import given
from hypothesis import strategies as st

from vectorshard.shard import errors
from vectorshard.shard.errors import (
    CollectionNotFound,
    CorruptData,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    InvalidVector,
    LimitExceeded,
    Overloaded,
    ShardUnavailable,
    Unsupported,
    VectorShardError,
)
from vectorshard.shard.server.status import (
    STATUS_BY_ERROR,
    TEXT_BYTES,
    cancelled_status,
    error_from_rpc,
    error_from_status,
    opaque_status,
    read_status,
    status_code,
    status_of,
)

ALL_ERRORS = [
    member
    for _, member in inspect.getmembers(errors, inspect.isclass)
    if issubclass(member, VectorShardError) and member is not VectorShardError
]
CODES = {code.value[0]: code for code in grpc.StatusCode}


def made(kind: type[VectorShardError], text: str = "it is so", row: int | None = 3) -> Any:
    """Return an error of this kind."""
    if issubclass(kind, InvalidRequest):
        return kind(text, field="vectors", row=row)
    error = kind(text)
    if kind is InternalError or kind.is_servers_own:
        error.error_id = "e1"
    if kind.retryable:
        error.retry_delay_s = 2.5
    return error


def back(error: VectorShardError) -> VectorShardError:
    """Return what a client makes of an error's status."""
    status = status_of(error)
    return error_from_status(CODES[status.code], status.message, status.SerializeToString())


def details(status: Any, kind: Any) -> list[Any]:
    """Return the details of one kind."""
    found = []
    for detail in status.details:
        message = kind()
        if detail.Unpack(message):
            found.append(message)
    return found


def test_every_error_has_its_line() -> None:
    assert set(STATUS_BY_ERROR) == set(ALL_ERRORS)


@pytest.mark.parametrize("kind", ALL_ERRORS)
@pytest.mark.parametrize("row", [None, 0, 3])
def test_every_error_comes_back_as_it_was_raised(
    kind: type[VectorShardError], row: int | None
) -> None:
    error = made(kind, row=row)
    returned = back(error)
    assert type(returned) is kind
    assert str(returned) == str(error)
    assert vars(returned) == vars(error)


@given(st.text(), st.none() | st.integers(0, 10**6))
def test_an_error_comes_back_whatever_its_text(text: str, row: int | None) -> None:
    returned = back(InvalidVector(text[:100], field="vectors", row=row))
    assert isinstance(returned, InvalidVector)
    assert (returned.field, returned.row) == ("vectors", row)
    assert returned.reason == text[:100] or not text


@pytest.mark.parametrize("kind", ALL_ERRORS)
def test_the_caller_is_told_to_wait_only_where_repeating_helps(
    kind: type[VectorShardError],
) -> None:
    retries = details(status_of(made(kind)), error_details_pb2.RetryInfo)
    assert len(retries) == kind.retryable
    assert all(retry.retry_delay.ToTimedelta().total_seconds() > 0 for retry in retries)


RETRIED_BY_CLIENTS = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
}


@pytest.mark.parametrize("kind", ALL_ERRORS)
def test_only_retryable_errors_have_a_code_that_clients_repeat(
    kind: type[VectorShardError],
) -> None:
    assert (STATUS_BY_ERROR[kind] in RETRIED_BY_CLIENTS) == kind.retryable


def test_the_callers_mistake_names_its_field_and_row() -> None:
    status = status_of(InvalidVector("contains NaN", field="vectors", row=5))
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    [bad_request] = details(status, error_details_pb2.BadRequest)
    [violation] = bad_request.field_violations
    assert (violation.field, violation.description) == ("vectors", "row 5: contains NaN")
    [info] = details(status, error_details_pb2.ErrorInfo)
    assert (info.domain, info.reason) == ("vectorshard", "INVALID_VECTOR")
    assert dict(info.metadata) == {"field": "vectors", "row": "5"}


@pytest.mark.parametrize("kind", [kind for kind in STATUS_BY_ERROR if kind.is_servers_own])
def test_what_is_the_servers_own_shows_its_kind_and_an_id_but_not_its_text(
    kind: type[VectorShardError],
) -> None:
    error = kind("/secret/path: no such table")
    status = opaque_status(error, "abc123")
    assert status.code == status_code(error).value[0]
    assert "secret" not in str(status)
    assert "abc123" in status.message
    [info] = details(status, error_details_pb2.ErrorInfo)
    assert dict(info.metadata) == {"error_id": "abc123"}
    returned = error_from_status(status_code(error), status.message, status)
    assert type(returned) is kind
    assert returned.error_id == "abc123"
    assert status_of(returned) == status, "a router passes on what it was told"


def test_a_failure_of_ours_shows_an_opaque_id_only() -> None:
    status = opaque_status(ValueError("secret"), "abc123")
    assert "secret" not in str(status)
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert "abc123" in status.message
    [info] = details(status, error_details_pb2.ErrorInfo)
    assert dict(info.metadata) == {"error_id": "abc123"}
    returned = error_from_status(grpc.StatusCode.INTERNAL, status.message, status)
    assert isinstance(returned, InternalError)
    assert returned.error_id == "abc123"


class BrandNew(CorruptData):
    """A kind that the table does not list."""


def test_an_unlisted_error_goes_by_its_nearest_base() -> None:
    assert status_code(BrandNew("x")) is grpc.StatusCode.DATA_LOSS
    assert type(back(BrandNew("x"))) is CorruptData
    assert status_code(ValueError("x")) is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("text", ["x" * 10**6, "ä" * 10**5, "\U0001f600" * 10**5, "\ud800"])
def test_long_or_broken_text_fits_into_the_trailing_metadata(text: str) -> None:
    status = status_of(InvalidVector(text, field="vectors"))
    message = status.message.encode()
    assert len(message) <= TEXT_BYTES
    assert 3 * len(message) + status.ByteSize() * 4 / 3 < 8 * 1024
    assert back(CollectionNotFound(text)).args[0] == status_of(CollectionNotFound(text)).message


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.NOT_FOUND, CollectionNotFound),
        (grpc.StatusCode.UNIMPLEMENTED, Unsupported),
        (grpc.StatusCode.UNAVAILABLE, ShardUnavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.CANCELLED, Overloaded),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.DATA_LOSS, CorruptData),
        (grpc.StatusCode.UNKNOWN, InternalError),
        (grpc.StatusCode.PERMISSION_DENIED, InternalError),
        (grpc.StatusCode.FAILED_PRECONDITION, InternalError),
    ],
)
@pytest.mark.parametrize("bare", [None, b"", b"\xff garbage", status_pb2.Status()])
def test_a_status_without_our_details_goes_by_its_code(
    code: grpc.StatusCode, kind: type[VectorShardError], bare: Any
) -> None:
    returned = error_from_status(code, "somebody says so", bare)
    assert type(returned) is kind
    assert "somebody says so" in str(returned)


@pytest.mark.parametrize(
    "message",
    [
        "SERVER: Received message larger than max (70000000 vs. 67108864)",
        "CLIENT: Sent message larger than max (70000000 vs. 67108864)",
        "Received message larger than max (5 vs. 4)",
    ],
)
def test_a_message_too_large_for_grpc_is_not_worth_repeating(message: str) -> None:
    returned = error_from_status(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
    assert isinstance(returned, LimitExceeded)
    assert returned.field == "message"
    assert not returned.retryable


def foreign(**parts: Any) -> bytes:
    """Return a status with an ErrorInfo of somebody's making."""
    status = status_pb2.Status()
    status.details.add().Pack(error_details_pb2.ErrorInfo(**parts))
    payload: bytes = status.SerializeToString()
    return payload


def test_another_services_reasons_mean_nothing_here() -> None:
    named_alike = foreign(domain="example.org", reason="COLLECTION_NOT_FOUND")
    returned = error_from_status(grpc.StatusCode.UNAVAILABLE, "x", named_alike)
    assert type(returned) is ShardUnavailable
    later = foreign(domain="vectorshard", reason="OF_A_LATER_RELEASE")
    returned = error_from_status(grpc.StatusCode.UNAVAILABLE, "x", later)
    assert type(returned) is ShardUnavailable


@pytest.mark.parametrize("row", ["", "x", "-1", "٣", "9" * 30])
def test_a_row_that_is_no_number_is_no_row(row: str) -> None:
    payload = foreign(domain="vectorshard", reason="INVALID_VECTOR", metadata={"row": row})
    returned = error_from_status(grpc.StatusCode.INVALID_ARGUMENT, "x", payload)
    assert isinstance(returned, InvalidVector)
    assert returned.row is None


def test_details_that_do_not_parse_count_as_none() -> None:
    status = status_of(InvalidVector("x", field="vectors", row=5))
    for detail in status.details:
        detail.value = b"\xff" + detail.value
    returned = error_from_status(grpc.StatusCode.INVALID_ARGUMENT, "x", status)
    assert type(returned) is InvalidRequest


def test_a_failed_call_of_grpc_aio_is_read_from_its_trailing_metadata() -> None:
    status = status_of(InvalidVector("contains NaN", field="vectors", row=5))
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString())),
        details=status.message,
    )
    returned = error_from_rpc(error)
    assert isinstance(returned, InvalidVector)
    assert (returned.reason, returned.field, returned.row) == ("contains NaN", "vectors", 5)


def test_a_failed_call_without_a_status_is_internal() -> None:
    assert isinstance(error_from_rpc(grpc.RpcError("what")), InternalError)


# ---- statuses that are messages of a stream -----------------------------------------------------


@pytest.mark.parametrize("kind", ALL_ERRORS)
def test_a_status_in_a_message_stands_for_the_same_error(kind: type[VectorShardError]) -> None:
    error = made(kind)
    code, told = read_status(status_of(error).SerializeToString())
    assert code is status_code(error)
    assert (type(told), str(told), vars(told)) == (
        type(back(error)),
        str(back(error)),
        vars(back(error)),
    )


def test_a_withdrawn_request_is_cancelled() -> None:
    code, _ = read_status(cancelled_status().SerializeToString())
    assert code is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize(
    "payload", [b"", b"\xff\xff", status_pb2.Status(code=99).SerializeToString()]
)
def test_what_is_no_status_is_the_servers_fault(payload: bytes) -> None:
    _, told = read_status(payload)
    assert isinstance(told, InternalError)


# ---- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [VectorShardError, *ALL_ERRORS])
@pytest.mark.parametrize("row", [None, 3])
def test_an_error_survives_pickling(kind: type[VectorShardError], row: int | None) -> None:
    error = made(kind, row=row)
    error.acknowledged_rows = 7
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (kind, str(error), vars(error))


@pytest.mark.parametrize(
    ("field", "reason", "text"),
    [
        ("config", "config is required", "config is required"),
        ("ids, filter", "ids and filter are mutually exclusive", None),
        ("listen", "cannot listen on a:1: a is in use", "cannot listen on a:1: a is in use"),
        ("ids", "id 1 is twice", "ids: id 1 is twice"),
        ("k", "0 is not in 1..10", "k: 0 is not in 1..10"),
        ("config.dim", "dim is 0", "config.dim: dim is 0"),
    ],
)
def test_a_text_names_its_field_once(field: str, reason: str, text: str | None) -> None:
    error = InvalidRequest(reason, field=field)
    assert (str(error), error.field, error.reason) == (text or reason, field, reason)


@pytest.mark.parametrize(
    ("grpcs", "ours"),
    [
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "
            "Failed to connect to remote host: connect: Connection refused (111)",
            "no server answers at 127.0.0.1:1: connection refused",
        ),
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv6:%5B::1%5D:1: "
            "Failed to connect to remote host: Connection refused",
            "no server answers at [::1]:1: connection refused",
        ),
        (
            "failed to connect to all addresses; last error: FAILED_PRECONDITION: unix:/s.sock: "
            "connect failed: addr: unix:/s.sock error: No such file or directory",
            "no server answers at /s.sock: no such file or directory",
        ),
        (
            "errors resolving far.invalid:7700: [field:hostname lookup error:address lookup "
            "failed for far.invalid:7700: Domain name not found]",
            "far.invalid:7700 has no address: domain name not found",
        ),
        ("Socket closed", "Socket closed"),
    ],
)
def test_a_server_that_is_not_reached_is_reported_in_our_words(grpcs: str, ours: str) -> None:
    error = error_from_status(grpc.StatusCode.UNAVAILABLE, grpcs)
    assert (type(error), str(error)) == (ShardUnavailable, ours)


def test_a_text_that_is_cut_says_so() -> None:
    message = status_of(InternalError("ä" * TEXT_BYTES)).message
    assert message.endswith("ä…")
    assert len(message.encode()) <= TEXT_BYTES
