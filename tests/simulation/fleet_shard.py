"""A model of a shard and its directory: what is durable, and the steps between which it may crash.

It decides nothing itself: what it keeps of others, and how a collection is settled, are the real
functions. Next to its directory it keeps what it should know, `Shadow`, which no rule reads and the
judge does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from vectorshard.shard.errors import ShardMissing
from vectorshard.shard.membership import (
    AcceptedLoss,
    CollectionReport,
    CollectionState,
    Member,
    Sessions,
    SettleRequest,
    ShardReport,
    Stage,
)
from vectorshard.shard.witnesses import Remembered, remembered, session_at, settled

Ideal = dict[tuple[int, str], tuple[int, frozenset[int]]]
"""Of a shard and an incarnation: in which life it had which rows."""


class Down(Exception):
    """The shard does not answer, or died in between."""


class Refused(Exception):
    """The shard answers that it will not."""


class Restarted(Refused):
    """Another opening answers than the one that was meant."""


class Unsupported(Exception):
    """An earlier release."""


def learn(ideal: Ideal, key: tuple[int, str], life: int, rows: frozenset[int]) -> None:
    """Add rows that a shard had; those of an earlier life are void."""
    before, known = ideal.get(key, (0, frozenset()))
    if life > before:
        ideal[key] = (life, rows)
    elif life == before:
        ideal[key] = (life, known | rows)


@dataclass(slots=True)
class Store:
    """The files of a collection. `rows` are the sequence numbers and ids of its commits."""

    name: str
    incarnation: str
    directory: str
    stage: Stage
    members: tuple[Member, ...] = ()
    sequence: int = 0
    first_sequences: tuple[int, ...] = ()
    sessions: tuple[int, ...] = ()
    rows: frozenset[int] = frozenset()
    made: int = 0
    """For the judge: which files these are."""

    def commit_from(self, session: int) -> None:
        """Note that what follows is this session's."""
        if not self.sessions or self.sessions[-1] != session:
            self.first_sequences += (self.sequence + 1,)
            self.sessions += (session,)


@dataclass(slots=True)
class Disk:
    """A directory. Of an earlier release while `directory` is empty."""

    directory: str = ""
    life: int = 1
    opens: int = 0
    register: dict[str, tuple[str, bool]] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)
    stores: dict[str, Store] = field(default_factory=dict)
    kept: Remembered = field(default_factory=Remembered)
    ideal: Ideal = field(default_factory=dict)

    def copy(self) -> Disk:
        """Return a copy that shares nothing that changes."""
        return replace(
            self,
            register=dict(self.register),
            forgotten=set(self.forgotten),
            stores={name: replace(store) for name, store in self.stores.items()},
            ideal=dict(self.ideal),
        )


@dataclass(frozen=True, slots=True)
class Shadow:
    """What comes with a report for the judge: rows by incarnation, and what it should know."""

    rows: dict[str, frozenset[int]]
    ideal: Ideal


