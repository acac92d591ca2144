from vectorshard.v1 import vectorshard_pb2 as _vectorshard_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CollectionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COLLECTION_STATE_UNSPECIFIED: _ClassVar[CollectionState]
    COLLECTION_STATE_LIVE: _ClassVar[CollectionState]
    COLLECTION_STATE_LOST: _ClassVar[CollectionState]
    COLLECTION_STATE_DAMAGED: _ClassVar[CollectionState]
    COLLECTION_STATE_FOREIGN: _ClassVar[CollectionState]
    COLLECTION_STATE_DROPPED: _ClassVar[CollectionState]
    COLLECTION_STATE_UNREADABLE: _ClassVar[CollectionState]

class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_UNSPECIFIED: _ClassVar[Stage]
    STAGE_CREATED: _ClassVar[Stage]
    STAGE_KNOWN: _ClassVar[Stage]
    STAGE_COMPLETE: _ClassVar[Stage]
COLLECTION_STATE_UNSPECIFIED: CollectionState
COLLECTION_STATE_LIVE: CollectionState
COLLECTION_STATE_LOST: CollectionState
COLLECTION_STATE_DAMAGED: CollectionState
COLLECTION_STATE_FOREIGN: CollectionState
COLLECTION_STATE_DROPPED: CollectionState
COLLECTION_STATE_UNREADABLE: CollectionState
STAGE_UNSPECIFIED: Stage
STAGE_CREATED: Stage
STAGE_KNOWN: Stage
STAGE_COMPLETE: Stage

class Int64IdsTwin(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: bytes
    def __init__(self, values: _Optional[bytes] = ...) -> None: ...

class IdsTwin(_message.Message):
    __slots__ = ("int64s", "strings")
    INT64S_FIELD_NUMBER: _ClassVar[int]
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    int64s: Int64IdsTwin
    strings: _vectorshard_pb2.StringIds
    def __init__(self, int64s: _Optional[_Union[Int64IdsTwin, _Mapping]] = ..., strings: _Optional[_Union[_vectorshard_pb2.StringIds, _Mapping]] = ...) -> None: ...

class UpsertRequestTwin(_message.Message):
    __slots__ = ("collection", "ids", "vectors", "metadata", "mode", "request_id", "metadata_json")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    METADATA_JSON_FIELD_NUMBER: _ClassVar[int]
    collection: str
    ids: IdsTwin
    vectors: _vectorshard_pb2.Matrix
    metadata: _containers.RepeatedScalarFieldContainer[bytes]
    mode: _vectorshard_pb2.WriteMode
    request_id: int
    metadata_json: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, collection: _Optional[str] = ..., ids: _Optional[_Union[IdsTwin, _Mapping]] = ..., vectors: _Optional[_Union[_vectorshard_pb2.Matrix, _Mapping]] = ..., metadata: _Optional[_Iterable[bytes]] = ..., mode: _Optional[_Union[_vectorshard_pb2.WriteMode, str]] = ..., request_id: _Optional[int] = ..., metadata_json: _Optional[_Iterable[bytes]] = ...) -> None: ...

class SearchResponseTwin(_message.Message):
    __slots__ = ("counts", "ids", "scores", "vectors", "metadata", "receipt", "metadata_json")
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    METADATA_JSON_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    ids: IdsTwin
    scores: bytes
    vectors: _vectorshard_pb2.Matrix
    metadata: _containers.RepeatedScalarFieldContainer[bytes]
    receipt: _containers.RepeatedScalarFieldContainer[bytes]
    metadata_json: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, counts: _Optional[_Iterable[int]] = ..., ids: _Optional[_Union[IdsTwin, _Mapping]] = ..., scores: _Optional[bytes] = ..., vectors: _Optional[_Union[_vectorshard_pb2.Matrix, _Mapping]] = ..., metadata: _Optional[_Iterable[bytes]] = ..., receipt: _Optional[_Iterable[bytes]] = ..., metadata_json: _Optional[_Iterable[bytes]] = ...) -> None: ...

class RowsTwin(_message.Message):
    __slots__ = ("ids", "vectors", "metadata", "cursor", "damaged", "metadata_json")
    IDS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    METADATA_JSON_FIELD_NUMBER: _ClassVar[int]
    ids: IdsTwin
    vectors: _vectorshard_pb2.Matrix
    metadata: _containers.RepeatedScalarFieldContainer[bytes]
    cursor: bytes
    damaged: IdsTwin
    metadata_json: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, ids: _Optional[_Union[IdsTwin, _Mapping]] = ..., vectors: _Optional[_Union[_vectorshard_pb2.Matrix, _Mapping]] = ..., metadata: _Optional[_Iterable[bytes]] = ..., cursor: _Optional[bytes] = ..., damaged: _Optional[_Union[IdsTwin, _Mapping]] = ..., metadata_json: _Optional[_Iterable[bytes]] = ...) -> None: ...

