"""The command line: demo, serve, shard, router, ingest, search, explain, describe.

Words in, tables out. What a command does is asked of `client.client` or of the server; an expected
failure is one line that says what to do next, never a traceback. The client and the server are
imported by the commands that need them, so that `--help` does not wait for them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text
from typer.core import TyperGroup

import vectorshard
from vectorshard.cli import explanations, tables
from vectorshard.cli.addresses import shard_addresses
from vectorshard.cli.vector_files import UnreadableFile, VectorFile, open_vectors
from vectorshard.shard.config import CONNECTION_AGE_S, SLOTS_TOTAL, ServerConfig
from vectorshard.shard.errors import (
    CollectionExists,
    CollectionNotFound,
    CorruptData,
    DeadlineExceeded,
    DimensionMismatch,
    InternalError,
    InvalidParameter,
    Overloaded,
    ShardUnavailable,
    VectorShardError,
    WritesStopped,
)
from vectorshard.shard.types import (
    CollectionConfig,
    Explanation,
    Float32Array,
    IdArray,
    IdType,
    Metric,
    VectorArray,
)

if TYPE_CHECKING:
    from vectorshard.client.client import Client

DEFAULT_TARGET = "127.0.0.1:7700"
WORKERS_MAX = 64
WRITE_ATTEMPTS = 20
"""How often a batch of a file is written before it is given up."""

LOG_WIDTH = 110
"""Columns where there is no terminal: a log must not fold its tables."""

NEXT_STEP: Mapping[type[VectorShardError], str] = {
    CollectionNotFound: "`vectorshard describe` lists the collections",
    CollectionExists: "choose another --collection, or the metric and ids that it has",
    DimensionMismatch: "`vectorshard describe NAME` tells the collection's dim",
    ShardUnavailable: "is that server running?",
    DeadlineExceeded: "try again, with a longer --timeout",
    Overloaded: "try again later, or with a smaller --batch",
    WritesStopped: "look at the server's disk, then restart the server",
    CorruptData: "restore the data directory from a copy",
    InternalError: "the server's log tells the story",
}
"""What a person can do about a failure that does not say it itself; the nearest class counts."""

CHECKOUT = Path(vectorshard.__file__).resolve().parent.parent
"""Where the project lies, if this runs from a checkout of it."""


class Commands(TyperGroup):
    """The commands of this file, and `bench`, which only a checkout has."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands."""
        return [*super().list_commands(ctx), "bench"]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command by its name; None when there is none."""
        if cmd_name != "bench":
            return super().get_command(ctx, cmd_name)
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        alone.command(cmd_name)(one_line_errors()(bench_command()))
        return typer.main.get_command(alone)


def bench_command() -> Callable[..., None]:
    """Return the load generator, which is part of a checkout and not of the wheel."""
    if not (CHECKOUT / "benchmarks" / "load" / "command.py").is_file():
        return _no_bench
    command: Callable[..., None] = import_module("benchmarks.load.command").bench
    return command


def _no_bench() -> None:
    """Generate load and measure it; needs a checkout of vectorshard."""
    raise InvalidParameter(
        "`vectorshard bench` runs from a checkout of vectorshard, with its extra `bench` installed",
        field="bench",
    )


app = typer.Typer(
    name="vectorshard",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A distributed vector search service over gRPC.",
)


class MetricName(StrEnum):
    """The metrics as they are spelt on the command line."""

    l2 = "l2"
    inner_product = "inner_product"
    cosine = "cosine"


class LogFormat(StrEnum):
    """How a server writes its log."""

    json = "json"
    console = "console"


Target = Annotated[str, typer.Option(metavar="HOST:PORT", help="The server to ask.")]
Listen = Annotated[str, typer.Option(metavar="HOST:PORT", help="Where to serve; port 0 picks one.")]
Metrics = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where to serve metrics.")]
Health = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Where to serve health, too, whatever the load."),
]
LameDuck = Annotated[
    float,
    typer.Option(
        min=0, metavar="SECONDS", help="After SIGTERM: longest to wait for callers to leave."
    ),
]
ConnectionAge = Annotated[
    float,
    typer.Option(
        min=1.0,
        max=1_000_000.0,
        metavar="SECONDS",
        help="How long to keep a client's connection before it must look for the server anew;"
        " what runs on it goes on.",
    ),
]
LogFormatOption = Annotated[LogFormat, typer.Option(help="How to write the log.")]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="Time allowed for each call.")]
FilterOption = Annotated[
    str | None,
    typer.Option(
        "--filter",
        metavar="CONDITION",
        help="Only rows that pass, such as 'lang = \"en\" and (year >= 1990 or tag exists)'.",
    ),
]


def terminal(*, stderr: bool = False) -> Console:
    """Return where to print: as wide as the terminal, or as wide as a log should be."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    return console


