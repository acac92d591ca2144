"""The profile: what a stack is taken for, how CPU is shared out, and what its rows say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fanout import BATCHES, EMBEDDED, FLEET, SINGLES, Kind, Run
from benchmarks.places import (
    KERNEL_FUTEX,
    KERNEL_REST,
    KERNEL_SOCKETS,
    OBJECTS,
    OTHERS,
    RUNNING,
    Place,
    Thread,
    objects_of,
    parts_of,
    place_of,
    stacks_of,
)
from benchmarks.profile import (
    PLACES,
    PROCESSES,
    Loaded,
    NotProfiled,
    Seen,
    Watched,
    Watches,
    beside,
    complaint_of,
    rows_of,
    used,
)

SHARD, ROUTER, CLI = "vectorshard/shard", "vectorshard/router", "vectorshard/cli"
CYGRPC = "grpc/_cython/cygrpc.cpython-311-x86_64-linux-gnu.so"
NUMPY = "numpy/_core/_multiarray_umath.cpython-311-x86_64-linux-gnu.so"
BOTTOM = (
    f"main ({CLI}/__main__.py:41);serve ({CLI}/serve.py:85);run (uvloop/__init__.py:92);"
    "run_forever (loop.c:33192);Loop__run (loop.c:20313);uv_run (core.c:452)"
)
"""Of all that the event loop does."""
HANDLER = f"{BOTTOM};task_step (_asynciomodule.c:2990);0x7f21 ({CYGRPC})"
WORKER = "Thread.run (threading.py:982);_worker (concurrent/futures/thread.py:83)"
ROUTE = f"{HANDLER};Router._search ({ROUTER}/fan_out/router.py:399)"
HAND = f"{HANDLER};LocalShard._in_thread ({SHARD}/engine/local_shard.py:420)"
SEARCH = f"{WORKER};Collection.search ({SHARD}/engine/collection.py:239)"


def place(frames: str) -> Place:
    """Return the place of a stack as py-spy writes it, without its thread and number."""
    [stack] = stacks_of(f"thread (7): MainThread;{frames} 1")
    return place_of(stack.frames)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (f"{HANDLER};0x7f22 ({CYGRPC})", Place.GRPC),
        (f"{HANDLER};0x7f22 ({CYGRPC});malloc (libc.so.6);0x7f28 (libc.so.6)", Place.GRPC),
        (f"{HANDLER};0x7f22 ({CYGRPC});0x7f28 (libc.so.6)", Place.GRPC),
        (f"{HANDLER};handle ({SHARD}/server/service.py:119)", Place.WIRE),
        (
            f"{HANDLER};decode ({SHARD}/wire/matrices.py:51);frombuffer ({NUMPY})",
            Place.WIRE,
        ),
        (f"{ROUTE};best_first ({SHARD}/index/exact.py:227)", Place.ROUTER),
        (f"{ROUTE};gather (asyncio/tasks.py:819)", Place.ROUTER),
        (
            f"{ROUTE};RemoteShard._ask ({ROUTER}/remote/remote_shard.py:99);0x7f23 ({CYGRPC})",
            Place.GRPC,
        ),
        (f"{BOTTOM};gather.<locals>._done_callback (asyncio/tasks.py:750)", Place.ROUTER),
        (f"{HAND};wrap_future (asyncio/futures.py:4)", Place.HAND_OVER),
        (f"{WORKER};_WorkItem.run (concurrent/futures/thread.py:58)", Place.HAND_OVER),
        (f"{BOTTOM};uv__async_io (async.c:193);uv__queue_empty (queue.h:33)", Place.HAND_OVER),
        (f"{SEARCH};rank ({SHARD}/index/exact.py:201);bincount ({NUMPY})", Place.NUMPY),
        (
            f"{SEARCH};IvfIndex._search ({SHARD}/index/ivf_index.py:1);0x7f24 (libfaiss.so)",
            Place.FAISS,
        ),
        (f"{ROUTE};gc_collect_main (gcmodule.c:1230)", Place.REST),
        (f"{BOTTOM};Handle__run (loop.c:70935);dealloc (_asynciomodule.c:1553)", Place.EVENT_LOOP),
        ("Thread.run (threading.py:982)", Place.REST),
    ],
)
def test_a_stack_belongs_to_the_innermost_frame_that_works_for_nobody_else(
    frames: str, expected: Place
) -> None:
    assert place(frames) is expected


@pytest.mark.parametrize(
    "frames",
    [
        f"{BOTTOM};uv__io_poll (linux.c:1452);epoll_pwait (libc.so.6)",
        f"_poll_wrapper (grpc/aio.py:3);0x7f21 ({CYGRPC});epoll_wait (libc.so.6)",
        f"Trainer._loop ({SHARD}/engine/background.py:214);Condition.wait (threading.py:327);"
        "PyThread_acquire_lock_timed (libpython3.11.so.1.0);0x7f25 (libc.so.6);0x7f26 (libc.so.6)",
    ],
)
def test_a_thread_that_waits_for_work_does_nothing(frames: str) -> None:
    assert place(frames) is Place.IDLE


@pytest.mark.parametrize(
    "wait",
    [
        "pthread_cond_timedwait (libc.so.6);0x7f26 (libc.so.6);0x7f27 (libc.so.6)",
        "pthread_cond_wait (libc.so.6);0x7f26 (libc.so.6)",
        "take_gil (ceval_gil.h:269);futex (libc.so.6)",
    ],
)
@pytest.mark.parametrize("below", [HANDLER, f"{SEARCH};rank ({SHARD}/index/exact.py:201)", BOTTOM])
def test_a_condition_below_whatever_runs_is_a_wait_for_the_gil(below: str, wait: str) -> None:
    assert place(f"{below};{wait}") is Place.GIL


@pytest.mark.parametrize(
    "call",
    [
        "sendmsg (libc.so.6)",
        "syscall (libc.so.6)",
        "eventfd_write (libc.so.6);write (libc.so.6)",
        "PyThread_release_lock (libpython3.11.so.1.0);sem_post (libc.so.6)",
        "pthread_cond_signal (libc.so.6)",
        "0x7f28 (libc.so.6);0x7f29 (libc.so.6)",
    ],
)
def test_a_system_call_is_nobody_s_because_threads_are_stopped_there(call: str) -> None:
    assert place(f"{HANDLER};0x7f22 ({CYGRPC});{call}") is Place.SYSTEM


def test_a_thread_s_name_may_hold_brackets_and_be_missing() -> None:
    raw = "thread (12): Thread-1 (_poll_wrapper);a b (x.py:3) 4\nthread (13);b (y.so) 5\n"
    first, second = stacks_of(raw)
    assert (first.thread, first.frames, first.samples) == (12, [("a b", "x.py")], 4)
    assert (second.thread, second.frames, second.samples) == (13, [("b", "y.so")], 5)


def test_what_is_not_of_a_thread_is_refused() -> None:
    with pytest.raises(ValueError, match="not a stack of a thread"):
        list(stacks_of("main (router/__main__.py:41) 3"))


def test_the_parts_are_those_of_each_thread_s_cpu_however_often_it_was_seen() -> None:
    raw = (
        f"thread (1): MainThread;{HANDLER} 30\n"
        f"thread (1): MainThread;{HANDLER};handle ({SHARD}/server/service.py:1) 10\n"
        f"thread (1): MainThread;{BOTTOM};epoll_pwait (libc.so.6) 900\n"
        f"thread (1): MainThread;{HANDLER};sendmsg (libc.so.6) 600\n"
        f"thread (2): search;{SEARCH};search (faiss/libfaiss.so) 1\n"
        f"thread (2): search;{SEARCH};pthread_cond_wait (libc.so.6) 82\n"
    )
    threads = {1: Thread("vectorshard", 4.0, 3.0), 2: Thread("vectorshard", 12.0, 1.0)}
    parts = parts_of(stacks_of(raw), threads)
    assert parts[Place.GRPC] == pytest.approx(3 / 20)
    assert parts[Place.WIRE] == pytest.approx(1 / 20)
    assert parts[Place.FAISS] == pytest.approx(12 / 20)
    assert parts[Place.SYSTEM] == pytest.approx(4 / 20)
    assert sum(parts[place] for place in RUNNING) == pytest.approx(1)
    assert parts[Place.GIL] == pytest.approx(82 / 41 * 16 / 20)


def test_threads_that_were_not_seen_running_are_known_by_stack_or_name() -> None:
    raw = f"thread (1): poll;0x7f21 ({CYGRPC});epoll_wait (libc.so.6) 9\n"
    threads = {
        1: Thread("vectorshard", 1.0, 0.0),
        2: Thread("event_engine", 1.0, 0.0),
        3: Thread("stranger", 2.0, 0.0),
    }
    parts = parts_of(stacks_of(raw), threads)
    assert parts[Place.GRPC] == pytest.approx(0.5)
    assert parts[Place.REST] == pytest.approx(0.5)


def test_a_process_that_did_nothing_has_no_parts() -> None:
    assert set(parts_of([], {1: Thread("vectorshard", 0.0, 0.0)}).values()) == {0.0}


def kernel(*functions: str) -> str:
    """Return frames of the kernel, as perf writes them."""
    return "\n".join(f"\tffffffff81000000 {name} ([kernel.kallsyms])" for name in functions)


PYTHON = "\t  fd1c6 _PyEval_EvalFrameDefault (/v/lib/python3.11/lib/libpython3.11.so.1.0)"
IN_FAISS = "\t  12 faiss::fvec_L2sqr<(faiss::SIMDLevel)2> (/v/lib/python3.11/faiss/libfaiss.so)"


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (PYTHON, "Python"),
        (f"{IN_FAISS}\n{PYTHON}", "FAISS"),
        (f"\t 1 [unknown] (/v/lib/python3.11/site-packages/{CYGRPC})", "gRPC"),
        (f"\t 1 DOUBLE_add (/v/lib/python3.11/site-packages/{NUMPY})", "numpy, OpenBLAS"),
        ("\t 1 f (/v/lib/python3.11/uvloop/loop.cpython-311.so)", "uvloop, asyncio"),
        ("\t 1 [unknown] ([unknown])", OTHERS),
        ("\t 1 f (/usr/lib/libz.so.1)", OTHERS),
        (kernel("futex_wait", "__x64_sys_futex", "do_syscall_64"), KERNEL_FUTEX),
        (kernel("tcp_sendmsg", "__x64_sys_sendmsg") + f"\n{PYTHON}", KERNEL_SOCKETS),
        (kernel("schedule", "__arm64_sys_epoll_pwait"), KERNEL_SOCKETS),
        (kernel("clear_page", "__x64_sys_madvise"), KERNEL_REST),
        (kernel("irqentry_exit"), KERNEL_REST),
    ],
)
def test_a_sample_of_perf_is_where_its_innermost_frame_is(frames: str, expected: str) -> None:
    assert objects_of(f"41 \n{frames}\n\n") == {41: {expected: 1}}
    assert expected in OBJECTS


def test_the_samples_of_each_process_are_counted_apart() -> None:
    script = f"41 \n{PYTHON}\n\n42 \n{IN_FAISS}\n{PYTHON}\n\n41 \n{PYTHON}\n\n43 \n"
    assert objects_of(script) == {41: {"Python": 2}, 42: {"FAISS": 1}}


def run(**cpu_us: float) -> Run:
    """Return a run in which each process, its blank an underline, took so much CPU a query."""
    named = {name.replace("_", " "): figure for name, figure in cpu_us.items()}
    return Run(queries_per_s=500.0, p50_ms=1.0, p99_ms=2.0, cpu_us=named, client_us=3.0)


def watches(**fleet: Any) -> Watches:
    """Return what was watched, with perf on the embedded server only; `fleet` is py-spy's."""
    embedded, router = run(embedded=2_000.0), run(router=1_000.0, shard_0=800.0, shard_1=1.0)
    by_kind = {
        EMBEDDED: Watched(
            plain=embedded,
            py_spy=Seen(parts={"embedded": {Place.FAISS: 0.25, Place.GIL: 1.5}}, run=embedded),
            perf=Seen(parts={"embedded": {"FAISS": 1.0}}, run=embedded),
        ),
        FLEET: Watched(
            plain=router,
            py_spy=Seen(**fleet),
            perf=Seen(parts={}, reason="perf may not look"),
        ),
    }
    return {(calls, kind): by_kind[kind] for calls in (SINGLES, BATCHES) for kind in by_kind}


