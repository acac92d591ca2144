"""Histories of fleets whose disks are lost, exchanged and put back: the protocol of membership.

The rules are the real ones (`router/fan_out/verdicts.py`, `memory.py`, `shard/witnesses.py`); the
shards are models without disk, and everything may come between any two steps. A seed is a history.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from tests.simulation.fleet_router import Action, ModelRouter
from tests.simulation.fleet_shard import (
    Disk,
    Down,
    Ideal,
    Refused,
    Server,
    Shadow,
    Store,
    Unsupported,
)
from vectorshard.router.fan_out.memory import FORGET_AFTER_S
from vectorshard.router.fan_out.verdicts import CollectionVerdict, Kind
from vectorshard.shard.membership import ShardReport, Stage

STEPS: Final = 900
STEP_S: Final = 0.1
NAMES: Final = ("a", "b")
ACTIONS_MAX: Final = 5
BEGINS: Final = 0.15
"""Of the steps, the part that begins something; the others continue what was begun."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A row that a client was told to be durable: who committed it, into which files, and when.

    `whole`: the collection had members then.
    """

    sequence: int
    session: int
    made: int
    whole: bool
    time_s: float


class Judge:
    """What was promised, and what was given instead."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.faulty = False
        self.created: set[str] = set()
        self.rows: dict[tuple[int, str], dict[int, Acknowledged]] = {}
        """Acknowledged rows by shard and incarnation."""
        self.accepted: dict[tuple[int, str], set[int]] = {}
        """Those that an operator has accepted as lost."""
        self.now_s = 0.0
        self.counts = {"verdicts": 0, "alarms": 0, "strict": 0, "short": 0, "accepted": 0}
        self._fault_s: dict[int | None, float] = {}
        self._witnessed: dict[tuple[int, str], dict[tuple[int, int], float]] = {}
        """When all others had taken in that a shard had a row in a life."""

    def _lost(self, shard: int, incarnation: str, rows: frozenset[int]) -> set[int]:
        known = self.rows.get((shard, incarnation), {})
        return set(known) - rows - self.accepted.get((shard, incarnation), set())

    def fault(self, shard: int | None) -> None:
        """A disk was harmed, so what it remembered may be gone; None: of any shard."""
        self.faulty = True
        self._fault_s[shard] = self.now_s
        for key in list(self._witnessed):
            if shard is None or key[0] != shard:
                del self._witnessed[key]

    def witnessed(
        self, others: Sequence[tuple[ShardReport, Shadow]], since_s: float, live: set[str]
    ) -> None:
        """All shards have taken in reports of what all have, one after the other since then."""
        if any(time_s >= since_s for time_s in self._fault_s.values()):
            return
        for report, shadow in others:
            for incarnation, rows in shadow.rows.items():
                if incarnation not in live:
                    continue
                known = self._witnessed.setdefault((report.shard, incarnation), {})
                for row in rows:
                    known.setdefault((row, report.life), self.now_s)

    def acknowledged(
        self, shard: int, incarnation: str, row: int, sequence: int, session: int, files: Store
    ) -> None:
        """A client was told that its row is durable."""
        self.rows.setdefault((shard, incarnation), {})[row] = Acknowledged(
            sequence, session, files.made, bool(files.members), self.now_s
        )

    def _gone(self, shard: int, files: Store) -> set[int]:
        """Return rows whose files were replaced by others, though no other disk was harmed since.

        That is noticed without any witness of their commits.
        """
        known = self.rows.get((shard, files.incarnation), {})
        return {
            row
            for row in self._lost(shard, files.incarnation, files.rows)
            if known[row].made != files.made
            and known[row].whole
            and not any(
                time_s >= known[row].time_s
                for about, time_s in self._fault_s.items()
                if about != shard
            )
        }

    def verdicts(
        self, verdicts: Mapping[str, CollectionVerdict], forgotten: Mapping[int, set[str]]
    ) -> None:
        """A router has judged; what shards have dropped and `forgotten` is not missing there."""
        for verdict in verdicts.values():
            for shard, each in verdict.by_shard.items():
                self.counts["verdicts"] += 1
                if each.kind is Kind.MISSING and verdict.incarnation in forgotten.get(shard, ()):
                    self.wrong.append(f"shard {shard} is accused of a drop: {each.reason}")
                if each.kind is Kind.MISSING:
                    self.counts["alarms"] += 1
                    if not self.faulty:
                        self.wrong.append(f"false alarm: {verdict.name} {each.reason}")

    def refused_as_missing(self) -> None:
        """A create was refused because a shard is missing."""
        if not self.faulty:
            self.wrong.append("a create was refused without a fault")

    def completed(self, server: Server, store: Store) -> None:
        """A create has ended on a shard: not in the place of files that took rows before."""
        if self._gone(server.number, store):
            self.wrong.append(f"shard {server.number}: {store.incarnation} completed on no rows")

    def accepts(self, shard: int, incarnations: Sequence[str]) -> None:
        """An operator was shown these losses, and accepts them."""
        for incarnation in incarnations:
            self.counts["accepted"] += 1
            rows = self.accepted.setdefault((shard, incarnation), set())
            rows.update(self.rows.get((shard, incarnation), {}))

    def forgotten(self, incarnation: str) -> None:
        """A client has dropped what all shards had lost: nothing of it is owed any more."""
        for shard, about in self.rows:
            if about == incarnation:
                self.accepts(shard, [incarnation])

    def owed(self, incarnation: str) -> dict[int, frozenset[int]]:
        """Return what an answer that begins now must contain."""
        return {
            shard: frozenset(rows)
            for (shard, about), rows in self.rows.items()
            if about == incarnation
        }

    def strict(
        self,
        incarnation: str,
        rows: Mapping[int, frozenset[int]],
        owed: Mapping[int, frozenset[int]],
        lives: Mapping[int, int],
        evidence: Ideal,
        opened: Mapping[int, tuple[Store, float]],
    ) -> None:
        """A strict answer was given: it has what the router's evidence has.

        It also has what all other shards had taken in before the shard was `opened`.
        """
        self.counts["strict"] += 1
        for shard, found in rows.items():
            accepted = self.accepted.get((shard, incarnation), set())
            short = owed.get(shard, frozenset()) - found - accepted
            if not short:
                continue
            self.counts["short"] += 1
            life, known = evidence.get((shard, incarnation), (0, frozenset()))
            held = short & known if life >= lives[shard] else frozenset()
            files, opened_s = opened[shard]
            times = self._witnessed.get((shard, incarnation), {})
            old = {
                row
                for (row, seen_life), time_s in times.items()
                if row in short and seen_life >= lives[shard] and time_s <= opened_s
            }
            gone = short & self._gone(shard, files)
            if not self.faulty or held or old or gone:
                self.wrong.append(
                    f"strict answer without {sorted(short)} of shard {shard}: held {sorted(held)}, "
                    f"old {sorted(old)}, gone {sorted(gone)}"
                )


