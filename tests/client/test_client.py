"""Both clients against a small server of the test's own, over a real socket.

Every test runs with `Client` and with `AsyncClient`, which must not differ in what they do.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest

from tests.client.fake_server import (
    EXPLANATION,
    RECEIPT,
    SHARD,
    TOKEN,
    TOPOLOGY,
    Connect,
    FakeServer,
)
from vectorshard import Client, Hit, Hits
from vectorshard.client import calls
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import (
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
    MalformedMessage,
    Overloaded,
    ShardUnavailable,
    VectorShardError,
    WritesStopped,
)
from vectorshard.shard.filters import And, Equals, Exists, Not, Or, Range
from vectorshard.shard.types import (
    CollectionConfig,
    FieldType,
    FilterField,
    IdType,
    IndexConfig,
    IndexKind,
    Metric,
    Rows,
    TrainRequest,
)
from vectorshard.shard.wire import rpcs


@pytest.fixture
def words(client: Any, server: FakeServer) -> Any:
    """Return a client of a collection that holds 3 rows."""
    client.upsert("words", ["a", "b", "c"], np.eye(3), [{"n": 1}, None, {"tags": ["x", "y"]}])
    return client


# ---- round trips ---------------------------------------------------------------------------------


def test_a_collection_is_created_listed_described_and_dropped(client: Any) -> None:
    created = client.create_collection(
        "words",
        dim=3,
        metric="l2",
        id_type="string",
        index=IndexConfig(kind=IndexKind.IVF_SQ8, min_training_size=7),
        target_recall=0.9,
        filter_fields=[FilterField("lang", FieldType.KEYWORD)],
    )
    assert created == CollectionConfig(
        name="words",
        dim=3,
        metric=Metric.L2,
        id_type=IdType.STRING,
        index=IndexConfig(kind=IndexKind.IVF_SQ8, min_training_size=7),
        target_recall=0.9,
        filter_fields=(FilterField("lang", FieldType.KEYWORD),),
    )
    assert client.list_collections() == [created]
    description = client.describe("words")
    assert description.config == created
    assert description.shards == (SHARD,)
    assert description.recommended_batch_size == 64
    updated = client.update_collection("words", target_recall=0.97)
    assert updated == replace(created, target_recall=0.97)
    assert client.list_collections() == [updated]
    with pytest.raises(InvalidParameter) as caught:
        client.update_collection("words", target_recall="high")
    assert caught.value.field == "target_recall"
    client.drop_collection("words")
    assert client.list_collections() == []


def test_a_collection_has_the_servers_defaults(client: Any) -> None:
    assert client.create_collection("words", dim=3) == CollectionConfig(
        name="words", dim=3, metric=Metric.COSINE, id_type=IdType.INT64
    )


def test_rows_that_were_written_are_got_counted_listed_and_deleted(words: Any) -> None:
    rows = words.get("words", ["c", "nobody", "a"])
    assert rows.ids.tolist() == ["c", "a"]
    assert rows.vectors.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert rows.metadata == [{"tags": ["x", "y"]}, {"n": 1}]
    assert len(rows) == 2
    bare = words.get("words", ["a"], vectors=False, metadata=False)
    assert (bare.vectors, bare.metadata) == (None, None)
    assert words.count("words") == 3
    assert words.count("words", ["a", "nobody"]) == 1
    assert words.count("words", []) == 0
    assert words.delete("words", ["a", "nobody"]) == 1
    assert words.count("words") == 2


def test_pages_hold_every_row_once(words: Any) -> None:
    pages = list(words.list_rows("words", page_size=2, vectors=True, metadata=True))
    assert [page.ids.tolist() for page in pages] == [["a", "b"], ["c"]]
    assert pages[1].vectors.tolist() == [[0, 0, 1]]
    assert pages[0].metadata == [{"n": 1}, {}]
    bare = list(words.list_rows("words"))
    assert [page.vectors for page in bare] == [None]


def test_a_listing_leaves_damaged_rows_out_on_request() -> None:
    for skip in (False, True):
        call = calls.list_rows("words", skip_damaged=skip).next_call()
        assert call is not None
        assert rpcs.LIST.decode_request(call.payload, Limits()).skip_damaged is skip
        answer = Rows(ids=np.array([1]), damaged=np.array([7, 8]))
        page = call.decode(rpcs.LIST.encode_response(answer, Limits()))
        assert page.damaged is not None
        assert page.damaged.tolist() == [7, 8]


def test_a_page_of_which_every_row_is_damaged_names_them(words: Any, server: FakeServer) -> None:
    server.damaged = {"a", "b", "c"}
    pages = words.list_rows("words", page_size=2, skip_damaged=True)
    assert [(len(page), page.damaged.tolist()) for page in pages] == [(0, ["a", "b"]), (0, ["c"])]


def test_an_empty_collection_has_no_pages(client: Any) -> None:
    assert list(client.list_rows("words")) == []


def test_hits_are_read_by_query(words: Any) -> None:
    hits = words.search("words", np.array([[0.5, 0.25, 0], [0, 0.25, 1]]), k=2)
    assert isinstance(hits, Hits)
    assert len(hits) == 2
    assert hits.counts.tolist() == [2, 1]
    assert hits[0] == [Hit("a", 0.5), Hit("b", 0.25)]
    assert hits[-1] == [Hit("c", 1.0)]
    assert hits[0:2] == list(hits) == [hits[0], hits[1]]
    assert hits.receipt == RECEIPT
    with pytest.raises(IndexError):
        hits[2]


def test_hits_bring_along_what_was_asked_for(words: Any) -> None:
    hits = words.search("words", [0.0, 0.25, 1.0], k=1, vectors=True, metadata=True)
    [[hit]] = hits
    assert (hit.id, hit.score, hit.metadata) == ("c", 1.0, {"tags": ["x", "y"]})
    assert hit.vector.tolist() == [0, 0, 1]


@pytest.mark.parametrize("empty", [[], np.empty((0, 3))])
def test_no_queries_have_no_hits(words: Any, empty: Any) -> None:
    hits = words.search("words", empty, vectors=True, metadata=True)
    assert list(hits) == []
    assert len(hits.vectors) == len(hits.metadata) == len(hits.ids) == 0


def test_a_search_states_what_it_was_told(words: Any, server: FakeServer) -> None:
    queries = np.ones((1, 3), dtype=np.float16)
    words.search(
        "words", queries, 2, exact=True, score_threshold=0.5, min_coverage=0.6, token=TOKEN
    )
    words.search("words", queries, nprobe=7)
    words.search("words", queries.astype(np.float64), target_recall=0.8)
    first, second, third = server.searches
    assert (first.k, first.effort.exact) == (2, True)
    assert (first.score_threshold, first.min_coverage, first.token) == (0.5, 0.6, TOKEN)
    assert (second.k, second.effort.nprobe, second.min_coverage) == (10, 7, 1.0)
    assert third.effort.target_recall == 0.8
    assert [one.queries.dtype.itemsize for one in server.searches] == [2, 2, 4]


@pytest.mark.parametrize("filter_", ["n >= 1", Range("n", gte=1.0)])
def test_only_rows_that_pass_are_counted_listed_got_and_deleted(words: Any, filter_: Any) -> None:
    assert words.count("words", filter=filter_) == 1
    assert words.count("words", ["b", "c"], filter=filter_) == 0
    assert [page.ids.tolist() for page in words.list_rows("words", filter=filter_)] == [["a"]]
    assert words.get("words", filter=filter_).ids.tolist() == ["a"]
    assert words.get("words", filter='tags in ("y", "z")').ids.tolist() == ["c"]
    assert words.delete("words", filter=filter_) == 1
    assert words.delete("words", filter=filter_) == 0
    assert words.count("words") == 2


def test_a_search_states_its_filter(words: Any, server: FakeServer) -> None:
    words.search("words", np.ones((1, 3)), filter="not n < 3 and tags exists")
    words.search("words", np.ones((1, 3)), filter=Exists("n") | Equals("tags", "x"))
    assert [one.filter for one in server.searches] == [
        And((Not(Range("n", lt=3.0)), Exists("tags"))),
        Or((Exists("n"), Equals("tags", "x"))),
    ]


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.delete("words"),
        lambda client: client.get("words"),
        lambda client: client.delete("words", ["a"], filter="n exists"),
        lambda client: client.get("words", ["a"], filter="n exists"),
        lambda client: client.count("words", filter="n exists and"),
        lambda client: client.search("words", np.ones((1, 3)), filter=Equals("n", 2**60)),
        lambda client: client.delete("words", filter="n = 9007199254740993"),
        lambda client: client.delete("words", filter=Range("n", lt=2**53 + 1)),
        lambda client: list(client.list_rows("words", filter="n")),
    ],
)
def test_a_selection_that_cannot_be_is_refused_before_it_is_sent(
    words: Any, server: FakeServer, call: Callable[[Any], object]
) -> None:
    asked = list(server.asked)
    with pytest.raises(InvalidParameter) as caught:
        call(words)
    assert "filter" in caught.value.field
    assert server.asked == asked


@pytest.mark.parametrize("query", [[1, 0, 0], [[1, 0, 0]], np.eye(3)[:1]])
@pytest.mark.parametrize("id_", ["a", 7])
def test_an_explanation_is_of_one_query_and_one_id(
    client: Any, server: FakeServer, query: Any, id_: int | str
) -> None:
    assert client.explain("words", query, id_, filter="n exists") == EXPLANATION
    assert client.explain("words", query, id_) == EXPLANATION
    filtered, asked = server.explains
    assert (filtered.filter, asked.filter) == (Exists("n"), None)
    assert asked.query.tolist() == [[1, 0, 0]]
    assert (asked.id.tolist(), asked.score) == ([id_], None)


def test_an_explanation_of_what_cannot_be_is_refused(client: Any) -> None:
    with pytest.raises(InvalidId):
        client.explain("words", [1, 0, 0], 0.5)
    with pytest.raises(InvalidParameter, match="exactly 1 is required, got 2"):
        client.explain("words", np.eye(2), 1)
    with pytest.raises(InvalidVector):
        client.explain("words", ["x"], 1)


def test_training_is_asked_for(client: Any, server: FakeServer) -> None:
    assert tuple(client.train("words", wait=True)) == (SHARD,)
    assert server.trains == [TrainRequest(collection="words", wait=True)]


def test_the_server_tells_who_it_is(client: Any) -> None:
    told = client.server_info()
    assert (told.version, told.topology, told.limits) == ("1.2.3", TOPOLOGY, Limits())


def test_a_server_that_is_there_is_ready(client: Any) -> None:
    client.wait_until_ready(timeout_s=10)


def test_a_client_is_closed_by_its_context(target: str) -> None:
    with Client(target) as client:
        client.server_info()
    many_rows = (np.arange(2_000), np.ones((2_000, 3)))
    for call in (
        client.server_info,
        client.wait_until_ready,
        client.__enter__,
        lambda: client.upsert("words", *many_rows),
        lambda: list(client.list_rows("words")),
        lambda: list(client.search_stream("words", [np.ones(3)])),
    ):
        with pytest.raises(RuntimeError, match=r"^the client is closed$"):
            call()


# ---- what a caller hands over --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vectors", "dtype"),
    [
        (np.eye(3, dtype=np.float16), np.float16),
        (np.eye(3, dtype=np.float32), np.float32),
        (np.eye(3, dtype=np.float64), np.float32),
        (np.eye(3, dtype=np.int8), np.float32),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32),
    ],
)
def test_only_half_floats_travel_as_such(
    client: Any, server: FakeServer, vectors: Any, dtype: Any
) -> None:
    client.upsert("words", [1, 2, 3], vectors)
    assert server.upserts[0].vectors.dtype == dtype
    assert server.upserts[0].vectors.tolist() == np.eye(3).tolist()


@pytest.mark.parametrize(
    ("ids", "sent"),
    [
        ([1, -5], [1, -5]),
        (range(2), [0, 1]),
        (np.array([1, 2], dtype=np.uint64), [1, 2]),
        (np.array([1, 2], dtype=np.int8), [1, 2]),
        ([np.int32(4), 2**63 - 1], [4, 2**63 - 1]),
        (("a", "b"), ["a", "b"]),
        (np.array(["a", "bc"]), ["a", "bc"]),
        (np.array(["a", "bc"], dtype=object), ["a", "bc"]),
        (np.array([7, 8], dtype=object), [7, 8]),
    ],
)
def test_ids_of_any_container_are_taken(
    client: Any, server: FakeServer, ids: Any, sent: list[Any]
) -> None:
    client.upsert("words", ids, np.eye(2))
    assert server.upserts[0].ids.tolist() == sent


@pytest.mark.parametrize(
    ("ids", "row"),
    [
        ([1, "a"], 1),
        (["a", 1], 1),
        ([1, 2.0], 1),
        ([1, True], 1),
        ([1, 2**63], 1),
        (np.array([1, 2**63], dtype=np.uint64), 1),
        (np.array([0.5, 1.5]), 0),
        (np.zeros((2, 1), dtype=np.int64), None),
        ([1, 1], 1),
        (["a", ""], 1),
        (["a", "\ud800"], 1),
    ],
)
def test_ids_that_cannot_be_are_refused_before_anything_is_sent(
    client: Any, server: FakeServer, ids: Any, row: int | None
) -> None:
    with pytest.raises(InvalidId) as raised:
        client.upsert("words", ids, np.eye(2))
    assert (raised.value.field, raised.value.row) == ("ids", row)
    assert server.asked == []


@pytest.mark.parametrize(
    ("vectors", "metadata", "kind", "field"),
    [
        (np.eye(3), None, MalformedMessage, "vectors"),
        (np.zeros(2), None, MalformedMessage, "vectors"),
        (np.zeros((2, 1, 1)), None, MalformedMessage, "vectors"),
        ([[1.0], [1.0, 2.0]], None, InvalidVector, "vectors"),
        ([["a"], ["b"]], None, InvalidVector, "vectors"),
        (np.eye(2, dtype=complex), None, InvalidVector, "vectors"),
        (np.eye(2), [{}], MalformedMessage, "metadata"),
        (np.eye(2), [{}, {"a": object()}], InvalidParameter, "metadata"),
    ],
)
def test_rows_that_cannot_be_are_refused_before_anything_is_sent(
    client: Any,
    server: FakeServer,
    vectors: Any,
    metadata: Any,
    kind: type[InvalidRequest],
    field: str,
) -> None:
    with pytest.raises(kind) as raised:
        client.upsert("words", [1, 2], vectors, metadata)
    assert raised.value.field == field
    assert server.asked == []


def test_what_overflows_float32_is_refused_before_it_is_sent_but_inf_is_the_servers_to_refuse(
    client: Any, server: FakeServer
) -> None:
    vectors = np.ones((3, 4))
    vectors[0, 1], vectors[2, 3] = np.inf, -1e300
    with pytest.raises(InvalidVector) as raised:
        client.upsert("words", [1, 2, 3], vectors)
    assert str(raised.value) == "vectors: row 2: -1e+300 does not fit in float32"
    assert (raised.value.field, raised.value.row, server.asked) == ("vectors", 2, [])
    with pytest.raises(InvalidVector, match="queries: row 0: 1e\\+300 does not fit"):
        client.search("words", [1e300, 1.0])
    client.upsert("words", [1], [[np.inf]])
    assert np.isinf(server.upserts[0].vectors).all()


@pytest.mark.parametrize(
    ("vectors", "text"),
    [
        ([[1.0, 2.0], [1.0]], "vectors: the rows have different lengths"),
        ([["abc"]], "vectors: expected real numbers, got dtype <U3"),
    ],
)
def test_vectors_that_are_no_matrix_of_numbers_are_refused_in_our_words(
    client: Any, vectors: Any, text: str
) -> None:
    with pytest.raises(InvalidVector) as raised:
        client.upsert("words", [1, 2], vectors)
    assert str(raised.value) == text


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"nprobe": 0}, "nprobe"),
        ({"target_recall": 0.0}, "target_recall"),
        ({"target_recall": float("nan")}, "target_recall"),
        ({"nprobe": 3, "exact": True}, "exact, nprobe, target_recall"),
        ({"k": 0}, "k"),
        ({"k": -1}, "k"),
        ({"k": "ten"}, "k"),
        ({"vectors": "yes"}, "vectors"),
        ({"nprobe": 2**40}, "nprobe"),
        ({"nprobe": "many"}, "nprobe"),
        ({"target_recall": "high"}, "target_recall"),
        ({"score_threshold": "high"}, "score_threshold"),
        ({"min_coverage": 2.0}, "min_coverage"),
    ],
)
def test_parameters_out_of_their_range_are_refused(
    words: Any, parameters: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidParameter) as raised:
        words.search("words", np.eye(3), **parameters)
    assert raised.value.field == field


def test_a_metric_or_mode_that_is_none_is_refused(client: Any) -> None:
    with pytest.raises(InvalidConfig, match="hamming"):
        client.create_collection("words", dim=3, metric="hamming")
    with pytest.raises(InvalidParameter, match="replace"):
        client.upsert("words", [1], np.eye(1), mode="replace")


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        CollectionNotFound("no collection words"),
        DimensionMismatch("dim is 3, the collection's is 5", field="queries"),
        InvalidVector("contains NaN", field="queries", row=2),
        Overloaded("too much"),
        WritesStopped("the disk is full"),
        InternalError("see the log"),
    ],
)
def test_the_servers_error_is_raised_again(
    client: Any, server: FakeServer, error: VectorShardError
) -> None:
    if error.retryable:
        error.retry_delay_s = 2.5
    server.error = error
    with pytest.raises(type(error)) as raised:
        client.search("words", np.eye(3))
    assert type(raised.value) is type(error)
    assert str(raised.value) == str(error)
    assert vars(raised.value) == vars(error)


def test_a_server_that_fails_unexpectedly_is_an_internal_error(
    client: Any, server: FakeServer
) -> None:
    server.error = ZeroDivisionError("secret")
    with pytest.raises(InternalError):
        client.count("words")


def test_an_rpc_that_the_server_does_not_know_is_unsupported(
    connect: Connect, server: FakeServer
) -> None:
    running = grpc.server(ThreadPoolExecutor(1))
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    with pytest.raises(VectorShardError) as raised:
        connect(f"127.0.0.1:{port}").count("words")
    assert type(raised.value).__name__ == "Unsupported"
    running.stop(None).wait()


def test_a_message_over_the_servers_limit_is_not_worth_repeating(client: Any) -> None:
    with pytest.raises(LimitExceeded) as raised:
        client.search("words", np.zeros((600, 2_000), dtype=np.float32))
    assert raised.value.field == "message"
    assert not raised.value.retryable


@pytest.fixture
def nobody() -> str:
    """Return a target where a server has been and is no more."""
    running = grpc.server(ThreadPoolExecutor(1))
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    running.stop(None).wait()
    return f"127.0.0.1:{port}"


def test_a_server_that_is_not_there_is_unavailable(connect: Connect, nobody: str) -> None:
    with pytest.raises(ShardUnavailable):
        connect(nobody).count("words")
    with pytest.raises(ShardUnavailable):
        connect(nobody).wait_until_ready(timeout_s=0.1)


def test_a_silent_server_ends_in_deadline_exceeded(
    connect: Connect, target: str, server: FakeServer
) -> None:
    server.silent = True
    with pytest.raises(DeadlineExceeded):
        connect(target, timeout_s=0.1).count("words")
    with pytest.raises(DeadlineExceeded):
        connect(target).search("words", np.eye(3), timeout_s=0.1)
    goes_on = r"; the training goes on, and describe\('words'\) shows when it has ended"
    with pytest.raises(DeadlineExceeded, match=goes_on):
        connect(target).train("words", wait=True, timeout_s=0.1)
    with pytest.raises(DeadlineExceeded, match=r"^no answer within 0\.1 s$"):
        connect(target).train("words", timeout_s=0.1)


def test_a_call_has_its_own_timeout_or_the_clients(
    connect: Connect, target: str, server: FakeServer
) -> None:
    server.rows = {1: (np.eye(3)[0], b"")}
    client = connect(target, timeout_s=50.0)
    client.search("words", np.eye(3))
    client.search("words", np.eye(3), timeout_s=20.0)
    client.train("words", timeout_s=90.0)
    assert server.left_s == [pytest.approx(each, abs=5.0) for each in (50.0, 20.0, 90.0)]
