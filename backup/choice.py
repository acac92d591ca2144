"""Which backup of a target an operator means, who names only the target.

Writing must not enter here.
"""

from __future__ import annotations

from collections.abc import Sequence

from vectorshard.backup.failures import BackupAmbiguous, BackupNotFound
from vectorshard.backup.layout import manifests, split_name
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
        If the target has backups of several clusters, or only of chosen collections. It names
        the backups among which to choose.
    BackupNotFound
        If no backup is complete, or none has the collections.
    """
    target, name = split_name(where)
    if name:
        return target, name
    found = [(name, each) for name, each in manifests(target) if isinstance(each, Manifest)]
    complete = [(name, each) for name, each in found if each.complete]
    if len({each.cluster for _, each in found}) > 1:
        raise BackupAmbiguous(
            f"{where} has backups of several clusters; name one: {_newest_of_each(complete)}"
        )
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


def _newest_of_each(complete: Sequence[tuple[str, Manifest]]) -> str:
    """Return the newest complete backup of each cluster, whole if it has one, as a text."""
    newest: dict[str, tuple[str, Manifest]] = {}
    for name, each in sorted(complete, key=lambda pair: pair[1].whole, reverse=True):
        newest.setdefault(each.cluster, (name, each))
    return "; ".join(
        f"{name} of {cluster}" + f" (only {_names(each)})" * (not each.whole)
        for cluster, (name, each) in sorted(newest.items())
    )


def _names(manifest: Manifest) -> str:
    return ", ".join(each.name for each in manifest.collections) or "no collection"
