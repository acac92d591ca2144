"""Uploads of any size: cut, streamed in order, acknowledged, and honest about how far they came.

Every test that connects runs with `Client` and with `AsyncClient`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.client.fake_server import (
    TOKEN,
    Connect,
    FakeServer,
)
from vectorshard import AsyncClient, Client
from vectorshard.client import upload as upload_module
from vectorshard.client.streams import UPLOAD_WINDOW
from vectorshard.client.upload import UpsertUpload
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import (
    CollectionDamaged,
    DeadlineExceeded,
    InternalError,
    InvalidId,
    InvalidVector,
    Overloaded,
    ShardMissing,
    ShardUnavailable,
    VectorShardError,
)
from vectorshard.shard.types import (
    RowError,
    Token,
    UpsertResult,
    WriteMode,
)
from vectorshard.shard.wire.writes import decode_upsert_request, encode_upsert_response

ROWS = 50
MESSAGE_ROWS = 4


@pytest.fixture
def small_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut uploads of dim 2 and int64 ids into messages of 4 rows."""
    row_bytes = 2 * 4 + 8 + upload_module.ROW_OVERHEAD_BYTES
    monkeypatch.setattr(upload_module, "MESSAGE_BYTES", MESSAGE_ROWS * row_bytes)


@pytest.fixture
def rows() -> tuple[list[int], np.ndarray[Any, Any]]:
    """Return ids and vectors (50, 2)."""
    return list(range(ROWS)), np.arange(2.0 * ROWS).reshape(ROWS, 2)