class StructTwin(_message.Message):
    __slots__ = ("fields",)
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    fields: _containers.ScalarMap[str, bytes]
    def __init__(self, fields: _Optional[_Mapping[str, bytes]] = ...) -> None: ...

class Structs(_message.Message):
    __slots__ = ("structs",)
    STRUCTS_FIELD_NUMBER: _ClassVar[int]
    structs: _containers.RepeatedCompositeFieldContainer[StructTwin]
    def __init__(self, structs: _Optional[_Iterable[_Union[StructTwin, _Mapping]]] = ...) -> None: ...

class StructsTwin(_message.Message):
    __slots__ = ("structs",)
    STRUCTS_FIELD_NUMBER: _ClassVar[int]
    structs: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, structs: _Optional[_Iterable[bytes]] = ...) -> None: ...

class SearchStreamRequestTwin(_message.Message):
    __slots__ = ("request_id", "timeout_ms", "search", "cancel", "incarnation", "answer_bytes_max")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ANSWER_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    timeout_ms: int
    search: bytes
    cancel: bytes
    incarnation: str
    answer_bytes_max: int
    def __init__(self, request_id: _Optional[int] = ..., timeout_ms: _Optional[int] = ..., search: _Optional[bytes] = ..., cancel: _Optional[bytes] = ..., incarnation: _Optional[str] = ..., answer_bytes_max: _Optional[int] = ...) -> None: ...

