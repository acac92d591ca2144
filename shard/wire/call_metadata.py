"""What travels beside a request over gRPC: a Call to metadata and back.

The deadline is not among it: gRPC carries that itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from vectorshard.shard.types import Call

_INCARNATION = "vectorshard-incarnation"
_PLACEMENT = "vectorshard-placement"


def metadata_of(call: Call) -> tuple[tuple[str, str], ...]:
    """Return the metadata that says whom a call means."""
    pairs = ((_INCARNATION, call.incarnation), (_PLACEMENT, call.placement))
    return tuple(pair for pair in pairs if pair[1])


def call_of(metadata: Iterable[tuple[str, str | bytes]] | None, deadline: float | None) -> Call:
    """Return the Call of a request's metadata and of its deadline, of time.monotonic()."""
    incarnation = placement = ""
    for key, value in metadata or ():
        if key == _INCARNATION:
            incarnation = str(value)
        elif key == _PLACEMENT:
            placement = str(value)
    return Call(deadline=deadline, incarnation=incarnation, placement=placement)