@dataclass(slots=True)
class Running:
    """An action of a router that is not at its end."""

    router: ModelRouter
    what: str
    steps: Action[Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a history came to."""

    seed: int
    wrong: tuple[str, ...]
    lines: tuple[str, ...]
    counts: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n".join((f"seed {self.seed}", *self.lines, *self.wrong))


class Fleet:
    """A fleet, its clients, its operator, and its bad luck."""

    def __init__(self, seed: int, *, faults: bool, told: bool = False) -> None:
        self.seed = seed
        self.random = Random(seed * 2 + faults)
        self.faults = faults
        self.judge = Judge()
        self.now_s = 0.0
        self.shards = self.random.choice((2, 2, 3))
        self._drawn = 0
        self._crash_rate = self.random.choice((0.0, 0.004, 0.02))
        self._is_mixed = self.random.random() < 0.2
        self._row = 0
        self._told = told
        self._lines: list[str] = []
        self.servers = [[self._server(each)] for each in range(self.shards)]
        self._routes: dict[tuple[int, int], int] = {}
        count = self.random.choice((1, 2))
        self.routers = [self._router(each) for each in range(count)]
        self._paused: set[int] = set()
        self._running: list[Running] = []
        self._copies: list[tuple[int, Disk]] = []
        self._attic: list[tuple[int, Disk]] = []
        self._written: dict[str, str] = {}

    @classmethod
    def quiet(cls, random: Random) -> Fleet:
        """Return two shards and two routers to which nothing happens by itself."""
        fleet = cls(0, faults=False)
        fleet.random, fleet.shards = random, 2
        fleet._crash_rate, fleet._is_mixed = 0.0, False
        fleet.servers = [[fleet._server(each)] for each in range(2)]
        fleet.routers = [fleet._router(each) for each in range(2)]
        for servers in fleet.servers:
            servers[0].start()
        return fleet

    # ---- what it is made of ---------------------------------------------------------------------

    def draw(self) -> int:
        """Return what was never drawn before."""
        self._drawn += 1
        return self._drawn

    def _crashes(self) -> bool:
        return self._crash_rate > 0 and self.random.random() < self._crash_rate

    def _server(self, number: int, disk: Disk | None = None, *, old: bool = False) -> Server:
        return Server(
            number,
            disk or Disk(),
            draw=self.draw,
            crashes=self._crashes,
            completed=self.judge.completed,
            clock=lambda: self.now_s,
            old=old or (disk is None and self._is_mixed and self.random.random() < 0.6),
        )

    def _router(self, number: int) -> ModelRouter:
        old = self._is_mixed and self.random.random() < 0.4
        return ModelRouter(number, self, self.random, old=old)

    def live(self) -> set[str]:
        """Return the incarnations that are in the registers of all shards.

        None while a shard is served twice: two routers that reach nothing in common cannot know of
        each other.
        """
        if any(len(servers) > 1 for servers in self.servers):
            return set()
        return set.intersection(*(each.live() for servers in self.servers for each in servers))

    def route(self, router: int, shard: int) -> Server:
        """Return the server that a router reaches as a shard."""
        servers = self.servers[shard]
        return servers[self._routes.get((router, shard), 0) % len(servers)]

    def tell(self, line: str) -> None:
        """Keep a line of the history."""
        if self._told:
            self._lines.append(f"{self.now_s:8.2f} {line}")

    # ---- a history ------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Live through the history, then mend everything and look again."""
        for shard in range(self.shards):
            self.servers[shard][0].start()
        for name in NAMES:
            if self.random.random() < 0.7:
                self._ask(self.routers[0], "create", name)
        for _ in range(STEPS):
            self.now_s += STEP_S
            self.judge.now_s = self.now_s
            if self.random.random() < BEGINS:
                self._begin()
            else:
                self._step()
            if self.judge.wrong:
                break
        if not self.judge.wrong:
            self._end()
        return Outcome(
            self.seed, tuple(self.judge.wrong), tuple(self._lines), dict(self.judge.counts)
        )

    def _step(self) -> None:
        ready = [each for each in self._running if each.router.number not in self._paused]
        if not ready:
            return
        self._advance(self.random.choice(ready))

    def _advance(self, running: Running) -> None:
        try:
            next(running.steps)
        except StopIteration as end:
            self._running.remove(running)
            self.tell(f"router {running.router.number}: {running.what} done {end.value or ''}")
            if running.what.startswith("create") and end.value:
                self.judge.created.add(end.value)
        except (Down, Refused, Unsupported) as error:
            self._running.remove(running)
            self.tell(f"router {running.router.number}: {running.what} {type(error).__name__}")

    def _start(self, router: ModelRouter, what: str, steps: Action[Any]) -> Running:
        running = Running(router, what, steps)
        self._running.append(running)
        return running

    def _begin(self) -> None:
        """Begin something."""
        router = self.random.choice(self.routers)
        name = self.random.choice(NAMES)
        events: list[tuple[float, Callable[[], None]]] = [
            (3.0, lambda: self._ask(router, "round", name)),
            (5.0, lambda: self._ask(router, "write", name)),
            (3.0, lambda: self._ask(router, "search", name)),
            (1.0, lambda: self._ask(router, "create", name)),
            (0.25, lambda: self._ask(router, "drop", name)),
            (0.3, self._stop),
            (2.0, self._restart),
            (0.15, self._replace_router),
            (1.0 if self._paused else 0.2, self._pause),
            (0.1, self._wait),
        ]
        if self.faults:
            events += [
                (0.5, lambda: self._ask(router, "accept", name)),
                (0.4, self._copy),
                (0.3, self._harm),
            ]
        weights = [weight for weight, _ in events]
        self.random.choices([event for _, event in events], weights)[0]()

    def _ask(self, router: ModelRouter, what: str, name: str) -> None:
        mine = [each for each in self._running if each.router is router]
        if len(mine) >= ACTIONS_MAX:
            return
        if what == "round":
            if not router.old:
                self._start(router, what, router.round())
        elif what == "write":
            self._row += 1
            self._start(router, f"write {self._row} to {name}", router.write(name, self._row))
        elif what == "search":
            if not router.old:
                self._start(router, f"search {name}", router.search(name))
        elif what == "create":
            self._start(router, f"create {name}", router.create(name))
        elif what == "drop":
            # What an earlier release drops on some shards only, it leaves without a trace.
            if not (router.old and self._has_old_servers()):
                self._start(router, f"drop {name}", router.drop(name))
        elif not router.old:
            shard = self.random.randrange(self.shards)
            self._start(router, f"accept loss of {shard}", router.accept_loss(shard))

    def _has_old_servers(self) -> bool:
        return any(server.old for servers in self.servers for server in servers)

    # ---- what befalls it without a disk's fault -------------------------------------------------

    def _a_server(self) -> Server:
        return self.random.choice(self.random.choice(self.servers))

    def _stop(self) -> None:
        server = self._a_server()
        server.stop()
        self.tell(f"shard {server.number} dies")

    def _restart(self) -> None:
        for servers in self.servers:
            for server in servers:
                if not server.up:
                    if self.random.random() < 0.3:
                        server.old = False
                    server.start()
                    self.tell(f"shard {server.number} starts: {server.up} {server.session}")

    def _replace_router(self) -> None:
        place = self.random.randrange(len(self.routers))
        before = self.routers[place]
        self._running = [each for each in self._running if each.router is not before]
        self.routers[place] = self._router(place)
        self._paused.discard(place)
        if not before.old:
            self.routers[place].old = False
        self.tell(f"router {place} is another")

    def _pause(self) -> None:
        if self._paused:
            self._paused = set()
        else:
            self._paused = {self.random.randrange(len(self.routers))}
        self.tell(f"paused: {self._paused}")

    def _wait(self) -> None:
        self.now_s += self.random.choice((10.0, 40.0, FORGET_AFTER_S + 1))

    # ---- what befalls its disks -----------------------------------------------------------------

    def _copy(self) -> None:
        server = self._a_server()
        if server.disk.directory:
            self._copies.append((server.number, server.disk.copy()))
            self.tell(f"shard {server.number} is copied")

    def _replace_disk(self, server: Server, disk: Disk, why: str) -> None:
        server.stop()
        if server.disk.directory:
            self._attic.append((server.number, server.disk))
        server.disk = disk
        server.old = False
        self.judge.fault(server.number)
        self.tell(f"shard {server.number}: {why}")

    def _harm(self) -> None:
        """Harm a disk, or two."""
        server = self._a_server()
        if not server.disk.directory:
            return
        harms = (
            self._wipe,
            self._wipe,
            self._lose_collection,
            self._older_copy,
            self._used_older_copy,
            self._used_older_copy,
            self._old_volume,
            self._exchange,
            self._clone,
            self._wipe_two,
            self._lose_small_files,
            self._all_older,
        )
        self.random.choice(harms)(server)

    def _wipe(self, server: Server) -> None:
        self._replace_disk(server, Disk(), "wiped")

    def _wipe_two(self, server: Server) -> None:
        other = self.servers[(server.number + 1) % self.shards][0]
        self._wipe(server)
        self._wipe(other)

    def _lose_collection(self, server: Server) -> None:
        if server.disk.stores:
            server.stop()
            name = self.random.choice(sorted(server.disk.stores))
            del server.disk.stores[name]
            self.judge.fault(server.number)
            self.tell(f"shard {server.number}: collection {name} lost")

    def _older_copy(self, server: Server) -> None:
        mine = [disk for number, disk in self._copies if number == server.number]
        if mine:
            self._replace_disk(server, self.random.choice(mine).copy(), "an older copy")

    def _used_older_copy(self, server: Server) -> None:
        """An older copy that was opened and written, before a router of this release saw it."""
        mine = [disk for number, disk in self._copies if number == server.number]
        if not mine:
            return
        self._replace_disk(server, self.random.choice(mine).copy(), "an older copy, used")
        server.disk.opens += self.random.randrange(4)
        session = self.draw()
        for store in server.disk.stores.values():
            if store.stage is Stage.COMPLETE and store.directory == server.disk.directory:
                for _ in range(self.random.randrange(6)):
                    store.commit_from(session)
                    store.sequence += 1
                    store.rows |= {-self.draw()}

    def _all_older(self, server: Server) -> None:
        for servers in self.servers:
            self._older_copy(servers[0])

    def _old_volume(self, server: Server) -> None:
        mine = [disk for number, disk in self._attic if number == server.number]
        if mine:
            disk = self.random.choice(mine)
            self._attic.remove((server.number, disk))
            self._replace_disk(server, disk, "an old volume")

    def _exchange(self, server: Server) -> None:
        other = self.servers[(server.number + 1) % self.shards][0]
        if not other.disk.directory:
            return
        for each in (server, other):
            each.stop()
            self.judge.fault(each.number)
        server.disk.stores, other.disk.stores = other.disk.stores, server.disk.stores
        self.tell(f"shards {server.number} and {other.number} exchange their collections")

    def _clone(self, server: Server) -> None:
        servers = self.servers[server.number]
        if len(servers) > 1:
            servers[1].stop()
            del servers[1]
        else:
            servers.append(self._server(server.number, server.disk.copy(), old=False))
            servers[1].old = False
        for router in self.routers:
            self._routes[router.number, server.number] = self.random.randrange(2)
        self.judge.fault(None)
        self.tell(f"shard {server.number} is served {len(servers)} times")

    def _lose_small_files(self, server: Server) -> None:
        server.stop()
        if self.random.random() < 0.5:
            server.disk.kept, server.disk.ideal = type(server.disk.kept)(), {}
        else:
            server.disk.opens = 0
        self.judge.fault(server.number)
        self.tell(f"shard {server.number} loses witness or session file")

    # ---- the end --------------------------------------------------------------------------------

    def _end(self) -> None:
        """Mend what can be mended, accept the rest, and require that all is well."""
        self._crash_rate = 0.0
        self._paused = set()
        while self._running:
            self._advance(self.random.choice(self._running))
        self.tell("---- the end")
        for servers in self.servers:
            del servers[1:]
            for server in servers:
                if server.old:
                    server.stop()
                    server.old = False
                if not server.up:
                    server.start()
        router = self.routers[0]
        if router.old:
            self.routers[0] = router = ModelRouter(0, self, self.random)
        for _ in range(24):
            self.now_s += FORGET_AFTER_S / 4
            self.judge.now_s = self.now_s
            self.finish(router, "round", router.round())
            if not self._mend(router):
                break
        else:
            self.judge.wrong.append(f"not at rest: {router.verdicts}")
        self._look(router)

    def finish(self, router: ModelRouter, what: str, steps: Action[Any]) -> None:
        """Do something while nothing else happens."""
        running = self._start(router, what, steps)
        while running in self._running:
            self._advance(running)

    def _mend(self, router: ModelRouter) -> bool:
        """Accept losses, drop what is lost everywhere; return whether anything is left to do."""
        if router.unexamined:
            return True
        due = False
        for verdict in list(router.verdicts.values()):
            kinds = {each.kind for each in verdict.by_shard.values()}
            due |= kinds != {Kind.PRESENT}
            due |= verdict.stage_due is not None
            alone = len(router.named(verdict.name)) == 1
            if verdict.dropped or (alone and Kind.MISSING not in kinds):
                continue
            shard = min(verdict.missing(), default=0)
            held = any(server[0].held(verdict.incarnation) for server in self.servers)
            if held and alone:
                self.finish(router, f"accept loss of {shard}", router.accept_loss(shard))
            else:
                drop = router.drop(verdict.name, verdict.incarnation)
                self.finish(router, f"drop {verdict.name}", drop)
            return True
        return due

    def _look(self, router: ModelRouter) -> None:
        """Nothing is promised any more that is not there, and all else is served."""
        for (shard, incarnation), rows in self.judge.rows.items():
            server = self.servers[shard][0]
            store = server.held(incarnation)
            for row, each in rows.items():
                valid = server.token_is_valid(incarnation, each.sequence, each.session)
                has = store is not None and row in store.rows
                if not each.session:
                    continue
                if valid and not has:
                    self.judge.wrong.append(f"token of lost row {row} of shard {shard} is valid")
                if has and not valid:
                    self.judge.wrong.append(f"token of row {row} of shard {shard} is refused")
        for name in NAMES:
            strict = self.judge.counts["strict"]
            self.finish(router, f"search {name}", router.search(name))
            if router.named(name) and self.judge.counts["strict"] == strict:
                self.judge.wrong.append(f"{name} is not served in the end")
        for servers in self.servers:
            for store in servers[0].disk.stores.values():
                if servers[0].held(store.incarnation) and store.stage is not Stage.COMPLETE:
                    self.judge.wrong.append(f"{store.incarnation} is unfinished in the end")
            dropped = [
                each for each, (_, is_dropped) in servers[0].disk.register.items() if is_dropped
            ]
            if dropped:
                self.judge.wrong.append(f"tombstones in the end: {dropped}")


def live_through(seed: int, *, faults: bool, told: bool = False) -> Outcome:
    """Run a history."""
    return Fleet(seed, faults=faults, told=told).run()
