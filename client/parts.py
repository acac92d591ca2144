"""What the clients and their calls are made of, under one name; client.lazy loads it.

Arguments, requests, codecs, streams and the retry policy. It has no code.
"""

from __future__ import annotations

from vectorshard.client.arguments import effort_of, filter_of, include_of, selection, token_of
from vectorshard.client.channel import (
    CLOSED,
    check_forked,
    checked_target,
    client_options,
    keep_in_children,
    note_asyncio,
)
from vectorshard.client.config_arguments import (
    filter_fields_of,
    flag_of,
    index_of,
    member_of,
    name_of,
    seconds_of,
)
from vectorshard.client.id_arguments import id_array, is_listed, one_id, why_not_rows
from vectorshard.client.results import ServerInfo, hits_of, rows_view
from vectorshard.client.retry import Retry, RetrySchedule
from vectorshard.client.streams import SearchBatches, SearchStream, UploadStream, error_of
from vectorshard.client.upload import UpsertUpload
from vectorshard.client.vector_arguments import query_matrix
from vectorshard.shard.config import Limits
from vectorshard.shard.descriptions import ExplainRequest
from vectorshard.shard.types import (
    CountRequest,
    DeleteRequest,
    GetRequest,
    IdType,
    ListRequest,
    Metric,
    SearchRequest,
    TrainRequest,
    UpdateRequest,
)
from vectorshard.shard.wire import rpcs
from vectorshard.shard.wire.collections import (
    decode_create_collection_response,
    encode_create_collection_request,
)
from vectorshard.shard.wire.primitives import shown
from vectorshard.shard.wire.server_info import (
    decode_get_server_info_response,
    encode_get_server_info_request,
)

__all__ = [
    "CLOSED",
    "CountRequest",
    "DeleteRequest",
    "ExplainRequest",
    "GetRequest",
    "IdType",
    "Limits",
    "ListRequest",
    "Metric",
    "Retry",
    "RetrySchedule",
    "SearchBatches",
    "SearchRequest",
    "SearchStream",
    "ServerInfo",
    "TrainRequest",
    "UpdateRequest",
    "UploadStream",
    "UpsertUpload",
    "check_forked",
    "checked_target",
    "client_options",
    "decode_create_collection_response",
    "decode_get_server_info_response",
    "effort_of",
    "encode_create_collection_request",
    "encode_get_server_info_request",
    "error_of",
    "filter_fields_of",
    "filter_of",
    "flag_of",
    "hits_of",
    "id_array",
    "include_of",
    "index_of",
    "is_listed",
    "keep_in_children",
    "member_of",
    "name_of",
    "note_asyncio",
    "one_id",
    "query_matrix",
    "rows_view",
    "rpcs",
    "seconds_of",
    "selection",
    "shown",
    "token_of",
    "why_not_rows",
]
