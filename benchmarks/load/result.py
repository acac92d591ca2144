"""The result of a run: figures with units in their names, and warnings about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.load.plan import CallKind, Plan
from benchmarks.load.record import Record, Times
from vectorshard.shard.texts import counted

BUSY_CORES = 0.85
"""Above this, the single thread that Python runs in may have limited the rate."""
LATE_MS = 1.0
LATE_OF_MEDIAN = 0.1
"""A lag over both, the absolute and the one relative to the median, shows in the latencies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The figures. The field names are stable; None is unknown or does not apply to this run.

    Latencies count from the intended start in an open loop and from the sending in a closed one,
    for calls of any status. `lag`: how late the generator sent a call that it could have sent.
    `waited`: calls that found `concurrency` calls in flight, and how long they waited for a slot.
    `client_cpu` is that of all threads of this process, including the warm-up.
    """

    call: str
    target: str
    collection: str | None
    mode: str
    arrivals: str | None
    concurrency: int
    connections: int
    batch: int | None
    k: int | None
    effort: str | None
    filter: str | None
    elapsed_s: float
    calls: int
    calls_failed: int
    calls_unfinished: int
    rate_offered_per_s: float | None
    rate_achieved_per_s: float
    queries_per_s: float | None
    rows_per_s: float | None
    latency_mean_ms: float | None
    latency_p50_ms: float | None
    latency_p90_ms: float | None
    latency_p99_ms: float | None
    latency_p99_9_ms: float | None
    latency_max_ms: float | None
    codes: Mapping[str, int]
    recall: float | None
    recall_queries: int
    lag_p99_ms: float | None
    lag_max_ms: float | None
    waited_calls: int
    waited_max_ms: float | None
    client_cpu_us_per_call: float | None
    client_cpu_cores: float
    interrupted: bool
    warnings: tuple[str, ...]


def result_of(
    plan: Plan,
    record: Record,
    *,
    ran_s: float,
    cpu_s: float,
    interrupted: bool,
    recall: tuple[float, int] | None,
    why_no_recall: str = "",
) -> Result:
    """Return the result of a run that took `ran_s`, warm-up included, and `cpu_s` of this process.

    `recall` is recall@k and the number of its queries, None if it was not measured.
    """
    calls = record.codes.total()
    succeeded = record.codes["OK"]
    elapsed_s = elapsed_of(plan, record, ran_s, interrupted)
    per_s = 1 / elapsed_s if elapsed_s > 0 else 0.0
    is_open, searches = plan.rate_per_s is not None, plan.call is CallKind.search
    lag = record.lag if is_open else Times()
    cores = cpu_s / ran_s if ran_s > 0 else 0.0
    items_per_s = succeeded * plan.batch * per_s
    warnings = list(_warnings(plan, record, lag, cores))
    if why_no_recall:
        warnings.append(f"recall was not measured: {why_no_recall}")
    return Result(
        call=plan.call.value,
        target=plan.target,
        collection=None if plan.call is CallKind.empty else plan.collection,
        mode="open" if is_open else "closed",
        arrivals=plan.arrivals.value if is_open else None,
        concurrency=plan.concurrency,
        connections=plan.connections,
        batch=None if plan.call is CallKind.empty else plan.batch,
        k=plan.k if searches else None,
        effort=plan.effort if searches else None,
        filter=plan.filter if searches else None,
        elapsed_s=elapsed_s,
        calls=calls,
        calls_failed=calls - succeeded,
        calls_unfinished=record.unfinished,
        rate_offered_per_s=plan.rate_per_s,
        rate_achieved_per_s=calls * per_s,
        queries_per_s=items_per_s if searches else None,
        rows_per_s=items_per_s if plan.call is CallKind.upsert else None,
        latency_mean_ms=record.latency.mean_ms if calls else None,
        latency_p50_ms=percentile(record.latency, 50),
        latency_p90_ms=percentile(record.latency, 90),
        latency_p99_ms=percentile(record.latency, 99),
        latency_p99_9_ms=percentile(record.latency, 99.9),
        latency_max_ms=percentile(record.latency, 100),
        codes=dict(record.codes.most_common()),
        recall=recall[0] if recall and recall[1] else None,
        recall_queries=recall[1] if recall else 0,
        lag_p99_ms=percentile(lag, 99),
        lag_max_ms=percentile(lag, 100),
        waited_calls=len(record.wait) if is_open else 0,
        waited_max_ms=percentile(record.wait, 100) if is_open else None,
        client_cpu_us_per_call=1e6 * cpu_s / record.sent if record.sent else None,
        client_cpu_cores=cores,
        interrupted=interrupted,
        warnings=tuple(warnings),
    )


def percentile(times: Times, percent: float) -> float | None:
    """Return a percentile in milliseconds; None if nothing was counted."""
    return times.percentile_ms(percent) if len(times) else None


def elapsed_of(plan: Plan, record: Record, ran_s: float, interrupted: bool) -> float:
    """Return the seconds of the calls that count, at least until the last answer.

    A run that ends by its duration lasted all of it, even if its last answer came sooner.
    """
    if interrupted:
        return max(0.0, ran_s - plan.warmup_s)
    elapsed_s = max(0.0, record.ended_s - plan.warmup_s)
    all_made = plan.calls_total is not None and record.codes.total() >= plan.calls_total
    return elapsed_s if all_made else max(elapsed_s, plan.duration_s or 0.0)


def _warnings(plan: Plan, record: Record, lag: Times, cores: float) -> Iterator[str]:
    if failed := record.codes.total() - record.codes["OK"]:
        yield f"{counted(failed, 'call')} failed; the latencies are those of all calls"
        for code in record.codes:
            if reason := record.reasons.get(code):
                yield f"the first {code}: {reason}"
    if waited := len(record.wait) if plan.rate_per_s is not None else 0:
        yield (
            f"{counted(waited, 'call')} waited because {plan.concurrency:,} were in flight "
            "(--concurrency); "
            "their latencies include the wait"
        )
    late_ms = percentile(lag, 99) or 0.0
    if late_ms > max(LATE_MS, LATE_OF_MEDIAN * (percentile(record.latency, 50) or 0.0)):
        yield (
            f"the generator was a bottleneck: 1% of the calls were sent {late_ms:.1f} ms late or "
            "more, and their latencies include that; lower --rps, or give it a free core"
        )
    if cores > BUSY_CORES:
        yield (
            f"the generator was a bottleneck: it used {cores:.2f} of a core, and Python runs on "
            "one; raise --batch, or run several generators"
        )
