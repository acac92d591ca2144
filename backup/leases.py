"""Leases: what runs on a target now, so that a prune deletes nothing that a backup relies on.

A backup and a prune each put an object into `running/`, renew it, and delete it at their end. All
times are those of the machine that stores the objects, so clocks need not agree. A lease that was
not renewed for EXPIRED_S is of a process that has died.

A prune puts its lease before it looks for others; so does a backup, and before its manifest it
waits for prunes that are still running. Therefore a prune sees the backup, and deletes no block; or
the backup sees the prune, or its effects.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from vectorshard.backup.failures import ObjectNotFound, TargetError
from vectorshard.backup.layout import RUNNING
from vectorshard.backup.targets import Target

RENEWED_S: Final = 60.0
"""Between two renewals."""

EXPIRED_S: Final = 900.0
"""Without a renewal for so long, a lease is over. Longer: a crash keeps garbage longer."""


class Kind(Enum):
    """What runs."""

    BACKUP = "backup"
    PRUNE = "prune"


class LeaseLost(TargetError):
    """A lease was not renewed in time: the process was stopped, or the target did not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A lease of a process: its name, its kind, and how long ago it was renewed."""

    name: str
    kind: Kind
    age_s: float

    @property
    def is_over(self) -> bool:
        """Whether the process has died."""
        return self.age_s > EXPIRED_S


class Lease:
    """The lease of this process. `name` is 8 random hex digits; `clock` is in seconds."""

    def __init__(
        self, target: Target, kind: Kind, name: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._target = target
        self._object = f"{RUNNING}{name}.json"
        self._contents = json.dumps({"kind": kind.value}).encode()
        self._clock = clock
        self._renewed_at = clock()
        self.renew()

    def renew(self) -> None:
        """Renew it now."""
        begun = self._clock()
        self._target.put(self._object, self._contents)
        self._renewed_at = begun

    def renew_if_due(self) -> None:
        """Renew it if it is time for that."""
        if self._clock() - self._renewed_at >= RENEWED_S:
            self.renew()

    def require(self) -> None:
        """Raise LeaseLost if others may think that this process has died."""
        silent_s = self._clock() - self._renewed_at
        if silent_s > EXPIRED_S / 2:
            raise LeaseLost(
                f"{self._target.where}: the lease of this run was not renewed for {silent_s:.0f} s"
            )

    def now(self) -> float:
        """Renew the lease, and return the time of the target in seconds since 1970."""
        self.renew()
        for found in self._target.list(RUNNING):
            if found.name == self._object:
                return found.written_at
        raise LeaseLost(f"{self._target.where}: the lease of this run has vanished")

    def others(self) -> list[Running]:
        """Return the other leases, of processes that run or have died."""
        now = self.now()
        return [each for each in _running(self._target, now) if each.name != self._object]

    def end(self) -> None:
        """Delete it."""
        self._target.delete(self._object)


def _running(target: Target, now: float) -> Iterator[Running]:
    for found in list(target.list(RUNNING)):
        if not found.name.endswith(".json"):
            continue
        try:
            kind = Kind(json.loads(target.get(found.name))["kind"])
        except ObjectNotFound:
            continue
        except (ValueError, KeyError, TypeError):
            kind = Kind.BACKUP  # a later version's, perhaps: keep away from what it does
        yield Running(name=found.name, kind=kind, age_s=now - found.written_at)
