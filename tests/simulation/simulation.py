"""A fleet in virtual time: routers over model shards, clients that ask them, and what goes wrong.

Everything that happens is decided by the seed. Trouble comes for a while, then all is mended; what
was asked meanwhile is judged as it ends, and afterwards everything must be as if nothing had been.
"""

from __future__ import annotations

import asyncio
import random as chance
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random
from typing import Any, Final

import numpy as np
import structlog

from tests.router.model_shard import CAUSE, Cause, ModelShard
from tests.simulation.judge import Asked, Create, Describe, Drop, Judge, Request, Wrong, require
from tests.simulation.network import Network, Server
from tests.simulation.plan import Fault, Plan, plan_of
from tests.virtual_time import run_virtually
from vectorshard.router.fan_out.router import Router
from vectorshard.router.remote.connection import Connection
from vectorshard.router.remote.remote_shard import RemoteShard
from vectorshard.shard.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    ShardUnavailable,
    VectorShardError,
)
from vectorshard.shard.types import (
    Call,
    CollectionConfig,
    CountRequest,
    DeleteRequest,
    Float32Array,
    GetRequest,
    IdArray,
    IdType,
    Include,
    Metric,
    SearchRequest,
    SearchResult,
    UpsertRequest,
    WriteMode,
)

NAME: Final = "words"
IDS: Final = 24
"""So few that calls touch the same ones."""
CLUSTER: Final = "cluster"
ELSEWHERE: Final = 1_000_000
"""Where the states of shards are numbered from that belong to another cluster."""
TIMEOUTS_S: Final = (0.05, 0.3, 1.0, 3.0)
RECOVERED_S: Final = 8.0
"""Everything works again so long after the last trouble."""
QUIET_TIMEOUT_S: Final = 5.0
AT_LAST_S: Final = 10.0
"""So long after its deadline a call is taken back that should have ended then."""
WORK_S: Final = {"search": 0.002, "read": 0.001, "wait": 0.001, "commit": 0.003}


@dataclass(slots=True)
class Report:
    """What has happened, line by line, and what of it must not."""

    seed: int
    plan: Plan
    log: list[tuple[float, str, str, object]] = field(default_factory=list)
    """When, who, what, and of what; written out when it is read, which is seldom."""
    wrong: list[str] = field(default_factory=list)
    calls: int = 0
    succeeded: int = 0

    def __str__(self) -> str:
        return "\n".join(
            [
                f"seed {self.seed}: {self.plan}",
                *(f"{at:9.4f}  {who:<14}  {did}{_told(what)}" for at, who, did, what in self.log),
                *(f"WRONG: {each}" for each in self.wrong),
                f"replay: pytest tests/simulation --seed {self.seed}",
            ]
        )


