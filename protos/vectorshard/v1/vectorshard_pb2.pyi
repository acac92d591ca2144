import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    D_TYPE_UNSPECIFIED: _ClassVar[DType]
    D_TYPE_FLOAT32: _ClassVar[DType]
    D_TYPE_FLOAT16: _ClassVar[DType]

class Metric(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METRIC_UNSPECIFIED: _ClassVar[Metric]
    METRIC_L2: _ClassVar[Metric]
    METRIC_INNER_PRODUCT: _ClassVar[Metric]
    METRIC_COSINE: _ClassVar[Metric]

class IdType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ID_TYPE_UNSPECIFIED: _ClassVar[IdType]
    ID_TYPE_INT64: _ClassVar[IdType]
    ID_TYPE_STRING: _ClassVar[IdType]

class IndexKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INDEX_KIND_UNSPECIFIED: _ClassVar[IndexKind]
    INDEX_KIND_IVF_FLAT: _ClassVar[IndexKind]
    INDEX_KIND_IVF_SQ8: _ClassVar[IndexKind]
    INDEX_KIND_IVF_PQ: _ClassVar[IndexKind]

class NlistRule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NLIST_RULE_UNSPECIFIED: _ClassVar[NlistRule]
    NLIST_RULE_SQRT_4: _ClassVar[NlistRule]
    NLIST_RULE_SQRT_8: _ClassVar[NlistRule]
    NLIST_RULE_SQRT_16: _ClassVar[NlistRule]
    NLIST_RULE_FIXED: _ClassVar[NlistRule]
    NLIST_RULE_BY_KIND: _ClassVar[NlistRule]

class FieldType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FIELD_TYPE_UNSPECIFIED: _ClassVar[FieldType]
    FIELD_TYPE_KEYWORD: _ClassVar[FieldType]
    FIELD_TYPE_INT64: _ClassVar[FieldType]
    FIELD_TYPE_DOUBLE: _ClassVar[FieldType]
    FIELD_TYPE_BOOL: _ClassVar[FieldType]

class ShardState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SHARD_STATE_UNSPECIFIED: _ClassVar[ShardState]
    SHARD_STATE_BUFFERING: _ClassVar[ShardState]
    SHARD_STATE_TRAINING: _ClassVar[ShardState]
    SHARD_STATE_TRAINED: _ClassVar[ShardState]

class WriteMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WRITE_MODE_UNSPECIFIED: _ClassVar[WriteMode]
    WRITE_MODE_UPSERT: _ClassVar[WriteMode]
    WRITE_MODE_INSERT: _ClassVar[WriteMode]

class FilterPlan(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FILTER_PLAN_UNSPECIFIED: _ClassVar[FilterPlan]
    FILTER_PLAN_EXACT: _ClassVar[FilterPlan]
    FILTER_PLAN_INDEX: _ClassVar[FilterPlan]

class ExactReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXACT_REASON_UNSPECIFIED: _ClassVar[ExactReason]
    EXACT_REASON_REQUESTED: _ClassVar[ExactReason]
    EXACT_REASON_NO_INDEX: _ClassVar[ExactReason]
    EXACT_REASON_FEW_ROWS: _ClassVar[ExactReason]
    EXACT_REASON_CHEAPER: _ClassVar[ExactReason]
    EXACT_REASON_NO_PARAMETERS: _ClassVar[ExactReason]
    EXACT_REASON_UNCALIBRATED: _ClassVar[ExactReason]
    EXACT_REASON_SHORT: _ClassVar[ExactReason]

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_SHARD: _ClassVar[Role]
    ROLE_ROUTER: _ClassVar[Role]
    ROLE_EMBEDDED: _ClassVar[Role]

class ProblemKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROBLEM_KIND_UNSPECIFIED: _ClassVar[ProblemKind]
    PROBLEM_KIND_MISSING: _ClassVar[ProblemKind]
    PROBLEM_KIND_DAMAGED: _ClassVar[ProblemKind]
    PROBLEM_KIND_WRITES_STOPPED: _ClassVar[ProblemKind]
    PROBLEM_KIND_DISK_FULL: _ClassVar[ProblemKind]
    PROBLEM_KIND_LIMIT: _ClassVar[ProblemKind]
    PROBLEM_KIND_DISK_UNSAFE: _ClassVar[ProblemKind]
    PROBLEM_KIND_UNREADABLE: _ClassVar[ProblemKind]
    PROBLEM_KIND_ROWS_DAMAGED: _ClassVar[ProblemKind]
D_TYPE_UNSPECIFIED: DType
D_TYPE_FLOAT32: DType
D_TYPE_FLOAT16: DType
METRIC_UNSPECIFIED: Metric
METRIC_L2: Metric
METRIC_INNER_PRODUCT: Metric
METRIC_COSINE: Metric
ID_TYPE_UNSPECIFIED: IdType
ID_TYPE_INT64: IdType
ID_TYPE_STRING: IdType
INDEX_KIND_UNSPECIFIED: IndexKind
INDEX_KIND_IVF_FLAT: IndexKind
INDEX_KIND_IVF_SQ8: IndexKind
INDEX_KIND_IVF_PQ: IndexKind
NLIST_RULE_UNSPECIFIED: NlistRule
NLIST_RULE_SQRT_4: NlistRule
NLIST_RULE_SQRT_8: NlistRule
NLIST_RULE_SQRT_16: NlistRule
NLIST_RULE_FIXED: NlistRule
NLIST_RULE_BY_KIND: NlistRule
FIELD_TYPE_UNSPECIFIED: FieldType
FIELD_TYPE_KEYWORD: FieldType
FIELD_TYPE_INT64: FieldType
FIELD_TYPE_DOUBLE: FieldType
FIELD_TYPE_BOOL: FieldType
SHARD_STATE_UNSPECIFIED: ShardState
SHARD_STATE_BUFFERING: ShardState
SHARD_STATE_TRAINING: ShardState
SHARD_STATE_TRAINED: ShardState
WRITE_MODE_UNSPECIFIED: WriteMode
WRITE_MODE_UPSERT: WriteMode
WRITE_MODE_INSERT: WriteMode
FILTER_PLAN_UNSPECIFIED: FilterPlan
FILTER_PLAN_EXACT: FilterPlan
FILTER_PLAN_INDEX: FilterPlan
EXACT_REASON_UNSPECIFIED: ExactReason
EXACT_REASON_REQUESTED: ExactReason
EXACT_REASON_NO_INDEX: ExactReason
EXACT_REASON_FEW_ROWS: ExactReason
EXACT_REASON_CHEAPER: ExactReason
EXACT_REASON_NO_PARAMETERS: ExactReason
EXACT_REASON_UNCALIBRATED: ExactReason
EXACT_REASON_SHORT: ExactReason
ROLE_UNSPECIFIED: Role
ROLE_SHARD: Role
ROLE_ROUTER: Role
ROLE_EMBEDDED: Role
PROBLEM_KIND_UNSPECIFIED: ProblemKind
PROBLEM_KIND_MISSING: ProblemKind
PROBLEM_KIND_DAMAGED: ProblemKind
PROBLEM_KIND_WRITES_STOPPED: ProblemKind
PROBLEM_KIND_DISK_FULL: ProblemKind
PROBLEM_KIND_LIMIT: ProblemKind
PROBLEM_KIND_DISK_UNSAFE: ProblemKind
PROBLEM_KIND_UNREADABLE: ProblemKind
PROBLEM_KIND_ROWS_DAMAGED: ProblemKind

class Matrix(_message.Message):
    __slots__ = ("data", "dim", "dtype")
    DATA_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    dim: int
    dtype: DType
    def __init__(self, data: _Optional[bytes] = ..., dim: _Optional[int] = ..., dtype: _Optional[_Union[DType, str]] = ...) -> None: ...

class Ids(_message.Message):
    __slots__ = ("int64s", "strings")
    INT64S_FIELD_NUMBER: _ClassVar[int]
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    int64s: Int64Ids
    strings: StringIds
    def __init__(self, int64s: _Optional[_Union[Int64Ids, _Mapping]] = ..., strings: _Optional[_Union[StringIds, _Mapping]] = ...) -> None: ...

class Int64Ids(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class StringIds(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class IndexConfig(_message.Message):
    __slots__ = ("kind", "min_training_size", "nlist_rule", "nlist")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MIN_TRAINING_SIZE_FIELD_NUMBER: _ClassVar[int]
    NLIST_RULE_FIELD_NUMBER: _ClassVar[int]
    NLIST_FIELD_NUMBER: _ClassVar[int]
    kind: IndexKind
    min_training_size: int
    nlist_rule: NlistRule
    nlist: int
    def __init__(self, kind: _Optional[_Union[IndexKind, str]] = ..., min_training_size: _Optional[int] = ..., nlist_rule: _Optional[_Union[NlistRule, str]] = ..., nlist: _Optional[int] = ...) -> None: ...

class FilterField(_message.Message):
    __slots__ = ("name", "type")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: FieldType
    def __init__(self, name: _Optional[str] = ..., type: _Optional[_Union[FieldType, str]] = ...) -> None: ...

class CollectionConfig(_message.Message):
    __slots__ = ("name", "dim", "metric", "id_type", "index", "target_recall", "filter_fields")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    ID_TYPE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TARGET_RECALL_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    dim: int
    metric: Metric
    id_type: IdType
    index: IndexConfig
    target_recall: float
    filter_fields: _containers.RepeatedCompositeFieldContainer[FilterField]
    def __init__(self, name: _Optional[str] = ..., dim: _Optional[int] = ..., metric: _Optional[_Union[Metric, str]] = ..., id_type: _Optional[_Union[IdType, str]] = ..., index: _Optional[_Union[IndexConfig, _Mapping]] = ..., target_recall: _Optional[float] = ..., filter_fields: _Optional[_Iterable[_Union[FilterField, _Mapping]]] = ...) -> None: ...

class Filter(_message.Message):
    __slots__ = ("equals", "range", "exists")
    AND_FIELD_NUMBER: _ClassVar[int]
    OR_FIELD_NUMBER: _ClassVar[int]
    NOT_FIELD_NUMBER: _ClassVar[int]
    EQUALS_FIELD_NUMBER: _ClassVar[int]
    IN_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    EXISTS_FIELD_NUMBER: _ClassVar[int]
    equals: FieldEquals
    range: FieldRange
    exists: FieldExists
    def __init__(self, equals: _Optional[_Union[FieldEquals, _Mapping]] = ..., range: _Optional[_Union[FieldRange, _Mapping]] = ..., exists: _Optional[_Union[FieldExists, _Mapping]] = ..., **kwargs) -> None: ...

class FilterList(_message.Message):
    __slots__ = ("filters",)
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    filters: _containers.RepeatedCompositeFieldContainer[Filter]
    def __init__(self, filters: _Optional[_Iterable[_Union[Filter, _Mapping]]] = ...) -> None: ...

class FieldEquals(_message.Message):
    __slots__ = ("field", "value")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    field: str
    value: _struct_pb2.Value
    def __init__(self, field: _Optional[str] = ..., value: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ...) -> None: ...

class FieldIn(_message.Message):
    __slots__ = ("field", "values")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    field: str
    values: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Value]
    def __init__(self, field: _Optional[str] = ..., values: _Optional[_Iterable[_Union[_struct_pb2.Value, _Mapping]]] = ...) -> None: ...

class FieldRange(_message.Message):
    __slots__ = ("field", "gt", "gte", "lt", "lte")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    GT_FIELD_NUMBER: _ClassVar[int]
    GTE_FIELD_NUMBER: _ClassVar[int]
    LT_FIELD_NUMBER: _ClassVar[int]
    LTE_FIELD_NUMBER: _ClassVar[int]
    field: str
    gt: float
    gte: float
    lt: float
    lte: float
    def __init__(self, field: _Optional[str] = ..., gt: _Optional[float] = ..., gte: _Optional[float] = ..., lt: _Optional[float] = ..., lte: _Optional[float] = ...) -> None: ...

class FieldExists(_message.Message):
    __slots__ = ("field",)
    FIELD_FIELD_NUMBER: _ClassVar[int]
    field: str
    def __init__(self, field: _Optional[str] = ...) -> None: ...

class Include(_message.Message):
    __slots__ = ("vectors", "metadata", "metadata_json")
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    METADATA_JSON_FIELD_NUMBER: _ClassVar[int]
    vectors: bool
    metadata: bool
    metadata_json: bool
    def __init__(self, vectors: _Optional[bool] = ..., metadata: _Optional[bool] = ..., metadata_json: _Optional[bool] = ...) -> None: ...

class CreateCollectionRequest(_message.Message):
    __slots__ = ("config",)
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    config: CollectionConfig
    def __init__(self, config: _Optional[_Union[CollectionConfig, _Mapping]] = ...) -> None: ...

class CreateCollectionResponse(_message.Message):
    __slots__ = ("config", "created", "incarnation")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    config: CollectionConfig
    created: bool
    incarnation: str
    def __init__(self, config: _Optional[_Union[CollectionConfig, _Mapping]] = ..., created: _Optional[bool] = ..., incarnation: _Optional[str] = ...) -> None: ...

class DropCollectionRequest(_message.Message):
    __slots__ = ("collection",)
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    collection: str
    def __init__(self, collection: _Optional[str] = ...) -> None: ...

class DropCollectionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UpdateCollectionRequest(_message.Message):
    __slots__ = ("collection", "target_recall")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    TARGET_RECALL_FIELD_NUMBER: _ClassVar[int]
    collection: str
    target_recall: float
    def __init__(self, collection: _Optional[str] = ..., target_recall: _Optional[float] = ...) -> None: ...

class UpdateCollectionResponse(_message.Message):
    __slots__ = ("config", "incarnation")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    config: CollectionConfig
    incarnation: str
    def __init__(self, config: _Optional[_Union[CollectionConfig, _Mapping]] = ..., incarnation: _Optional[str] = ...) -> None: ...

class ListCollectionsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListCollectionsResponse(_message.Message):
    __slots__ = ("collections", "incarnations")
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    INCARNATIONS_FIELD_NUMBER: _ClassVar[int]
    collections: _containers.RepeatedCompositeFieldContainer[CollectionConfig]
    incarnations: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, collections: _Optional[_Iterable[_Union[CollectionConfig, _Mapping]]] = ..., incarnations: _Optional[_Iterable[str]] = ...) -> None: ...

class DescribeCollectionRequest(_message.Message):
    __slots__ = ("collection",)
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    collection: str
    def __init__(self, collection: _Optional[str] = ...) -> None: ...

class Ledger(_message.Message):
    __slots__ = ("accepted", "buffered", "indexed", "deleted", "replaced", "lost")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    BUFFERED_FIELD_NUMBER: _ClassVar[int]
    INDEXED_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    buffered: int
    indexed: int
    deleted: int
    replaced: int
    lost: int
    def __init__(self, accepted: _Optional[int] = ..., buffered: _Optional[int] = ..., indexed: _Optional[int] = ..., deleted: _Optional[int] = ..., replaced: _Optional[int] = ..., lost: _Optional[int] = ...) -> None: ...

class ShardDescription(_message.Message):
    __slots__ = ("shard", "state", "training", "ledger", "nlist", "nprobe", "measured_recall", "generation", "rows_trained_on", "list_imbalance", "last_training_duration", "last_trained_at", "memory_bytes", "disk_bytes", "candidates", "live_recall", "live_queries", "measured_recall_balanced", "calibration_rows", "calibration_queries", "calibrated_at", "rows_changed_since", "index_kind", "drift", "missing_reason", "writes_stopped", "kept_files", "rows_damaged", "damaged_ids", "scrub", "content_sum", "restored_from")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    NLIST_FIELD_NUMBER: _ClassVar[int]
    NPROBE_FIELD_NUMBER: _ClassVar[int]
    MEASURED_RECALL_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ROWS_TRAINED_ON_FIELD_NUMBER: _ClassVar[int]
    LIST_IMBALANCE_FIELD_NUMBER: _ClassVar[int]
    LAST_TRAINING_DURATION_FIELD_NUMBER: _ClassVar[int]
    LAST_TRAINED_AT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    LIVE_RECALL_FIELD_NUMBER: _ClassVar[int]
    LIVE_QUERIES_FIELD_NUMBER: _ClassVar[int]
    MEASURED_RECALL_BALANCED_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_ROWS_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_QUERIES_FIELD_NUMBER: _ClassVar[int]
    CALIBRATED_AT_FIELD_NUMBER: _ClassVar[int]
    ROWS_CHANGED_SINCE_FIELD_NUMBER: _ClassVar[int]
    INDEX_KIND_FIELD_NUMBER: _ClassVar[int]
    DRIFT_FIELD_NUMBER: _ClassVar[int]
    MISSING_REASON_FIELD_NUMBER: _ClassVar[int]
    WRITES_STOPPED_FIELD_NUMBER: _ClassVar[int]
    KEPT_FILES_FIELD_NUMBER: _ClassVar[int]
    ROWS_DAMAGED_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_IDS_FIELD_NUMBER: _ClassVar[int]
    SCRUB_FIELD_NUMBER: _ClassVar[int]
    CONTENT_SUM_FIELD_NUMBER: _ClassVar[int]
    RESTORED_FROM_FIELD_NUMBER: _ClassVar[int]
    shard: int
    state: ShardState
    training: bool
    ledger: Ledger
    nlist: int
    nprobe: int
    measured_recall: float
    generation: int
    rows_trained_on: int
    list_imbalance: float
    last_training_duration: _duration_pb2.Duration
    last_trained_at: _timestamp_pb2.Timestamp
    memory_bytes: int
    disk_bytes: int
    candidates: int
    live_recall: float
    live_queries: int
    measured_recall_balanced: float
    calibration_rows: int
    calibration_queries: int
    calibrated_at: float
    rows_changed_since: int
    index_kind: IndexKind
    drift: float
    missing_reason: str
    writes_stopped: str
    kept_files: str
    rows_damaged: int
    damaged_ids: Ids
    scrub: Scrub
    content_sum: bytes
    restored_from: str
    def __init__(self, shard: _Optional[int] = ..., state: _Optional[_Union[ShardState, str]] = ..., training: _Optional[bool] = ..., ledger: _Optional[_Union[Ledger, _Mapping]] = ..., nlist: _Optional[int] = ..., nprobe: _Optional[int] = ..., measured_recall: _Optional[float] = ..., generation: _Optional[int] = ..., rows_trained_on: _Optional[int] = ..., list_imbalance: _Optional[float] = ..., last_training_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., last_trained_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., memory_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., candidates: _Optional[int] = ..., live_recall: _Optional[float] = ..., live_queries: _Optional[int] = ..., measured_recall_balanced: _Optional[float] = ..., calibration_rows: _Optional[int] = ..., calibration_queries: _Optional[int] = ..., calibrated_at: _Optional[float] = ..., rows_changed_since: _Optional[int] = ..., index_kind: _Optional[_Union[IndexKind, str]] = ..., drift: _Optional[float] = ..., missing_reason: _Optional[str] = ..., writes_stopped: _Optional[str] = ..., kept_files: _Optional[str] = ..., rows_damaged: _Optional[int] = ..., damaged_ids: _Optional[_Union[Ids, _Mapping]] = ..., scrub: _Optional[_Union[Scrub, _Mapping]] = ..., content_sum: _Optional[bytes] = ..., restored_from: _Optional[str] = ...) -> None: ...

class Scrub(_message.Message):
    __slots__ = ("passes", "progress", "last_pass_at", "last_pass_read_disk", "rows", "findings", "findings_total")
    PASSES_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    LAST_PASS_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_PASS_READ_DISK_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    passes: int
    progress: float
    last_pass_at: float
    last_pass_read_disk: bool
    rows: int
    findings: _containers.RepeatedScalarFieldContainer[str]
    findings_total: int
    def __init__(self, passes: _Optional[int] = ..., progress: _Optional[float] = ..., last_pass_at: _Optional[float] = ..., last_pass_read_disk: _Optional[bool] = ..., rows: _Optional[int] = ..., findings: _Optional[_Iterable[str]] = ..., findings_total: _Optional[int] = ...) -> None: ...

class DescribeCollectionResponse(_message.Message):
    __slots__ = ("config", "ledger", "shards", "recommended_batch_size", "incarnation")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    RECOMMENDED_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    config: CollectionConfig
    ledger: Ledger
    shards: _containers.RepeatedCompositeFieldContainer[ShardDescription]
    recommended_batch_size: int
    incarnation: str
    def __init__(self, config: _Optional[_Union[CollectionConfig, _Mapping]] = ..., ledger: _Optional[_Union[Ledger, _Mapping]] = ..., shards: _Optional[_Iterable[_Union[ShardDescription, _Mapping]]] = ..., recommended_batch_size: _Optional[int] = ..., incarnation: _Optional[str] = ...) -> None: ...

class UpsertRequest(_message.Message):
    __slots__ = ("collection", "ids", "vectors", "metadata", "mode", "request_id", "metadata_json")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    METADATA_JSON_FIELD_NUMBER: _ClassVar[int]
    collection: str
    ids: Ids
    vectors: Matrix
    metadata: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    mode: WriteMode
    request_id: int
    metadata_json: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, collection: _Optional[str] = ..., ids: _Optional[_Union[Ids, _Mapping]] = ..., vectors: _Optional[_Union[Matrix, _Mapping]] = ..., metadata: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., mode: _Optional[_Union[WriteMode, str]] = ..., request_id: _Optional[int] = ..., metadata_json: _Optional[_Iterable[bytes]] = ...) -> None: ...

class RowError(_message.Message):
    __slots__ = ("row", "code", "message")
    ROW_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    row: int
    code: int
    message: str
    def __init__(self, row: _Optional[int] = ..., code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class UpsertResponse(_message.Message):
    __slots__ = ("accepted", "errors", "token", "request_id")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    errors: _containers.RepeatedCompositeFieldContainer[RowError]
    token: bytes
    request_id: int
    def __init__(self, accepted: _Optional[int] = ..., errors: _Optional[_Iterable[_Union[RowError, _Mapping]]] = ..., token: _Optional[bytes] = ..., request_id: _Optional[int] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("collection", "ids", "filter")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    collection: str
    ids: Ids
    filter: Filter
    def __init__(self, collection: _Optional[str] = ..., ids: _Optional[_Union[Ids, _Mapping]] = ..., filter: _Optional[_Union[Filter, _Mapping]] = ...) -> None: ...

class DeleteResponse(_message.Message):
    __slots__ = ("deleted", "token")
    DELETED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    deleted: int
    token: bytes
    def __init__(self, deleted: _Optional[int] = ..., token: _Optional[bytes] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("collection", "ids", "filter", "include")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    collection: str
    ids: Ids
    filter: Filter
    include: Include
    def __init__(self, collection: _Optional[str] = ..., ids: _Optional[_Union[Ids, _Mapping]] = ..., filter: _Optional[_Union[Filter, _Mapping]] = ..., include: _Optional[_Union[Include, _Mapping]] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("ids", "vectors", "metadata", "metadata_json")
    IDS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    METADATA_JSON_FIELD_NUMBER: _ClassVar[int]
    ids: Ids
    vectors: Matrix
    metadata: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    metadata_json: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, ids: _Optional[_Union[Ids, _Mapping]] = ..., vectors: _Optional[_Union[Matrix, _Mapping]] = ..., metadata: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., metadata_json: _Optional[_Iterable[bytes]] = ...) -> None: ...

class CountRequest(_message.Message):
    __slots__ = ("collection", "ids", "filter")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    collection: str
    ids: Ids
    filter: Filter
    def __init__(self, collection: _Optional[str] = ..., ids: _Optional[_Union[Ids, _Mapping]] = ..., filter: _Optional[_Union[Filter, _Mapping]] = ...) -> None: ...

class CountResponse(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("collection", "page_size", "cursor", "filter", "include", "skip_damaged")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    SKIP_DAMAGED_FIELD_NUMBER: _ClassVar[int]
    collection: str
    page_size: int
    cursor: bytes
    filter: Filter
    include: Include
    skip_damaged: bool
    def __init__(self, collection: _Optional[str] = ..., page_size: _Optional[int] = ..., cursor: _Optional[bytes] = ..., filter: _Optional[_Union[Filter, _Mapping]] = ..., include: _Optional[_Union[Include, _Mapping]] = ..., skip_damaged: _Optional[bool] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("ids", "vectors", "metadata", "cursor", "damaged", "metadata_json")
    IDS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    METADATA_JSON_FIELD_NUMBER: _ClassVar[int]
    ids: Ids
    vectors: Matrix
    metadata: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    cursor: bytes
    damaged: Ids
    metadata_json: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, ids: _Optional[_Union[Ids, _Mapping]] = ..., vectors: _Optional[_Union[Matrix, _Mapping]] = ..., metadata: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., cursor: _Optional[bytes] = ..., damaged: _Optional[_Union[Ids, _Mapping]] = ..., metadata_json: _Optional[_Iterable[bytes]] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("collection", "queries", "k", "nprobe", "target_recall", "exact", "filter", "include", "score_threshold", "min_coverage", "token")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    NPROBE_FIELD_NUMBER: _ClassVar[int]
    TARGET_RECALL_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    SCORE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MIN_COVERAGE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    collection: str
    queries: Matrix
    k: int
    nprobe: int
    target_recall: float
    exact: bool
    filter: Filter
    include: Include
    score_threshold: float
    min_coverage: float
    token: bytes
    def __init__(self, collection: _Optional[str] = ..., queries: _Optional[_Union[Matrix, _Mapping]] = ..., k: _Optional[int] = ..., nprobe: _Optional[int] = ..., target_recall: _Optional[float] = ..., exact: _Optional[bool] = ..., filter: _Optional[_Union[Filter, _Mapping]] = ..., include: _Optional[_Union[Include, _Mapping]] = ..., score_threshold: _Optional[float] = ..., min_coverage: _Optional[float] = ..., token: _Optional[bytes] = ...) -> None: ...

class ShardReceipt(_message.Message):
    __slots__ = ("shard", "missing_reason", "rows_visible", "rows_exact", "nlist", "nprobe", "generation", "candidates", "rows_passing", "filter_plan", "exact_reason", "queries_widened", "queries_exact", "nprobe_mean", "rows_damaged")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    MISSING_REASON_FIELD_NUMBER: _ClassVar[int]
    ROWS_VISIBLE_FIELD_NUMBER: _ClassVar[int]
    ROWS_EXACT_FIELD_NUMBER: _ClassVar[int]
    NLIST_FIELD_NUMBER: _ClassVar[int]
    NPROBE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    ROWS_PASSING_FIELD_NUMBER: _ClassVar[int]
    FILTER_PLAN_FIELD_NUMBER: _ClassVar[int]
    EXACT_REASON_FIELD_NUMBER: _ClassVar[int]
    QUERIES_WIDENED_FIELD_NUMBER: _ClassVar[int]
    QUERIES_EXACT_FIELD_NUMBER: _ClassVar[int]
    NPROBE_MEAN_FIELD_NUMBER: _ClassVar[int]
    ROWS_DAMAGED_FIELD_NUMBER: _ClassVar[int]
    shard: int
    missing_reason: str
    rows_visible: int
    rows_exact: int
    nlist: int
    nprobe: int
    generation: int
    candidates: int
    rows_passing: int
    filter_plan: FilterPlan
    exact_reason: ExactReason
    queries_widened: int
    queries_exact: int
    nprobe_mean: float
    rows_damaged: int
    def __init__(self, shard: _Optional[int] = ..., missing_reason: _Optional[str] = ..., rows_visible: _Optional[int] = ..., rows_exact: _Optional[int] = ..., nlist: _Optional[int] = ..., nprobe: _Optional[int] = ..., generation: _Optional[int] = ..., candidates: _Optional[int] = ..., rows_passing: _Optional[int] = ..., filter_plan: _Optional[_Union[FilterPlan, str]] = ..., exact_reason: _Optional[_Union[ExactReason, str]] = ..., queries_widened: _Optional[int] = ..., queries_exact: _Optional[int] = ..., nprobe_mean: _Optional[float] = ..., rows_damaged: _Optional[int] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("shards_total", "shards_answered", "coverage", "shards")
    SHARDS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SHARDS_ANSWERED_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    shards_total: int
    shards_answered: int
    coverage: float
    shards: _containers.RepeatedCompositeFieldContainer[ShardReceipt]
    def __init__(self, shards_total: _Optional[int] = ..., shards_answered: _Optional[int] = ..., coverage: _Optional[float] = ..., shards: _Optional[_Iterable[_Union[ShardReceipt, _Mapping]]] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("counts", "ids", "scores", "vectors", "metadata", "receipt", "metadata_json")
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    METADATA_JSON_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    ids: Ids
    scores: _containers.RepeatedScalarFieldContainer[float]
    vectors: Matrix
    metadata: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    receipt: Receipt
    metadata_json: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, counts: _Optional[_Iterable[int]] = ..., ids: _Optional[_Union[Ids, _Mapping]] = ..., scores: _Optional[_Iterable[float]] = ..., vectors: _Optional[_Union[Matrix, _Mapping]] = ..., metadata: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ..., metadata_json: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SearchStreamRequest(_message.Message):
    __slots__ = ("request_id", "timeout_ms", "search", "cancel", "incarnation", "answer_bytes_max")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ANSWER_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    timeout_ms: int
    search: SearchRequest
    cancel: Cancel
    incarnation: str
    answer_bytes_max: int
    def __init__(self, request_id: _Optional[int] = ..., timeout_ms: _Optional[int] = ..., search: _Optional[_Union[SearchRequest, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., incarnation: _Optional[str] = ..., answer_bytes_max: _Optional[int] = ...) -> None: ...

class SearchStreamResponse(_message.Message):
    __slots__ = ("request_id", "response", "error")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    response: SearchResponse
    error: _status_pb2.Status
    def __init__(self, request_id: _Optional[int] = ..., response: _Optional[_Union[SearchResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("collection", "query", "id", "filter", "score")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    collection: str
    query: Matrix
    id: Ids
    filter: Filter
    score: float
    def __init__(self, collection: _Optional[str] = ..., query: _Optional[_Union[Matrix, _Mapping]] = ..., id: _Optional[_Union[Ids, _Mapping]] = ..., filter: _Optional[_Union[Filter, _Mapping]] = ..., score: _Optional[float] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("exists", "shard", "buffered", "list", "centroid_rank", "nprobe_needed", "exact_rank", "score", "hidden_by_filter", "deleted", "candidates_needed", "candidates", "exact_reason")
    EXISTS_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    BUFFERED_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    CENTROID_RANK_FIELD_NUMBER: _ClassVar[int]
    NPROBE_NEEDED_FIELD_NUMBER: _ClassVar[int]
    EXACT_RANK_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_BY_FILTER_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_NEEDED_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    EXACT_REASON_FIELD_NUMBER: _ClassVar[int]
    exists: bool
    shard: int
    buffered: bool
    list: int
    centroid_rank: int
    nprobe_needed: int
    exact_rank: int
    score: float
    hidden_by_filter: bool
    deleted: bool
    candidates_needed: int
    candidates: int
    exact_reason: ExactReason
    def __init__(self, exists: _Optional[bool] = ..., shard: _Optional[int] = ..., buffered: _Optional[bool] = ..., list: _Optional[int] = ..., centroid_rank: _Optional[int] = ..., nprobe_needed: _Optional[int] = ..., exact_rank: _Optional[int] = ..., score: _Optional[float] = ..., hidden_by_filter: _Optional[bool] = ..., deleted: _Optional[bool] = ..., candidates_needed: _Optional[int] = ..., candidates: _Optional[int] = ..., exact_reason: _Optional[_Union[ExactReason, str]] = ...) -> None: ...

class TrainRequest(_message.Message):
    __slots__ = ("collection", "wait")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    collection: str
    wait: bool
    def __init__(self, collection: _Optional[str] = ..., wait: _Optional[bool] = ...) -> None: ...

class TrainResponse(_message.Message):
    __slots__ = ("shards",)
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    shards: _containers.RepeatedCompositeFieldContainer[ShardDescription]
    def __init__(self, shards: _Optional[_Iterable[_Union[ShardDescription, _Mapping]]] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SlotRange(_message.Message):
    __slots__ = ("first", "last")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    first: int
    last: int
    def __init__(self, first: _Optional[int] = ..., last: _Optional[int] = ...) -> None: ...

class ShardPlacement(_message.Message):
    __slots__ = ("shard", "slots", "session")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    shard: int
    slots: _containers.RepeatedCompositeFieldContainer[SlotRange]
    session: str
    def __init__(self, shard: _Optional[int] = ..., slots: _Optional[_Iterable[_Union[SlotRange, _Mapping]]] = ..., session: _Optional[str] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("shard", "collection", "kind", "text")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    shard: int
    collection: str
    kind: ProblemKind
    text: str
    def __init__(self, shard: _Optional[int] = ..., collection: _Optional[str] = ..., kind: _Optional[_Union[ProblemKind, str]] = ..., text: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("message_bytes", "dim", "k", "queries", "hits", "rows", "id_bytes", "metadata_bytes", "page_size", "nlist", "collections", "stream_requests", "filter_depth", "filter_nodes", "write_bytes", "default_timeout_ms", "searches", "search_bytes", "calls", "streams", "connections", "connection_calls", "filter_values", "filter_bytes", "filter_fields")
    MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ID_BYTES_FIELD_NUMBER: _ClassVar[int]
    METADATA_BYTES_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    NLIST_FIELD_NUMBER: _ClassVar[int]
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    STREAM_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    FILTER_DEPTH_FIELD_NUMBER: _ClassVar[int]
    FILTER_NODES_FIELD_NUMBER: _ClassVar[int]
    WRITE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    SEARCHES_FIELD_NUMBER: _ClassVar[int]
    SEARCH_BYTES_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_CALLS_FIELD_NUMBER: _ClassVar[int]
    FILTER_VALUES_FIELD_NUMBER: _ClassVar[int]
    FILTER_BYTES_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELDS_FIELD_NUMBER: _ClassVar[int]
    message_bytes: int
    dim: int
    k: int
    queries: int
    hits: int
    rows: int
    id_bytes: int
    metadata_bytes: int
    page_size: int
    nlist: int
    collections: int
    stream_requests: int
    filter_depth: int
    filter_nodes: int
    write_bytes: int
    default_timeout_ms: int
    searches: int
    search_bytes: int
    calls: int
    streams: int
    connections: int
    connection_calls: int
    filter_values: int
    filter_bytes: int
    filter_fields: int
    def __init__(self, message_bytes: _Optional[int] = ..., dim: _Optional[int] = ..., k: _Optional[int] = ..., queries: _Optional[int] = ..., hits: _Optional[int] = ..., rows: _Optional[int] = ..., id_bytes: _Optional[int] = ..., metadata_bytes: _Optional[int] = ..., page_size: _Optional[int] = ..., nlist: _Optional[int] = ..., collections: _Optional[int] = ..., stream_requests: _Optional[int] = ..., filter_depth: _Optional[int] = ..., filter_nodes: _Optional[int] = ..., write_bytes: _Optional[int] = ..., default_timeout_ms: _Optional[int] = ..., searches: _Optional[int] = ..., search_bytes: _Optional[int] = ..., calls: _Optional[int] = ..., streams: _Optional[int] = ..., connections: _Optional[int] = ..., connection_calls: _Optional[int] = ..., filter_values: _Optional[int] = ..., filter_bytes: _Optional[int] = ..., filter_fields: _Optional[int] = ...) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "role", "cluster", "placement_epoch", "slots_total", "shards", "limits", "shards_total", "problems")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SLOTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    version: str
    role: Role
    cluster: str
    placement_epoch: int
    slots_total: int
    shards: _containers.RepeatedCompositeFieldContainer[ShardPlacement]
    limits: Limits
    shards_total: int
    problems: _containers.RepeatedCompositeFieldContainer[Problem]
    def __init__(self, version: _Optional[str] = ..., role: _Optional[_Union[Role, str]] = ..., cluster: _Optional[str] = ..., placement_epoch: _Optional[int] = ..., slots_total: _Optional[int] = ..., shards: _Optional[_Iterable[_Union[ShardPlacement, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., shards_total: _Optional[int] = ..., problems: _Optional[_Iterable[_Union[Problem, _Mapping]]] = ...) -> None: ...
