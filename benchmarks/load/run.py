"""One run from its plan to its result: prepare, make the calls, evaluate the answers."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import process_time

from rich.console import Console

from benchmarks.load.connections import Rpc, connected
from benchmarks.load.engine import event_loop, make_calls
from benchmarks.load.ingest import fill
from benchmarks.load.plan import CallKind, Plan
from benchmarks.load.recall import recall_at_k
from benchmarks.load.record import Record
from benchmarks.load.requests import (
    Requests,
    empty_calls,
    fresh_id,
    searches,
    upserts,
    with_effort,
)
from benchmarks.load.result import Result, result_of
from benchmarks.load.schedule import Schedule, starts_of
from benchmarks.load.workload import Workload, open_workload, why_no_recall
from vectorshard.client.client import Client
from vectorshard.shard.errors import CollectionNotFound, DimensionMismatch
from vectorshard.shard.types import IdArray

SETUP_TIMEOUT_S = 60.0
TELL_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The requests of a run, and the ground truth of its answers, or None."""

    requests: Requests
    truth: IdArray | None = None
    why_no_recall: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What was measured in a run: calls, seconds of time, and seconds of this process's CPU."""

    record: Record
    ran_s: float
    cpu_s: float
    interrupted: bool


def run(plan: Plan) -> Result:
    """Run a plan, with progress on stderr; SIGINT or SIGTERM ends it early.

    Raises
    ------
    UnreadableFile, VectorShardError
        If the run does not begin. A call that fails is counted, not raised.
    """
    console = Console(stderr=True, highlight=False)
    try:
        prepared = prepare(plan, console)
    except KeyboardInterrupt:
        print(f"stopped: {_not_measured(plan)}", file=sys.stderr)
        raise
    schedule = Schedule(
        None if plan.rate_per_s is None else starts_of(plan.arrivals, plan.rate_per_s, plan.seed),
        warmup_s=plan.warmup_s,
        duration_s=plan.duration_s,
        calls_total=plan.calls_total,
    )
    gc.collect()
    gc.freeze()  # what is loaded by now is not collected again while calls are timed
    with asyncio.Runner(loop_factory=lambda: event_loop(is_open=schedule.is_open)) as runner:
        ran = runner.run(_calls(plan, prepared.requests, schedule))
    recall = None
    if prepared.truth is not None:
        recall = recall_at_k(ran.record.answers, prepared.truth, batch=plan.batch, k=plan.k)
    return result_of(
        plan,
        ran.record,
        ran_s=ran.ran_s,
        cpu_s=ran.cpu_s,
        interrupted=ran.interrupted,
        recall=recall,
        why_no_recall=prepared.why_no_recall,
    )


def _not_measured(plan: Plan) -> str:
    """Return what an interruption before the first call leaves behind."""
    if not plan.ingest:
        return "nothing was measured"
    return (
        f"nothing was measured; the rows that are written stay, and a training goes on: "
        f"`vectorshard drop {plan.collection}` removes them"
    )


def prepare(plan: Plan, console: Console) -> Prepared:
    """Fill the collection if the plan says so, and encode the requests."""
    if plan.call is CallKind.empty:
        return Prepared(requests=empty_calls())
    with Client(plan.target, timeout_s=SETUP_TIMEOUT_S) as client:
        try:
            dim = client.describe(plan.collection).config.dim
        except CollectionNotFound:
            if not plan.ingest:
                raise CollectionNotFound(
                    f"no collection {plan.collection!r} to load; --ingest creates and fills it"
                ) from None
            dim = None
        with open_workload(plan, dim) as workload:
            if dim not in {None, workload.source.dim}:
                told = f"{workload.source.dim}, but {plan.collection} has {dim}"
                raise DimensionMismatch(told, field="dim")
            if plan.ingest:
                fill(client, plan.collection, workload.source, console)
            return _encode(plan, workload, client)


def _encode(plan: Plan, workload: Workload, client: Client) -> Prepared:
    description = client.describe(plan.collection)
    if plan.call is CallKind.upsert:
        id_type = description.config.id_type
        return Prepared(requests=upserts(plan, workload.sample, id_type, fresh_id()))
    if plan.filter is None:
        reason = why_no_recall(client, workload, description, plan.k)
    else:
        reason = "the ground truth is that of all rows, and the searches have a filter"
    plan = with_effort(plan, description.config.target_recall)
    return Prepared(
        requests=searches(plan, workload.sample),
        truth=None if reason else workload.truth,
        why_no_recall=reason,
    )


async def _calls(plan: Plan, requests: Requests, schedule: Schedule) -> Ran:
    record = Record(requests.distinct)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with connected(
        plan.target, requests.rpc, connections=plan.connections, timeout_s=plan.timeout_s
    ) as rpcs:
        print(f"calls start: {requests.rpc} at {plan.target}", file=sys.stderr, flush=True)
        telling = asyncio.create_task(_tell(record))
        cpu_before_s = process_time()
        try:
            ran_s = await make_calls(
                schedule,
                [_sending(rpc, requests, plan.timeout_s) for rpc in rpcs],
                record,
                concurrency=plan.concurrency,
                stopped=stopped,
            )
        finally:
            cpu_s = process_time() - cpu_before_s
            telling.cancel()
    return Ran(record=record, ran_s=ran_s, cpu_s=cpu_s, interrupted=stopped.is_set())


def _sending(rpc: Rpc, requests: Requests, timeout_s: float) -> Callable[[int], Awaitable[bytes]]:
    return lambda number: rpc(requests[number], timeout=timeout_s)


async def _tell(record: Record) -> None:
    """Show the progress of the run on a terminal at stderr, at almost no cost."""
    if not sys.stderr.isatty():
        return
    try:
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            failed = record.codes.total() - record.codes["OK"]
            print(f"\r{record.sent:,} calls, {failed:,} failed ", end="", file=sys.stderr)
            sys.stderr.flush()
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
