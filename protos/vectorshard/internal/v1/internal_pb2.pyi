from vectorshard.v1 import vectorshard_pb2 as _vectorshard_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

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
    __slots__ = ("collection", "ids", "vectors", "metadata", "mode", "request_id")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    collection: str
    ids: IdsTwin
    vectors: _vectorshard_pb2.Matrix
    metadata: _containers.RepeatedScalarFieldContainer[bytes]
    mode: _vectorshard_pb2.WriteMode
    request_id: int
    def __init__(self, collection: _Optional[str] = ..., ids: _Optional[_Union[IdsTwin, _Mapping]] = ..., vectors: _Optional[_Union[_vectorshard_pb2.Matrix, _Mapping]] = ..., metadata: _Optional[_Iterable[bytes]] = ..., mode: _Optional[_Union[_vectorshard_pb2.WriteMode, str]] = ..., request_id: _Optional[int] = ...) -> None: ...

class SearchResponseTwin(_message.Message):
    __slots__ = ("counts", "ids", "scores", "vectors", "metadata", "receipt")
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    ids: IdsTwin
    scores: bytes
    vectors: _vectorshard_pb2.Matrix
    metadata: _containers.RepeatedScalarFieldContainer[bytes]
    receipt: _vectorshard_pb2.Receipt
    def __init__(self, counts: _Optional[_Iterable[int]] = ..., ids: _Optional[_Union[IdsTwin, _Mapping]] = ..., scores: _Optional[bytes] = ..., vectors: _Optional[_Union[_vectorshard_pb2.Matrix, _Mapping]] = ..., metadata: _Optional[_Iterable[bytes]] = ..., receipt: _Optional[_Union[_vectorshard_pb2.Receipt, _Mapping]] = ...) -> None: ...

class RowsTwin(_message.Message):
    __slots__ = ("ids", "vectors", "metadata", "cursor")
    IDS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    ids: IdsTwin
    vectors: _vectorshard_pb2.Matrix
    metadata: _containers.RepeatedScalarFieldContainer[bytes]
    cursor: bytes
    def __init__(self, ids: _Optional[_Union[IdsTwin, _Mapping]] = ..., vectors: _Optional[_Union[_vectorshard_pb2.Matrix, _Mapping]] = ..., metadata: _Optional[_Iterable[bytes]] = ..., cursor: _Optional[bytes] = ...) -> None: ...

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
    __slots__ = ("incarnation", "sequences")
    class SequencesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    sequences: _containers.ScalarMap[int, int]
    def __init__(self, incarnation: _Optional[str] = ..., sequences: _Optional[_Mapping[int, int]] = ...) -> None: ...

class Cursor(_message.Message):
    __slots__ = ("incarnation", "shard", "row")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    shard: int
    row: int
    def __init__(self, incarnation: _Optional[str] = ..., shard: _Optional[int] = ..., row: _Optional[int] = ...) -> None: ...
