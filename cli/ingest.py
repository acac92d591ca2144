"""The command `ingest`: the vectors of a file into a collection.

Rows are named by their number in the file, and what is written is said wherever it stops.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.text import Text

from vectorshard.cli import asking, tables
from vectorshard.cli.addresses import DEFAULT_ADDRESS
from vectorshard.cli.json_output import print_json
from vectorshard.cli.output import rows_progress, terminal
from vectorshard.cli.vector_files import UnreadableFile, VectorFile, open_vectors
from vectorshard.shard.errors import (
    CollectionExists,
    CollectionNotFound,
    DimensionMismatch,
    InvalidId,
    InvalidRequest,
    InvalidVector,
    VectorShardError,
)
from vectorshard.shard.texts import counted
from vectorshard.shard.types import CollectionConfig, IdArray, Metric, VectorArray

if TYPE_CHECKING:
    from vectorshard.client.client import Client
    from vectorshard.client.results import UpsertSummary

WRITE_ATTEMPTS: Final = 20
"""How often a batch of a file is written before `ingest` gives up: about half a minute."""

ROWS_NAMED: Final = 10
"""The refused and skipped rows that are printed; the others are counted."""

Metadata = list[dict[str, Any]] | None
Write = Callable[[IdArray, VectorArray, Metadata], "UpsertSummary"]
Places = npt.NDArray[np.int64]
"""Rows of a batch, by their index in it."""


@dataclass(slots=True)
class Ingested:
    """What became of the rows of a file; `refused` and `skipped` are rows of it, and why."""

    accepted: int = 0
    refused: list[tuple[int, str]] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)


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
    target: asking.Target = DEFAULT_ADDRESS,
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
    from_row: Annotated[
        int, typer.Option(min=0, help="Leave out the rows before this one, as after a stop.")
    ] = 0,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave out invalid rows, and count them.")
    ] = False,
    timeout: asking.Timeout = 60.0,
    as_json: asking.AsJson = False,
) -> None:
    """Write the vectors of a file into a collection, with their metadata if the file has any.

    A collection that does not exist is created as the export in the file states.
    """
    console = terminal(silent=as_json)
    with (
        open_vectors(file, vectors_key=vectors_key, ids_key=ids_key) as source,
        asking.connect(target, timeout) as client,
    ):
        config = ensure_collection(client, collection, source, metric)
        upload = FileUpload(source, config, skips=skip_invalid, name=str(file))
        ended = upload.run(console, retried(client, collection), batch, from_row)
        description = client.describe(collection)
    if as_json:
        print_json({**_counts(ended), "ledger": description.ledger})
    else:
        console.print(tables.ledger_table(description))
    if ended.refused:
        raise typer.Exit(1)


def _counts(ended: Ingested) -> dict[str, Any]:
    named = {
        name: [{"row": row, "reason": reason} for row, reason in rows]
        for name, rows in (("refused", ended.refused), ("skipped", ended.skipped))
    }
    return {"accepted": ended.accepted, **named}


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


def retried(client: Client, name: str) -> Write:
    """Return what writes a batch of the collection.

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

    def write(ids: IdArray, vectors: VectorArray, metadata: Metadata) -> UpsertSummary:
        described = () if metadata is None else (metadata,)
        return retrying(client.upsert, name, ids, vectors, *described)

    return write


def _may_succeed_later(error: BaseException) -> bool:
    return isinstance(error, VectorShardError) and error.retryable