def connect(target: str, timeout_s: float) -> Client:
    """Return a client of the server at `target`."""
    from vectorshard.client.client import Client

    return Client(target, timeout_s=timeout_s)


def next_step(error: Exception) -> str:
    """Return what to do about `error`; empty when there is nothing to say."""
    for kind in type(error).__mro__:
        if kind in NEXT_STEP:
            return NEXT_STEP[kind]
    return ""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an expected failure into one line on stderr and exit code 1."""
    try:
        yield
    except (VectorShardError, UnreadableFile, OSError) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        advice = next_step(error)
        line = f"error: {told}" + (f" - {advice}" if advice else "")
        typer.echo(line, err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def print_version(wanted: bool) -> None:
    """Print the version and leave, if it is wanted."""
    if wanted:
        typer.echo(f"vectorshard {vectorshard.__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """A distributed vector search service over gRPC."""


@app.command()
def serve(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Where the rows are kept.")],
    shards: Annotated[
        int, typer.Option(min=1, max=SLOTS_TOTAL, help="Shards in this process.")
    ] = 2,
    listen: Listen = DEFAULT_TARGET,
    metrics: Metrics = None,
    health: Health = None,
    lame_duck: LameDuck = 1.0,
    connection_age: ConnectionAge = CONNECTION_AGE_S,
    log_format: LogFormatOption = LogFormat.console,
) -> None:
    """Serve a router over shards of its own, until SIGTERM."""
    import uvloop

    from vectorshard.cli import embedded
    from vectorshard.shard.runtime.logs import configure_logs

    configure_logs(log_format.value)
    with one_line_errors():
        server = ServerConfig(
            listen=listen,
            metrics=metrics,
            health=health,
            lame_duck_s=lame_duck,
            connection_age_s=connection_age,
        )
        uvloop.run(embedded.serve(shards=shards, data=data, server=server))


@app.command()
def shard(
    shard_id: Annotated[int, typer.Option(min=0, help="The shard's number, from 0.")],
    shards: Annotated[
        int, typer.Option(min=1, max=SLOTS_TOTAL, help="Shards of the fleet, for good.")
    ],
    data: Annotated[Path, typer.Option(metavar="DIR", help="Where the shard's rows are kept.")],
    listen: Listen = DEFAULT_TARGET,
    cluster: Annotated[
        str | None, typer.Option(help="The fleet's name; a directory keeps its own.")
    ] = None,
    cores: Annotated[
        int | None, typer.Option(min=1, help="Cores that one search may use. Default: all.")
    ] = None,
    metrics: Metrics = None,
    health: Health = None,
    lame_duck: LameDuck = 1.0,
    connection_age: ConnectionAge = CONNECTION_AGE_S,
    log_format: LogFormatOption = LogFormat.console,
) -> None:
    """Serve one shard of a fleet, until SIGTERM."""
    import uvloop

    from vectorshard.cli import fleet
    from vectorshard.shard.runtime.logs import configure_logs

    if shard_id >= shards:
        raise typer.BadParameter(f"--shard-id {shard_id}: the last of {shards} is {shards - 1}")
    configure_logs(log_format.value)
    with one_line_errors():
        uvloop.run(
            fleet.serve_shard(
                shard=shard_id,
                shards_total=shards,
                data=data,
                cluster=cluster,
                cores=cores or len(os.sched_getaffinity(0)),
                server=ServerConfig(
                    listen=listen,
                    metrics=metrics,
                    health=health,
                    lame_duck_s=lame_duck,
                    connection_age_s=connection_age,
                ),
            )
        )


@app.command()
def router(
    shard: Annotated[
        list[str],
        typer.Option(
            metavar="HOST:PORT",
            help="A shard; once for each, in the order of numbers. Or, with --shards, once for all:"
            " {shard} stands for the number, as in dns:///shard-{shard}.fleet:7700.",
        ),
    ],
    shards: Annotated[
        int | None, typer.Option(min=1, max=SLOTS_TOTAL, help="How many shards {shard} stands for.")
    ] = None,
    listen: Listen = DEFAULT_TARGET,
    partial: Annotated[
        bool,
        typer.Option("--partial", help="For a router below another: its shards are not all."),
    ] = False,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            max=WORKERS_MAX,
            help="Processes on the port. Each has metrics and health on a port of its own, which"
            " are the ports given and those after them.",
        ),
    ] = 1,
    shares_port: Annotated[bool, typer.Option("--shares-port", hidden=True)] = False,
    metrics: Metrics = None,
    health: Health = None,
    lame_duck: LameDuck = 1.0,
    connection_age: ConnectionAge = CONNECTION_AGE_S,
    log_format: LogFormatOption = LogFormat.console,
) -> None:
    """Serve a router over the shards of a fleet, until SIGTERM."""
    import asyncio

    import uvloop

    from vectorshard.cli import fleet
    from vectorshard.cli.workers import end_with, serve_workers
    from vectorshard.shard.runtime.logs import configure_logs

    configure_logs(log_format.value)
    with one_line_errors():
        server = ServerConfig(
            listen=listen,
            shares_port=shares_port,
            metrics=metrics,
            health=health,
            lame_duck_s=lame_duck,
            connection_age_s=connection_age,
        )
        addresses = shard_addresses(shard, shards)
        if workers > 1:
            serving = serve_workers(
                workers,
                shards=addresses,
                partial=partial,
                server=server,
                log_format=log_format.value,
            )
            raise typer.Exit(asyncio.run(serving))
        if shares_port:
            end_with(sys.stdin.buffer)
        uvloop.run(fleet.serve_router(shards=addresses, partial=partial, server=server))


@app.command()
def ingest(
    file: Annotated[Path, typer.Argument(help="A .npy, .npz or ann-benchmarks .hdf5.")],
    collection: Annotated[str, typer.Option(help="Created when it is not there.")],
    target: Target = DEFAULT_TARGET,
    metric: Annotated[
        MetricName | None, typer.Option(help="Default: what the file says, else cosine.")
    ] = None,
    vectors_key: Annotated[
        str, typer.Option(help="The array of vectors. Default: vectors, or train in an .hdf5.")
    ] = "",
    ids_key: Annotated[
        str, typer.Option(help="The array of ids. Default: ids if it is there, else row numbers.")
    ] = "",
    batch: Annotated[int, typer.Option(min=1, max=100_000, help="Rows a call.")] = 5_000,
    timeout: Timeout = 60.0,
) -> None:
    """Stream the vectors of a file into a collection."""
    console = terminal()
    with (
        one_line_errors(),
        open_vectors(file, vectors_key=vectors_key, ids_key=ids_key) as source,
        connect(target, timeout) as client,
    ):
        wanted = Metric(metric.value) if metric else None
        ensure_collection(client, collection, source, wanted)
        refused = stream_rows(console, client, collection, source, batch)
        console.print(tables.ledger_table(client.describe(collection)))
    if refused:
        raise typer.Exit(1)


def ensure_collection(
    client: Client, name: str, source: VectorFile, metric: Metric | None
) -> CollectionConfig:
    """Return the collection's configuration; create it, fit for `source`, if it is not there.

    `metric` is the caller's wish, None for the file's own or else COSINE.

    Raises
    ------
    CollectionExists
        If it is there with another metric than the wish, or another type of ids.
    DimensionMismatch
        If it is there with another dim.
    """
    try:
        config = client.describe(name).config
    except CollectionNotFound:
        metric = metric or source.metric or Metric.COSINE
        client.create_collection(name, dim=source.dim, metric=metric, id_type=source.id_type)
        return client.describe(name).config
    if config.dim != source.dim:
        raise DimensionMismatch(f"{source.dim}, but {name} has {config.dim}", field="dim")
    if metric not in {None, config.metric}:
        raise CollectionExists(f"{name} exists with metric {config.metric.value}")
    if config.id_type is not source.id_type:
        raise CollectionExists(f"{name} exists with {config.id_type.value} ids")
    return config


class RowsPerSecond(ProgressColumn):
    """The rate of a task whose unit is rows."""

    def render(self, task: Task) -> Text:
        """Return the rate so far, or over all when it is done."""
        rate = task.finished_speed or task.speed
        return Text(f"{rate:,.0f} rows/s" if rate else "")


def rows_progress(console: Console) -> Progress:
    """Return a progress bar of rows: live on a terminal, one line at the end in a log."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("rows"),
        RowsPerSecond(),
        TimeElapsedColumn(),
        console=console,
    )