@pytest.fixture
def outstanding(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return, after an upload, how many messages had no acknowledgement as each was sent."""
    seen: list[int] = []
    sent, acknowledged = [0], [0]
    message, acknowledge = UpsertUpload.message, UpsertUpload.acknowledge

    def counting_message(upload: UpsertUpload, number: int) -> bytes:
        sent[0] += 1
        seen.append(sent[0] - acknowledged[0])
        return message(upload, number)

    def counting_acknowledge(upload: UpsertUpload, payload: bytes) -> None:
        acknowledged[0] += 1
        acknowledge(upload, payload)

    monkeypatch.setattr(UpsertUpload, "message", counting_message)
    monkeypatch.setattr(UpsertUpload, "acknowledge", counting_acknowledge)
    return seen


def cut_upload(ids: Any, vectors: Any, metadata: Any = None, mode: str = "upsert") -> UpsertUpload:
    """Return an upload that is cut by the default limits."""
    upload = UpsertUpload("words", ids, vectors, metadata, mode=mode)
    upload.cut(Limits())
    return upload


def answer(payload: bytes, **parts: Any) -> bytes:
    """Acknowledge an upload's message, without keeping its rows."""
    request, request_id = decode_upsert_request(payload, Limits())
    whole: dict[str, Any] = {"accepted": len(request.ids), "errors": (), "token": TOKEN}
    result = UpsertResult(**(whole | parts))
    return encode_upsert_response(result, request_id)


@pytest.mark.usefixtures("small_messages")
def test_many_rows_are_streamed_in_order_with_progress(
    client: Any, server: FakeServer, rows: tuple[list[int], Any]
) -> None:
    told: list[tuple[int, int]] = []
    ids, vectors = rows
    metadata = [{"n": id_} if id_ % 2 else None for id_ in ids]
    summary = client.upsert(
        "words",
        ids,
        vectors,
        metadata,
        mode="insert",
        progress=lambda done, total: told.append((done, total)),
    )
    assert (summary.accepted, summary.errors, summary.token) == (ROWS, (), TOKEN)
    assert server.asked == ["UpsertStream"]
    assert len(server.upserts) > 10
    assert [id_ for one in server.upserts for id_ in one.ids.tolist()] == ids
    assert {one.mode for one in server.upserts} == {WriteMode.INSERT}
    got = client.get("words", ids)
    assert got.vectors.tolist() == vectors.tolist()
    assert got.metadata == [{"n": id_} if id_ % 2 else {} for id_ in ids]
    assert [total for _, total in told] == [ROWS] * len(server.upserts)
    ends = np.cumsum([len(one.ids) for one in server.upserts]).tolist()
    assert [done for done, _ in told] == ends


def test_a_small_batch_is_one_message(client: Any, server: FakeServer) -> None:
    told: list[tuple[int, int]] = []
    summary = client.upsert(
        "words", [1, 2], np.eye(2), progress=lambda done, total: told.append((done, total))
    )
    assert summary.accepted == 2
    assert server.asked == ["Upsert"]
    assert told == [(2, 2)]


def test_no_rows_are_a_legal_upload(client: Any, server: FakeServer) -> None:
    assert client.upsert("words", [], np.empty((0, 3))).accepted == 0
    assert client.upsert("words", [], []).accepted == 0
    assert server.asked == ["Upsert", "Upsert"]


@pytest.mark.usefixtures("small_messages")
def test_a_bounded_number_of_messages_is_unacknowledged(
    client: Any, server: FakeServer, rows: tuple[list[int], Any], outstanding: list[int]
) -> None:
    def slowly(payloads: Iterator[bytes]) -> Iterator[bytes]:
        # Reads a whole window before the first answer: a smaller one would hang here.
        yield from [answer(next(payloads)) for _ in range(UPLOAD_WINDOW)]
        yield from map(answer, payloads)

    server.acknowledge = slowly
    assert client.upsert("words", *rows).accepted == ROWS
    assert max(outstanding) == UPLOAD_WINDOW


@pytest.mark.usefixtures("small_messages")
def test_a_refusal_midway_names_the_row_and_what_was_acknowledged(
    client: Any, server: FakeServer, rows: tuple[list[int], Any]
) -> None:
    def refusing(payloads: Iterator[bytes]) -> Iterator[bytes]:
        for _ in range(3):
            yield server.upsert(next(payloads))
        next(payloads)
        raise InvalidVector("contains NaN", field="vectors", row=1)

    server.acknowledge = refusing
    told = []
    with pytest.raises(InvalidVector) as raised:
        client.upsert("words", *rows, progress=lambda done, total: told.append(done))
    assert raised.value.acknowledged_rows == told[-1] == 3 * MESSAGE_ROWS
    assert (raised.value.field, raised.value.row) == ("vectors", 3 * MESSAGE_ROWS + 1)
    assert raised.value.reason == "contains NaN"
    assert client.count("words") == 3 * MESSAGE_ROWS


def test_a_refused_small_batch_has_nothing_acknowledged(client: Any, server: FakeServer) -> None:
    server.error = InvalidVector("contains NaN", field="vectors", row=1)
    with pytest.raises(InvalidVector) as raised:
        client.upsert("words", [1, 2], np.eye(2))
    assert (raised.value.row, raised.value.acknowledged_rows) == (1, 0)


@pytest.mark.usefixtures("small_messages")
def test_errors_of_rows_count_in_the_whole_upload_and_tokens_add_up(
    client: Any, server: FakeServer, rows: tuple[list[int], Any]
) -> None:
    def each(payloads: Iterator[bytes]) -> Iterator[bytes]:
        for number, payload in enumerate(payloads):
            token = Token(incarnation="x1", sequences={number % 2: 100 - number})
            errors = (RowError(2, 6, "exists"),) if number < 2 else ()
            yield answer(payload, accepted=3, errors=errors, token=token)

    server.acknowledge = each
    summary = client.upsert("words", *rows)
    assert summary.errors == (
        RowError(2, 6, "exists"),
        RowError(MESSAGE_ROWS + 2, 6, "exists"),
    )
    assert summary.accepted == 3 * -(-ROWS // MESSAGE_ROWS)
    assert summary.token == Token(incarnation="x1", sequences={0: 100, 1: 99})


GONE = "shard 1: ShardUnavailable: gone fishing"


def test_rows_of_a_missing_shard_are_unavailable_and_named_by_their_number() -> None:
    upload = cut_upload(range(5), np.eye(5), mode="insert")
    errors = (RowError(1, 6, "exists"), RowError(2, 14, GONE), RowError(4, 14, GONE))
    upload.acknowledge(answer(upload.message(0), accepted=2, errors=errors))
    with pytest.raises(ShardUnavailable, match=r"2 of 5 rows are .*; row 2: .*gone") as raised:
        upload.summary()
    assert raised.value.unwritten_rows == (2, 4)
    assert raised.value.acknowledged_rows == 2


@pytest.mark.parametrize(
    ("codes", "error"),
    [
        ((9, 9), ShardMissing),
        ((9, 14), ShardUnavailable),
        ((9, 15), CollectionDamaged),
        ((15, 15), CollectionDamaged),
        ((15, 8), ShardUnavailable),
        ((8, 8), Overloaded),
    ],
)
def test_rows_that_are_not_written_tell_whether_waiting_helps(
    codes: tuple[int, int], error: type[VectorShardError]
) -> None:
    upload = cut_upload(range(5), np.eye(5))
    errors = (RowError(2, codes[0], "shard 1: why"), RowError(4, codes[1], GONE))
    upload.acknowledge(answer(upload.message(0), accepted=3, errors=errors))
    with pytest.raises(error, match="2 of 5 rows are not written; row 2: shard 1: why") as raised:
        upload.summary()
    assert type(raised.value) is error


def test_rows_of_a_missing_shard_are_written_when_the_upload_is_repeated(
    connect: Connect, target: str, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([{"accepted": 1, "errors": (RowError(1, 14, GONE),)}, {}])
    monkeypatch.setattr(server, "upsert", lambda payload: answer(payload, **next(answers)))
    client = connect(target, retry="all")
    assert client.upsert("words", [1, 2], np.eye(2)).accepted == 2
    assert server.asked == ["Upsert", "Upsert"]


@pytest.mark.usefixtures("small_messages")
@pytest.mark.parametrize("ends_early", [False, True])
def test_rows_of_a_missing_shard_do_not_keep_the_rest_of_an_upload_from_being_written(
    client: Any, server: FakeServer, rows: tuple[list[int], Any], ends_early: bool
) -> None:
    taken: list[int] = []

    def each(payloads: Iterator[bytes]) -> Iterator[bytes]:
        for number, payload in enumerate(payloads):
            errors = (RowError(1, 14, GONE),) if number in (1, 3) else ()
            taken.append(number)
            if ends_early and number == 5:
                raise InvalidVector("contains NaN", field="vectors", row=0)
            yield answer(payload, errors=errors)

    server.acknowledge = each
    first = MESSAGE_ROWS + 1
    if ends_early:
        with pytest.raises(InvalidVector) as refused:
            client.upsert("words", *rows)
        assert refused.value.acknowledged_rows == first, "all rows before it are written"
        return
    with pytest.raises(ShardUnavailable, match=f"2 of {ROWS} rows") as raised:
        client.upsert("words", *rows)
    assert raised.value.unwritten_rows == (first, 3 * MESSAGE_ROWS + 1)
    assert raised.value.acknowledged_rows == first
    assert len(taken) == -(-ROWS // MESSAGE_ROWS)


@pytest.mark.usefixtures("small_messages")
@pytest.mark.parametrize("acknowledged", [0, 2])
def test_a_stream_that_ends_early_is_unavailable(
    client: Any, server: FakeServer, rows: tuple[list[int], Any], acknowledged: int
) -> None:
    def ending(payloads: Iterator[bytes]) -> Iterator[bytes]:
        for _ in range(acknowledged):
            yield answer(next(payloads))

    server.acknowledge = ending
    with pytest.raises(ShardUnavailable, match="ended the stream") as raised:
        client.upsert("words", *rows)
    assert raised.value.acknowledged_rows == acknowledged * MESSAGE_ROWS


@pytest.mark.usefixtures("small_messages")
def test_a_silent_stream_ends_in_deadline_exceeded(
    connect: Connect, target: str, server: FakeServer, rows: tuple[list[int], Any]
) -> None:
    def falling_silent(payloads: Iterator[bytes]) -> Iterator[bytes]:
        yield answer(next(payloads))
        server.released.wait()

    server.acknowledge = falling_silent
    with pytest.raises(DeadlineExceeded, match="4 of 50 rows") as raised:
        connect(target, timeout_s=0.2).upsert("words", *rows)
    assert raised.value.acknowledged_rows == MESSAGE_ROWS


@pytest.mark.usefixtures("small_messages")
def test_an_upload_may_take_longer_than_the_timeout_while_answers_come(
    connect: Connect, target: str, server: FakeServer, rows: tuple[list[int], Any]
) -> None:
    def slowly(payloads: Iterator[bytes]) -> Iterator[bytes]:
        for payload in payloads:
            server.released.wait(0.05)
            yield answer(payload)

    server.acknowledge = slowly
    assert connect(target, timeout_s=0.4).upsert("words", *rows).accepted == ROWS


@pytest.mark.usefixtures("small_messages")
def test_an_answer_to_another_message_is_an_internal_error(
    client: Any, server: FakeServer, rows: tuple[list[int], Any]
) -> None:
    def swapped(payloads: Iterator[bytes]) -> Iterator[bytes]:
        first = next(payloads)
        yield answer(next(payloads))
        yield answer(first)

    server.acknowledge = swapped
    with pytest.raises(InternalError, match="message 1 was acknowledged where 0"):
        client.upsert("words", *rows)


@pytest.mark.usefixtures("small_messages")
def test_what_progress_raises_ends_the_upload(
    client: Any, server: FakeServer, rows: tuple[list[int], Any]
) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        client.upsert("words", *rows, progress=stop)
    assert client.count("words", [0]) == 1


@pytest.mark.usefixtures("small_messages")
def test_what_keeps_a_message_from_being_made_is_raised(
    client: Any,
    server: FakeServer,
    rows: tuple[list[int], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message = UpsertUpload.message

    def failing(upload: UpsertUpload, number: int) -> bytes:
        if number == 3:
            raise OSError("the disk of the memory map is gone")
        return message(upload, number)

    monkeypatch.setattr(UpsertUpload, "message", failing)
    with pytest.raises(OSError, match="memory map"):
        client.upsert("words", *rows)
    assert len(server.upserts) <= 3


@pytest.mark.usefixtures("small_messages")
def test_an_id_that_comes_twice_is_refused_wherever_the_upload_is_cut(
    client: Any, server: FakeServer, rows: tuple[list[int], Any]
) -> None:
    ids, vectors = rows
    ids[-1] = ids[0]
    with pytest.raises(InvalidId) as raised:
        client.upsert("words", ids, vectors)
    assert raised.value.row == ROWS - 1
    assert server.asked == []


def test_uploads_keep_to_the_servers_limits(
    client: Any, server: FakeServer, monkeypatch: pytest.MonkeyPatch, rows: tuple[list[int], Any]
) -> None:
    monkeypatch.setattr(upload_module, "SMALL_UPSERT_ROWS", 10)
    server.limits = Limits(rows=7, message_bytes=10_000)
    client.upsert("words", *rows)
    assert {len(one.ids) for one in server.upserts} == {7, 1}
    client.upsert("words", *rows)
    assert server.asked == ["GetServerInfo", "UpsertStream", "UpsertStream"]


def test_no_thread_is_left_after_uploads(target: str, server: FakeServer) -> None:
    def refusing(payloads: Iterator[bytes]) -> Iterator[bytes]:
        # By then the client's next message waits for an acknowledgement.
        yield from (b"" for _ in range(UPLOAD_WINDOW) if not next(payloads))
        raise InvalidVector("contains NaN", field="vectors", row=1)

    server.acknowledge = refusing
    before = set(threading.enumerate())
    with Client(target) as client, pytest.MonkeyPatch.context() as patch:
        patch.setattr(upload_module, "MESSAGE_BYTES", 100)
        for _ in range(3):
            with pytest.raises(InvalidVector):
                client.upsert("words", range(ROWS), np.zeros((ROWS, 2)))
    for thread in set(threading.enumerate()) - before:
        if not thread.name.startswith("ThreadPoolExecutor"):  # the server's own
            thread.join(5)
            assert not thread.is_alive(), thread


@pytest.mark.usefixtures("small_messages")
async def test_the_loop_runs_on_during_an_upload_and_hears_of_its_progress(
    target: str, server: FakeServer, rows: tuple[list[int], Any]
) -> None:
    arrived, heard_in = asyncio.Event(), set()

    def halting(payloads: Iterator[bytes]) -> Iterator[bytes]:
        yield answer(next(payloads))
        server.released.wait()
        yield from map(answer, payloads)

    def progress(done: int, total: int) -> None:
        heard_in.add(threading.current_thread())
        arrived.set()

    server.acknowledge = halting
    async with AsyncClient(target) as client:
        uploading = asyncio.ensure_future(client.upsert("words", *rows, progress=progress))
        await arrived.wait()
        assert await client.count("words") == 0
        server.released.set()
        assert (await uploading).accepted == ROWS
    assert heard_in == {threading.current_thread()}


@pytest.mark.usefixtures("small_messages")
async def test_a_cancelled_upload_ends_its_stream(
    target: str, server: FakeServer, rows: tuple[list[int], Any]
) -> None:
    arrived = asyncio.Event()

    def falling_silent(payloads: Iterator[bytes]) -> Iterator[bytes]:
        yield answer(next(payloads))
        server.released.wait()

    server.acknowledge = falling_silent
    async with AsyncClient(target) as client:
        uploading = asyncio.ensure_future(
            client.upsert("words", *rows, progress=lambda done, total: arrived.set())
        )
        await arrived.wait()
        uploading.cancel()
        # Well before the stream's own time is over.
        done, _ = await asyncio.wait({uploading}, timeout=5)
        assert done
        assert uploading.cancelled()
        # The server's callback sets it when the stream ends.
        assert await asyncio.to_thread(server.released.wait, 10)


# ---- how an upload is cut ------------------------------------------------------------------------


def sizes(upload: UpsertUpload) -> list[int]:
    """Return the bytes of each message."""
    return [len(upload.message(number)) for number in range(upload.messages)]


@pytest.mark.parametrize("strings", [True, False])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_messages_are_full_but_not_over_their_size(strings: bool, dtype: Any) -> None:
    rows = 30_000
    ids: Any = [f"word {row}" * (row % 9 + 1) for row in range(rows)] if strings else range(rows)
    metadata = [{"text": "x" * (row % 300)} for row in range(rows)]
    upload = cut_upload(ids, np.zeros((rows, 100), dtype=dtype), metadata)
    # What a message has beside its rows: its name, and the lengths of its parts.
    assert max(sizes(upload)) <= upload_module.MESSAGE_BYTES + 100
    assert min(sizes(upload)[:-1]) > 0.9 * upload_module.MESSAGE_BYTES


def test_a_row_larger_than_a_message_travels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_module, "MESSAGE_BYTES", 10)
    upload = cut_upload([1, 2], np.zeros((2, 100)))
    assert upload.messages == 2


def test_a_token_of_a_later_incarnation_replaces_the_earlier() -> None:
    earlier = Token(incarnation="x1", sequences={0: 9})
    later = Token(incarnation="x2", sequences={1: 1})
    nothing = Token(incarnation="")
    assert upload_module._newest(earlier, later) == later
    assert upload_module._newest(earlier, nothing) == earlier
    assert upload_module._newest(nothing, later) == later
