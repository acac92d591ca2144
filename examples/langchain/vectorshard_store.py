"""A LangChain vector store over vectorshard, blocking and asynchronous.

    store = VectorShardStore("127.0.0.1:7700", "documents", OpenAIEmbeddings())
    store.add_texts(["coffee", "granite"], [{"lang": "en"}, {"lang": "en"}])
    store.similarity_search("espresso", k=1, filter={"lang": "en"})

Ids are strings. The text of a document is in its row's metadata, under TEXT; the metadata of the
document is beside it. Scores are cosine similarities, larger for closer documents.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from vectorshard import AsyncClient, Client, Hits, RowsView

TEXT = "page_content"


class VectorShardStore(VectorStore):
    """One collection as a vector store. It is created with its first documents.

    `filter_fields` are the keys of metadata that searches may filter by, with their types, such as
    ``{"lang": "keyword"}``. `options` are those of `vectorshard.Client`.
    """

    def __init__(
        self,
        target: str,
        collection: str,
        embedding: Embeddings,
        *,
        filter_fields: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.client = Client(target, **options)
        self.async_client = AsyncClient(target, **options)
        self._embedding = embedding
        self._collection = collection
        self._filter_fields = filter_fields or {}

    @property
    def embeddings(self) -> Embeddings:
        """The model that embeds texts."""
        return self._embedding

    def _config(self, dim: int) -> dict[str, Any]:
        return {
            "name": self._collection,
            "dim": dim,
            "id_type": "string",
            "filter_fields": self._filter_fields,
        }

    # ---- writes ----------------------------------------------------------------------------------

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: Sequence[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **_: Any,
    ) -> list[str]:
        """Embed texts, write them, and return their ids; an id that exists is replaced."""
        rows = _rows(texts, metadatas, ids)
        if not rows.ids:
            return []
        vectors = self._embedding.embed_documents(rows.texts)
        self.client.create_collection(**self._config(len(vectors[0])))
        self.client.upsert(self._collection, rows.ids, vectors, rows.metadata)
        return rows.ids

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: Sequence[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **_: Any,
    ) -> list[str]:
        """As `add_texts`."""
        rows = _rows(texts, metadatas, ids)
        if not rows.ids:
            return []
        vectors = await self._embedding.aembed_documents(rows.texts)
        await self.async_client.create_collection(**self._config(len(vectors[0])))
        await self.async_client.upsert(self._collection, rows.ids, vectors, rows.metadata)
        return rows.ids

    def delete(self, ids: Sequence[str] | None = None, **_: Any) -> bool:
        """Delete documents. Ids that do not exist are ignored."""
        self.client.delete(self._collection, ids)
        return True

    async def adelete(self, ids: Sequence[str] | None = None, **_: Any) -> bool:
        """As `delete`."""
        await self.async_client.delete(self._collection, ids)
        return True

    # ---- reads -----------------------------------------------------------------------------------

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents that exist."""
        return _documents(self.client.get(self._collection, ids, vectors=False))

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """As `get_by_ids`."""
        return _documents(await self.async_client.get(self._collection, ids, vectors=False))

    def similarity_search(self, query: str, k: int = 4, **options: Any) -> list[Document]:
        """Return the k documents that are closest to a text. `options` are those of `search`."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **options)]

    async def asimilarity_search(self, query: str, k: int = 4, **options: Any) -> list[Document]:
        """As `similarity_search`."""
        scored = await self.asimilarity_search_with_score(query, k, **options)
        return [document for document, _ in scored]

    def similarity_search_with_score(
        self, query: str, k: int = 4, **options: Any
    ) -> list[tuple[Document, float]]:
        """As `similarity_search`, with the scores."""
        vector = self._embedding.embed_query(query)
        return _scored(self.client.search(self._collection, vector, k, metadata=True, **options))

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, **options: Any
    ) -> list[tuple[Document, float]]:
        """As `similarity_search_with_score`."""
        vector = await self._embedding.aembed_query(query)
        search = self.async_client.search(self._collection, vector, k, metadata=True, **options)
        return _scored(await search)

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **options: Any
    ) -> list[Document]:
        """Return the k documents that are closest to a vector."""
        hits = self.client.search(self._collection, embedding, k, metadata=True, **options)
        return [document for document, _ in _scored(hits)]

    def _select_relevance_score_fn(self) -> Any:
        return lambda cosine: (1.0 + cosine) / 2.0

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        target: str = "127.0.0.1:7700",
        collection: str = "langchain",
        ids: list[str] | None = None,
        **options: Any,
    ) -> VectorShardStore:
        """Return a store with these texts."""
        store = cls(target, collection, embedding, **options)
        store.add_texts(texts, metadatas, ids=ids)
        return store


class _Rows:
    """Texts as rows: ids, texts, and metadata with the text."""

    def __init__(self, ids: list[str], texts: list[str], metadata: list[dict[str, Any]]) -> None:
        self.ids = ids
        self.texts = texts
        self.metadata = metadata


def _rows(
    texts: Iterable[str],
    metadatas: Sequence[dict[str, Any]] | None,
    ids: Sequence[str | None] | None,
) -> _Rows:
    """Return one row for each text. Of equal ids, the last one counts, as in a loop of writes."""
    listed = list(texts)
    named = [id_ or str(uuid.uuid4()) for id_ in ids or [None] * len(listed)]
    metadata = [
        {**given, TEXT: text}
        for text, given in zip(listed, metadatas or [{}] * len(listed), strict=True)
    ]
    last = dict(zip(named, zip(listed, metadata, strict=True), strict=True))
    return _Rows([*last], [text for text, _ in last.values()], [each for _, each in last.values()])


def _document(id_: int | str, metadata: Mapping[str, Any] | None) -> Document:
    others = dict(metadata or {})
    return Document(id=str(id_), page_content=others.pop(TEXT, ""), metadata=others)


def _documents(rows: RowsView) -> list[Document]:
    return [_document(row.id, row.metadata) for row in rows]


def _scored(hits: Hits) -> list[tuple[Document, float]]:
    return [(_document(hit.id, hit.metadata), hit.score) for hit in hits[0]]
