"""The files that say which shard a data directory is: what is damaged, and what replaces it.

`shard.json` can be made again of what the collections' files say and of what the operator gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vectorshard.shard.errors import (
    DataDirectoryError,
    DataDirectoryForeign,
    DataDirectoryTooNew,
)
from vectorshard.shard.membership import Membership
from vectorshard.shard.storage.checked_json import CRC32C, read_checked
from vectorshard.shard.storage.data_directory import (
    IDENTITY_BYTES_MAX,
    IDENTITY_FILE,
    VERSION_WITHOUT_ID,
    DirectoryId,
    ShardIdentity,
    identity_in,
    store_identity,
    stored_identity,
)
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.json_records import InvalidRecord
from vectorshard.shard.storage.register import (
    REGISTER_FILE,
    Register,
    RegisterContent,
    Registered,
    RegisterEntry,
)
from vectorshard.shard.storage.repair_bits import slots_without_flips
from vectorshard.shard.storage.repair_collection import START_ONCE
from vectorshard.shard.storage.repair_findings import Outcome, Repair
from vectorshard.shard.storage.repair_records import contents_of
from vectorshard.shard.storage.repair_write import set_aside
from vectorshard.shard.storage.session import SESSION_FILE
from vectorshard.shard.storage.two_slots import Slot, TwoSlots, stored_records
from vectorshard.shard.storage.witness import FORMAT_VERSION as WITNESS_VERSION
from vectorshard.shard.storage.witness import WITNESS_FILE

OPENS_UNKNOWN: Final = 2**32
"""What `opens` goes on from if it is unknown: more than any directory was ever opened. A gap
accuses no directory; a number that another shard has seen already would."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the operator says of the directory, for a damaged `shard.json`.

    `slots_of` returns the slots of a shard of so many.
    """

    shard: int | None = None
    shards_total: int | None = None
    cluster: str | None = None
    life: int | None = None
    placement_epoch: int = 1
    slots_of: Callable[[int, int], tuple[tuple[int, int], ...]]


class DirectoryFiles:
    """The files of a data directory itself: what is found of them goes into `repair`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.repair = Repair()
        self.identity: ShardIdentity | None = None
        self.own = DirectoryId()
        self.register: RegisterContent | None = None
        """None if it has to be made again."""
        self._identity_damaged = False
        self._session: Slot | None = None  # to be written
        self._witness_damaged = False
        self._look_at_identity()
        self._look_at_register()
        self._look_at_session()
        self._look_at_witness()

    @property
    def is_refused(self) -> bool:
        """Whether nothing can be done before an operator acts."""
        return self.repair.outcome is Outcome.REFUSED

    def _look_at_identity(self) -> None:
        try:
            stored = stored_identity(self.path)
        except (DataDirectoryForeign, DataDirectoryError) as error:
            undone = _without_flip(self.path / IDENTITY_FILE)
            if undone is None and type(error) not in (DataDirectoryForeign, DataDirectoryError):
                raise
            self._identity_damaged = True
            if undone is not None:
                self.identity, self.own, _ = undone
                self.repair.add(IDENTITY_FILE, "a flipped bit", "undone")
                return
            text = str(error).replace(f"{self.path / IDENTITY_FILE}: ", "")
            self.repair.add(IDENTITY_FILE, text.split(": restore")[0].split("; restore")[0])
            return
        if stored is None:
            raise DataDirectoryForeign(f"{self.path} is no data directory of a shard")
        self.identity, self.own, version = stored
        if version == VERSION_WITHOUT_ID:
            self.repair.refuse(IDENTITY_FILE, f"it has format version {version}", START_ONCE)

    def _look_at_register(self) -> None:
        try:
            self.register = Register.read(self.path)
            found = "it is missing"
        except InvalidRecord as error:
            found = str(error).replace(f"{self.path / REGISTER_FILE}: ", "")
        if self.register is None:
            self.repair.add(
                REGISTER_FILE,
                f"{found}: collections that are gone, and drops that are unfinished, are unknown",
                "made again of the collections that are there",
            )

    def _look_at_session(self) -> None:
        slots, sound = slots_without_flips(stored_records(self.path / SESSION_FILE))
        if sound:
            return
        newest = max(slots, key=lambda slot: slot.counter, default=Slot(OPENS_UNKNOWN))
        if len(slots) == 2:
            self._session = newest
            self.repair.add(SESSION_FILE, "a flipped bit", "undone")
            return
        self._session = Slot(newest.counter + 1)
        found = "a record in it is damaged" if slots else "it is missing or damaged"
        action = f"the next opening counts as number {newest.counter + 2}"
        self.repair.add(SESSION_FILE, found, action)

    def _look_at_witness(self) -> None:
        try:
            read_checked(self.path / WITNESS_FILE, WITNESS_VERSION)
        except InvalidRecord as error:
            self._witness_damaged = True
            found = str(error).replace(f"{self.path / WITNESS_FILE}: ", "")
            self.repair.add(WITNESS_FILE, found, "set aside; the next exchange makes it again")

    # ---- the identity ---------------------------------------------------------------------------

    def find_identity(self, memberships: Iterable[Membership], given: Given) -> None:
        """Find out which shard this is, if `shard.json` is damaged; refuse if it is unknown."""
        if self.identity is not None:
            return
        known = [each for each in memberships if each.directory]
        directories = {each.directory for each in known}
        if len(directories) > 1:
            names = ", ".join(sorted(directories))
            cure = "Move the collections that belong to another data directory away"
            self.repair.refuse(IDENTITY_FILE, f"its collections are of directories {names}", cure)
            return
        if not directories:
            cure = "Restore the file from a copy"
            self.repair.refuse(IDENTITY_FILE, "no collection says which directory this is", cure)
            return
        (directory,) = directories
        own = [member for each in known for member in each.members if member.directory == directory]
        shards = {member.shard for member in own}
        totals = {len(each.members) for each in known if each.members}
        shard = _agreed("--shard-id", given.shard, shards, self.repair)
        total = _agreed("--shards", given.shards_total, totals, self.repair)
        missing = [
            name
            for name, value in (
                ("--shard-id", shard),
                ("--shards", total),
                ("--cluster", given.cluster),
            )
            if value is None
        ]
        if shard is None or total is None or given.cluster is None:
            cure = f"Give {' and '.join(missing)}, or restore the file from a copy"
            self.repair.refuse(IDENTITY_FILE, "what it held is not stored anywhere else", cure)
            return
        self.identity = ShardIdentity(
            cluster=given.cluster,
            shard=shard,
            shards_total=total,
            slots=given.slots_of(shard, total),
            placement_epoch=given.placement_epoch,
        )
        life = given.life or max((member.life for member in own), default=1)
        self.own = DirectoryId(directory=directory, life=life)
        self.repair.add(
            IDENTITY_FILE,
            f"its collections are of directory {directory}",
            f"made again: shard {shard} of {total}, cluster {given.cluster}, life {life}",
        )

    # ---- writing --------------------------------------------------------------------------------

    def write(self, disk: Disk, new_session: Callable[[], int]) -> None:
        """Write what was found out of the identity, the session and the witness, durably."""
        if self._identity_damaged:
            assert self.identity is not None
            set_aside(disk, self.path / IDENTITY_FILE)
            store_identity(disk, self.path, self.identity, self.own)
        if self._session is not None:
            set_aside(disk, self.path / SESSION_FILE)
            session = self._session.value or new_session()
            TwoSlots.create(disk, self.path / SESSION_FILE, Slot(self._session.counter, session))
        if self._witness_damaged:
            set_aside(disk, self.path / WITNESS_FILE)
        disk.sync_directory(self.path)

    def write_register(self, disk: Disk, live: Sequence[tuple[str, str]]) -> None:
        """Write a register of collections: their names and incarnations."""
        set_aside(disk, self.path / REGISTER_FILE)
        Register(disk, self.path).replace(
            RegisterEntry(incarnation=incarnation, name=name, state=Registered.LIVE)
            for name, incarnation in live
        )


def _without_flip(file: Path) -> tuple[ShardIdentity, DirectoryId, int] | None:
    """Return the identity in a damaged file that matches its checksum once one bit is changed."""
    contents = bytearray(contents_of(file))
    if len(contents) > IDENTITY_BYTES_MAX:
        return None
    for bit in range(len(contents) * 8):
        contents[bit // 8] ^= 1 << bit % 8
        with suppress(InvalidRecord, DataDirectoryTooNew):
            found = identity_in(bytes(contents), file)
            if f'"{CRC32C}"'.encode() in contents:
                return found
        contents[bit // 8] ^= 1 << bit % 8
    return None


def _agreed(option: str, given: int | None, stored: set[int], repair: Repair) -> int | None:
    """Return what is given or stored; None, with a finding, if they contradict each other."""
    if given is None:
        return next(iter(stored)) if len(stored) == 1 else None
    if stored and stored != {given}:
        found = ", ".join(map(str, sorted(stored)))
        repair.add(IDENTITY_FILE, f"{option} is {given}, but the collections have {found}")
        return None
    return given
