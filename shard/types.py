"""The vocabulary: requests to a shard and its results, as dataclasses and numpy arrays.

Shapes: queries (queries, dim), vectors (rows, dim), hits flat in query order. Ids are an int64
array for INT64 collections and an object array of `str` for STRING ones. Metadata is the
deterministic serialization of a google.protobuf.Struct, as bytes; empty bytes mean no metadata.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum, IntEnum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vectorshard.shard.filters import Filter
from vectorshard.shard.texts import Grid, Readable, config_text, ledger_grid, receipt_grid

Float32Array: TypeAlias = npt.NDArray[np.float32]
Float64Array: TypeAlias = npt.NDArray[np.float64]
Int32Array: TypeAlias = npt.NDArray[np.int32]
Int64Array: TypeAlias = npt.NDArray[np.int64]
UInt8Array: TypeAlias = npt.NDArray[np.uint8]
UInt32Array: TypeAlias = npt.NDArray[np.uint32]
UInt64Array: TypeAlias = npt.NDArray[np.uint64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
VectorArray: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float16]
IdArray: TypeAlias = npt.NDArray[np.int64] | npt.NDArray[np.object_]


class Metric(Enum):
    """How two vectors are scored."""

    L2 = "l2"
    INNER_PRODUCT = "inner_product"
    COSINE = "cosine"

    @property
    def smaller_is_better(self) -> bool:
        """True for L2, the squared distance."""
        return self is Metric.L2


class IdType(Enum):
    """The type of a collection's ids."""

    INT64 = "int64"
    STRING = "string"


class IndexKind(Enum):
    """How the index stores each vector."""

    IVF_FLAT = "ivf_flat"
    IVF_SQ8 = "ivf_sq8"
    IVF_PQ = "ivf_pq"


class NlistRule(Enum):
    """How the number of inverted lists follows from the number of training rows."""

    BY_KIND = "by_kind"
    SQRT_4 = "sqrt_4"
    SQRT_8 = "sqrt_8"
    SQRT_16 = "sqrt_16"
    FIXED = "fixed"


class FieldType(Enum):
    """The type of a filterable metadata field."""

    KEYWORD = "keyword"
    INT64 = "int64"
    DOUBLE = "double"
    BOOL = "bool"


class WriteMode(Enum):
    """What to do with an id that exists."""

    UPSERT = "upsert"
    INSERT = "insert"


class ShardState(Enum):
    """The state of a shard's index."""

    BUFFERING = "buffering"
    TRAINING = "training"
    TRAINED = "trained"


class FilterPlan(Enum):
    """How a shard answered a search with a filter."""

    EXACT = "exact"  # every passing row was scored
    INDEX = "index"  # the index was searched, restricted to passing rows


class ExactReason(Enum):
    """Why a shard scored rows exactly instead of by its index, for all or some queries."""

    REQUESTED = "requested"
    NO_INDEX = "no_index"
    FEW_ROWS = "few_rows"
    CHEAPER = "cheaper"  # than what the index would need
    NO_PARAMETERS = "no_parameters"  # no calibrated search reaches the target recall
    UNCALIBRATED = "uncalibrated"  # for so many hits, until they are measured
    SHORT = "short"  # the index proposed too few rows for some queries


class Role(Enum):
    """The role of a server."""

    SHARD = "shard"
    ROUTER = "router"
    EMBEDDED = "embedded"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexConfig:
    """How each shard indexes its part of a collection. All defaults are resolved."""

    kind: IndexKind = IndexKind.IVF_PQ
    min_training_size: int = 1_000
    nlist_rule: NlistRule = NlistRule.BY_KIND
    nlist: int = 0  # for FIXED


