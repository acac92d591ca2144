"""The commands about rows: ingest, search, explain, describe and the demonstration.

Each asks the client, which is imported when a command runs, and prints tables. A failure is an
exception here; `app` prints it as one line.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.text import Text

from vectorshard.cli import explanations, tables
from vectorshard.cli.addresses import DEFAULT_ADDRESS
from vectorshard.cli.output import rows_progress, terminal
from vectorshard.cli.vector_files import UnreadableFile, VectorFile, open_vectors
from vectorshard.shard.descriptions import Explanation
from vectorshard.shard.errors import (
    CollectionExists,
    CollectionNotFound,
    DimensionMismatch,
    VectorShardError,
)
from vectorshard.shard.types import (
    CollectionConfig,
    Float32Array,
    Float64Array,
    IdArray,
    IdType,
    Metric,
    VectorArray,
)

if TYPE_CHECKING:
    from vectorshard.client.client import Client

WRITE_ATTEMPTS: Final = 20
"""How often a batch of a file is written before `ingest` gives up: about half a minute."""

Collection = Annotated[str, typer.Option(help="Name of the collection.")]
Target = Annotated[str, typer.Option(metavar="HOST:PORT", help="Address of the server.")]
Timeout = Annotated[float, typer.Option(min=0.001, metavar="SECONDS", help="Timeout of each call.")]
FilterOption = Annotated[
    str | None,
    typer.Option(
        "--filter",
        metavar="CONDITION",
        help="Only rows that pass, such as 'lang = \"en\" and (year >= 1990 or tag exists)'.",
    ),
]


def connect(target: str, timeout_s: float) -> Client:
    """Return a client of the server at `target`."""
    from vectorshard.client.client import Client

    return Client(target, timeout_s=timeout_s)


def ingest(
    file: Annotated[
        Path,
        typer.Argument(
            help="A .npy, .npz, .parquet or ann-benchmarks .hdf5 file, such as one of `export`."
        ),
    ],
    collection: Annotated[
        str, typer.Option(help="Name of the collection; created if it does not exist.")
    ],
    target: Target = DEFAULT_ADDRESS,
    metric: Annotated[
        Metric | None, typer.Option(help="Default: the metric in the file, else cosine.")
    ] = None,
    vectors_key: Annotated[
        str,
        typer.Option(
            help="The array of vectors. Default: vectors, train in .hdf5, vector in .parquet."
        ),
    ] = "",
    ids_key: Annotated[
        str,
        typer.Option(
            help="The array of ids. Default: ids, id in .parquet, if it exists, else row numbers."
        ),
    ] = "",
    batch: Annotated[int, typer.Option(min=1, max=100_000, help="Rows in each call.")] = 5_000,
    timeout: Timeout = 60.0,
) -> None:
    """Write the vectors of a file into a collection, with their metadata if the file has any.

    A collection that does not exist is created as the export in the file states.
    """
    console = terminal()
    with (
        open_vectors(file, vectors_key=vectors_key, ids_key=ids_key) as source,
        connect(target, timeout) as client,
    ):
        ensure_collection(client, collection, source, metric)
        refused = stream_rows(console, client, collection, source, batch)
        console.print(tables.ledger_table(client.describe(collection)))
    if refused:
        raise typer.Exit(1)


def ensure_collection(
    client: Client, name: str, source: VectorFile, metric: Metric | None
) -> CollectionConfig:
    """Return the collection's configuration; create it, fit for `source`, if it does not exist.

    `metric` is the caller's choice; None stands for the file's metric, else COSINE.

    Raises
    ------
    CollectionExists
        If it exists with another metric than the caller's choice, or another type of ids.
    DimensionMismatch
        If it exists with another dim.
    """
    try:
        config = client.describe(name).config
    except CollectionNotFound:
        metric = metric or source.metric or Metric.COSINE
        settings: dict[str, Any] = {}
        if (stated := source.config) is not None:
            settings = {
                "index": stated.index,
                "target_recall": stated.target_recall,
                "filter_fields": stated.filter_fields,
            }
        client.create_collection(
            name, dim=source.dim, metric=metric, id_type=source.id_type, **settings
        )
        return client.describe(name).config
    if config.dim != source.dim:
        reason = f"dim is {source.dim:,}; the dim of collection {name!r} is {config.dim:,}"
        raise DimensionMismatch(reason, field="dim")
    if metric not in {None, config.metric}:
        raise CollectionExists(f"collection {name!r} exists with metric {config.metric.value}")
    if config.id_type is not source.id_type:
        raise CollectionExists(f"collection {name!r} exists with {config.id_type.value} ids")
    return config


def _may_succeed_later(error: BaseException) -> bool:
    return isinstance(error, VectorShardError) and error.retryable


def stream_rows(
    console: Console, client: Client, name: str, source: VectorFile, batch_rows: int
) -> int:
    """Upsert all rows with a progress bar, print a summary, return how many were refused.

    A batch that failed because a shard was unavailable or overloaded is written again, for about
    half a minute. That is safe: it writes the rows of the file, and no other writer's.
    """
    # Imported here, so that `--help` does not wait for it.
    import tenacity

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_may_succeed_later),
        wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=2.0, jitter=0.1),
        stop=tenacity.stop_after_attempt(WRITE_ATTEMPTS),
        sleep=time.sleep,
        reraise=True,
    )
    sent = accepted = 0
    refused: list[tuple[int, str]] = []
    with rows_progress(console) as progress:
        task = progress.add_task("writing", total=source.rows)
        for ids, vectors in source.batches(batch_rows):
            metadata = source.metadata(sent, len(ids))
            described = () if metadata is None else (metadata,)
            summary = retrying(client.upsert, name, ids, vectors, *described)
            accepted += summary.accepted
            refused += [(sent + error.row, error.message) for error in summary.errors]
            sent += len(ids)
            progress.advance(task, len(ids))
        elapsed_s = progress.tasks[0].elapsed or 0.0
    rate = f", {source.rows / elapsed_s:,.0f} rows/s" if elapsed_s else ""
    console.print(f"{accepted:,} rows accepted, {len(refused):,} refused{rate}")
    for row, message in refused[:10]:
        console.print(Text(f"  row {row}: {message}"))
    return len(refused)


def search(
    collection: Collection,
    target: Target = DEFAULT_ADDRESS,
    k: Annotated[int, typer.Option(min=1, help="Hits for each query.")] = 10,
    exact: Annotated[bool, typer.Option("--exact", help="Score every row.")] = False,
    nprobe: Annotated[int | None, typer.Option(min=1, help="Inverted lists to probe.")] = None,
    target_recall: Annotated[float | None, typer.Option(help="Recall to aim for.")] = None,
    filter_: FilterOption = None,
    id_: Annotated[
        str | None, typer.Option("--id", help="Search with the vector of this id.")
    ] = None,
    vector: Annotated[str | None, typer.Option(help='Search with this vector: "1,2,3".')] = None,
    file: Annotated[
        Path | None, typer.Option(help="Search with every vector of this file.")
    ] = None,
    timeout: Timeout = 30.0,
) -> None:
    """Find the nearest rows, and show what the answer covers."""
    if exact + (nprobe is not None) + (target_recall is not None) > 1:
        raise typer.BadParameter("give at most one of --exact, --nprobe and --target-recall")
    if sum(query is not None for query in (id_, vector, file)) != 1:
        raise typer.BadParameter("give exactly one of --id, --vector and --file")
    console = terminal()
    with connect(target, timeout) as client:
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
        )
        console.print(tables.hits_table(f"hits in {collection}", zip(names, hits, strict=True)))
        console.print(tables.receipt_table(hits.receipt))


def vector_of(client: Client, collection: str, id_: str) -> Float32Array:
    """Return the vector (1, dim) of a row by the text of its id."""
    id_type = client.describe(collection).config.id_type
    ids = parse_id(id_, id_type)
    vectors = client.get(collection, ids).vectors
    if vectors is None or not len(vectors):
        raise VectorShardError(f"collection {collection!r} has no row with id {ids.tolist()[0]!r}")
    return vectors


def parse_id(id_: str, id_type: IdType) -> IdArray:
    """Return an id (1,) of the collection's type from its text."""
    if id_type is IdType.STRING:
        return np.array([id_], dtype=object)
    try:
        return np.array([int(id_)], dtype=np.int64)
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{id_!r} is not an int64, as this collection's ids are") from None


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
    collection: Collection,
    id_: Annotated[str, typer.Option("--id", help="The id that a search should find.")],
    target: Target = DEFAULT_ADDRESS,
    query_id: Annotated[str | None, typer.Option(help="Search with the vector of this id.")] = None,
    query: Annotated[str | None, typer.Option(help='Search with this vector: "1,2,3".')] = None,
    filter_: FilterOption = None,
    timeout: Timeout = 30.0,
) -> None:
    """Explain why a search finds an id, or does not find it."""
    if (query_id is None) == (query is None):
        raise typer.BadParameter("give exactly one of --query-id and --query")
    console = terminal()
    with connect(target, timeout) as client:
        description = client.describe(collection)
        if query is not None:
            asked: Float32Array | Float64Array = parse_vector(query, "--query")
        else:
            assert query_id is not None
            asked = vector_of(client, collection, query_id)
        (wanted,) = parse_id(id_, description.config.id_type).tolist()
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


