"""The commands about rows: get, count, delete and list; and the demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from vectorshard.cli import asking, tables
from vectorshard.cli.addresses import DEFAULT_ADDRESS
from vectorshard.cli.interruption import told_when_interrupted
from vectorshard.cli.json_output import print_json
from vectorshard.cli.output import terminal
from vectorshard.shard.texts import counted
from vectorshard.shard.types import IdArray

if TYPE_CHECKING:
    from vectorshard.client.client import Client

RowIds = Annotated[
    list[str] | None, typer.Argument(metavar="[ID]...", help="Ids; after -- they may be negative.")
]
Vectors = Annotated[bool, typer.Option("--vectors", help="Show the vectors, too.")]


def given_ids(client: Client, collection: str, ids: list[str] | None) -> IdArray | None:
    """Return ids as the collection has them, None without any."""
    if not ids:
        return None
    return asking.parse_ids(ids, client.describe(collection).config.id_type)


def check_one_of(ids: list[str] | None, filter_: str | None) -> None:
    """Raise typer.BadParameter unless there are ids or a filter, and not both."""
    if bool(ids) == (filter_ is not None):
        raise typer.BadParameter("give ids, or --filter")


def get(
    collection: asking.Name,
    ids: RowIds = None,
    filter_: asking.FilterOption = None,
    vectors: Vectors = False,
    target: asking.Target = DEFAULT_ADDRESS,
    timeout: asking.Timeout = 30.0,
    as_json: asking.AsJson = False,
) -> None:
    """Show rows by their ids or by a filter. Ends with 1 if an id has no row."""
    check_one_of(ids, filter_)
    with asking.connect(target, timeout) as client:
        wanted = given_ids(client, collection, ids)
        found = client.get(collection, wanted, filter=filter_, vectors=vectors)
    if as_json:
        print_json([*found])
    else:
        terminal().print(tables.rows_table(f"{counted(len(found), 'row')} of {collection}", found))
    if wanted is not None and len(found) < len(wanted):
        missing = sorted({*wanted.tolist()} - {row.id for row in found})
        many = "" if len(missing) == 1 else f", nor with {counted(len(missing) - 1, 'other id')}"
        typer.echo(f"there is no row with the id {missing[0]!r}{many}", err=True)
        raise typer.Exit(1)


def count(
    collection: asking.Name,
    filter_: asking.FilterOption = None,
    target: asking.Target = DEFAULT_ADDRESS,
    timeout: asking.Timeout = 30.0,
    as_json: asking.AsJson = False,
) -> None:
    """Count the rows, or those that pass a filter."""
    with asking.connect(target, timeout) as client:
        rows = client.count(collection, filter=filter_)
    if as_json:
        print_json({"rows": rows})
    else:
        typer.echo(rows)


def delete(
    collection: asking.Name,
    ids: RowIds = None,
    filter_: asking.FilterOption = None,
    target: asking.Target = DEFAULT_ADDRESS,
    timeout: asking.Timeout = 30.0,
    as_json: asking.AsJson = False,
) -> None:
    """Delete rows by their ids or by a filter."""
    check_one_of(ids, filter_)
    partly = "some of the rows may be deleted; repeating the command is harmless"
    with told_when_interrupted(lambda: partly), asking.connect(target, timeout) as client:
        deleted = client.delete(collection, given_ids(client, collection, ids), filter=filter_)
    if as_json:
        print_json({"deleted": deleted})
    else:
        typer.echo(f"{counted(deleted, 'row')} deleted")


def list_(
    collection: asking.Name,
    limit: Annotated[int, typer.Option(min=1, help="Rows to show; with --all, no limit.")] = 20,
    everything: Annotated[bool, typer.Option("--all", help="Show every row.")] = False,
    filter_: asking.FilterOption = None,
    vectors: Vectors = False,
    skip_damaged: Annotated[
        bool,
        typer.Option("--skip-damaged", help="Leave out rows that are damaged, and name their ids."),
    ] = False,
    target: asking.Target = DEFAULT_ADDRESS,
    timeout: asking.Timeout = 30.0,
    as_json: asking.AsJson = False,
) -> None:
    """Show the rows of a collection, in no particular order. With --json, one line a row.

    Ends with 1 if it left out damaged rows.
    """
    left = limit
    damaged: list[int | str] = []
    with asking.connect(target, timeout) as client:
        pages = client.list_rows(
            collection,
            page_size=1_000 if everything else min(limit, 1_000),
            filter=filter_,
            vectors=vectors,
            metadata=True,
            skip_damaged=skip_damaged,
        )
        for page in pages:
            damaged += [] if page.damaged is None else page.damaged.tolist()
            shown = [*page] if everything else [*page][:left]
            left -= len(shown)
            if as_json:
                for row in shown:
                    print_json(row)
            elif shown:
                terminal().print(tables.rows_table(f"rows of {collection}", shown))
            if not everything and left <= 0:
                break
    if damaged:
        ids = ", ".join(map(repr, damaged))
        typer.echo(
            f"{counted(len(damaged), 'damaged row')} left out, with the ids: {ids}", err=True
        )
        raise typer.Exit(1)


def demo(
    words: Annotated[
        Path | None, typer.Option(help="A .npz file of vectors and words to use instead.")
    ] = None,
    shards: Annotated[int, typer.Option(min=1, help="Number of shards of the server.")] = 1,
    as_json: asking.AsJson = False,
) -> None:
    """Write 20,000 words over gRPC and search them while the index trains."""
    from vectorshard.cli.demo import WORDS, run

    with told_when_interrupted(lambda: "the demo's server has ended, and its rows are removed"):
        watch = run(terminal(silent=as_json), words=words or WORDS, shards=shards)
    if as_json:
        print_json({"sightings": watch.sightings, "broken": sorted(watch.broken)})
    if watch.broken:
        raise typer.Exit(1)


COMMANDS: Final = (get, count, delete, list_, demo)