@dataclass(frozen=True, slots=True)
class FilterField:
    """A declared field: a top-level metadata field that filters may use."""

    name: str
    type: FieldType


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionConfig(Readable):
    """The configuration of a collection. Only `target_recall` changes after its creation."""

    name: str
    dim: int
    metric: Metric
    id_type: IdType
    index: IndexConfig = field(default_factory=IndexConfig)
    target_recall: float = 0.95
    filter_fields: tuple[FilterField, ...] = ()

    def _grids(self) -> Sequence[Grid]:
        return [Grid(config_text(self))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The metadata of a call: what accompanies every request."""

    deadline: float | None = None
    """In seconds of time.monotonic(); None for no deadline."""
    incarnation: str = ""
    """The incarnation of the collection that the caller expects; empty accepts any."""
    placement: str = ""
    """The fingerprint of the leaf shards that the caller expects; empty accepts any."""
    staged: bool = False
    """For a create: the caller settles the collection afterwards (shard.membership.Stage)."""


NO_LIMIT = Call()


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionEntry:
    """A collection and its incarnation, which is unique among collections of the same name."""

    config: CollectionConfig
    incarnation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRequest:
    """Change what can be changed of a collection: the recall that its searches aim for."""

    collection: str
    target_recall: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger(Readable):
    """The state of all accepted rows: accepted = buffered + indexed + deleted + replaced + lost.

    `lost` are rows that a disk lost and whose loss an operator accepted.
    """

    accepted: int = 0
    buffered: int = 0
    indexed: int = 0
    deleted: int = 0
    replaced: int = 0
    lost: int = 0

    @property
    def live(self) -> int:
        """Rows that are visible to searches."""
        return self.buffered + self.indexed

    @property
    def adds_up(self) -> bool:
        """Whether every accepted row is counted exactly once."""
        gone = self.deleted + self.replaced + self.lost
        return self.accepted == self.buffered + self.indexed + gone

    def _grids(self) -> Sequence[Grid]:
        return [ledger_grid(self)]

    def __add__(self, other: Ledger) -> Ledger:
        return Ledger(
            accepted=self.accepted + other.accepted,
            buffered=self.buffered + other.buffered,
            indexed=self.indexed + other.indexed,
            deleted=self.deleted + other.deleted,
            replaced=self.replaced + other.replaced,
            lost=self.lost + other.lost,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """The newest commit on each leaf shard that a write touched, and the session that wrote it.

    Tokens of earlier releases have no sessions.
    """

    incarnation: str
    sequences: Mapping[int, int] = field(default_factory=dict)
    sessions: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpsertRequest:
    """A batch of rows: ids (rows,), vectors (rows, dim), metadata None or one per row.

    `id_hashes`, uint64 (rows,), are the xxh3-64 of the ids, once they are known.
    """

    collection: str
    ids: IdArray
    vectors: VectorArray
    metadata: Sequence[bytes] | None = None
    mode: WriteMode = WriteMode.UPSERT
    id_hashes: UInt64Array | None = field(default=None, compare=False, repr=False)


class RowErrorCode(IntEnum):
    """Why a row was not written: values of google.rpc.Code."""

    DEADLINE_EXCEEDED = 4
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNAVAILABLE = 14
    DATA_LOSS = 15


@dataclass(frozen=True, slots=True)
class RowError:
    """A row that was not written, by its index in the request; `code` is a `RowErrorCode`."""

    row: int
    code: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpsertResult:
    """`accepted` rows are durable and searchable; `errors` lists the others."""

    accepted: int
    errors: tuple[RowError, ...]
    token: Token


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteRequest:
    """Delete rows by distinct ids or by a filter: exactly one of the two is set."""

    collection: str
    ids: IdArray | None = None
    filter: Filter | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteResult:
    """The number of rows that existed and are now deleted."""

    deleted: int
    token: Token


@dataclass(frozen=True, slots=True, kw_only=True)
class Include:
    """What a result contains in addition to the ids.

    With `metadata_json`, its metadata is JSON; both are set then.
    """

    vectors: bool = False
    metadata: bool = False
    metadata_json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GetRequest:
    """Get rows by distinct ids or by a filter: exactly one of the two is set."""

    collection: str
    ids: IdArray | None = None
    filter: Filter | None = None
    include: Include = field(default_factory=lambda: Include(vectors=True, metadata=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class CountRequest:
    """Count live rows, restricted to `ids` and to the filter where they are given."""

    collection: str
    ids: IdArray | None = None
    filter: Filter | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """Where a listing continues: at `row` of the leaf shard `shard`. Opaque on the wire."""

    incarnation: str
    shard: int
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListRequest:
    """A page of at most `page_size` rows (0: the default). Without a cursor, the first page."""

    collection: str
    page_size: int = 0
    cursor: Cursor | None = None
    filter: Filter | None = None
    include: Include = field(default_factory=Include)
    skip_damaged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Existing rows: ids (rows,) and what was included. `cursor` continues with the next page.

    `damaged` are the ids between them that `skip_damaged` left out. With `metadata_json`, as in the
    request's Include, the metadata is one JSON object for each row.
    """

    ids: IdArray
    vectors: Float32Array | None = None
    metadata: Sequence[bytes] | None = None
    cursor: Cursor | None = None
    damaged: IdArray | None = None
    metadata_json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """Search effort. At most one field is set; without any, the collection's target recall."""

    nprobe: int = 0
    target_recall: float = 0.0
    exact: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """A batch of queries (queries, dim)."""

    collection: str
    queries: VectorArray
    k: int
    effort: Effort = field(default_factory=Effort)
    filter: Filter | None = None
    include: Include = field(default_factory=Include)
    score_threshold: float | None = None
    min_coverage: float = 1.0
    token: Token | None = None
    encoded: bytes | None = field(init=False, default=None, compare=False, repr=False)
    """Its message, once it was decoded or encoded. `dataclasses.replace` drops it."""

    def of_message(self, queries: VectorArray, encoded: bytes) -> SearchRequest:
        """Return the request of a message that differs from this one's only in its queries."""
        request = object.__new__(SearchRequest)
        for get, set_ in _SEARCH_REQUEST_SLOTS:  # a third of the time of `replace`
            set_(request, get(self))
        object.__setattr__(request, "queries", queries)
        object.__setattr__(request, "encoded", encoded)
        return request


_SEARCH_REQUEST_SLOTS = tuple(
    (slot.__get__, slot.__set__)
    for slot in (getattr(SearchRequest, each.name) for each in fields(SearchRequest))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReceipt:
    """What one leaf shard contributed to a result, or why it is missing."""

    shard: int
    missing_reason: str = ""
    rows_visible: int = 0
    rows_exact: int = 0
    nlist: int = 0
    nprobe: int = 0
    candidates: int = 0
    generation: int = 0
    rows_passing: int = 0
    filter_plan: FilterPlan | None = None  # None for a search without a filter
    exact_reason: ExactReason | None = None  # None if the index answered every query
    queries_widened: int = 0  # that probed more lists than calibrated, as rows were deleted
    queries_exact: int = 0  # whose answers are exact, for `exact_reason`
    nprobe_mean: float = 0.0  # of the queries that the index answered; `nprobe` is the largest
    rows_damaged: int = 0  # live rows that it could not see; not among `rows_visible`


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt(Readable):
    """What a result covers: one entry per leaf shard, by shard number."""

    shards: tuple[ShardReceipt, ...]
    coverage: float  # the fraction of placement slots whose shards answered
    encoded: bytes | None = field(init=False, default=None, compare=False, repr=False)
    """The field of a response with it, once it was written: consecutive searches share one."""

    @property
    def shards_total(self) -> int:
        """The number of leaf shards of the collection."""
        return len(self.shards)

    @property
    def shards_answered(self) -> int:
        """The number of leaf shards that answered."""
        return sum(not shard.missing_reason for shard in self.shards)

    def _grids(self) -> Sequence[Grid]:
        return [receipt_grid(self)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """The best hits of a batch of queries, flat in query order, best first.

    `counts` (queries,) is the number of hits of each query; `ids` and `scores` are (hits,).
    """

    counts: UInt32Array
    ids: IdArray
    scores: Float32Array


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The hits, what was included of them (hits, ...), and the receipt. See also Rows."""

    hits: TopK
    receipt: Receipt
    vectors: Float32Array | None = None
    metadata: Sequence[bytes] | None = None
    metadata_json: bool = False
    encoded: bytes | None = field(init=False, default=None, compare=False, repr=False)
    """The message with all of it, if the search wrote it. `dataclasses.replace` drops it."""

    def written(self, encoded: bytes) -> SearchResult:
        """Return this result, which has just been made, with its message."""
        object.__setattr__(self, "encoded", encoded)
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """Train now; with `wait`, answer when the training is done."""

    collection: str
    wait: bool = False
