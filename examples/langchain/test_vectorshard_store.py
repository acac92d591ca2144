"""LangChain's own suite over the store, with a server in this process."""

from collections.abc import Iterator

import pytest
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests
from vectorshard_store import VectorShardStore

import vectorshard


class TestVectorShardStore(VectorStoreIntegrationTests):
    """Its clients are made outside of an event loop, and used inside of several."""

    @pytest.fixture
    def vectorstore(self) -> Iterator[VectorStore]:
        """Return an empty store."""
        with vectorshard.open_local() as local:
            local.create_collection("documents", dim=6, id_type="string")
            store = VectorShardStore(local.target, "documents", self.get_embeddings())
            yield store
            store.client.close()
