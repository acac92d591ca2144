"""The configuration of a server and its engine: each option, its default and its consequence.

Plain dataclasses, no environment. The command line fills them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SLOTS_TOTAL = 4_096
"""Hash buckets of the placement. Part of the format on disk: it never changes."""

PAGE_SIZE_DEFAULT = 1_000
"""Rows of a List page when the request states no size."""

LISTENING = "listening on "
"""What a server prints on stdout, before its address, once it can serve."""

CONNECTION_AGE_S = 300.0
"""The age at which a server asks the client to close a connection and resolve the server's name
again. Longer: a new address is noticed later; shorter: more connections. It affects no call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on requests. The server rejects a request that exceeds one before it does any work."""

    message_bytes: int = 64 * 1024 * 1024
    write_bytes: int = 64 * 1024 * 1024  # of all writes in progress; a router allows 4 times this
    search_bytes: int = 256 * 1024 * 1024  # of all searches in progress, including expected results
    searches: int = 1_024  # in progress on a server; more: longer queueing, more memory
    calls: int = 2_048  # in progress on a server, of all kinds; a stream counts as one
    streams: int = 512  # open on a server
    connections: int = 1_024  # to a server's port
    connection_calls: int = 256  # in progress on one connection; the client queues the rest
    dim: int = 8_192
    k: int = 10_000
    queries: int = 10_000
    hits: int = 1_000_000  # queries * k
    rows: int = 100_000
    id_bytes: int = 512
    metadata_bytes: int = 64 * 1024
    page_size: int = 10_000
    nlist: int = 65_536
    collections: int = 1_000
    stream_requests: int = 128  # of one SearchStream: read but not yet answered
    filter_depth: int = 16
    filter_nodes: int = 256
    filter_values: int = 10_000  # of all `in` conditions of a filter
    filter_bytes: int = 1024 * 1024
    filter_fields: int = 64  # declared by a collection
    default_timeout_ms: int = 30_000  # for calls without a deadline; Train has none


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where a server listens, and how it stops. Addresses are HOST:PORT; port 0 picks any."""

    listen: str
    shares_port: bool = False  # among the workers of a router (SO_REUSEPORT)
    metrics: str | None = None  # served over HTTP; None: not served
    health: str | None = None  # a separate port, in addition to the health service on `listen`
    lame_duck_s: float = 1.0  # longest wait for clients to leave a stopping server
    connection_age_s: float = CONNECTION_AGE_S
    hold: bool = False  # stay up when only an operator can mend why the start is refused


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferConfig:
    """When buffered rows move into the index, and when writes are slowed down."""

    # Affects performance.
    absorb_rows: int = 2_000  # larger: fewer absorptions, more rows scanned exactly in every search
    absorb_piece_rows: int = 100  # larger: faster absorption, longer pauses for searches
    slow_writers_rows: int = 4_000  # buffered after the first training; above it, writes wait
    slow_writers_wait_s: float = 5.0  # longest wait of one group of writes for the buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How an index is trained, and how often it is written to disk."""

    # Affects behaviour.
    seed: int = 7  # same rows, same seed: same index
    pq_rows_min: int = 1_000  # fewer live rows get IVF_FLAT instead of IVF_PQ
    merged_shards: int = 1  # whose results are merged; more: fewer hits of each shard matter
    # Affects performance.
    candidate_price: float | None = (
        None  # of search parameters, as calibration.work; None: measured
    )
    points_per_list: int = 64  # rows sampled for k-means; fewer: faster, poorer lists
    calibration_queries: int = 256  # rows that measure recall; fewer: faster, noisier nprobe
    live_queries: int = 256  # sampled from searches, dim * 4 bytes each; fewer: noisier recall
    live_window: int = 65_536  # queries that the sample represents; larger: follows traffic slower
    checkpoint_growth: float = 0.2  # rows absorbed since the last index file, relative to its rows
    checkpoint_min_rows: int = 10_000  # fewer new rows do not rewrite the index file


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactionConfig:
    """When a compaction removes dead rows from the row file, and a training from the index."""

    # Affects performance.
    dead_rows_min: int = 10_000  # in the row file; fewer start no compaction
    dead_codes_min: int = 100  # in the index; fewer start no training
    dead_share: float = 0.5  # of all rows; larger: less copying, more disk and memory
    dead_share_when_asked: float = 0.1  # dead_share for the row file after a Train call
    piece_bytes: int = 4 * 1024 * 1024  # of vectors between syncs; larger: longer waits for writes
    tail_rows: int = 2_000  # copied while writes wait; fewer: a shorter wait, more rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubConfig:
    """How fast a shard verifies what it stores, in the background, one collection at a time.

    The slowest of the three rates decides. The shards of one process divide them.
    """

    # Affects behaviour.
    interval_s: float = 3_600.0
    """From the beginning of a collection's pass to that of its next; 0: no scrub. Longer: damage is
    found later."""
    disk_interval_s: float = 86_400.0
    """The same of passes that read the disk, and not only the page cache. Longer: less disk reads,
    and what has decayed on the disk under sound pages in memory is found later."""
    first_after_s: float = 60.0  # from the start of the server, which verifies some itself
    # Affects performance.
    core_share: float = 0.02  # CPU time of one core; more: faster passes
    rows_per_s: float = 50_000.0
    bytes_per_s: float = 32e6  # read from memory or from the disk


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineConfig:
    """What a shard may take of the machine that it runs on."""

    # Affects behaviour.
    reserve_bytes: int = 256 * 1024 * 1024
    """Free space on the disk below which upserts and creations are refused: room for what is in
    progress, for deletes, for logs and index files. Less: the disk itself may become full."""
    reserve_share: float = 0.05  # of the disk's size: the most that the reserve may be
    collections_max: int = 1_000_000  # for which there are open files; see `runtime.open_files`
    limit_too_low: str = ""  # which limit of the machine is too low, and what to do; or empty

    read_all: bool = False  # at the start, all vectors: the last process was ended by a failed read

    def reserve_of(self, disk_bytes: int) -> int:
        """Return the reserve of a disk of this size."""
        return min(self.reserve_bytes, int(self.reserve_share * disk_bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The configuration of a shard's engine."""

    limits: Limits = field(default_factory=Limits)
    machine: MachineConfig = field(default_factory=MachineConfig)
    buffer: BufferConfig = field(default_factory=BufferConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    compaction: CompactionConfig = field(default_factory=CompactionConfig)
    scrub: ScrubConfig = field(default_factory=ScrubConfig)
    few_rows_work: float = 350_000
    """Live rows * (dim + 80) up to which a search scores every row: 1,900 rows of 100 components.
    Larger: fewer collections depend on an index, and batches of queries cost more. 0: only searches
    with a filter, and after deletes, score every row where that is cheaper."""
    search_cores: int = 1  # that one FAISS call may use
