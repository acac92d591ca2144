"""`vectorshard restore` and `vectorshard verify`: data directories from a backup, and its check.

Both work offline, with nothing but the target.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vectorshard.cli import asking, tables
from vectorshard.cli.interruption import told_when_interrupted
from vectorshard.cli.json_output import plain, print_json
from vectorshard.cli.output import rows_progress, terminal
from vectorshard.shard.config import SLOTS_TOTAL
from vectorshard.shard.errors import CorruptData, LimitsTooLow
from vectorshard.shard.runtime.open_files import raise_limit
from vectorshard.shard.texts import counted

if TYPE_CHECKING:
    from vectorshard.backup.failures import BackupDamaged, FormatUnknown
    from vectorshard.backup.restore import Backup, Restore, Restored, ShardPlace, Wanted
    from vectorshard.backup.verify import Verified

BackupArgument = Annotated[
    str,
    typer.Argument(
        metavar="BACKUP",
        help="A backup: TARGET/NAME, or TARGET for its newest complete one of all collections. A "
        "target is a directory or s3://BUCKET/PREFIX.",
    ),
]
Data = Annotated[Path, typer.Option(metavar="DIR", help="Directory to build: empty, or a new one.")]
Shards = Annotated[
    int | None,
    typer.Option(
        min=1, max=SLOTS_TOTAL, help="Number of shards to build. Default: as in the backup."
    ),
]
ShardId = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="For a fleet: build only the directory of this shard. Run it on the machine of each"
        " shard, with the same --shards and --cluster.",
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        help="Name of the restored fleet, which no fleet had before. Default: a random one."
    ),
]
Collections = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=OTHER]",
        help="Restore only this collection, if given under another name. Repeatable. TARGET is "
        "then the newest complete backup that has it.",
    ),
]
Rejoin = Annotated[
    bool,
    typer.Option(
        "--rejoin",
        help="With --shard-id: the fleet of the backup goes on, and has lost this shard's disk."
        " Accept afterwards the loss of what was written since the backup.",
    ),
]
Partial = Annotated[bool, typer.Option("--partial", help="Restore what a partial backup has.")]
FINDINGS_SHOWN: Final = 20
FILES_ALWAYS: Final = 64
FILES_OF_A_SHARD: Final = 10
"""Open files of the program, and of each shard that a restore builds: eight, and two in reserve."""


class RestoreExit(IntEnum):
    """How `restore` or `verify` ended, if not with 0. Numbers of `backup` mean the same."""

    FAILED = 1
    USAGE = 2
    PARTIAL = 20
    TARGET_FAILED = 22
    DAMAGED = 23


_MEANINGS: Final = {
    RestoreExit.FAILED: "another failure: see the line on stderr",
    RestoreExit.USAGE: "the command line is wrong",
    RestoreExit.PARTIAL: "the backup is sound, but partial: what it lacks is printed",
    RestoreExit.TARGET_FAILED: "the target failed, has no such backup, or several to choose from",
    RestoreExit.DAMAGED: "the backup is damaged: what was found is printed",
}


def explained() -> str:
    """Return the codes and their meanings, as text below a command's help."""
    lines = (f"{code:>3}  {_MEANINGS[code]}" for code in RestoreExit)
    return "\b\nExit codes:\n  0  the backup is whole\n" + "\n".join(lines)


def exit_code(error: Exception) -> RestoreExit:
    """Return the exit code of a command that ends with an error."""
    from vectorshard.backup.failures import BackupIncomplete, TargetError

    if isinstance(error, TargetError):
        return RestoreExit.TARGET_FAILED
    if isinstance(error, BackupIncomplete):
        return RestoreExit.PARTIAL
    return RestoreExit.DAMAGED if isinstance(error, CorruptData) else RestoreExit.FAILED


def restore(
    backup: BackupArgument,
    data: Data,
    shards: Shards = None,
    shard_id: ShardId = None,
    cluster: Cluster = None,
    collection: Collections = None,
    rejoin: Rejoin = False,
    partial: Partial = False,
    as_json: asking.AsJson = False,
) -> None:
    """Build data directories from a backup, on the same or another number of shards. Offline.

    Restored collections have new tokens, cursors and row numbers, and are trained again.
    """
    from vectorshard.backup.manifest import Scope
    from vectorshard.backup.restore import (
        Restore,
        absences,
        part_of_shard,
        require_whole,
        wanted_of,
    )

    console = terminal(silent=as_json)
    source = _located(backup, [each.partition("=")[0] for each in collection or []])
    if rejoin:
        if shard_id is None or shards or cluster or collection:
            raise typer.BadParameter(
                "--rejoin goes with --shard-id, and builds what that shard had"
            )
        cluster = source.manifest.cluster
    elif shard_id is not None and _is_unnamed(backup):
        raise typer.BadParameter(
            f"--shard-id needs the name of the backup, the same on each machine: "
            f"{source.target.where}/{source.name} is the newest"
        )
    places = _places(data, shards or source.manifest.shards_total, shard_id, cluster)
    wanted = wanted_of(source.manifest, collection or [])
    absent = absences(source.manifest, wanted, everything=not collection)
    passed_over = _say_what_it_is(console, source, backup, chosen=bool(collection))
    if rejoin and shard_id is not None:
        wanted = part_of_shard(wanted, shard_id)
        absent = [line for line in absent if f", shard {shard_id}: " in line]
        if source.manifest.scope is Scope.CHOSEN:
            absent.append("the collections of its shard that were not chosen for it")
    if not partial:
        require_whole(source, absent)
    for line in absent:
        console.print(f"the backup lacks {line}", style="red", markup=False)
    _require_open_files(len(places))
    restoring = Restore(source, places, rejoin=rejoin)
    found = _restored(console, restoring, data, wanted, absent)
    start = _start_command(places, data)
    if as_json:
        said = {"lacks": absent, "newer_unreadable": [str(each) for each in passed_over]}
        print_json({**_as_json(source, found), **said, "start": f"vectorshard {start}"})
        return
    console.print(_restored_table(source, found))
    _say_what_follows(console, found, start, rejoined=shard_id if rejoin else None)


