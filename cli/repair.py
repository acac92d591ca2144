"""`vectorshard repair`: what is damaged in a data directory, what is lost, and its repair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from vectorshard.cli.exit_codes import MEANINGS, ExitCode
from vectorshard.cli.interruption import told_when_interrupted
from vectorshard.cli.json_output import print_json
from vectorshard.shard.config import SLOTS_TOTAL
from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.storage.repair_findings import IDS_SHOWN, METADATA, Outcome, Repair
from vectorshard.shard.texts import counted

FOUND: Final = 1
"""The exit code if something was found, and could be repaired or was, or is a damaged row."""

_CODES: Final = (
    ExitCode.DIRECTORY_LOCKED,
    ExitCode.DIRECTORY_TOO_NEW,
    ExitCode.DIRECTORY_FOREIGN,
    ExitCode.DISK_FULL,
    ExitCode.DISK_UNUSABLE,
)


def explained() -> str:
    """Return the exit codes and their meanings, as text below the command's help."""
    lines = [
        "  0  everything is sound",
        "  1  something was found: it can be repaired, or was, or rows stay damaged",
        " 14  something is beyond repair: the output says what to do",
        *(f"{code:>3}  {MEANINGS[code]}" for code in _CODES),
    ]
    return "\b\nExit codes:\n" + "\n".join(lines)


Collection = Annotated[str, typer.Option(help="Only this collection. Default: all.")]
Write = Annotated[
    bool, typer.Option("--write", help="Repair it. The files that are replaced are kept.")
]
DropDamaged = Annotated[
    bool,
    typer.Option(
        "--drop-damaged",
        help="Delete rows that do not match their content hashes and that no undone flip restores.",
    ),
]
Work = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Directory with room for three copies of the largest store.db. Default: that of"
        " temporary files.",
    ),
]
_FOR_IDENTITY: Final = "For a damaged shard.json:"
ShardId = Annotated[int | None, typer.Option(min=0, help=f"{_FOR_IDENTITY} the shard's number.")]
Shards = Annotated[
    int | None, typer.Option(min=1, max=SLOTS_TOTAL, help=f"{_FOR_IDENTITY} shards in the fleet.")
]
Cluster = Annotated[str | None, typer.Option(help=f"{_FOR_IDENTITY} name of the fleet.")]


def repair(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Data directory of a shard that does not run.")
    ],
    collection: Collection = "",
    write: Write = False,
    drop_damaged: DropDamaged = False,
    work: Work = None,
    shard_id: ShardId = None,
    shards: Shards = None,
    cluster: Cluster = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what is damaged in a shard's data directory and what is lost; with --write, repair it.

    Without --write, nothing is changed. The shard must not run.
    """
    from vectorshard.cli.fleet import PLACEMENT_EPOCH
    from vectorshard.router.fan_out.placement import slots_of_shard
    from vectorshard.shard.engine.machine import naming_start_failures
    from vectorshard.shard.storage import repair as repairs
    from vectorshard.shard.storage.disk import Disk

    if work is not None and not work.is_dir():
        raise InvalidParameter(f"{work} is not a directory", field="work")
    wanted = repairs.Wanted(
        write=write, collection=collection, work=work, drop_damaged=drop_damaged
    )
    given = repairs.Given(
        shard=shard_id,
        shards_total=shards,
        cluster=cluster,
        placement_epoch=PLACEMENT_EPOCH,
        slots_of=slots_of_shard,
    )
    partly = "the repair may be incomplete; repeat the command before a server starts"
    with told_when_interrupted(lambda: partly if write else "nothing was changed"):
        found = naming_start_failures(directory, repairs.repair, Disk(), directory, wanted, given)
    if as_json:
        print_json(found)
    else:
        for line in told(directory, found, written=write):
            typer.echo(line)
    outcomes = {each.outcome for each in found}
    if Outcome.REFUSED in outcomes:
        raise typer.Exit(ExitCode.DIRECTORY_DAMAGED)
    if outcomes != {Outcome.SOUND}:
        raise typer.Exit(FOUND)


def told(directory: Path, repairs: Sequence[Repair], *, written: bool) -> Iterator[str]:
    """Yield the lines that tell an operator what was found."""
    for each in repairs:
        name = f"collection {each.collection}" if each.collection else str(directory)
        damaged = counted(len(each.still_damaged), "damaged row")
        yield f"{name}: {_OUTCOMES[each.outcome].format(damaged=damaged)}"
        for finding in each.findings:
            action = f" -> {finding.action}" if finding.action and each.cure == "" else ""
            yield f"  {finding.file}: {finding.found}{action}"
        yield from (f"  {line}" for line in _rows(each, written=written))
        if each.cure:
            yield f"  {each.cure}."
        if each.kept_in:
            yield f"  The files of before are kept in {each.kept_in}."
    if not written and any(each.outcome is Outcome.REPAIRABLE for each in repairs):
        yield "Nothing was changed. Repeat the command with --write to repair it."


_OUTCOMES: Final = {
    Outcome.SOUND: "sound",
    Outcome.ROWS_DAMAGED: "sound but for {damaged}",
    Outcome.REPAIRABLE: "damaged, can be repaired",
    Outcome.REPAIRED: "repaired",
    Outcome.REFUSED: "not repaired",
}


_MISSING: Final = (
    "the shard is MISSING for this collection until the loss is accepted: "
    "`vectorshard accept-loss`, through a router"
)


def _rows(found: Repair, *, written: bool) -> Iterator[str]:
    """Yield what is lost, damaged and restored, row by row where rows are known."""
    restored = [each for each in found.damaged_rows if each.restored]
    if restored:
        yield f"{counted(len(restored), 'row')} restored: {_ids([each.id for each in restored])}"
    if damaged := found.still_damaged:
        yield f"{counted(len(damaged), 'row')} damaged: {_ids([each.id for each in damaged])}"
        if metadata := sum(each.found == METADATA for each in damaged):
            yield f"  of {metadata:,} of them the vectors are sound: their metadata is gone"
        if found.rows_dropped:
            yield f"  deleted{'' if written else ' with --write'}: write them again"
        else:
            yield "  upsert or delete these ids, or delete them here with --write --drop-damaged"
    if found.commits_lost:
        yield f"{counted(len(found.commits_lost), 'commit')} lost: {_ids(found.commits_lost)}"
    if found.whole:
        if found.gave_up:
            yield f"an earlier repair gave up commits: {_MISSING}"
        return
    if found.rows_lost is None:
        yield "rows of them: unknown; their ids: unknown"
    elif found.rows_lost:
        yield f"{counted(found.rows_lost, 'row')} lost; their ids: unknown"
    if found.rows_back is None:
        yield "rows that they replaced or deleted are back: how many is unknown"
    elif found.rows_back:
        yield f"{counted(found.rows_back, 'row')} that they replaced or deleted may be back"
    yield _MISSING


def _ids(ids: Sequence[object]) -> str:
    shown = ", ".join(str(each) for each in ids[:IDS_SHOWN])
    others = len(ids) - IDS_SHOWN
    return f"{shown} and {counted(others, 'other')}" if others > 0 else shown


COMMANDS: Final = (repair,)
