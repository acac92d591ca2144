"""`vectorshard backup`: copy collections into a target; list and prune what is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

import vectorshard
from vectorshard.cli import asking, tables
from vectorshard.cli.addresses import DEFAULT_ADDRESS
from vectorshard.cli.interruption import told_when_interrupted
from vectorshard.cli.json_output import plain, print_json
from vectorshard.cli.output import terminal
from vectorshard.shard import errors
from vectorshard.shard.texts import counted

if TYPE_CHECKING:
    from vectorshard.backup.manifest import Manifest
    from vectorshard.backup.run import Made, Wanted
    from vectorshard.backup.targets import Target


class BackupExit(IntEnum):
    """How a command about backups ended, if not with 0."""

    FAILED = 1
    USAGE = 2
    PARTIAL = 20
    INCOMPLETE = 21
    TARGET_FAILED = 22


MEANINGS: Final = {
    BackupExit.FAILED: "another failure: see the line on stderr",
    BackupExit.USAGE: "the command line is wrong",
    BackupExit.PARTIAL: "a partial backup was made, as --partial allows",
    BackupExit.INCOMPLETE: "no backup: rows are damaged, or a shard is missing",
    BackupExit.TARGET_FAILED: "no backup: the target failed",
}


def explained() -> str:
    """Return the codes and their meanings, as text below a command's help."""
    lines = (f"{code:>3}  {MEANINGS[code]}" for code in BackupExit)
    return "\b\nExit codes:\n  0  a complete backup was made\n" + "\n".join(lines)


def exit_code(error: Exception) -> BackupExit:
    """Return the exit code of a command that ends with an error."""
    from vectorshard.backup.failures import BackupIncomplete, TargetError

    if isinstance(error, TargetError):
        return BackupExit.TARGET_FAILED
    missing = (BackupIncomplete, errors.ShardUnavailable, errors.CorruptData)
    return BackupExit.INCOMPLETE if isinstance(error, missing) else BackupExit.FAILED


# ---- vectorshard backup --------------------------------------------------------------------------


def backup(
    ctx: typer.Context,
    to: Annotated[
        str, typer.Option(metavar="TARGET", help="A directory, or s3://BUCKET/PREFIX.")
    ] = "",
    target: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Address of a router, or of the only shard.")
    ] = DEFAULT_ADDRESS,
    collection: Annotated[
        list[str] | None, typer.Option(help="Only this collection; repeatable.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave out damaged rows and missing shards.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Copy all rows, also those of earlier backups.")
    ] = False,
    parallel: Annotated[int, typer.Option(min=1, help="Shards that are copied at once.")] = 1,
    patience: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for a shard.")
    ] = 120.0,
    metrics_file: Annotated[
        Path | None, typer.Option(help="Write metrics of the run for node_exporter.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.001, metavar="SECONDS", help="Timeout of each call.")
    ] = 30.0,
    as_json: asking.AsJson = False,
) -> None:
    """Copy collections into a target, while the servers go on.

    Rows that an earlier backup in the target holds are not copied again. Each shard is copied at
    a separate moment. `vectorshard backup list` and `prune` look after what is there.
    """
    if ctx.invoked_subcommand is not None:
        return
    from vectorshard.backup.run import Wanted

    if not to:
        raise typer.BadParameter("--to is required: a directory, or s3://BUCKET/PREFIX")
    wanted = Wanted(
        collections=tuple(collection or ()),
        partial=partial,
        full=full,
        parallel=parallel,
        timeout_s=timeout,
        patience_s=patience,
    )
    none = "no backup was made; repeat the command. A prune deletes what was copied in vain"
    with told_when_interrupted(lambda: none):
        made = _run(target, to, wanted, metrics_file, terminal(silent=as_json))
    if as_json:
        print_json({**_described(made.name, made.manifest, datetime.now(UTC)), **_copied(made)})
    if not made.manifest.complete:
        raise typer.Exit(BackupExit.PARTIAL)


