"""The commands about searches: search and explain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import numpy as np
import numpy.typing as npt
import typer
from rich.text import Text

from vectorshard.cli import asking, explanations, tables
from vectorshard.cli.addresses import DEFAULT_ADDRESS
from vectorshard.cli.json_output import print_json
from vectorshard.cli.output import terminal
from vectorshard.cli.vector_files import UnreadableFile, open_vectors
from vectorshard.shard.descriptions import Explanation
from vectorshard.shard.errors import VectorShardError
from vectorshard.shard.types import Float32Array, Float64Array, VectorArray

if TYPE_CHECKING:
    from vectorshard.client.client import Client


def search(
    collection: asking.Collection,
    target: asking.Target = DEFAULT_ADDRESS,
    k: Annotated[int, typer.Option(min=1, help="Hits for each query.")] = 10,
    exact: Annotated[bool, typer.Option("--exact", help="Score every row.")] = False,
    nprobe: Annotated[int | None, typer.Option(min=1, help="Inverted lists to probe.")] = None,
    target_recall: Annotated[float | None, typer.Option(help="Recall to aim for.")] = None,
    filter_: asking.FilterOption = None,
    id_: Annotated[
        str | None, typer.Option("--id", help="Search with the vector of this id.")
    ] = None,
    vector: Annotated[str | None, typer.Option(help='Search with this vector: "1,2,3".')] = None,
    file: Annotated[
        Path | None, typer.Option(help="Search with every vector of this file.")
    ] = None,
    metadata: Annotated[bool, typer.Option("--metadata", help="Show each hit's metadata.")] = False,
    timeout: asking.Timeout = 30.0,
    as_json: asking.AsJson = False,
) -> None:
    """Find the nearest rows, and show what the answer covers."""
    if exact + (nprobe is not None) + (target_recall is not None) > 1:
        raise typer.BadParameter("give at most one of --exact, --nprobe and --target-recall")
    if sum(query is not None for query in (id_, vector, file)) != 1:
        raise typer.BadParameter("give exactly one of --id, --vector and --file")
    console = terminal()
    with asking.connect(target, timeout) as client:
        queries: VectorArray | Float64Array
        if id_ is not None:
            names, queries = [id_], vector_of(client, collection, id_)
        elif vector is not None:
            names, queries = ["vector"], parse_vector(vector, "--vector")
        else:
            assert file is not None
            queries = read_queries(file)
            names = [f"row {row}" for row in range(len(queries))]
        hits = client.search(
            collection,
            queries,
            k,
            filter=filter_,
            exact=exact,
            nprobe=nprobe,
            target_recall=target_recall,
            metadata=metadata,
        )
    if as_json:
        answers = [{"query": name, "hits": of} for name, of in zip(names, hits, strict=True)]
        print_json({"queries": answers, "receipt": hits.receipt})
        return
    console.print(tables.hits_table(f"hits in {collection}", zip(names, hits, strict=True)))
    console.print(tables.receipt_table(hits.receipt))


def vector_of(client: Client, collection: str, id_: str) -> Float32Array:
    """Return the vector (1, dim) of a row by the text of its id."""
    id_type = client.describe(collection).config.id_type
    ids = asking.parse_ids([id_], id_type)
    vectors = client.get(collection, ids).vectors
    if vectors is None or not len(vectors):
        raise VectorShardError(f"collection {collection!r} has no row with id {ids.tolist()[0]!r}")
    return vectors


def parse_vector(text: str, option: str) -> Float64Array:
    """Return a vector (1, dim) from numbers with commas or blanks between them, or JSON's list."""
    numbers = text.strip().removeprefix("[").removesuffix("]")
    components = []
    for component in numbers.replace(",", " ").split():
        try:
            components.append(float(component))
        except ValueError:
            raise typer.BadParameter(f"{option}: {component!r} is not a number") from None
    return np.array([components], dtype=np.float64)


def read_queries(path: Path) -> VectorArray:
    """Return all vectors (queries, dim) of a file."""
    with open_vectors(path) as source:
        for _, queries in source.batches(max(1, source.rows)):
            return queries
    raise UnreadableFile(f"{path}: the file contains no vectors")


def explain(
    collection: asking.Collection,
    id_: Annotated[str, typer.Option("--id", help="The id that a search should find.")],
    target: asking.Target = DEFAULT_ADDRESS,
    query_id: Annotated[str | None, typer.Option(help="Search with the vector of this id.")] = None,
    query: Annotated[str | None, typer.Option(help='Search with this vector: "1,2,3".')] = None,
    filter_: asking.FilterOption = None,
    timeout: asking.Timeout = 30.0,
    as_json: asking.AsJson = False,
) -> None:
    """Explain why a search finds an id, or does not find it."""
    if (query_id is None) == (query is None):
        raise typer.BadParameter("give exactly one of --query-id and --query")
    console = terminal()
    with asking.connect(target, timeout) as client:
        description = client.describe(collection)
        if query is not None:
            asked: Float32Array | Float64Array = parse_vector(query, "--query")
        else:
            assert query_id is not None
            asked = vector_of(client, collection, query_id)
        (wanted,) = asking.parse_ids([id_], description.config.id_type).tolist()
        explanation = client.explain(collection, asked, wanted, filter=filter_)
        tried = try_default_search(client, collection, asked, wanted, filter_, explanation)
        sentence = explanations.sentence_of(
            explanation,
            collection=collection,
            id_=repr(wanted),
            query="the query" if query_id is None else repr(query_id),
            rows=description.ledger.live,
            tried=tried,
        )
        if as_json:
            print_json({"id": wanted, "sentence": sentence, "explanation": explanation})
            return
        console.print(Text(sentence))
        if explanation.exists:
            console.print(explanations.explanation_table(explanation, tried=tried))


def try_default_search(
    client: Client,
    collection: str,
    query: npt.ArrayLike,
    id_: int | str,
    filter_: str | None,
    explanation: Explanation,
) -> explanations.Tried | None:
    """Return whether a search without stated effort finds the id; None if it need not be tried."""
    if not explanations.is_worth_trying(explanation):
        return None
    hits = client.search(collection, query, explanations.HITS, filter=filter_)
    (receipt,) = (each for each in hits.receipt.shards if each.shard == explanation.shard)
    return explanations.Tried(id_ in (hit.id for hit in hits[0]), receipt)


COMMANDS: Final = (search, explain)