class Simulation:
    """One seed's fleet. Call `run` once, on a virtual loop."""

    def __init__(self, seed: int) -> None:
        self._random = Random(f"{seed} plan")
        self._clients_random = Random(f"{seed} clients")
        self._work_random = Random(f"{seed} work")
        self.plan = plan = plan_of(self._random)
        self.report = Report(seed, plan)
        self._loop = asyncio.get_running_loop()
        self._network = Network(plan.weather, Random(f"{seed} network"), self._note)
        self._shards = [self._model(shard, CLUSTER) for shard in range(plan.shards)]
        self._strangers = [self._model(shard, "another", ELSEWHERE) for shard in range(plan.shards)]
        self._names = [f"shard-{shard}:7700" for shard in range(plan.shards)]
        self._judge = Judge(self._shards, strangers=plan.strangers)
        self._routers: list[Router] = []
        self._closing: list[asyncio.Task[None]] = []
        self._asked: dict[int, Asked] = {}
        self._numbers = count(1)
        self._incarnations = count(1)
        self._config = self._new_config()

    def _model(self, shard: int, cluster: str, first_sequence: int = 0) -> ModelShard:
        def pace(work: str) -> float:
            host = self._network.hosts[self._names[shard]]
            return self._work_random.expovariate(1.0 / WORK_S[work]) * host.pace

        return ModelShard(
            shard,
            self.plan.shards,
            cluster,
            pace=pace,
            clock=self._loop.time,
            first_sequence=first_sequence,
        )

    def _note(self, who: str, did: str, what: object = "") -> None:
        self.report.log.append((self._loop.time(), who, did, what))

    def _server(self, shard: ModelShard) -> Server:
        return Server(shard, self._loop.time)

    # ---- what happens ---------------------------------------------------------------------------

    async def run(self) -> Report:
        """Let it happen, and return what has."""
        with self._logs_noted(), _seeded(self.report.seed):
            for name, shard in zip(self._names, self._shards, strict=True):
                self._network.start(name, self._server(shard))
            self._routers = [await self._connected() for _ in range(self.plan.routers)]
            await self._begin()
            clients = [self._client(number) for number in range(self.plan.clients)]
            if self.plan.recreates:
                clients.append(self._recreate())
            trouble = asyncio.ensure_future(self._trouble())
            await asyncio.gather(*clients)
            trouble.cancel()
            await asyncio.gather(trouble, return_exceptions=True)
            await self._mended()
            await self._close()
        return self.report

    async def _connected(self) -> Router:
        clock = self._loop.time
        shards = [
            RemoteShard(
                name,
                connection=self._connection(name),
                clock=clock,
                chance=self._work_random.random,
            )
            for name in self._names
        ]
        return await Router.connect(
            shards,
            names=self._names,
            clock=clock,
            new_incarnation=lambda: f"incarnation-{next(self._incarnations)}",
        )

    def _connection(self, name: str) -> Connection:
        return Connection(name, channel_to=self._network.channel, clock=self._loop.time)

    async def _begin(self) -> None:
        """Have a collection with rows, unless a network that is bad from the start prevents it."""
        await self._ask(0, Create(self._config), QUIET_TIMEOUT_S)
        await self._ask(0, self._upsert(12), QUIET_TIMEOUT_S)

    # ---- calls ----------------------------------------------------------------------------------

    async def _ask(
        self, router: int, request: Request, timeout_s: float, cancel_s: float | None = None
    ) -> Asked:
        """Make a call and judge it."""
        number = next(self._numbers)
        began = self._loop.time()
        asked = Asked(number=number, request=request, began=began, timeout_s=timeout_s)
        self._asked[number] = asked
        self._note(f"call {number}", f"asks router {router}, for {timeout_s:.3f} s: ", request)
        call = Call(deadline=began + timeout_s)
        CAUSE.set(Cause(number))
        running = asyncio.ensure_future(_send(self._routers[router], request, call))
        at_last_s = timeout_s + AT_LAST_S if cancel_s is None else cancel_s
        await asyncio.wait([running], timeout=at_last_s)
        if not running.done():
            asked.cancelled_at = self._loop.time()
            running.cancel()
        try:
            asked.outcome = await running
        except asyncio.CancelledError:
            pass
        except Exception as error:
            asked.outcome = error
        asked.ended = self._loop.time()
        asked.awaited = [
            rpc for rpc in self._network.awaited(number) if rpc not in _SHARED_BY_CALLS
        ]
        self._judged(asked)
        return asked

    def _judged(self, asked: Asked) -> None:
        self.report.calls += 1
        failed = asked.outcome is None or isinstance(asked.outcome, Exception)
        self.report.succeeded += not failed
        self._note(f"call {asked.number}", "ends: ", asked.outcome)
        try:
            self._judge.judge(asked)
            if self.plan.calm and not self.plan.recreates:
                missing = isinstance(asked.outcome, ShardUnavailable | DeadlineExceeded)
                require(not missing, "no shard was missing")
        except Wrong as wrong:
            self._wrong(asked.number, str(wrong))

    def _wrong(self, call: int, why: str) -> None:
        self._note(f"call {call}", f"WRONG: {why}")
        self.report.wrong.append(f"call {call}: {why}")

    async def _client(self, number: int) -> None:
        """Ask one thing after the other; searches often several at once."""
        random = self._clients_random
        for _ in range(self.plan.calls_each):
            await asyncio.sleep(random.expovariate(1 / 0.3))
            router = random.randrange(self.plan.routers)
            request = self._any_request()
            together = 1
            if isinstance(request, SearchRequest) and random.random() < 0.4:
                together = random.randint(2, 5)
            timeouts_s = [
                random.choice(TIMEOUTS_S) * random.uniform(0.8, 1.2) for _ in range(together)
            ]
            if self.plan.calm:
                timeouts_s = [QUIET_TIMEOUT_S] * together
            elif random.random() < 0.5:
                timeouts_s = [timeouts_s[0]] * together
            cancel_s = random.expovariate(1 / 0.01) if random.random() < 0.05 else None
            await asyncio.gather(
                *(
                    asyncio.ensure_future(self._ask(router, each, timeout_s, cancel_s))
                    for each, timeout_s in zip(
                        self._alike(request, together), timeouts_s, strict=True
                    )
                )
            )

    def _alike(self, request: Request, number: int) -> Iterator[Request]:
        yield request
        for _ in range(number - 1):
            assert isinstance(request, SearchRequest)
            queries = self._vectors(self._clients_random.randint(1, 3))
            yield replace(request, queries=queries, k=self._clients_random.choice((1, 3, 10)))

    def _any_request(self) -> Request:
        random = self._clients_random
        kinds: Sequence[tuple[int, Callable[[], Request]]] = (
            (45, self._search),
            (25, lambda: self._upsert(random.randint(1, 8))),
            (8, lambda: DeleteRequest(collection=NAME, ids=self._ids(random.randint(1, 5)))),
            (8, lambda: GetRequest(collection=NAME, ids=self._ids(random.randint(1, 8)))),
            (6, lambda: CountRequest(collection=NAME)),
            (6, lambda: Describe(NAME)),
        )
        return random.choices([make for _, make in kinds], [weight for weight, _ in kinds])[0]()

    def _search(self) -> SearchRequest:
        random = self._clients_random
        return SearchRequest(
            collection=NAME,
            queries=self._vectors(random.randint(1, 3)),
            k=random.choice((1, 3, 10)),
            include=Include(vectors=random.random() < 0.3),
            min_coverage=random.choice((1.0, 1.0, 1.0, 0.5, 0.1)),
        )

    def _upsert(self, rows: int) -> UpsertRequest:
        mode = WriteMode.INSERT if self._clients_random.random() < 0.15 else WriteMode.UPSERT
        return UpsertRequest(
            collection=NAME, ids=self._ids(rows), vectors=self._vectors(rows), mode=mode
        )

    def _ids(self, rows: int) -> IdArray:
        return np.array(self._clients_random.sample(range(IDS), rows), dtype=np.int64)

    def _vectors(self, rows: int) -> Float32Array:
        """Return vectors of the dim that the collection has, as far as clients know."""
        values = range(-3, 4)
        flat = self._clients_random.choices(values, k=rows * self._config.dim)
        return np.array(flat, dtype=np.float32).reshape(rows, self._config.dim)

    # ---- collections come and go ----------------------------------------------------------------

    def _new_config(self) -> CollectionConfig:
        return CollectionConfig(
            name=NAME,
            dim=self._clients_random.choice((3, 3, 4)),
            metric=self._clients_random.choice((Metric.L2, Metric.INNER_PRODUCT)),
            id_type=IdType.INT64,
        )

    async def _recreate(self) -> None:
        """Drop the collection and create another under its name, again and again."""
        random = self._clients_random
        for _ in range(self.plan.calls_each):
            await asyncio.sleep(random.expovariate(1 / 0.2))
            router = random.randrange(self.plan.routers)
            timeout_s = QUIET_TIMEOUT_S if self.plan.calm else random.choice((0.3, QUIET_TIMEOUT_S))
            dropped = await self._ask(router, Drop(NAME), timeout_s)
            if dropped.outcome is not True and random.random() < 0.5:
                continue
            await asyncio.sleep(random.expovariate(1 / 0.05))
            router = random.randrange(self.plan.routers)
            self._config = self._new_config()
            await self._ask(router, Create(self._config), QUIET_TIMEOUT_S)
            await self._ask(router, self._upsert(8), QUIET_TIMEOUT_S)

    # ---- trouble --------------------------------------------------------------------------------

    async def _trouble(self) -> None:
        """Let faults befall the fleet, one after the other, until cancelled."""
        random = self._random
        befall: dict[Fault, Callable[[int, float], Awaitable[None]]] = {
            Fault.STALL: self._stall,
            Fault.KILL: self._kill,
            Fault.RESTART: self._restart,
            Fault.SLOW: self._slow,
            Fault.CUT: self._cut,
            Fault.SWAP: self._swap,
            Fault.STRANGER: self._stranger,
            Fault.ROUTER: self._new_router,
        }
        while self.plan.faults:
            await asyncio.sleep(random.expovariate(1 / 0.4))
            fault, shard = random.choice(self.plan.faults), random.randrange(self.plan.shards)
            lasts_s = random.choice((0.05, 0.3, 1.0, 3.0))
            self._note(self._names[shard], f"{fault}, for {lasts_s} s")
            await befall[fault](shard, lasts_s)

    async def _stall(self, shard: int, lasts_s: float) -> None:
        self._network.stall(self._names[shard])
        await asyncio.sleep(lasts_s)
        self._network.resume(self._names[shard])

    async def _kill(self, shard: int, lasts_s: float) -> None:
        self._network.kill(self._names[shard])
        await asyncio.sleep(lasts_s)
        self._network.start(self._names[shard], self._server(self._shards[shard]))

    async def _restart(self, shard: int, lasts_s: float) -> None:
        server = self._network.hosts[self._names[shard]].server
        assert server is not None
        await server.service.drain()
        await self._kill(shard, lasts_s)

    async def _slow(self, shard: int, lasts_s: float) -> None:
        host = self._network.hosts[self._names[shard]]
        host.pace = 100.0
        await asyncio.sleep(lasts_s)
        host.pace = 1.0

    async def _cut(self, shard: int, lasts_s: float) -> None:
        self._network.cut(self._names[shard])

    async def _serve_instead(self, at: dict[int, ModelShard], lasts_s: float) -> None:
        """Have others serve at the addresses of some shards for a while."""
        for shard in at:
            self._network.kill(self._names[shard])
        for shard, other in at.items():
            self._network.start(self._names[shard], self._server(other))
        await asyncio.sleep(lasts_s)
        for shard in at:
            self._network.kill(self._names[shard])
        for shard in at:
            self._network.start(self._names[shard], self._server(self._shards[shard]))

    async def _swap(self, shard: int, lasts_s: float) -> None:
        other = (shard + 1) % self.plan.shards
        await self._serve_instead({shard: self._shards[other], other: self._shards[shard]}, lasts_s)

    async def _stranger(self, shard: int, lasts_s: float) -> None:
        await self._serve_instead({shard: self._strangers[shard]}, lasts_s)

    async def _new_router(self, shard: int, lasts_s: float) -> None:
        place = self._random.randrange(self.plan.routers)
        before, self._routers[place] = self._routers[place], await self._connected()
        self._closing.append(asyncio.ensure_future(before.close()))

    # ---- afterwards -----------------------------------------------------------------------------

    async def _mended(self) -> None:
        """Mend everything; then every router must answer for all shards, at the first try."""
        self._note("network", "all is mended")
        self._network.weather = replace(self.plan.weather, **_NO_TROUBLE)
        for name, shard in zip(self._names, self._shards, strict=True):
            host = self._network.hosts[name]
            host.pace = 1.0
            host.resumed.set()
            draining = Fault.RESTART in self.plan.faults
            if host.server is None or host.server.shard is not shard or draining:
                self._network.kill(name)
                self._network.start(name, self._server(shard))
        await asyncio.sleep(RECOVERED_S)
        newest = self._judge.newest(NAME)
        entries = {None if held is None else held.entry for held in newest}
        if len(entries) == 1 and (entry := entries.pop()) is not None:
            self._config = entry.config
            await self._ask_all_routers()
        await self._converge()
        self._config = self._new_config()
        last = self.plan.routers - 1
        for request in (Create(self._config), self._upsert(IDS)):
            self._must_succeed(await self._ask(last, request, QUIET_TIMEOUT_S))
        await self._ask_all_routers()
        for call, why in self._judge.judge_history(self._asked):
            self._wrong(call, why)

    async def _converge(self) -> None:
        """A drop, repeated, drops what is left of the collection."""
        for _ in range(3):
            dropped = await self._ask(0, Drop(NAME), QUIET_TIMEOUT_S)
            if isinstance(dropped.outcome, CollectionNotFound):
                return
            self._must_succeed(dropped)
        self._wrong(dropped.number, "three drops have left something")

    async def _ask_all_routers(self) -> None:
        for router in range(self.plan.routers):
            search = replace(self._search(), min_coverage=1.0)
            self._must_succeed(await self._ask(router, search, QUIET_TIMEOUT_S))
        for request in (CountRequest(collection=NAME), Describe(NAME)):
            self._must_succeed(await self._ask(0, request, QUIET_TIMEOUT_S))

    def _must_succeed(self, asked: Asked) -> None:
        if isinstance(asked.outcome, Exception):
            self._wrong(asked.number, f"all is mended, and it fails: {asked.outcome}")

    async def _close(self) -> None:
        """End all of it; nothing may be left that runs."""
        await asyncio.gather(*(router.close() for router in self._routers), *self._closing)
        await self._network.close()
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            self._wrong(0, f"runs on for ever: {task.get_coro()}")
            task.cancel()
        for failure in self._network.failures:
            self._wrong(0, f"the simulation itself has failed: {failure!r}")

    # ---- the log --------------------------------------------------------------------------------

    @contextmanager
    def _logs_noted(self) -> Iterator[None]:
        """Have what the routers and servers log be lines of this log."""

        def note(_: object, level: str, event: Any) -> Any:
            text = event.pop("event")
            event.pop("exc_info", None)
            self._note("log", f"{level}: {text} ", event)
            raise structlog.DropEvent

        before = structlog.get_config()
        structlog.configure(processors=[note])
        try:
            yield
        finally:
            structlog.configure(**before)