def test_a_row_tells_of_each_process_its_part_and_what_that_is_of_a_query() -> None:
    parts = {"router": {Place.ROUTER: 0.5}, "shard 0": {Place.FAISS: 0.125}}
    rows = [
        row for row in rows_of(watches(parts=parts), "py_spy", PLACES) if row[0] == SINGLES.name
    ]
    assert [row[1] for row in rows] == ["all", *PLACES]
    by_place = {row[1]: row[2:] for row in rows}
    assert by_place["all"] == (2_000.0, 100.0, 1_000.0, 100.0, 800.0, 100.0)
    assert by_place[Place.FAISS] == (500.0, 25.0, 0.0, 0.0, 100.0, 12.5)
    assert by_place[Place.ROUTER] == (0.0, 0.0, 500.0, 50.0, 0.0, 0.0)
    assert by_place[Place.GIL][:2] == (3_000.0, 150.0)


def test_where_a_profiler_may_not_look_a_row_says_so_and_the_others_stay() -> None:
    rows = list(rows_of(watches(parts={}, reason="py-spy: not installed"), "perf", OBJECTS))
    assert {len(row) for row in rows} == {2 + 2 * len(PROCESSES)}
    assert rows[1][1:] == ("perf may not look", *["-"] * 6)
    assert next(row for row in rows if row[1] == "FAISS")[2:] == (2_000.0, 100.0, *["-"] * 4)
    assert len(rows) == 2 * (2 + len(OBJECTS))