def describe(
    collection: Annotated[
        str | None, typer.Argument(help="Name of the collection. Default: list all collections.")
    ] = None,
    target: Target = DEFAULT_ADDRESS,
    timeout: Timeout = 30.0,
) -> None:
    """Show a collection's ledger and index on each shard."""
    console = terminal()
    with connect(target, timeout) as client:
        if collection is None:
            console.print(tables.collections_table(client.list_collections()))
            if problems := client.server_info().problems:
                console.print(tables.problems_table(problems))
            return
        description = client.describe(collection)
        console.print(tables.ledger_table(description))
        console.print(tables.index_table(description))
        console.print(tables.recall_table(description))
        console.print(tables.scrub_table(description))
        for line in tables.scrub_findings(description):
            console.print(line, style="red", markup=False)
        for line in tables.origins(description):
            console.print(line, markup=False)
        for line in tables.troubles(description):
            console.print(line, style="red", markup=False)
    if not tables.adds_up(description):
        raise typer.Exit(1)


def update(
    collection: Annotated[str, typer.Argument(help="Name of the collection.")],
    target_recall: Annotated[
        float, typer.Option(help="Recall that its searches aim for, above 0 and up to 1.")
    ],
    target: Target = DEFAULT_ADDRESS,
    timeout: Timeout = 30.0,
) -> None:
    """Change the recall that a collection's searches aim for. The index is not trained again."""
    with connect(target, timeout) as client:
        config = client.update_collection(collection, target_recall=target_recall)
    terminal().print(f"{config.name}: target_recall {config.target_recall:g}", highlight=False)


def demo(
    words: Annotated[
        Path | None, typer.Option(help="A .npz file of vectors and words to use instead.")
    ] = None,
    shards: Annotated[int, typer.Option(min=1, help="Number of shards of the server.")] = 1,
) -> None:
    """Write 20,000 words over gRPC and search them while the index trains."""
    from vectorshard.cli.demo import WORDS, run

    if not run(terminal(), words=words or WORDS, shards=shards):
        raise typer.Exit(1)


COMMANDS: Final = (ingest, search, explain, describe, update, demo)