def stream_rows(
    console: Console, client: Client, name: str, source: VectorFile, batch_rows: int
) -> int:
    """Upsert all rows with a progress bar, print a summary, return how many were refused.

    A batch that a shard was missing for is written again, for about half a minute: its rows are the
    file's, and nobody else's.
    """
    # Imported here, so that `--help` does not wait for it.
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

    again = Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, ShardUnavailable)),
        wait=wait_exponential_jitter(multiplier=0.1, max=2.0, jitter=0.1),
        stop=stop_after_attempt(WRITE_ATTEMPTS),
        sleep=time.sleep,
        reraise=True,
    )
    sent = accepted = 0
    refused: list[tuple[int, str]] = []
    with rows_progress(console) as progress:
        task = progress.add_task("writing", total=source.rows)
        for ids, vectors in source.batches(batch_rows):
            summary = again(client.upsert, name, ids, vectors)
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


@app.command()
def search(
    collection: Annotated[str, typer.Option(help="Where to search.")],
    target: Target = DEFAULT_TARGET,
    k: Annotated[int, typer.Option(min=1, help="Hits for each query.")] = 10,
    exact: Annotated[bool, typer.Option("--exact", help="Score every row.")] = False,
    nprobe: Annotated[int | None, typer.Option(min=1, help="Inverted lists to probe.")] = None,
    target_recall: Annotated[float | None, typer.Option(help="The recall to aim at.")] = None,
    filter_: FilterOption = None,
    id_: Annotated[str | None, typer.Option("--id", help="Ask with the vector of this id.")] = None,
    vector: Annotated[str | None, typer.Option(help='Ask with "1,2,3".')] = None,
    file: Annotated[Path | None, typer.Option(help="Ask with the vectors of a file.")] = None,
    timeout: Timeout = 30.0,
) -> None:
    """Find the nearest rows, and show what the answer covers."""
    if exact + (nprobe is not None) + (target_recall is not None) > 1:
        raise typer.BadParameter("give at most one of --exact, --nprobe and --target-recall")
    if sum(query is not None for query in (id_, vector, file)) != 1:
        raise typer.BadParameter("give one of --id, --vector and --file")
    console = terminal()
    with one_line_errors(), connect(target, timeout) as client:
        queries: VectorArray
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
    """Return the vector (1, dim) of a row by the id as it was typed."""
    id_type = client.describe(collection).config.id_type
    vectors = client.get(collection, parse_id(id_, id_type)).vectors
    if vectors is None or not len(vectors):
        raise typer.BadParameter(f"no row {id_!r} in {collection}")
    return vectors


