"""How a shard behaves and what it refuses: values with their defaults and consequences.

Vocabulary: plain dataclasses, no environment. The edge fills them from its command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SLOTS_TOTAL = 4_096
"""Hash buckets of the placement. Part of what is on disk: never changes."""

PAGE_SIZE_DEFAULT = 1_000
"""Rows of a List page whose request names no size."""

LISTENING = "listening on "
"""What a server prints on stdout, before its address, once it can serve."""

CONNECTION_AGE_S = 300.0
"""Seconds after which a server asks a client to leave a connection, and so to look up the server's
name again. Longer: later to notice another address; shorter: more connections. Affects no call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on requests. What exceeds them is refused before anything is done."""

    message_bytes: int = 64 * 1024 * 1024
    write_bytes: int = 64 * 1024 * 1024  # of all writes in progress; a router takes 4 times as much
    search_bytes: int = 256 * 1024 * 1024  # of all searches in progress, with expected answers
    searches: int = 1_024  # in progress on a server; more: longer waits, more memory
    calls: int = 2_048  # in progress on a server, of all kinds; a stream is one
    streams: int = 512  # open on a server
    connections: int = 1_024  # to a server's port
    connection_calls: int = 1_024  # in progress on one connection; clients hold back the rest
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
    stream_requests: int = 128  # of one SearchStream: read, and not yet answered
    filter_depth: int = 16
    filter_nodes: int = 256
    default_timeout_ms: int = 30_000  # of calls that bring no deadline; a Train ends when it ends


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where a server listens, and how it leaves. Addresses are HOST:PORT; port 0 picks one."""

    listen: str
    shares_port: bool = False  # with others that do so, too: the workers of a router
    metrics: str | None = None  # over HTTP; None for nowhere
    health: str | None = None  # of its own, beside that on the server's port
    lame_duck_s: float = 1.0  # longest that a server that stops waits for callers to leave
    connection_age_s: float = CONNECTION_AGE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferConfig:
    """When buffered rows move into the index, and when writers are slowed."""

    # Affects performance.
    absorb_rows: int = 2_000  # larger: fewer absorptions, a longer exact part of every search
    absorb_piece_rows: int = 100  # larger: faster absorption, longer pauses of searches
    slow_writers_rows: int = 4_000  # buffered beyond the first training: writers wait above this
    slow_writers_wait_s: float = 5.0  # longest that one group of writes waits for the buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How an index is trained, and how often it is written to disk."""

    # Affects behaviour.
    seed: int = 7  # same rows, same seed: same index
    merged_shards: int = 1  # whose answers are merged; more: fewer of a shard's own hits matter
    # Affects performance.
    points_per_list: int = 64  # rows sampled for k-means; fewer: faster, poorer lists
    calibration_queries: int = 256  # own rows that measure recall; fewer: faster, noisier nprobe
    live_queries: int = 256  # queries of searches kept, dim * 4 bytes each; fewer: noisier recall
    live_window: int = 65_536  # queries that they stand for; larger: slower to follow the traffic
    checkpoint_growth: float = 0.2  # rows absorbed since the last index file, relative to it
    checkpoint_min_rows: int = 10_000  # below this many new rows the index file is not rewritten


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildConfig:
    """When the dead rows are taken out of the row file, and out of the index."""

    # Affects performance.
    dead_rows_min: int = 10_000  # below this many they are not worth the work
    dead_share: float = 0.5  # of the rows there; larger: less copying, more disk and memory
    dead_share_when_asked: float = 0.1  # the same, of the row file after a Train
    piece_bytes: int = (
        4 * 1024 * 1024
    )  # of vectors between two syncs; larger: longer waits of writers
    tail_rows: int = 2_000  # copied while writers wait; fewer: a shorter wait, more rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Everything that a shard's engine can be told."""

    limits: Limits = field(default_factory=Limits)
    buffer: BufferConfig = field(default_factory=BufferConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    rebuild: RebuildConfig = field(default_factory=RebuildConfig)
    search_threads: int = 1  # searches that one shard runs at the same time
    search_cores: int = 1  # cores that one FAISS call may use