def _copied(made: Made) -> dict[str, Any]:
    """Return what this run did, as its members of JSON."""
    return {
        "copied_rows": made.copied_rows,
        "copied_bytes": made.copied_bytes,
        "notes": made.notes,
        "left_out": made.manifest.left_out,
    }


def _run(server: str, to: str, wanted: Wanted, metrics_file: Path | None, console: Console) -> Made:
    """Make a backup, and print what it has."""
    from vectorshard.backup.targets import open_target

    target: Target | None = None
    complete = False
    try:
        target = open_target(to, create=True)
        made = asyncio.run(_back_up(server, target, wanted, console))
        complete = made.manifest.complete
    finally:
        if metrics_file is not None:
            _write_metrics(metrics_file, target, success=complete)
    _print_made(console, target, made)
    return made


def _write_metrics(path: Path, target: Target | None, *, success: bool) -> None:
    """Write the metrics; a failure is said, and changes nothing about the backup."""
    from vectorshard.backup.metrics_file import write_metrics

    try:
        write_metrics(path, target, now=datetime.now(UTC), success=success)
    except (OSError, errors.VectorShardError) as error:
        typer.echo(f"note: the metrics were not written: {error}", err=True)


async def _back_up(server: str, target: Target, wanted: Wanted, console: Console) -> Made:
    from vectorshard.backup.run import Backup
    from vectorshard.router.remote.remote_shard import RemoteShard

    remote = RemoteShard(server)
    try:
        with _Progress(console) as progress:
            making = Backup(
                remote, target, wanted, version=vectorshard.__version__, report=progress
            )
            return await making.run()
    except errors.Unsupported as error:
        raise errors.Unsupported(
            f"{server} does not support backups: it, or a shard of it, is of an earlier release"
        ) from error
    finally:
        await remote.close()


def _print_made(console: Console, target: Target, made: Made) -> None:
    from vectorshard.backup.manifest import Scope

    manifest = made.manifest
    for note in made.notes:
        console.print(f"note: {note}", soft_wrap=True)
    for each in manifest.left_out:
        console.print(
            f"left out: collection {each.collection!r}, shard {each.shard}: {each.reason}",
            soft_wrap=True,
        )
    kind = "complete" if manifest.complete else "PARTIAL"
    chosen = "" if manifest.scope is Scope.ALL else "chosen "
    collections = counted(len(manifest.collections), f"{chosen}collection")
    console.print(
        f"{target.where}/{made.name}: {kind}, {collections}, "
        f"{counted(manifest.live, 'row')}, {_megabytes(manifest.size_bytes)}; "
        f"copied {counted(made.copied_rows, 'row')}, {_megabytes(made.copied_bytes)}"
        + (f", the others are in earlier backups ({manifest.previous})" * bool(manifest.previous)),
        soft_wrap=True,
    )
    if len(manifest.collections) and manifest.shards_total > 1:
        console.print("each shard was copied at a separate moment: see docs/backups.md")


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


class _Rate(ProgressColumn):
    """Rows a second."""

    def render(self, task: Task) -> Text:
        """Return the current rate, or the mean rate of a finished task."""
        rate = task.fields["rows"] / task.elapsed if task.elapsed else 0
        return Text(f"{rate:,.0f} rows/s" if rate else "")


