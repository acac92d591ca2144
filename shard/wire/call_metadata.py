"""A Call to the gRPC metadata of a request and back. gRPC itself carries the deadline."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.types import Call

_INCARNATION = "vectorshard-incarnation"
_PLACEMENT = "vectorshard-placement"
_STAGED = "vectorshard-staged"
_INCARNATION_FORM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""A server names directories by it. Routers send 32 hexadecimal digits."""


def metadata_of(call: Call) -> tuple[tuple[str, str], ...]:
    """Return the metadata of what a call expects: incarnation, placement, and a staged create."""
    staged = "1" if call.staged else ""
    pairs = ((_INCARNATION, call.incarnation), (_PLACEMENT, call.placement), (_STAGED, staged))
    return tuple(pair for pair in pairs if pair[1])


def call_of(metadata: Iterable[tuple[str, str | bytes]] | None, deadline: float | None) -> Call:
    """Return the Call of a request's metadata and deadline, in seconds of time.monotonic().

    Raises InvalidParameter for what is no incarnation.
    """
    incarnation = placement = ""
    staged = False
    for key, value in metadata or ():
        if key == _INCARNATION:
            incarnation = str(value)
            if not _INCARNATION_FORM.fullmatch(incarnation):
                raise InvalidParameter("no incarnation", field=_INCARNATION)
        elif key == _PLACEMENT:
            placement = str(value)
        elif key == _STAGED:
            staged = value == "1"
    return Call(deadline=deadline, incarnation=incarnation, placement=placement, staged=staged)
