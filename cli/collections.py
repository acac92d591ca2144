"""The commands about collections: create, drop, describe, update and train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console

from vectorshard.cli import asking, tables
from vectorshard.cli.addresses import DEFAULT_ADDRESS
from vectorshard.cli.interruption import told_when_interrupted
from vectorshard.cli.json_output import plain, print_json
from vectorshard.cli.output import terminal
from vectorshard.shard.errors import DeadlineExceeded, VectorShardError
from vectorshard.shard.texts import counted
from vectorshard.shard.types import CollectionConfig, FieldType, IdType, IndexKind, Metric

if TYPE_CHECKING:
    from vectorshard.client.client import Client


def create(
    collection: asking.Name,
    dim: Annotated[int, typer.Option(min=1, help="Components of each vector.")],
    metric: Annotated[Metric, typer.Option(help="How vectors are scored.")] = Metric.COSINE,
    id_type: Annotated[IdType, typer.Option(help="The type of the ids.")] = IdType.INT64,
    index: Annotated[
        IndexKind, typer.Option(help="How the index stores a vector.")
    ] = IndexKind.IVF_PQ,
    nlist: Annotated[
        int, typer.Option(min=0, help="Inverted lists; 0: chosen by the number of rows.")
    ] = 0,
    min_training_size: Annotated[
        int, typer.Option(min=0, help="Rows of a shard that start its training; 0: the default.")
    ] = 0,
    target_recall: Annotated[
        float | None, typer.Option(help="Recall that searches aim for. Default: 0.95.")
    ] = None,
    filter_field: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:TYPE",
            help="A metadata field for filters, such as lang:keyword; may be repeated. Types: "
            + ", ".join(each.value for each in FieldType)
            + ".",
        ),
    ] = None,
    target: asking.Target = DEFAULT_ADDRESS,
    timeout: asking.Timeout = 30.0,
    as_json: asking.AsJson = False,
) -> None:
    """Create a collection. Creating the same one again changes nothing."""
    fields = [declared_field(text) for text in filter_field or ()]
    chosen = {"kind": index, "nlist": nlist, "min_training_size": min_training_size}
    with asking.connect(target, timeout) as client:
        config = client.create_collection(
            collection,
            dim=dim,
            metric=metric,
            id_type=id_type,
            index=chosen,
            target_recall=target_recall,
            filter_fields=fields,
        )
    if as_json:
        print_json(config)
    else:
        terminal().print(tables.collections_table([(config, None)]))


def declared_field(text: str) -> tuple[str, str]:
    """Return the name and the type of NAME:TYPE."""
    name, separator, kind = text.rpartition(":")
    if not separator or kind.lower() not in {each.value for each in FieldType}:
        allowed = ", ".join(each.value for each in FieldType)
        raise typer.BadParameter(f"{text!r} is not NAME:TYPE with one of the types {allowed}")
    return name, kind


def drop(
    collection: asking.Name,
    yes: Annotated[bool, typer.Option("--yes", help="Drop without a question.")] = False,
    target: asking.Target = DEFAULT_ADDRESS,
    timeout: asking.Timeout = 30.0,
    as_json: asking.AsJson = False,
) -> None:
    """Drop a collection with all its rows. Asks first."""
    with asking.connect(target, timeout) as client:
        asking.require_agreement(
            yes, lambda: f"Drop {collection} with its {rows_of(client, collection)}?"
        )
        client.drop_collection(collection)
    if as_json:
        print_json({"dropped": collection})
    else:
        typer.echo(f"dropped {collection}")


def rows_of(client: Client, collection: str) -> str:
    """Return how many rows a collection has, as text; a damaged one may not know."""
    try:
        return counted(client.count(collection), "row")
    except VectorShardError as error:
        return f"rows, which are not counted ({error})"


def train(
    collection: asking.Name,
    wait: Annotated[bool, typer.Option("--wait", help="Return after the training.")] = False,
    target: asking.Target = DEFAULT_ADDRESS,
    timeout: Annotated[
        float, typer.Option(min=0.001, metavar="SECONDS", help="Longest wait for the training.")
    ] = 3_600.0,
    as_json: asking.AsJson = False,
) -> None:
    """Train a new index on every shard. Searches and writes go on meanwhile."""
    goes_on = (
        f"the server goes on with the training; `vectorshard describe {collection}` shows its state"
    )
    with told_when_interrupted(lambda: goes_on), asking.connect(target, timeout) as client:
        try:
            client.train(collection, wait, timeout_s=timeout)
        except DeadlineExceeded:
            typer.echo(f"error: not trained within {timeout:g} s: {goes_on}", err=True)
            raise typer.Exit(1) from None
        description = client.describe(collection)
    if as_json:
        print_json(description)
    else:
        terminal().print(tables.index_table(description))


def describe(
    collection: Annotated[
        str | None, typer.Argument(help="Name of the collection. Default: list all collections.")
    ] = None,
    target: asking.Target = DEFAULT_ADDRESS,
    timeout: asking.Timeout = 30.0,
    as_json: asking.AsJson = False,
) -> None:
    """Show a collection's ledger and index on each shard."""
    console = terminal()
    with asking.connect(target, timeout) as client:
        if collection is None:
            describe_all(console, client, as_json)
            return
        description = client.describe(collection)
        if as_json:
            print_json({**plain(description), "ledger": plain(description.ledger)})
            raise typer.Exit(0 if tables.adds_up(description) else 1)
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


def describe_all(console: Console, client: Client, as_json: bool) -> None:
    """List the collections with their rows and states, and what an operator has to look at."""
    found = [(config, summary_of(client, config)) for config in client.list_collections()]
    problems = client.server_info().problems
    if as_json:
        listed = [
            {**plain(config), "rows": summary.rows, "state": summary.state}
            for config, summary in found
        ]
        print_json({"collections": listed, "problems": problems})
        return
    console.print(tables.collections_table(found))
    if problems:
        console.print(tables.problems_table(problems))


def summary_of(client: Client, config: CollectionConfig) -> tables.CollectionSummary:
    """Return the rows and the state of a collection; one that fails has its error as the state."""
    try:
        description = client.describe(config.name)
    except VectorShardError as error:
        return tables.CollectionSummary(None, type(error).__name__)
    return tables.CollectionSummary(description.ledger.live, tables.states_of(description))


def update(
    collection: asking.Name,
    target_recall: Annotated[
        float, typer.Option(help="Recall that its searches aim for, above 0 and up to 1.")
    ],
    target: asking.Target = DEFAULT_ADDRESS,
    timeout: asking.Timeout = 30.0,
    as_json: asking.AsJson = False,
) -> None:
    """Change the recall that a collection's searches aim for. The index is not trained again."""
    with asking.connect(target, timeout) as client:
        config = client.update_collection(collection, target_recall=target_recall)
    if as_json:
        print_json(config)
        return
    terminal().print(f"{config.name}: target_recall {config.target_recall:g}", highlight=False)


COMMANDS: Final = (create, drop, describe, update, train)