def parse_id(id_: str, id_type: IdType) -> IdArray:
    """Return an id (1,) of the collection's type from its text."""
    if id_type is IdType.STRING:
        return np.array([id_], dtype=object)
    try:
        return np.array([int(id_)], dtype=np.int64)
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"the ids of this collection are int64, not {id_!r}") from None


def parse_vector(text: str, option: str) -> Float32Array:
    """Return a vector (1, dim) from numbers with commas or blanks between them, or JSON's list."""
    numbers = text.strip().removeprefix("[").removesuffix("]")
    try:
        components = [float(component) for component in numbers.replace(",", " ").split()]
    except ValueError as cause:
        raise typer.BadParameter(f"{option}: {cause}") from None
    return np.array([components], dtype=np.float32)


def read_queries(path: Path) -> VectorArray:
    """Return all vectors (queries, dim) of a file."""
    with open_vectors(path) as source:
        for _, queries in source.batches(max(1, source.rows)):
            return queries
    raise UnreadableFile(f"{path}: holds no vectors")


@app.command()
def explain(
    collection: Annotated[str, typer.Option(help="Where the id is looked for.")],
    id_: Annotated[str, typer.Option("--id", help="The id that a search should find.")],
    target: Target = DEFAULT_TARGET,
    query_id: Annotated[str | None, typer.Option(help="Ask with the vector of this id.")] = None,
    query: Annotated[str | None, typer.Option(help='Ask with "1,2,3".')] = None,
    filter_: FilterOption = None,
    timeout: Timeout = 30.0,
) -> None:
    """Say why a search does or does not find an id."""
    if (query_id is None) == (query is None):
        raise typer.BadParameter("give one of --query-id and --query")
    console = terminal()
    with one_line_errors(), connect(target, timeout) as client:
        description = client.describe(collection)
        if query is not None:
            asked = parse_vector(query, "--query")
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
    query: Float32Array,
    id_: int | str,
    filter_: str | None,
    explanation: Explanation,
) -> explanations.Tried | None:
    """Return whether a search that states no effort finds the id; None where that is known."""
    if not explanations.is_worth_trying(explanation):
        return None
    hits = client.search(collection, query, explanations.HITS, filter=filter_)
    (receipt,) = (each for each in hits.receipt.shards if each.shard == explanation.shard)
    return explanations.Tried(id_ in (hit.id for hit in hits[0]), receipt)


@app.command()
def describe(
    collection: Annotated[str | None, typer.Argument(help="Default: list them all.")] = None,
    target: Target = DEFAULT_TARGET,
    timeout: Timeout = 30.0,
) -> None:
    """Show a collection's ledger and index on each shard."""
    console = terminal()
    with one_line_errors(), connect(target, timeout) as client:
        if collection is None:
            console.print(tables.collections_table(client.list_collections()))
            return
        description = client.describe(collection)
        console.print(tables.ledger_table(description))
        console.print(tables.index_table(description))
        console.print(tables.recall_table(description))
    if not tables.adds_up(description):
        raise typer.Exit(1)


@app.command()
def demo(
    words: Annotated[
        Path | None, typer.Option(help="A .npz of vectors and words, instead of the 20,000.")
    ] = None,
    shards: Annotated[int, typer.Option(min=1, help="Shards of the server.")] = 2,
) -> None:
    """Write 20,000 words over gRPC and search them while the index trains."""
    from vectorshard.cli.demo import WORDS, run

    with one_line_errors():
        kept = run(terminal(), words=words or WORDS, shards=shards)
    if not kept:
        raise typer.Exit(1)
