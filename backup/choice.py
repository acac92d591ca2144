"""Which backup of a target an operator means, who names only the target.

Writing must not enter here.
"""

from __future__ import annotations

from collections.abc import Sequence

from vectorshard.backup.failures import (
    BackupAmbiguous,
    BackupDamaged,
    BackupNotFound,
    FormatUnknown,
)
from vectorshard.backup.fleets import Named, fleets_of
from vectorshard.backup.layout import (
    backup_names,
    manifests,
    newest_number,
    number_of,
    split_name,
)
from vectorshard.backup.manifest import Manifest
from vectorshard.backup.targets import Target

_SHOWN = 5


def located(where: str, collections: Sequence[str] = ()) -> tuple[Target, str]:
    """Return the target and the name of a backup: TARGET/NAME is that one, whatever it holds.

    TARGET is its newest backup of all collections, or the newest that has those of `collections`,
    in either case complete.

    Raises
    ------
    BackupAmbiguous
        If the target has backups of several fleets, or only of chosen collections. It names
        the backups among which to choose.
    BackupNotFound
        If no backup is complete, or none has the collections.
    """
    target, name = split_name(where)
    if name:
        return target, name
    found = [(name, each) for name, each in manifests(target) if isinstance(each, Manifest)]
    complete = [(name, each) for name, each in found if each.complete]
    fleets = fleets_of(found)
    if len(fleets) > 1:
        listed = "; ".join(_newest_of(fleet) for fleet in fleets)
        raise BackupAmbiguous(f"{where} has backups of several fleets; name one: {listed}")
    if collections:
        suitable = [name for name, each in complete if each.has(collections)]
        if not suitable:
            raise BackupNotFound(f"{where} has no complete backup of {', '.join(collections)}")
        return target, suitable[0]
    whole = [name for name, each in complete if each.whole]
    if whole:
        return target, whole[0]
    if not complete:
        raise BackupNotFound(f"{where} has no complete backup")
    listed = "; ".join(f"{name} of {_names(each)}" for name, each in complete[:_SHOWN])
    raise BackupAmbiguous(
        f"{where} has no complete backup of all collections; choose one of chosen ones: {listed}"
    )


def unreadable_above(target: Target, name: str) -> list[BackupDamaged | FormatUnknown]:
    """Return the errors of the backups that are newer than one, and unreadable."""
    return [
        each
        for other, each in manifests(target)
        if number_of(other) > number_of(name) and not isinstance(each, Manifest)
    ]


def absent_above(target: Target, name: str) -> int:
    """Return the greatest number that a newer backup took, if no such backup is to be seen; or 0.

    It is gone, or the run that took it ended before it wrote its manifest.
    """
    newest = newest_number(target)
    seen = max(map(number_of, backup_names(target)), default=0)
    return newest if newest > max(seen, number_of(name)) else 0


def _newest_of(fleet: Sequence[Named]) -> str:
    """Return the newest backup of a fleet, of all collections and complete if it has one."""
    ranked = sorted(fleet, key=lambda each: (each[1].whole, each[1].complete), reverse=True)
    name, manifest = ranked[0]
    only = "" if manifest.whole else f" (only {_names(manifest)})"
    return f"{name} of {manifest.cluster}{only}"


def _names(manifest: Manifest) -> str:
    return ", ".join(each.name for each in manifest.collections) or "no collection"