class Server:
    """A process that serves a directory as one shard.

    `crashes` decides at each step whether the process dies there; `draw` returns what was never
    drawn before; `completed` is told when a create ends.
    """

    def __init__(
        self,
        number: int,
        disk: Disk,
        *,
        draw: Callable[[], int],
        crashes: Callable[[], bool],
        completed: Callable[[Server, Store], None],
        clock: Callable[[], float],
        old: bool = False,
    ) -> None:
        self.number = number
        self.disk = disk
        self.old = old
        self.up = False
        self.session = 0
        self.opened_s = 0.0
        self._draw = draw
        self._crashes = crashes
        self._completed = completed
        self._clock = clock
        self._foreign: dict[str, str] = {}
        self._version = 0

    # ---- its life -------------------------------------------------------------------------------

    def stop(self) -> None:
        """Die: only the directory stays."""
        self.up = False

    def start(self) -> None:
        """Open the directory, unless it crashes meanwhile."""
        disk = self.disk
        if self.old:
            self.up = True
            self.session = self._draw()
            return
        if not disk.directory:
            # What is there is taken over; shard.json comes last, so that a crash repeats all of it.
            name = f"D{self.number}.{self._draw()}"
            for store in disk.stores.values():
                store.directory, store.stage = name, Stage.COMPLETE
                disk.register[store.incarnation] = (store.name, False)
            disk.directory = name
        if self._crashes():
            return
        disk.opens += 1
        self.session = self._draw()
        if self._crashes():
            return
        self.opened_s = self._clock()
        self._foreign = {}
        for name, store in list(disk.stores.items()):
            dropped = disk.register.get(store.incarnation, ("", False))[1]
            if store.directory != disk.directory:
                self._foreign[store.incarnation] = name
            elif dropped:
                del disk.stores[name]
            else:
                disk.register[store.incarnation] = (name, False)
        self.up = True

    def _point(self) -> None:
        """A place where the process may die."""
        if self._crashes():
            self.stop()
            raise Down

    def _changed(self) -> None:
        self._version += 1

    def require(self, session: int) -> None:
        """Refuse a call that is meant for another opening; 0 is one that names none."""
        if session and session != self.session:
            raise Restarted

    # ---- collections ----------------------------------------------------------------------------

    def held(self, incarnation: str) -> Store | None:
        """Return a collection that it serves."""
        for store in self.disk.stores.values():
            if store.incarnation == incarnation:
                mine = self.old or store.directory == self.disk.directory
                return store if mine else None
        return None

    def listing(self) -> dict[str, str]:
        """Return the incarnations by the names of what it serves."""
        return {
            store.name: store.incarnation
            for store in self.disk.stores.values()
            if self.held(store.incarnation)
        }

    def create(self, session: int, name: str, incarnation: str, staged: bool) -> str:
        """Create a collection; return the incarnation that has the name."""
        self.require(session)
        disk = self.disk
        there = disk.stores.get(name)
        if there is not None and self.held(there.incarnation):
            if there.incarnation != incarnation:
                raise Refused
            return there.incarnation
        if not self.old:
            if incarnation in disk.register or incarnation in disk.forgotten:
                raise Refused  # dropped, lost, or set aside
            if any(each == (name, False) for each in disk.register.values()):
                raise Refused
        disk.stores[name] = Store(
            name=name,
            incarnation=incarnation,
            directory=disk.directory,
            stage=Stage.CREATED if staged and not self.old else Stage.COMPLETE,
            made=self._draw(),
        )
        self._changed()
        self._point()
        if not self.old:
            disk.register[incarnation] = (name, False)
            self._point()
        return incarnation

    def drop(self, session: int, incarnation: str) -> bool:
        """Drop a collection, the tombstone first; return whether it knows it."""
        self.require(session)
        disk = self.disk
        if not self.old:
            if incarnation not in disk.register:
                return False
            name, dropped = disk.register[incarnation]
            if not dropped:
                disk.register[incarnation] = (name, True)
                self._changed()
                self._keep(disk.kept, [])
                self._point()
        store = self.held(incarnation)
        if store is not None:
            del disk.stores[store.name]
            self._changed()
            self._point()
        return True

    def settle(self, request: SettleRequest) -> None:
        """Raise the stage of a collection."""
        if self.old:
            raise Unsupported
        store = self.held(request.incarnation)
        if store is None:
            raise Refused
        before = store.stage
        try:
            store.stage, store.members = settled(
                store.stage, store.members, self._member(), request
            )
        except ShardMissing as error:
            raise Refused from error
        if before is not store.stage is Stage.COMPLETE:
            self._completed(self, store)
        self._changed()
        self._point()

    def _member(self) -> Member:
        return Member(shard=self.number, directory=self.disk.directory, life=self.disk.life)

    # ---- rows -----------------------------------------------------------------------------------

    def write(self, session: int, incarnation: str, row: int) -> tuple[int, int, Store]:
        """Commit a row; return its sequence number and session, and the files that have it."""
        self.require(session)
        store = self.held(incarnation)
        if store is None or store.stage is not Stage.COMPLETE:
            raise Refused
        if not self.old:
            store.commit_from(self.session)
        store.sequence += 1
        store.rows |= {row}
        self._changed()
        self._point()
        return store.sequence, 0 if self.old else self.session, store

    def search(self, session: int, incarnation: str) -> tuple[frozenset[int], Store, float]:
        """Return all rows, the files that have them, and since when it serves them."""
        self.require(session)
        store = self.held(incarnation)
        if store is None:
            raise Refused
        return store.rows, replace(store), self.opened_s

    def token_is_valid(self, incarnation: str, sequence: int, session: int) -> bool:
        """Whether it has that commit, as far as it can tell."""
        store = self.held(incarnation)
        if store is None or sequence > store.sequence:
            return False
        return session_at(self._sessions(store), sequence) == session

    @staticmethod
    def _sessions(store: Store) -> Sessions:
        return Sessions(first_sequences=store.first_sequences, sessions=store.sessions)

    # ---- others ---------------------------------------------------------------------------------

    def exchange(
        self, others: Sequence[tuple[ShardReport, Shadow]], forget: Sequence[str]
    ) -> tuple[ShardReport, Shadow]:
        """Take in what others have; return what it has."""
        if self.old:
            raise Unsupported
        disk = self.disk
        for incarnation in forget:
            if disk.register.get(incarnation, ("", False))[1]:
                del disk.register[incarnation]
                disk.forgotten.add(incarnation)
                self._changed()
        self._recall([report for report, _ in others])
        self._keep(disk.kept, [report for report, _ in others])
        live = self.live()
        for report, shadow in others:
            if report.shard == self.number:
                continue
            for incarnation, rows in shadow.rows.items():
                if incarnation in live:
                    learn(disk.ideal, (report.shard, incarnation), report.life, rows)
        self._point()
        shadow = Shadow(
            rows={
                store.incarnation: store.rows
                for store in disk.stores.values()
                if store.stage is Stage.COMPLETE and self.held(store.incarnation)
            },
            ideal=dict(disk.ideal),
        )
        return self.report(), shadow

    def _recall(self, others: Sequence[ShardReport]) -> None:
        """Have the tombstones again of what an old disk brings back."""
        for report in others:
            for each in report.collections:
                back = each.incarnation in self.disk.forgotten
                if back and each.state is not CollectionState.DROPPED:
                    self.disk.forgotten.discard(each.incarnation)
                    self.disk.register[each.incarnation] = (each.name, True)
                    self._changed()

    def live(self) -> set[str]:
        """Return the incarnations that its register has, and no drop has reached."""
        return {each for each, (_, dropped) in self.disk.register.items() if not dropped}

    def _keep(self, kept: Remembered, others: Sequence[ShardReport]) -> None:
        new = remembered(kept, others, self.live(), self.number)
        if new != kept:
            self.disk.kept = new
            self._changed()

    def report(self) -> ShardReport:
        """Return what it has and remembers."""
        disk = self.disk
        return ShardReport(
            cluster="c",
            shard=self.number,
            directory=disk.directory,
            life=disk.life,
            opens=disk.opens,
            session=self.session,
            version=self._version,
            collections=tuple(self._reports()),
            statements=disk.kept.statements,
            seen=disk.kept.seen,
        )

    def _reports(self) -> Iterator[CollectionReport]:
        for incarnation, (name, dropped) in self.disk.register.items():
            store = self.held(incarnation)
            if dropped:
                yield CollectionReport(
                    name=name, incarnation=incarnation, state=CollectionState.DROPPED
                )
            elif store is not None:
                yield CollectionReport(
                    name=name,
                    incarnation=incarnation,
                    state=CollectionState.LIVE,
                    stage=store.stage,
                    members=store.members,
                    sessions=self._sessions(store),
                    sequence=store.sequence,
                    accepted=len(store.rows),
                    live=len(store.rows),
                )
            else:
                foreign = incarnation in self._foreign
                yield CollectionReport(
                    name=name,
                    incarnation=incarnation,
                    state=CollectionState.FOREIGN if foreign else CollectionState.LOST,
                    reason="foreign" if foreign else "lost",
                )

    def accept_loss(self, losses: Sequence[AcceptedLoss], life: int) -> None:
        """Record losses: the life comes last, and commits them."""
        disk = self.disk
        if life <= disk.life:
            raise Refused
        own = replace(self._member(), life=life)
        for loss in losses:
            if loss.incarnation in disk.forgotten:
                continue
            members = {member.shard: member for member in loss.members}
            store = self.held(loss.incarnation)
            there = disk.stores.get(loss.collection)
            if store is None:
                if there is not None and self.held(there.incarnation):
                    raise Refused  # another collection has the name: one of them must be dropped
                store = Store(
                    name=loss.collection,
                    incarnation=loss.incarnation,
                    directory=disk.directory,
                    stage=loss.stage,
                    made=self._draw(),
                )
                disk.stores[loss.collection] = store
                self._point()
                disk.register[loss.incarnation] = (loss.collection, False)
                self._foreign.pop(loss.incarnation, None)
            else:
                members.update({member.shard: member for member in store.members})
                store.stage = max(store.stage, loss.stage)
            if members:
                members[self.number] = own
            store.members = tuple(members[shard] for shard in sorted(members))
            if (loss.witnessed_sequence or 0) > store.sequence:
                store.commit_from(self.session)
                store.sequence = loss.witnessed_sequence or 0
            self._changed()
            self._point()
        disk.life = life
        self._changed()
        self._point()
