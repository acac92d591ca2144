"""The vocabulary: what a shard is asked and what it answers, in numpy and dataclasses.

Shapes: queries (queries, dim), vectors (rows, dim), hits flat in query order. Ids are an int64
array for INT64 collections and an object array of `str` for STRING ones. Metadata is the
deterministic serialization of a google.protobuf.Struct, as bytes; empty bytes mean none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vectorshard.shard.filters import Filter

Float32Array: TypeAlias = npt.NDArray[np.float32]
Float64Array: TypeAlias = npt.NDArray[np.float64]
Int32Array: TypeAlias = npt.NDArray[np.int32]
Int64Array: TypeAlias = npt.NDArray[np.int64]
UInt8Array: TypeAlias = npt.NDArray[np.uint8]
UInt32Array: TypeAlias = npt.NDArray[np.uint32]
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
    """The kind of ids of a collection."""

    INT64 = "int64"
    STRING = "string"


class IndexKind(Enum):
    """What the index keeps of each vector."""

    IVF_FLAT = "ivf_flat"
    IVF_SQ8 = "ivf_sq8"
    IVF_PQ = "ivf_pq"


class NlistRule(Enum):
    """How many inverted lists, from the rows that an index is trained on."""

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
    """The life of a shard's index."""

    BUFFERING = "buffering"
    TRAINING = "training"
    TRAINED = "trained"


class FilterPlan(Enum):
    """How a shard answered a search with a filter."""

    EXACT = "exact"
    """Every row that passes was scored exactly."""
    INDEX = "index"
    """The index was searched for rows that pass."""


class Role(Enum):
    """What a server does."""

    SHARD = "shard"
    ROUTER = "router"
    EMBEDDED = "embedded"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexConfig:
    """How a collection is indexed, on each shard for itself. Resolved: no field means a default."""

    kind: IndexKind = IndexKind.IVF_PQ
    min_training_size: int = 1_000
    nlist_rule: NlistRule = NlistRule.BY_KIND
    nlist: int = 0  # for FIXED