class FileUpload:
    """Writes the rows of a file batch by batch. With `skips`, invalid rows are left out."""

    def __init__(
        self, source: VectorFile, config: CollectionConfig, *, skips: bool, name: str
    ) -> None:
        self._source = source
        self._config = config
        self._skips = skips
        self._name = name
        self._written = 0  # the rows before this one are written, refused or skipped
        self._ended = Ingested()

    def run(self, console: Console, write: Write, batch_rows: int, first_row: int) -> Ingested:
        """Write all rows from `first_row` on with a progress bar, and print a summary.

        Where it stops, by an error or by Ctrl-C, it prints what is written, and how to go on.
        """
        rows = max(0, self._source.rows - first_row)
        self._written = first_row
        try:
            with rows_progress(console) as progress:
                task = progress.add_task("writing", total=rows)
                for ids, vectors in self._source.batches(batch_rows, first_row):
                    self._write_batch(
                        write, ids, vectors, self._source.metadata(self._written, len(ids))
                    )
                    self._written += len(ids)
                    progress.advance(task, len(ids))
                elapsed_s = progress.tasks[0].elapsed or 0.0
        except (VectorShardError, UnreadableFile, KeyboardInterrupt) as cause:
            typer.echo(self._stopped(cause), err=True)
            raise
        self._print_summary(console, f", {rows / elapsed_s:,.0f} rows/s" if elapsed_s else "")
        return self._ended

    def _stopped(self, cause: BaseException) -> str:
        """Return what is written, and how to go on."""
        ways = []
        if self._written:
            done = f"stopped: the first {self._written:,} of {self._source.rows:,} rows are written"
            if self._ended.refused or self._ended.skipped:
                left_out = len(self._ended.refused) + len(self._ended.skipped)
                done += f" but for {left_out:,}, which were refused or skipped"
            ways.append(f"go on with --from-row {self._written} for {shlex.quote(self._name)}")
        elif isinstance(cause, InvalidRequest | UnreadableFile):
            done = f"stopped: none of {counted(self._source.rows, 'row')} is written"
        else:
            done = f"stopped: none of {counted(self._source.rows, 'row')} is acknowledged"
            ways.append("repeat the command")
        if not self._skips and isinstance(cause, InvalidRequest) and _is_of_a_row(cause):
            ways.append("--skip-invalid leaves out invalid rows")
        return "; ".join([done, *ways])

    def _print_summary(self, console: Console, rate: str) -> None:
        ended = self._ended
        skipped = f", {len(ended.skipped):,} skipped" if self._skips else ""
        console.print(
            f"{counted(ended.accepted, 'row')} accepted, {len(ended.refused):,} refused"
            f"{skipped}{rate}"
        )
        for row, message in sorted([*ended.refused, *ended.skipped])[:ROWS_NAMED]:
            console.print(Text(f"  row {row}: {message}"))

    def _write_batch(
        self, write: Write, ids: IdArray, vectors: VectorArray, metadata: Metadata
    ) -> None:
        places = np.arange(len(ids))
        while len(places):
            try:
                described = None if metadata is None else [metadata[place] for place in places]
                summary = write(ids[places], vectors[places], described)
            except InvalidRequest as error:
                places = self._without_invalid(places, vectors, error)
                continue
            except VectorShardError as error:
                self._written += self._rows_before(places, error.acknowledged_rows or 0)
                raise
            self._ended.accepted += summary.accepted
            self._ended.refused += [
                (self._written + int(places[each.row]), each.message) for each in summary.errors
            ]
            return

    @staticmethod
    def _rows_before(places: Places, sent: int) -> int:
        """Return how many rows of a batch are done when so many of those at `places` are."""
        return int(places[sent]) if sent < len(places) else int(places[-1]) + 1

    def _without_invalid(
        self, places: Places, vectors: VectorArray, error: InvalidRequest
    ) -> Places:
        """Return the places of the rows that may be valid; raise the error unless it skips them.

        The error names a row of the file then.
        """
        if error.row is None:
            raise error
        row = self._written + int(places[error.row])
        if not (self._skips and _is_of_a_row(error)):
            before = self._rows_before(places, error.acknowledged_rows or 0)
            self._written += before
            raise type(error)(error.reason, field=error.field, row=row) from error.__cause__
        self._ended.skipped.append((row, error.reason))
        kept = places[places != places[error.row]]
        invalid = _invalid_vectors(vectors[kept], self._config.metric)
        reason = "contains NaN or infinity, or has norm 0"
        self._ended.skipped += [(self._written + place, reason) for place in kept[invalid].tolist()]
        valid: Places = kept[~invalid]
        return valid


def _is_of_a_row(error: InvalidRequest) -> bool:
    """Whether a row's own content is invalid, and not the whole request."""
    of_content = isinstance(error, InvalidVector | InvalidId) or error.field == "metadata"
    return of_content and error.row is not None


def _invalid_vectors(vectors: VectorArray, metric: Metric) -> npt.NDArray[np.bool_]:
    """Return which vectors no collection of this metric accepts (rows,)."""
    finite = np.isfinite(vectors).all(axis=1)
    if metric is Metric.COSINE:
        finite = finite & (vectors != 0).any(axis=1)
    return np.logical_not(finite)


COMMANDS: Final = (ingest,)