class SearchStreamResponseTwin(_message.Message):
    __slots__ = ("request_id", "response", "error")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    response: bytes
    error: bytes
    def __init__(self, request_id: _Optional[int] = ..., response: _Optional[bytes] = ..., error: _Optional[bytes] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("incarnation", "sequences", "sessions")
    class SequencesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    class SessionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    sequences: _containers.ScalarMap[int, int]
    sessions: _containers.ScalarMap[int, int]
    def __init__(self, incarnation: _Optional[str] = ..., sequences: _Optional[_Mapping[int, int]] = ..., sessions: _Optional[_Mapping[int, int]] = ...) -> None: ...

class Cursor(_message.Message):
    __slots__ = ("incarnation", "shard", "row")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    shard: int
    row: int
    def __init__(self, incarnation: _Optional[str] = ..., shard: _Optional[int] = ..., row: _Optional[int] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("shard", "directory", "life")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    shard: int
    directory: str
    life: int
    def __init__(self, shard: _Optional[int] = ..., directory: _Optional[str] = ..., life: _Optional[int] = ...) -> None: ...

class SeenDirectory(_message.Message):
    __slots__ = ("shard", "directory", "life", "opens", "session")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    OPENS_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    shard: int
    directory: str
    life: int
    opens: int
    session: int
    def __init__(self, shard: _Optional[int] = ..., directory: _Optional[str] = ..., life: _Optional[int] = ..., opens: _Optional[int] = ..., session: _Optional[int] = ...) -> None: ...

class Statement(_message.Message):
    __slots__ = ("shard", "incarnation", "life", "sequence", "session", "accepted", "live", "sum")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    shard: int
    incarnation: str
    life: int
    sequence: int
    session: int
    accepted: int
    live: int
    sum: bytes
    def __init__(self, shard: _Optional[int] = ..., incarnation: _Optional[str] = ..., life: _Optional[int] = ..., sequence: _Optional[int] = ..., session: _Optional[int] = ..., accepted: _Optional[int] = ..., live: _Optional[int] = ..., sum: _Optional[bytes] = ...) -> None: ...

class CollectionReport(_message.Message):
    __slots__ = ("name", "incarnation", "state", "reason", "stage", "members", "first_sequences", "sessions", "sequence", "accepted", "live", "sum")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    name: str
    incarnation: str
    state: CollectionState
    reason: str
    stage: Stage
    members: _containers.RepeatedCompositeFieldContainer[Member]
    first_sequences: _containers.RepeatedScalarFieldContainer[int]
    sessions: _containers.RepeatedScalarFieldContainer[int]
    sequence: int
    accepted: int
    live: int
    sum: bytes
    def __init__(self, name: _Optional[str] = ..., incarnation: _Optional[str] = ..., state: _Optional[_Union[CollectionState, str]] = ..., reason: _Optional[str] = ..., stage: _Optional[_Union[Stage, str]] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., first_sequences: _Optional[_Iterable[int]] = ..., sessions: _Optional[_Iterable[int]] = ..., sequence: _Optional[int] = ..., accepted: _Optional[int] = ..., live: _Optional[int] = ..., sum: _Optional[bytes] = ...) -> None: ...

class ShardReport(_message.Message):
    __slots__ = ("shard", "directory", "life", "opens", "session", "version", "collections", "statements", "seen", "cluster", "problems", "unchanged")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    OPENS_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    STATEMENTS_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    shard: int
    directory: str
    life: int
    opens: int
    session: int
    version: int
    collections: _containers.RepeatedCompositeFieldContainer[CollectionReport]
    statements: _containers.RepeatedCompositeFieldContainer[Statement]
    seen: _containers.RepeatedCompositeFieldContainer[SeenDirectory]
    cluster: str
    problems: _containers.RepeatedCompositeFieldContainer[_vectorshard_pb2.Problem]
    unchanged: bool
    def __init__(self, shard: _Optional[int] = ..., directory: _Optional[str] = ..., life: _Optional[int] = ..., opens: _Optional[int] = ..., session: _Optional[int] = ..., version: _Optional[int] = ..., collections: _Optional[_Iterable[_Union[CollectionReport, _Mapping]]] = ..., statements: _Optional[_Iterable[_Union[Statement, _Mapping]]] = ..., seen: _Optional[_Iterable[_Union[SeenDirectory, _Mapping]]] = ..., cluster: _Optional[str] = ..., problems: _Optional[_Iterable[_Union[_vectorshard_pb2.Problem, _Mapping]]] = ..., unchanged: _Optional[bool] = ...) -> None: ...

class KnownReport(_message.Message):
    __slots__ = ("shard", "session", "version")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    shard: int
    session: int
    version: int
    def __init__(self, shard: _Optional[int] = ..., session: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...

class ExchangeRequest(_message.Message):
    __slots__ = ("others", "forget", "known")
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    FORGET_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    others: _containers.RepeatedCompositeFieldContainer[ShardReport]
    forget: _containers.RepeatedScalarFieldContainer[str]
    known: _containers.RepeatedCompositeFieldContainer[KnownReport]
    def __init__(self, others: _Optional[_Iterable[_Union[ShardReport, _Mapping]]] = ..., forget: _Optional[_Iterable[str]] = ..., known: _Optional[_Iterable[_Union[KnownReport, _Mapping]]] = ...) -> None: ...

class ExchangeResponse(_message.Message):
    __slots__ = ("reports",)
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    reports: _containers.RepeatedCompositeFieldContainer[ShardReport]
    def __init__(self, reports: _Optional[_Iterable[_Union[ShardReport, _Mapping]]] = ...) -> None: ...

class SettleRequest(_message.Message):
    __slots__ = ("collection", "incarnation", "stage", "members", "shard")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    collection: str
    incarnation: str
    stage: Stage
    members: _containers.RepeatedCompositeFieldContainer[Member]
    shard: int
    def __init__(self, collection: _Optional[str] = ..., incarnation: _Optional[str] = ..., stage: _Optional[_Union[Stage, str]] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., shard: _Optional[int] = ...) -> None: ...

class SettleResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AcceptLossRequest(_message.Message):
    __slots__ = ("shard", "accept", "losses", "life")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    shard: int
    accept: bool
    losses: _containers.RepeatedCompositeFieldContainer[AcceptedLoss]
    life: int
    def __init__(self, shard: _Optional[int] = ..., accept: _Optional[bool] = ..., losses: _Optional[_Iterable[_Union[AcceptedLoss, _Mapping]]] = ..., life: _Optional[int] = ...) -> None: ...

class AcceptedLoss(_message.Message):
    __slots__ = ("collection", "incarnation", "reason", "sequence", "accepted", "live", "witnessed_sequence", "witnessed_accepted", "witnessed_live", "config", "stage", "members")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    WITNESSED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    WITNESSED_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    WITNESSED_LIVE_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    collection: str
    incarnation: str
    reason: str
    sequence: int
    accepted: int
    live: int
    witnessed_sequence: int
    witnessed_accepted: int
    witnessed_live: int
    config: _vectorshard_pb2.CollectionConfig
    stage: Stage
    members: _containers.RepeatedCompositeFieldContainer[Member]
    def __init__(self, collection: _Optional[str] = ..., incarnation: _Optional[str] = ..., reason: _Optional[str] = ..., sequence: _Optional[int] = ..., accepted: _Optional[int] = ..., live: _Optional[int] = ..., witnessed_sequence: _Optional[int] = ..., witnessed_accepted: _Optional[int] = ..., witnessed_live: _Optional[int] = ..., config: _Optional[_Union[_vectorshard_pb2.CollectionConfig, _Mapping]] = ..., stage: _Optional[_Union[Stage, str]] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ...) -> None: ...

class AcceptLossResponse(_message.Message):
    __slots__ = ("losses", "life")
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    losses: _containers.RepeatedCompositeFieldContainer[AcceptedLoss]
    life: int
    def __init__(self, losses: _Optional[_Iterable[_Union[AcceptedLoss, _Mapping]]] = ..., life: _Optional[int] = ...) -> None: ...

class OpenCopyRequest(_message.Message):
    __slots__ = ("collection", "shard", "dead_below")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    DEAD_BELOW_FIELD_NUMBER: _ClassVar[int]
    collection: str
    shard: int
    dead_below: int
    def __init__(self, collection: _Optional[str] = ..., shard: _Optional[int] = ..., dead_below: _Optional[int] = ...) -> None: ...

class OpenCopyResponse(_message.Message):
    __slots__ = ("copy", "config", "incarnation", "stage", "members", "cluster", "shards_total", "placement_epoch", "slots", "directory", "life", "first_sequences", "sessions", "sequence", "rows", "live", "ledger", "content_sum", "dead", "damaged")
    COPY_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    SHARDS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    CONTENT_SUM_FIELD_NUMBER: _ClassVar[int]
    DEAD_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    copy: bytes
    config: _vectorshard_pb2.CollectionConfig
    incarnation: str
    stage: Stage
    members: _containers.RepeatedCompositeFieldContainer[Member]
    cluster: str
    shards_total: int
    placement_epoch: int
    slots: _containers.RepeatedCompositeFieldContainer[_vectorshard_pb2.SlotRange]
    directory: str
    life: int
    first_sequences: _containers.RepeatedScalarFieldContainer[int]
    sessions: _containers.RepeatedScalarFieldContainer[int]
    sequence: int
    rows: int
    live: int
    ledger: _vectorshard_pb2.Ledger
    content_sum: bytes
    dead: bytes
    damaged: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, copy: _Optional[bytes] = ..., config: _Optional[_Union[_vectorshard_pb2.CollectionConfig, _Mapping]] = ..., incarnation: _Optional[str] = ..., stage: _Optional[_Union[Stage, str]] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., cluster: _Optional[str] = ..., shards_total: _Optional[int] = ..., placement_epoch: _Optional[int] = ..., slots: _Optional[_Iterable[_Union[_vectorshard_pb2.SlotRange, _Mapping]]] = ..., directory: _Optional[str] = ..., life: _Optional[int] = ..., first_sequences: _Optional[_Iterable[int]] = ..., sessions: _Optional[_Iterable[int]] = ..., sequence: _Optional[int] = ..., rows: _Optional[int] = ..., live: _Optional[int] = ..., ledger: _Optional[_Union[_vectorshard_pb2.Ledger, _Mapping]] = ..., content_sum: _Optional[bytes] = ..., dead: _Optional[bytes] = ..., damaged: _Optional[_Iterable[int]] = ...) -> None: ...

class ReadCopyRequest(_message.Message):
    __slots__ = ("collection", "shard", "copy", "first_row", "bytes_max")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    COPY_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROW_FIELD_NUMBER: _ClassVar[int]
    BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    collection: str
    shard: int
    copy: bytes
    first_row: int
    bytes_max: int
    def __init__(self, collection: _Optional[str] = ..., shard: _Optional[int] = ..., copy: _Optional[bytes] = ..., first_row: _Optional[int] = ..., bytes_max: _Optional[int] = ...) -> None: ...

class ReadCopyResponse(_message.Message):
    __slots__ = ("block", "next_row", "damaged")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    NEXT_ROW_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    block: bytes
    next_row: int
    damaged: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, block: _Optional[bytes] = ..., next_row: _Optional[int] = ..., damaged: _Optional[_Iterable[int]] = ...) -> None: ...

class CloseCopyRequest(_message.Message):
    __slots__ = ("collection", "shard", "copy")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    COPY_FIELD_NUMBER: _ClassVar[int]
    collection: str
    shard: int
    copy: bytes
    def __init__(self, collection: _Optional[str] = ..., shard: _Optional[int] = ..., copy: _Optional[bytes] = ...) -> None: ...

class CloseCopyResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