def test_where_nobody_saw_anything_the_cpu_stays() -> None:
    nothing = Seen(parts={}, reason="py-spy: not installed")
    seen = {
        (calls, kind): Watched(plain=watched.plain, py_spy=nothing, perf=nothing)
        for (calls, kind), watched in watches(parts={}).items()
    }
    rows = list(rows_of(seen, "py_spy", PLACES))
    assert [row[1] for row in rows] == ["all", nothing.reason] * 2
    assert not beside(seen, "py_spy")


def test_what_a_profiler_changes_is_told_of_the_processes_that_are_shown() -> None:
    told = beside(watches(parts={}, run=run(router=1_100.0, shard_0=900.0, shard_1=5.0)), "py_spy")
    assert "500 -> 500 queries/s, µs a query embedded 2,000 -> 2,000" in told
    assert "router 1,000 -> 1,100, shard 0 800 -> 900" in told
    assert "shard 1" not in told


def test_the_cpu_of_a_thread_is_what_it_used_meanwhile() -> None:
    before = {1: Thread("a", 2.0, 1.0), 3: Thread("ended", 1.0, 1.0)}
    after = {1: Thread("a", 2.5, 1.0), 2: Thread("new", 0.25, 0.5)}
    assert used(before, after) == {1: Thread("a", 0.5, 0.0), 2: Thread("new", 0.25, 0.5)}


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        ("Error: may not | attach\n\nStack backtrace:\n  0: main\n", "may not / attach"),
        ("Error:\n\nAccess is limited.\nConsider\n", "Access is limited."),
        ("", "it gives no reason"),
    ],
)
def test_a_complaint_fits_a_cell_of_a_table(told: str, complaint: str) -> None:
    assert complaint_of(told) == complaint


def test_a_load_without_an_answer_does_not_hide_why_nothing_was_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = "import signal, sys; print('calls start', file=sys.stderr, flush=True); signal.pause()"
    monkeypatch.setattr(
        "benchmarks.profile.load_command", lambda *_: [sys.executable, "-c", script]
    )
    with pytest.raises(NotProfiled), Loaded(Kind(EMBEDDED, {}), SINGLES, Path()):
        raise NotProfiled("perf: not installed")


def test_a_load_that_ends_before_its_first_call_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.profile.load_command", lambda *_: [sys.executable, "-c", ""])
    with (
        pytest.raises(RuntimeError, match="ended with code 0"),
        Loaded(Kind(EMBEDDED, {}), SINGLES, Path()),
    ):
        pass
