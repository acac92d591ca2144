"""Bytes of vectorshard.v1 to numpy and back: the only importer of the contract's messages.

For every RPC a server decodes requests and encodes responses here, and a client the other way
round. What a request says about itself is checked here (shapes, counts, ids, ranges, limits); what
takes a collection to know (its dim, its id type, NaN, norms) is not. No grpc and no I/O enters.
The modules within are this package's own business: callers use the names below.
"""

from shard.wire.collections import (
    decode_create_collection_request,
    decode_create_collection_response,
    decode_drop_collection_request,
    decode_drop_collection_response,
    decode_list_collections_request,
    decode_list_collections_response,
    encode_create_collection_request,
    encode_create_collection_response,
    encode_drop_collection_request,
    encode_drop_collection_response,
    encode_list_collections_request,
    encode_list_collections_response,
)
from shard.wire.descriptions import (
    decode_describe_collection_request,
    decode_describe_collection_response,
    decode_train_request,
    decode_train_response,
    encode_describe_collection_request,
    encode_describe_collection_response,
    encode_train_request,
    encode_train_response,
)
from shard.wire.ids import (
    check_ids,
)
from shard.wire.metadata import (
    mapping_from_metadata,
    metadata_from_mapping,
)
from shard.wire.reads import (
    decode_count_request,
    decode_count_response,
    decode_get_request,
    decode_get_response,
    decode_list_request,
    decode_list_response,
    encode_count_request,
    encode_count_response,
    encode_get_request,
    encode_get_response,
    encode_list_request,
    encode_list_response,
)
from shard.wire.searches import (
    decode_explain_request,
    decode_explain_response,
    decode_search_request,
    decode_search_response,
    encode_explain_request,
    encode_explain_response,
    encode_search_request,
    encode_search_response,
)
from shard.wire.server_info import (
    decode_get_server_info_request,
    decode_get_server_info_response,
    encode_get_server_info_request,
    encode_get_server_info_response,
)
from shard.wire.writes import (
    decode_delete_request,
    decode_delete_response,
    decode_upsert_request,
    decode_upsert_response,
    encode_delete_request,
    encode_delete_response,
    encode_upsert_request,
    encode_upsert_response,
)

__all__ = [
    "check_ids",
    "decode_count_request",
    "decode_count_response",
    "decode_create_collection_request",
    "decode_create_collection_response",
    "decode_delete_request",
    "decode_delete_response",
    "decode_describe_collection_request",
    "decode_describe_collection_response",
    "decode_drop_collection_request",
    "decode_drop_collection_response",
    "decode_explain_request",
    "decode_explain_response",
    "decode_get_request",
    "decode_get_response",
    "decode_get_server_info_request",
    "decode_get_server_info_response",
    "decode_list_collections_request",
    "decode_list_collections_response",
    "decode_list_request",
    "decode_list_response",
    "decode_search_request",
    "decode_search_response",
    "decode_train_request",
    "decode_train_response",
    "decode_upsert_request",
    "decode_upsert_response",
    "encode_count_request",
    "encode_count_response",
    "encode_create_collection_request",
    "encode_create_collection_response",
    "encode_delete_request",
    "encode_delete_response",
    "encode_describe_collection_request",
    "encode_describe_collection_response",
    "encode_drop_collection_request",
    "encode_drop_collection_response",
    "encode_explain_request",
    "encode_explain_response",
    "encode_get_request",
    "encode_get_response",
    "encode_get_server_info_request",
    "encode_get_server_info_response",
    "encode_list_collections_request",
    "encode_list_collections_response",
    "encode_list_request",
    "encode_list_response",
    "encode_search_request",
    "encode_search_response",
    "encode_train_request",
    "encode_train_response",
    "encode_upsert_request",
    "encode_upsert_response",
    "mapping_from_metadata",
    "metadata_from_mapping",
]