def _as_json(source: Backup, found: Sequence[Restored]) -> dict[str, object]:
    """Return what was restored, as its members of JSON."""
    collections = [
        {
            "name": each.wanted.name,
            "rows": sum(each.rows.values()),
            "rows_of_shards": each.rows,
            "content_sum": each.sum_built,
        }
        for each in found
    ]
    return {"backup": source.name, "collections": collections}


def _restored(
    console: Console,
    restoring: Restore,
    data: Path,
    wanted: Sequence[Wanted],
    absent: Sequence[str],
) -> list[Restored]:
    """Restore with a progress bar, and print the rate."""
    state = f"{data} is incomplete, and no server starts on it; repeat the command"
    with told_when_interrupted(lambda: state), rows_progress(console) as progress:
        task = progress.add_task("restoring", total=sum(each.backup.live for each in wanted))
        begun = time.monotonic()
        found = restoring.run(
            data,
            wanted,
            note=f" (partial: {'; '.join(absent)})" if absent else "",
            advance=lambda rows: progress.advance(task, rows),
        )
        elapsed_s = time.monotonic() - begun
    rows = sum(sum(each.rows.values()) for each in found)
    console.print(f"restored {counted(rows, 'row')}, {rows / max(elapsed_s, 1e-9):,.0f} rows/s")
    return found


def _say_scope(console: Console, source: Backup) -> None:
    """Say so if a backup has only chosen collections."""
    from vectorshard.backup.manifest import Scope

    if source.manifest.scope is Scope.CHOSEN:
        names = ", ".join(each.name for each in source.manifest.collections)
        console.print(f"backup {source.name} has only chosen collections: {names}", markup=False)


def _say_what_it_is(
    console: Console, source: Backup, asked: str, *, chosen: bool = False
) -> list[BackupDamaged | FormatUnknown]:
    """Say what scope a backup has, and what is newer and unreadable, unless it was named.

    Returns the errors of the newer ones. `chosen`: the operator has named collections.
    """
    from vectorshard.backup.choice import absent_above, unreadable_above

    if not chosen:
        _say_scope(console, source)
    if not _is_unnamed(asked):
        return []
    found = unreadable_above(source.target, source.name)
    for each in found:
        console.print(
            f"a newer backup than {source.name} is unreadable: {each}",
            style="red",
            markup=False,
            soft_wrap=True,
        )
    if number := absent_above(source.target, source.name):
        console.print(
            f"note: a newer backup took number {number}, and is not there: it was not finished, "
            "or is gone",
            soft_wrap=True,
        )
    return found


def _require_open_files(shards: int) -> None:
    """Raise the limit of open files; LimitsTooLow if it is too low for so many directories."""
    limit, needed = raise_limit(), FILES_ALWAYS + FILES_OF_A_SHARD * shards
    if limit < needed:
        raise LimitsTooLow(
            f"restoring {counted(shards, 'shard')} needs {needed:,} open files, and the limit is "
            f"{limit:,}: "
            "raise it (ulimit -Hn), or build each shard with --shard-id"
        )


def _is_unnamed(where: str) -> bool:
    """Whether only a target is given: what is its newest backup may change."""
    from vectorshard.backup.layout import split_name

    return not split_name(where)[1]


def _located(where: str, collections: Sequence[str] = ()) -> Backup:
    from vectorshard.backup.choice import located
    from vectorshard.backup.layout import read_manifest
    from vectorshard.backup.restore import Backup

    target, name = located(where, collections)
    return Backup(target=target, name=name, manifest=read_manifest(target, name))


def _places(data: Path, shards: int, shard_id: int | None, cluster: str | None) -> list[ShardPlace]:
    """Return what to build: all shards below a directory, or one shard in it."""
    from vectorshard.backup.restore import ShardPlace
    from vectorshard.cli.fleet import EMBEDDED, identity_of

    if shard_id is None:
        name = cluster or uuid.uuid4().hex
        return [
            ShardPlace(
                path=data / EMBEDDED.format(shard), identity=identity_of(shard, shards, name)
            )
            for shard in range(shards)
        ]
    if shard_id >= shards:
        raise typer.BadParameter(f"--shard-id {shard_id} must be less than --shards {shards}")
    if cluster is None:
        raise typer.BadParameter(
            "--shard-id needs --cluster: the same new name for all shards of the restored fleet"
        )
    return [ShardPlace(path=data, identity=identity_of(shard_id, shards, cluster))]