class _Progress:
    """A progress bar of rows, with bytes, rate and remaining time; a Report of a backup."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[rows]:,}/{task.fields[expected]:,} rows"),
            TextColumn("{task.fields[copied]}"),
            _Rate(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: TaskID = self._progress.add_task(
            "backup", total=None, rows=0, expected=0, copied=""
        )
        self._left: dict[tuple[str, int], int] = {}
        self._rows = 0
        self._bytes = 0

    def __enter__(self) -> _Progress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def expected(self, collection: str, shard: int, rows: int) -> None:
        """Count the rows that a shard probably has to copy."""
        self._left[collection, shard] = rows
        self._show()

    def opened(self, collection: str, shard: int, rows: int) -> None:
        """Count the rows that a shard has to copy."""
        self._progress.update(self._task, description=f"{collection}, shard {shard}")
        self.expected(collection, shard, rows)

    def copied(self, collection: str, shard: int, rows: int, size_bytes: int) -> None:
        """Advance."""
        self._left[collection, shard] = max(0, self._left.get((collection, shard), 0) - rows)
        self._rows += rows
        self._bytes += size_bytes
        self._show()

    def _show(self) -> None:
        total = self._rows + sum(self._left.values())
        self._progress.update(
            self._task,
            total=total,
            completed=self._rows,
            rows=self._rows,
            expected=total,
            copied=_megabytes(self._bytes),
        )


# ---- vectorshard backup list ---------------------------------------------------------------------


def list_backups(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="DIR or s3://BUCKET/PREFIX.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each.")] = False,
) -> None:
    """List the backups in a target, the newest first."""
    from vectorshard.backup.layout import manifests
    from vectorshard.backup.manifest import Manifest
    from vectorshard.backup.targets import open_target

    found = list(manifests(open_target(target)))
    now = datetime.now(UTC)
    rows: list[dict[str, Any]] = [
        _described(name, each, now)
        if isinstance(each, Manifest)
        else {"name": name, "error": str(each)}
        for name, each in found
    ]
    if as_json:
        for row in rows:
            print_json(row)
        return
    left = ["backup", "ended", "age", "scope", "collections", "outcome"]
    table = tables.plain_table(f"backups in {target}", left, ["rows", "MB"])
    clusters = sorted({row["cluster"] for row in rows if "cluster" in row})
    for row in rows:
        if "error" in row:
            table.add_row(row["name"], *[""] * 4, Text(row["error"]))
            continue
        table.add_row(
            row["name"],
            row["ended"],
            _age(row["age_s"]),
            row["scope"] + f" of {row['cluster']}" * (len(clusters) > 1),
            Text(", ".join(row["collections"])),
            "complete" if row["complete"] else "partial",
            f"{row['rows']:,}",
            f"{row['bytes'] / 1e6:,.1f}",
        )
    console = terminal()
    console.print(table if rows else f"{target} has no backups")


def _described(name: str, manifest: Manifest, now: datetime) -> dict[str, Any]:
    from vectorshard.backup.moments import moment_of

    return {
        "name": name,
        "number": manifest.number,
        "scope": manifest.scope.value,
        "begun": manifest.begun,
        "ended": manifest.ended,
        "age_s": max(0, round((now - moment_of(manifest.ended)).total_seconds())),
        "cluster": manifest.cluster,
        "shards": manifest.shards_total,
        "collections": [each.name for each in manifest.collections],
        "rows": manifest.live,
        "bytes": manifest.size_bytes,
        "complete": manifest.complete,
        "previous": manifest.previous,
    }


def _age(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


# ---- vectorshard backup prune --------------------------------------------------------------------


def prune(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="DIR or s3://BUCKET/PREFIX.")],
    keep: Annotated[int, typer.Option(min=1, help="Complete backups to keep, of everything.")],
    keep_days: Annotated[
        float, typer.Option(min=0, help="Also keep what is younger than so many days.")
    ] = 0.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be deleted.")
    ] = False,
    as_json: asking.AsJson = False,
) -> None:
    """Delete old backups, and the objects that no backup needs.

    Kept are the newest of all collections, and the newest that have each of them. It is safe
    while a backup or another prune runs.
    """
    from vectorshard.backup.prune import prune
    from vectorshard.backup.targets import open_target

    partly = "some objects may be deleted; every backup that is listed is whole"
    with told_when_interrupted(lambda: partly):
        done = prune(open_target(target), keep=keep, keep_days=keep_days, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, **plain(done)})
        return
    verb = "would delete" if dry_run else "deleted"
    for name in done.backups:
        typer.echo(f"{verb} backup {name}")
    typer.echo(
        f"{verb} {counted(len(done.backups), 'backup')} and {counted(done.objects, 'object')}, "
        f"{_megabytes(done.size_bytes)}"
    )
    if done.held:
        typer.echo(f"objects stay for the next prune: {done.held}")


COMMANDS: Final[dict[str, Callable[..., None]]] = {"list": list_backups, "prune": prune}
