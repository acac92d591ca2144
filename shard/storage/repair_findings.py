"""What a repair finds, would do, and has to give up: its vocabulary. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

IDS_SHOWN = 10
"""Ids that a text names; the others are counted."""


METADATA = "its metadata is gone or damaged, its vector is sound"
"""What a damaged row is found to be, where the checksum of its vector and others is right."""


class Outcome(Enum):
    """How a repair ended, or would end."""

    SOUND = "sound"
    ROWS_DAMAGED = "rows_damaged"  # sound but for rows that stay damaged, and are named
    REPAIRABLE = "repairable"  # and nothing was written
    REPAIRED = "repaired"
    REFUSED = "refused"  # an operator has to act; the text says how


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it should be: in which file, what, and what the repair does."""

    file: str
    found: str
    action: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedRow:
    """A row that does not match its content hash. `restored`: a flipped bit was undone."""

    row: int
    id: int | str
    found: str
    restored: bool = False


@dataclass(slots=True, kw_only=True)
class Repair:
    """What was found of one collection, or of the data directory itself without a name.

    `commits_lost` are the numbers of commits, where they are known; `rows_lost` are rows of which
    nothing is left, None if their number is unknown; `rows_back` are rows that lost commits had
    replaced or deleted. `whole`: everything that was acknowledged is there, or is named here row
    by row. If not, other shards call this one MISSING until the loss is accepted. `gave_up`: an
    earlier repair gave up commits, and that loss is not accepted yet.
    """

    collection: str = ""
    incarnation: str = ""
    outcome: Outcome = Outcome.SOUND
    findings: list[Finding] = field(default_factory=list)
    damaged_rows: list[DamagedRow] = field(default_factory=list)
    rows_total: int = 0
    commits_lost: tuple[int, ...] = ()
    rows_lost: int | None = 0
    rows_back: int | None = 0
    rows_dropped: int = 0
    whole: bool = True
    gave_up: bool = False
    cure: str = ""
    kept_in: str = ""

    def add(self, file: str, found: str, action: str = "") -> None:
        """Note a finding; a repair that was sound is repairable from here on."""
        self.findings.append(Finding(file=file, found=found, action=action))
        if self.outcome is Outcome.SOUND:
            self.outcome = Outcome.REPAIRABLE

    def refuse(self, file: str, found: str, cure: str) -> None:
        """Note what keeps it from being repaired, and what an operator does about it."""
        self.findings.append(Finding(file=file, found=found))
        self.outcome, self.cure = Outcome.REFUSED, cure

    @property
    def still_damaged(self) -> Sequence[DamagedRow]:
        """The damaged rows that were not restored."""
        return [each for each in self.damaged_rows if not each.restored]