def _restored_table(source: Backup, found: Sequence[Restored]) -> Table:
    left = ["collection", "rows of each shard", "content sum"]
    table = tables.plain_table(f"restored from {source.name}", left, ["rows"])
    for each in found:
        by_shard = ", ".join(f"{shard}: {rows:,}" for shard, rows in sorted(each.rows.items()))
        table.add_row(
            Text(each.wanted.name), by_shard, each.sum_built.hex(), f"{sum(each.rows.values()):,}"
        )
    return table


def _say_what_follows(
    console: Console, found: Sequence[Restored], start: str, *, rejoined: int | None
) -> None:
    from vectorshard.backup.estimate import training_estimate_s

    estimate_s = sum(
        training_estimate_s(each.wanted.config, rows)
        for each in found
        for rows in each.rows.values()
    )
    if estimate_s:
        console.print(
            f"training follows the start: about {_duration(estimate_s)} of one core; until then "
            "searches are exact, and slower",
            highlight=False,
        )
    console.print(f"start it with: vectorshard {start}", highlight=False, soft_wrap=True)
    if rejoined is not None:
        console.print(f"then: vectorshard accept-loss --shard-id {rejoined}", highlight=False)


def _start_command(places: Sequence[ShardPlace], data: Path) -> str:
    """Return the command, without its program, that serves what was restored."""
    identity = places[0].identity
    if len(places) == identity.shards_total and places[0].path != data:
        return f"serve --shards {identity.shards_total} --data {data}"
    return f"shard --shard-id {identity.shard} --shards {identity.shards_total} --data {data}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else counted(round(seconds / 60), "minute")


def verify(
    backup: BackupArgument,
    quick: Annotated[
        bool, typer.Option("--quick", help="Compare only which objects there are, and their sizes.")
    ] = False,
    as_json: asking.AsJson = False,
) -> None:
    """Read a whole backup and compare every row and total with its manifest. Offline."""
    from vectorshard.backup.verify import verify as verify_all
    from vectorshard.backup.verify import verify_quickly

    console = terminal(silent=as_json)
    source = _located(backup)
    target, manifest = source.target, source.manifest
    passed_over = _say_what_it_is(console, source, backup)
    if quick:
        found = verify_quickly(target, manifest)
    else:
        state = "the backup is not verified; nothing was changed. --quick compares sizes alone"
        with told_when_interrupted(lambda: state), rows_progress(console) as progress:
            task = progress.add_task("verifying", total=manifest.live)
            found = verify_all(target, manifest, lambda rows: progress.advance(task, rows))
    if found.findings:
        _require_there(source)
    _say_what_was_verified(console, source, found, quick)
    if as_json:
        verified = {"backup": source.name, "sound": not found.findings, "quick": quick}
        said = {
            "left_out": manifest.left_out,
            "newer_unreadable": [str(each) for each in passed_over],
        }
        print_json({**verified, **plain(found), **said})
    if found.findings:
        raise typer.Exit(RestoreExit.DAMAGED)
    if passed_over:
        raise typer.Exit(exit_code(passed_over[0]))
    if not manifest.complete:
        raise typer.Exit(RestoreExit.PARTIAL)


def _require_there(source: Backup) -> None:
    """Raise BackupNotFound if a prune has deleted a backup, whose objects are gone then."""
    from vectorshard.backup.failures import BackupNotFound
    from vectorshard.backup.layout import backup_names

    if source.name not in backup_names(source.target):
        raise BackupNotFound(
            f"{source.target.where}/{source.name} was deleted while it was verified: it is pruned, "
            "not damaged. Repeat the command"
        )


def _say_what_was_verified(console: Console, source: Backup, found: Verified, quick: bool) -> None:
    for finding in found.findings[:FINDINGS_SHOWN]:
        console.print(f"damaged: {finding}", style="red", markup=False)
    if len(found.findings) > FINDINGS_SHOWN:
        console.print(f"and {len(found.findings) - FINDINGS_SHOWN:,} more", style="red")
    if found.findings:
        console.print("`vectorshard backup --full` makes one that builds on nothing of this one")
    for each in source.manifest.left_out:
        console.print(
            f"partial: it lacks collection {each.collection!r}, shard {each.shard}: {each.reason}",
            style="red",
            markup=False,
        )
    read = f"{counted(found.objects, 'object')} of {found.size_bytes / 1e6:,.1f} MB"
    if quick:
        text = f"backup {source.name}: {read} found; contents not read"
    else:
        text = f"backup {source.name}: {counted(found.rows, 'row')} in {read}"
    sound = "damaged" if found.findings else "sound"
    console.print(f"{text}: {sound}", markup=False, highlight=False)


COMMANDS: Final = (restore, verify)
