"""`vectorshard export`: the live rows of a collection as a file that other products read.

`ingest` reads it back. A backup is another thing: it is incremental, checked, and has all shards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol

import numpy as np
import typer

from vectorshard.cli import asking
from vectorshard.cli.addresses import DEFAULT_ADDRESS
from vectorshard.cli.interruption import told_when_interrupted
from vectorshard.cli.json_output import print_json
from vectorshard.cli.npz_files import NpzWriter
from vectorshard.cli.output import rows_progress, terminal
from vectorshard.cli.parquet_files import NotInstalled, ParquetWriter
from vectorshard.cli.vector_files import UnreadableFile
from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.storage.json_records import to_json
from vectorshard.shard.texts import counted
from vectorshard.shard.types import CollectionConfig, Float32Array, IdArray, IdType, Metric

if TYPE_CHECKING:
    from vectorshard.client.client import Client

PAGE_BYTES: Final = 8 * 1024 * 1024
PAGE_ROWS_MAX: Final = 10_000
_UNFINISHED: Final = ".new"


class RowWriter(Protocol):
    """A file of rows that is being written."""

    def write(self, ids: IdArray, vectors: Float32Array, metadata: Sequence[str]) -> None:
        """Append rows; `metadata` is JSON, empty where a row has none."""
        ...

    def close(self) -> None:
        """Finish the file."""
        ...


def export(
    collection: Annotated[str, typer.Argument(help="Name of the collection.")],
    to: Annotated[
        Path, typer.Option(metavar="FILE", help="A new .parquet or .npz file.", show_default=False)
    ],
    target: asking.Target = DEFAULT_ADDRESS,
    filter_: asking.FilterOption = None,
    skip_damaged: Annotated[
        bool,
        typer.Option("--skip-damaged", help="Leave out rows that are damaged, and name their ids."),
    ] = False,
    timeout: asking.Timeout = 60.0,
    as_json: asking.AsJson = False,
) -> None:
    """Write the live rows of a collection to a file: ids, vectors, and metadata as JSON.

    `ingest` reads such files. Under COSINE the vectors have norm 1, as they are stored.
    """
    console = terminal(silent=as_json)
    with asking.connect(target, timeout) as client:
        description = client.describe(collection)
        config, total = description.config, description.ledger.live
        damaged: list[int | str] = []
        written = 0
        with (
            told_when_interrupted(lambda: f"{to} is not written; repeat the command"),
            rows_progress(console) as progress,
            _writer(to, config) as writer,
        ):
            task = progress.add_task("exporting", total=None if filter_ else total)
            pages = _pages(client, config, filter_, skip_damaged, damaged)
            for ids, vectors, metadata in pages:
                try:
                    writer.write(ids, vectors, [json_of(each) for each in metadata])
                except ValueError as cause:
                    raise InvalidParameter(str(cause), field="to") from cause
                written += len(ids)
                progress.advance(task, len(ids))
    size_mb = to.stat().st_size / 1e6
    console.print(
        f"{counted(written, 'row')} in {to}, {size_mb:,.1f} MB", highlight=False, soft_wrap=True
    )
    if config.metric is Metric.COSINE:
        console.print("metric cosine: the vectors have norm 1, as they are stored")
    if as_json:
        print_json({"file": str(to), "rows": written, "damaged": damaged})
    if damaged:
        some = ", ".join(map(repr, damaged[:10]))
        console.print(
            f"{counted(len(damaged), 'damaged row')} left out, with the ids: {some}",
            style="red",
            markup=False,
        )
        raise typer.Exit(1)


def json_of(metadata: dict[str, Any]) -> str:
    """Return the metadata of a row as JSON; empty for none."""
    return json.dumps(metadata, ensure_ascii=False, separators=(",", ":")) if metadata else ""


@contextmanager
def _writer(path: Path, config: CollectionConfig) -> Iterator[RowWriter]:
    """Lend a file that appears under its name once it is complete."""
    kinds: dict[str, Callable[[Path, int, IdType, str], RowWriter]]
    kinds = {".parquet": ParquetWriter, ".npz": NpzWriter}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise InvalidParameter("the suffix must be .parquet or .npz", field="to")
    if path.exists():
        raise InvalidParameter(f"{path} exists already", field="to")
    if not path.parent.is_dir():
        raise InvalidParameter(f"{path.parent}: there is no such directory", field="to")
    unfinished = path.with_name(path.name + _UNFINISHED)
    try:
        writer = kind(unfinished, config.dim, config.id_type, to_json(config))
    except NotInstalled as cause:
        raise UnreadableFile(f"{path}: {cause}") from cause
    try:
        yield writer
    except BaseException:
        with suppress(Exception):
            writer.close()
        unfinished.unlink(missing_ok=True)
        raise
    writer.close()
    unfinished.rename(path)


def _pages(
    client: Client,
    config: CollectionConfig,
    filter_: str | None,
    skip_damaged: bool,
    damaged: list[int | str],
) -> Iterator[tuple[IdArray, Float32Array, list[dict[str, Any]]]]:
    """Yield the rows page by page, each id once; add the ids of damaged rows to `damaged`.

    A row that is written during the listing may be listed again.
    """
    seen: set[int | str] = set()
    page_size = max(1, min(PAGE_ROWS_MAX, PAGE_BYTES // (4 * config.dim)))
    pages = client.list_rows(
        config.name,
        page_size=page_size,
        filter=filter_,
        vectors=True,
        metadata=True,
        skip_damaged=skip_damaged,
    )
    for page in pages:
        assert page.vectors is not None
        assert page.metadata is not None
        if page.damaged is not None:
            damaged += page.damaged.tolist()
        ids = page.ids.tolist()
        fresh = [place for place, id_ in enumerate(ids) if id_ not in seen]
        seen.update(ids)
        if fresh and len(fresh) == len(ids):
            yield page.ids, page.vectors, page.metadata
        elif fresh:
            places = np.array(fresh)
            yield page.ids[places], page.vectors[places], [page.metadata[each] for each in fresh]
