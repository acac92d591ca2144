"""Pruning: delete old backups, and the objects that no backup needs any more. Blocking."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Final

from vectorshard.backup.failures import FormatUnknown
from vectorshard.backup.fleets import Named, fleets_of
from vectorshard.backup.layout import (
    BACKUPS,
    BLOCKS,
    NUMBERS,
    RUNNING,
    manifest_object,
    manifests,
    newest_number,
    number_of,
    unknown_names,
)
from vectorshard.backup.leases import EXPIRED_S, Kind, Lease
from vectorshard.backup.manifest import Manifest
from vectorshard.backup.targets import UNFINISHED, StoredObject, Target

AGE_MIN_S: Final = 3_600.0
"""An object that no backup names is younger than this: it is left. More: garbage stays longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What was deleted: backups by name, and objects. `held` says why no object was."""

    backups: tuple[str, ...]
    objects: int
    size_bytes: int
    held: str


def prune(
    target: Target,
    *,
    keep: int,
    keep_days: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
    new_hex: Callable[[], str] = lambda: secrets.token_hex(4),
    dry_run: bool = False,
) -> Pruned:
    """Keep the newest `keep` backups of everything, and those of the last `keep_days` days.

    Of each fleet, that is the newest `keep` complete backups of all its collections, and of each
    of these collections the newest `keep` complete backups that have it. Partial and damaged
    backups that are older than all of these go too. Days are by the clock of the store. While a
    backup is being made, its blocks and those that it builds on stay, and so do all others.

    Raises
    ------
    FormatUnknown
        If another release wrote one of the backups: nothing is deleted.
    LeaseLost
        If this process was stopped for so long that others may think that it died.
    """
    lease = Lease(target, Kind.PRUNE, new_hex(), clock)
    try:
        others = lease.others()
        found = list(manifests(target))
        young = _young(target, lease.now() - keep_days * 86_400) if keep_days else set()
        kept, old = _divided(found, keep, young)
        held = ""
        if any(each.kind is Kind.BACKUP and not each.is_over for each in others):
            held = "a backup is being made"
        elif damaged := [name for name, each in found if _is_damaged(each) and name not in old]:
            held = f"the manifest of {damaged[0]} is damaged, so its objects are unknown"
        elif unknown := unknown_names(target):
            held = f"{BACKUPS}{unknown[0]}.json is no backup of this release"
        elif not kept:
            held = "no backup is to be seen, so what is needed is unknown"
        elif (newest := newest_number(target)) > number_of(found[0][0]):
            held = f"the backup of number {newest} is not to be seen"
        needed = {name for manifest in kept for name in manifest.objects()}
        time_there = lease.now()
        garbage = [] if held else _garbage(target, needed, time_there)
        leases = [each.name for each in others if each.is_over]
        numbers = [each.name for each in target.list(NUMBERS)]
        if not dry_run:
            _delete(target, lease, [manifest_object(name) for name in old])
            _delete(target, lease, [each.name for each in garbage])
            _delete(target, lease, leases + sorted(numbers)[:-1])
        return Pruned(
            backups=tuple(old),
            objects=len(garbage),
            size_bytes=sum(each.size_bytes for each in garbage),
            held=held,
        )
    finally:
        lease.end()


def _young(target: Target, since: float) -> set[str]:
    """Return the manifests' objects that were written after a moment of the store's clock."""
    return {each.name for each in target.list(BACKUPS) if each.written_at >= since}


def _divided(
    found: Sequence[tuple[str, Manifest | Exception]], keep: int, young: Container[str]
) -> tuple[list[Manifest], list[str]]:
    """Return the manifests to keep, and the names of the backups to delete."""
    readable: list[Named] = []
    for name, each in found:
        if isinstance(each, FormatUnknown):
            raise each
        if isinstance(each, Manifest):
            readable.append((name, each))
    needed: set[str] = set()
    since: dict[str, int] = {}
    for fleet in fleets_of(readable):
        of_fleet = _needed([(name, each) for name, each in fleet if each.complete], keep)
        needed |= of_fleet
        oldest = min(map(number_of, of_fleet), default=0)
        since |= {name: oldest for name, _ in fleet}
    kept: list[Manifest] = []
    old: list[str] = []
    for name, each in found:
        if isinstance(each, Manifest):
            is_newer = not each.complete and number_of(name) > since[name]
        else:
            is_newer = number_of(name) > min(since.values(), default=0)
        if name not in needed and not is_newer and manifest_object(name) not in young:
            old.append(name)
        elif isinstance(each, Manifest):
            kept.append(each)
    return kept, old


def _needed(complete: Sequence[tuple[str, Manifest]], keep: int) -> set[str]:
    """Return the backups of a fleet that are among the newest `keep` of something.

    `complete` are its complete backups, the newest first. A collection that is in none of them
    since the oldest of the newest `keep` that have all collections was dropped long ago. A backup
    of no collection at all pushes none out: its fleet is new, or has lost everything.
    """
    whole = [name for name, each in complete if each.whole and each.collections][:keep]
    needed = {*whole, *[name for name, each in complete if each.whole][:keep]}
    since = number_of(whole[-1]) if len(whole) == keep else 0
    names = {
        collection.name
        for name, each in complete
        if number_of(name) >= since
        for collection in each.collections
    }
    for wanted in names:
        needed.update([name for name, each in complete if each.has({wanted})][:keep])
    return needed


def _is_damaged(found: Manifest | Exception) -> bool:
    return not isinstance(found, Manifest)


def _garbage(target: Target, needed: set[str], now: float) -> list[StoredObject]:
    """Return the objects that no manifest needs, and that no backup is about to need."""

    def is_old(found: StoredObject) -> bool:
        return now - found.written_at > AGE_MIN_S

    blocks = [each for each in target.list(BLOCKS) if each.name not in needed and is_old(each)]
    for folder in (BACKUPS, RUNNING):
        blocks += [
            each
            for each in target.list(folder)
            if each.name.endswith(UNFINISHED) and is_old(each) and now - each.written_at > EXPIRED_S
        ]
    return blocks


def _delete(target: Target, lease: Lease, names: Sequence[str]) -> None:
    for name in names:
        lease.require()
        lease.renew_if_due()
        target.delete(name)
