"""Pruning: delete old backups, and the objects that no backup needs any more. Blocking."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from vectorshard.backup.failures import BackupTooNew
from vectorshard.backup.layout import BACKUPS, BLOCKS, RUNNING, manifest_object, manifests
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
    now: datetime,
    clock: Callable[[], float] = time.monotonic,
    new_hex: Callable[[], str] = lambda: secrets.token_hex(4),
    dry_run: bool = False,
) -> Pruned:
    """Keep the newest `keep` complete backups, and those of the last `keep_days` days.

    Partial and damaged backups that are older than the oldest kept one go too. While a backup is
    being made, its blocks and those that it builds on stay, and so do all others.

    Raises
    ------
    BackupTooNew
        If a later version wrote one of the backups: nothing is deleted.
    LeaseLost
        If this process was stopped for so long that others may think that it died.
    """
    lease = Lease(target, Kind.PRUNE, new_hex(), clock)
    try:
        others = lease.others()
        found = list(manifests(target))
        kept, old = _divided(found, keep, now - timedelta(days=keep_days))
        held = ""
        if any(each.kind is Kind.BACKUP and not each.is_over for each in others):
            held = "a backup is being made"
        elif damaged := [name for name, each in found if _is_damaged(each) and name not in old]:
            held = f"the manifest of {damaged[0]} is damaged, so its objects are unknown"
        needed = {name for manifest in kept for name in manifest.objects()}
        time_there = lease.now()
        garbage = [] if held else _garbage(target, needed, time_there)
        leases = [each.name for each in others if each.is_over]
        if not dry_run:
            _delete(target, lease, [manifest_object(name) for name in old])
            _delete(target, lease, [each.name for each in garbage])
            _delete(target, lease, leases)
        return Pruned(
            backups=tuple(old),
            objects=len(garbage),
            size_bytes=sum(each.size_bytes for each in garbage),
            held=held,
        )
    finally:
        lease.end()


def _divided(
    found: Sequence[tuple[str, Manifest | Exception]], keep: int, since: datetime
) -> tuple[list[Manifest], list[str]]:
    """Return the manifests to keep, and the names of the backups to delete."""
    complete = [name for name, each in found if isinstance(each, Manifest) and each.complete]
    newest = complete[:keep]
    oldest_kept = newest[-1] if newest else ""
    kept: list[Manifest] = []
    old: list[str] = []
    for name, each in found:
        is_young = datetime.strptime(name[:16] + "+0000", "%Y%m%dT%H%M%SZ%z") >= since
        if isinstance(each, BackupTooNew):
            raise each
        if name in newest or name >= oldest_kept or is_young:
            if isinstance(each, Manifest):
                kept.append(each)
        else:
            old.append(name)
    return kept, old


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
