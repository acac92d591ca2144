"""Which backups of a target are of the same fleet. Pure.

The name of a cluster does not tell: many fleets have the default one. The directories of shards and
the incarnations of collections are random, so backups that share one are of one fleet.
"""

from __future__ import annotations

from collections.abc import Sequence

from vectorshard.backup.manifest import Manifest

Named = tuple[str, Manifest]
"""A backup: its name and its manifest."""


def fleets_of(backups: Sequence[Named]) -> list[list[Named]]:
    """Return the backups of each fleet, in the order given.

    One of no collections goes with the first other of its cluster, since it has no traces.
    """
    found: list[tuple[set[str], list[int]]] = []
    for place, (_, manifest) in enumerate(backups):
        traces = traces_of(manifest)
        if not traces:
            continue
        joined = [each for each in found if each[0] & traces]
        found = [each for each in found if not each[0] & traces]
        places = [place, *(place for _, places in joined for place in places)]
        found.append((traces.union(*(each for each, _ in joined)), places))
    groups = sorted((places for _, places in found), key=min)
    for place, (_, manifest) in enumerate(backups):
        if traces_of(manifest):
            continue
        of_cluster = [each for each in groups if backups[each[0]][1].cluster == manifest.cluster]
        if of_cluster:
            of_cluster[0].append(place)
        else:
            groups.append([place])
    return [[backups[place] for place in sorted(places)] for places in sorted(groups, key=min)]


def traces_of(manifest: Manifest) -> set[str]:
    """Return what no other fleet has: names of directories, and incarnations, with the cluster."""
    return {
        f"{manifest.cluster}/{trace}"
        for collection in manifest.collections
        for trace in (
            collection.incarnation,
            *(each.directory for each in collection.members),
            *(each.directory for each in collection.shards),
        )
    }