_SHARED_BY_CALLS: Final = frozenset({"GetServerInfo", "Search", "SearchStream"})
"""What one call begins and others go on with: learning who the children are, joined searches."""

_NO_TROUBLE: Final = {
    "late": 0.0,
    "lost_request": 0.0,
    "lost_answer": 0.0,
    "cut": 0.0,
    "copied": 0.0,
}


async def _send(router: Router, request: Request, call: Call) -> object:
    match request:
        case SearchRequest():
            return await router.search(request, call=call)
        case UpsertRequest():
            return await router.upsert(request, call=call)
        case DeleteRequest():
            return await router.delete(request, call=call)
        case GetRequest():
            return await router.get(request, call=call)
        case CountRequest():
            return await router.count(request, call=call)
        case Create():
            return await router.create_collection(request.config, call=call)
        case Drop():
            await router.drop_collection(request.collection, call=call)
            return True
        case Describe():
            return await router.describe(request.collection, call=call)


def _told(what: object) -> str:
    """Say in a line what is asked or answered."""
    match what:
        case None:
            return "cancelled"
        case VectorShardError():
            return f"{type(what).__name__}: {what}"
        case SearchRequest():
            return f"search k={what.k} min_coverage={what.min_coverage} {what.queries.tolist()}"
        case UpsertRequest():
            rows = dict(zip(what.ids.tolist(), what.vectors.tolist(), strict=True))
            return f"{what.mode.value} {rows}"
        case SearchResult():
            hits = list(zip(what.hits.ids.tolist(), what.hits.scores.tolist(), strict=True))
            seen = {
                shard.shard: shard.missing_reason or shard.generation
                for shard in what.receipt.shards
            }
            return f"{hits} of states {seen}"
        case _:
            return str(what).replace("\n", " ")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Have what others draw by the module `random`, such as tenacity's jitter, be of the seed."""
    before = chance.getstate()
    chance.seed(seed)
    try:
        yield
    finally:
        chance.setstate(before)


async def _run(seed: int) -> Report:
    return await Simulation(seed).run()


def simulate(seed: int) -> Report:
    """Run a seed's simulation from its beginning to its end."""
    return run_virtually(_run(seed))