@dataclass(frozen=True, slots=True)
class FilterField:
    """A top-level metadata field that filters may use."""

    name: str
    type: FieldType


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionConfig:
    """What a collection is. Fixed at its creation."""

    name: str
    dim: int
    metric: Metric
    id_type: IdType
    index: IndexConfig = field(default_factory=IndexConfig)
    target_recall: float = 0.95
    filter_fields: tuple[FilterField, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What travels beside a request."""

    deadline: float | None = None
    """Seconds of time.monotonic(), or None for no limit."""
    incarnation: str = ""
    """The collection that the caller means by the name; empty means whichever exists."""
    placement: str = ""
    """Fingerprint of the leaf shards that the caller takes the callee for; empty means any."""


NO_LIMIT = Call()


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionEntry:
    """A collection as a shard knows it: what it is, and which of its name."""

    config: CollectionConfig
    incarnation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Where every accepted row is: accepted = buffered + indexed + deleted + replaced."""

    accepted: int = 0
    buffered: int = 0
    indexed: int = 0
    deleted: int = 0
    replaced: int = 0

    @property
    def live(self) -> int:
        """Rows that searches see."""
        return self.buffered + self.indexed

    @property
    def adds_up(self) -> bool:
        """Whether every accepted row is in exactly one place."""
        return self.accepted == self.buffered + self.indexed + self.deleted + self.replaced

    def __add__(self, other: Ledger) -> Ledger:
        return Ledger(
            accepted=self.accepted + other.accepted,
            buffered=self.buffered + other.buffered,
            indexed=self.indexed + other.indexed,
            deleted=self.deleted + other.deleted,
            replaced=self.replaced + other.replaced,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardDescription:
    """One leaf shard's part of a collection. Durations in seconds, times in seconds since 1970."""

    shard: int
    state: ShardState
    training: bool
    ledger: Ledger
    nlist: int = 0
    nprobe: int = 0
    candidates: int = 0
    measured_recall: float = 1.0
    live_recall: float = 0.0
    live_queries: int = 0
    generation: int = 0
    rows_trained_on: int = 0
    list_imbalance: float = 0.0
    last_training_s: float = 0.0
    last_trained_at: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionDescription:
    """A collection and its leaf shards, by number."""

    config: CollectionConfig
    incarnation: str
    shards: tuple[ShardDescription, ...]
    recommended_batch_size: int

    @property
    def ledger(self) -> Ledger:
        """The sum of the shards' ledgers."""
        return sum((shard.ledger for shard in self.shards), Ledger())


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """The newest commit of each leaf shard that a write touched."""

    incarnation: str
    sequences: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpsertRequest:
    """A batch of rows: ids (rows,), vectors (rows, dim), metadata None or one for each row."""

    collection: str
    ids: IdArray
    vectors: VectorArray
    metadata: Sequence[bytes] | None = None
    mode: WriteMode = WriteMode.UPSERT


class RowErrorCode(IntEnum):
    """Why a row was not written: values of google.rpc.Code."""

    DEADLINE_EXCEEDED = 4
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    UNAVAILABLE = 14


@dataclass(frozen=True, slots=True)
class RowError:
    """A row that was not written, by its index in the request. `code` is a `RowErrorCode`."""

    row: int
    code: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpsertResult:
    """`accepted` rows are durable and searchable; `errors` names the others."""

    accepted: int
    errors: tuple[RowError, ...]
    token: Token


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteRequest:
    """Delete these ids, each once, or the rows that pass a filter: one of the two."""

    collection: str
    ids: IdArray | None = None
    filter: Filter | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteResult:
    """How many rows were there and are gone."""

    deleted: int
    token: Token


@dataclass(frozen=True, slots=True, kw_only=True)
class Include:
    """What an answer brings along with the ids."""

    vectors: bool = False
    metadata: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GetRequest:
    """Return these ids, each once, or the rows that pass a filter: one of the two."""

    collection: str
    ids: IdArray | None = None
    filter: Filter | None = None
    include: Include = field(default_factory=lambda: Include(vectors=True, metadata=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class CountRequest:
    """Count the live rows: only those of `ids`, if given, and only what passes the filter."""

    collection: str
    ids: IdArray | None = None
    filter: Filter | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """Where a listing goes on: at `row` of the leaf shard `shard`. Opaque on the wire."""

    incarnation: str
    shard: int
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListRequest:
    """A page of at most `page_size` rows; 0 means the default. No cursor: the first page."""

    collection: str
    page_size: int = 0
    cursor: Cursor | None = None
    filter: Filter | None = None
    include: Include = field(default_factory=Include)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows that exist: ids (rows,), and what was included. `cursor` leads to the next page."""

    ids: IdArray
    vectors: Float32Array | None = None
    metadata: Sequence[bytes] | None = None
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How hard to look. At most one field is set; none means the collection's target recall."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReceipt:
    """What one leaf shard contributed, or why it did not."""

    shard: int
    missing_reason: str = ""
    rows_visible: int = 0
    rows_exact: int = 0
    nlist: int = 0
    nprobe: int = 0
    candidates: int = 0
    generation: int = 0
    rows_passing: int = 0
    filter_plan: FilterPlan | None = None
    """None for a search without a filter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What an answer covers: one entry a leaf shard, by number."""

    shards: tuple[ShardReceipt, ...]
    coverage: float
    """The fraction of the placement slots that answered."""

    @property
    def shards_total(self) -> int:
        """Leaf shards of the collection."""
        return len(self.shards)

    @property
    def shards_answered(self) -> int:
        """Leaf shards that answered."""
        return sum(not shard.missing_reason for shard in self.shards)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """The best hits of a batch of queries, flat in query order, best first.

    `counts` (queries,) says how many belong to each query; `ids` and `scores` are (hits,).
    """

    counts: UInt32Array
    ids: IdArray
    scores: Float32Array


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """Hits with what was included of them (hits, ...), and the receipt."""

    hits: TopK
    receipt: Receipt
    vectors: Float32Array | None = None
    metadata: Sequence[bytes] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainRequest:
    """Why does a query (1, dim) find, or not find, an id (1,)?

    With the `score` of an id that another shard holds: where would such a hit rank among the rows
    here? Nothing else is answered then.
    """

    collection: str
    query: VectorArray
    id: IdArray
    filter: Filter | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Where a row is, and what a search must do to score it.

    What is not known, or means nothing, is 0: everything of a row that does not exist but `shard`,
    and the index's part of one that is buffered.
    """

    exists: bool = False
    shard: int = 0
    """The leaf shard that holds it, or that would."""
    buffered: bool = False
    """In the training buffer: every search scores it."""
    list: int = 0
    """The inverted list that holds it."""
    centroid_rank: int = 0
    """The rank of that list's centroid for the query, from 1."""
    nprobe_needed: int = 0
    """The smallest nprobe whose search for 10 hits scores it. 0 where every nprobe's does because
    it is buffered, or none's because `candidates_needed` is more than `candidates`."""
    exact_rank: int = 0
    """Its rank among all rows, from 1; equal scores rank by id."""
    score: float = 0.0
    hidden_by_filter: bool = False
    """The filter does not pass it. Everything else is said as if there were no filter."""
    deleted: bool = False
    """Its last row is dead, and the shard still knows it: not after a restart or a rebuild."""
    candidates_needed: int = 0
    """How many candidates a search of `centroid_rank` lists must take, so that its code makes it
    one of them; 0 for IVF_FLAT, which scores all rows of a list."""
    candidates: int = 0
    """How many candidates a search by nprobe for 10 hits takes; 0 for IVF_FLAT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """Train now; `wait` answers when it is done."""

    collection: str
    wait: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlacement:
    """A leaf shard and its slots, as ranges with both ends included."""

    shard: int
    slots: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Who a server is and which leaf shards it reaches."""

    role: Role
    cluster: str
    placement_epoch: int
    shards_total: int
    """Leaf shards of the placement, reached or not; 0 as long as nobody has told."""
    shards: tuple[ShardPlacement, ...]
