"""Assigns samples of a server: stacks of py-spy to places, samples of perf to shared objects.

Pure: the output of the profilers in, counts out.

py-spy does not show here whether a thread runs or waits; the innermost frames do. Waiting for work
ends in epoll or in a Python lock, waiting for the GIL in a condition variable directly below the
frame that needs it. A stack that ends in another system call is no evidence: on busy cores a thread
that wakes another is stopped there for much longer than it runs. So stacks distribute only the CPU
that a thread used outside the kernel, as the kernel reports it. A frame of numpy, libc or the
interpreter belongs to its caller; the place of a stack is that of the first frame, from the
innermost outward, that has one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Place(StrEnum):
    """What a thread does. In IDLE and GIL it waits."""

    GRPC = "gRPC core and its threads"
    EVENT_LOOP = "event loop: uvloop, asyncio"
    WIRE = "service and wire: bytes to numpy and back"
    ROUTER = "router: fan-out, merge, remote calls"
    HAND_OVER = "hand-over between threads: executor, futures"
    NUMPY = "engine's numpy: admission, exact scores, rank, ids"
    FAISS = "FAISS"
    REST = "garbage collection and the rest"
    SYSTEM = "system calls, which perf tells apart"
    IDLE = "waiting for work"
    GIL = "beside the sum: waiting for the GIL"


USER = (
    Place.GRPC,
    Place.EVENT_LOOP,
    Place.WIRE,
    Place.ROUTER,
    Place.HAND_OVER,
    Place.NUMPY,
    Place.FAISS,
    Place.REST,
)
"""The places that run outside the kernel."""
RUNNING = (*USER, Place.SYSTEM)

_WAITING_DEPTH = 4
"""Innermost frames that may show a wait: libc adds up to three, some without a name."""
_POLLS = frozenset({"epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "select"})
_LOCK = "PyThread_acquire_lock_timed"
_CONDITIONS = frozenset({"take_gil", "pthread_cond_wait", "pthread_cond_timedwait"})
_SYSCALLS = re.compile(
    r"p?(read|write)v?(64)?|send\w*|recv\w*|syscall|eventfd_\w+|m(map|unmap|advise|protect)|munmap"
    r"|sem_\w+|pthread_(cond|mutex)_\w+|\w*futex\w*|sched_yield"
)
_UNNAMED = re.compile(r"0x[0-9a-f]+")

_PLACE_OF_FUNCTION = (
    (re.compile(r"run_in_executor$|call_soon_threadsafe$|uv__async_|uv_async_"), Place.HAND_OVER),
    (re.compile(r"_chain_future|_call_set_state|wrap_future"), Place.HAND_OVER),
    (re.compile(r"gather\.<locals>"), Place.ROUTER),  # no other code gathers for every search
)
_PLACE_OF_FILE = (
    (re.compile(r"gcmodule\.c"), Place.REST),
    (re.compile(r"faiss/|libfaiss|_swigfaiss|libgomp"), Place.FAISS),
    (re.compile(r"grpc/|cygrpc"), Place.GRPC),
    (re.compile(r"\bshard/(wire|server)/"), Place.WIRE),
    (
        re.compile(r"engine/(local_shard|batcher|group_commit)\.|concurrent/futures/"),
        Place.HAND_OVER,
    ),
    (re.compile(r"\bshard/(index/exact|engine/validation|types|errors|config|protocol)\."), None),
    (re.compile(r"\bshard/engine/background\."), Place.REST),
    (re.compile(r"\bcli/|\bshard/runtime/"), None),
    (re.compile(r"\bshard/"), Place.NUMPY),
    (re.compile(r"\b(router|client)/"), Place.ROUTER),
)
"""The first that matches the file or shared object of a frame; None: it belongs to its caller."""

_EVENT_LOOP = re.compile(r"uvloop/|loop\.c|asyncio/|_asynciomodule\.c")
"""These belong to their caller too, and are at the bottom of the loop's own stacks."""

_THREAD = re.compile(r"thread \((\d+)\)(?:: (.*))?")
_FRAME = re.compile(r"(.*) \((.*?)(?::\d+)?\)")


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack of a thread, and its count. `frames` are (function, file), outermost first.

    `thread` is the thread's number in the operating system.
    """

    thread: int
    frames: Sequence[tuple[str, str]]
    samples: int


def stacks_of(raw: str) -> Iterator[Stack]:
    """Parse the output of `py-spy record --native --threads --format raw`."""
    for line in raw.splitlines():
        text, _, samples = line.rpartition(" ")
        head, *frames = text.split(";")
        thread = _THREAD.fullmatch(head)
        if thread is None:
            raise ValueError(f"not a stack of a thread: {line[:100]!r}")
        found = (_FRAME.fullmatch(frame) for frame in frames)
        named = [
            (match[1], match[2]) if match else (frame, "")
            for frame, match in zip(frames, found, strict=True)
        ]
        yield Stack(int(thread[1]), named, int(samples))


def place_of(frames: Sequence[tuple[str, str]]) -> Place:
    """Return what a thread with this stack does; the outermost frame is first."""
    tail = frames[-_WAITING_DEPTH:]
    innermost = {function for function, _ in tail}
    if innermost & _POLLS or _LOCK in innermost:
        return Place.IDLE
    if innermost & _CONDITIONS:
        return Place.GIL
    return Place.SYSTEM if _in_system_call(tail) else owner_of(frames)


def _in_system_call(tail: Sequence[tuple[str, str]]) -> bool:
    """Whether the innermost frames are libc's, around a system call.

    Its locks have two adjacent frames without a name; memory has one below a named frame.
    """
    in_libc = [function for function, file in tail if file.startswith("libc")]
    if not in_libc or not tail[-1][1].startswith("libc"):
        return False
    if any(_SYSCALLS.fullmatch(function) for function in in_libc):
        return True
    return len(in_libc) > 1 and all(_UNNAMED.fullmatch(function) for function in in_libc)


def owner_of(frames: Sequence[tuple[str, str]]) -> Place:
    """Return the place that a thread runs for, or would run for if it did not wait."""
    for function, file in reversed(frames):
        place = _place_of_frame(function, file)
        if place is not None:
            return place
    if any(_EVENT_LOOP.match(file) for _, file in frames):
        return Place.EVENT_LOOP
    return Place.REST


def _place_of_frame(function: str, file: str) -> Place | None:
    for pattern, place in _PLACE_OF_FUNCTION:
        if pattern.search(function):
            return place
    for pattern, owner in _PLACE_OF_FILE:
        if pattern.search(file):
            return owner
    return None


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread of a process: its name in the kernel, and its CPU inside and outside the kernel."""

    name: str
    user_s: float
    system_s: float


def parts_of(stacks: Iterable[Stack], threads: Mapping[int, Thread]) -> dict[str, float]:
    """Return the share of the CPU of each place in RUNNING, 1 in total, and in addition the GIL's.

    The stacks of a thread distribute the CPU that it used outside the kernel, and no other
    thread's. Threads that py-spy does not see are not Python's; gRPC names its own. Waiting for the
    GIL is an estimate: the CPU outside the kernel, times waiting samples per running sample.

    Parameters
    ----------
    stacks
        The stacks of py-spy.
    threads
        All threads by number, with their CPU under the same load.
    """
    seen: dict[int, Counter[Place]] = {}
    owners: dict[int, Place] = {}
    for stack in stacks:
        seen.setdefault(stack.thread, Counter())[place_of(stack.frames)] += stack.samples
        owners[stack.thread] = owner_of(stack.frames)
    cpu_s = dict.fromkeys(RUNNING, 0.0)
    for number, thread in threads.items():
        cpu_s[Place.SYSTEM] += thread.system_s
        ran = {place: seen[number][place] for place in USER} if number in seen else {}
        samples = sum(ran.values())
        if not samples:  # it was only seen waiting, or is not a Python thread
            ran, samples = {owners.get(number) or _owner_by_name(thread): 1}, 1
        for place, of_place in ran.items():
            cpu_s[place] += thread.user_s * of_place / samples
    user_s = sum(cpu_s[place] for place in USER)
    total_s = (user_s + cpu_s[Place.SYSTEM]) or 1.0
    parts: dict[str, float] = {place: cpu_s[place] / total_s for place in RUNNING}
    all_seen = sum(seen.values(), Counter[Place]())
    waited = all_seen[Place.GIL] / (sum(all_seen[place] for place in USER) or 1)
    return {**parts, Place.GIL: waited * user_s / total_s}


def _owner_by_name(thread: Thread) -> Place:
    is_grpc = thread.name.startswith(("grpc", "event_engine", "lifeguard", "timer"))
    return Place.GRPC if is_grpc else Place.REST


# ---- perf ---------------------------------------------------------------------------------------

KERNEL_FUTEX = "kernel: futex, which threads wait and wake by"
KERNEL_SOCKETS = "kernel: sockets, pipes and epoll"
KERNEL_REST = "kernel: the rest"
OTHERS = "other shared objects"

_SYSCALL = re.compile(r"sys_([a-z0-9_]+)$")
_FUTEX = re.compile(r"futex")
_SOCKETS = re.compile(r"send|recv|epoll|poll|read|write|sock|accept|select")
_OBJECTS = (
    (re.compile(r"libpython|python3"), "Python"),
    (re.compile(r"cygrpc"), "gRPC"),
    (re.compile(r"_multiarray_umath|openblas"), "numpy, OpenBLAS"),
    (re.compile(r"faiss|libgomp"), "FAISS"),
    (re.compile(r"_message\."), "protobuf"),
    (re.compile(r"loop\.|_asyncio\."), "uvloop, asyncio"),
    (re.compile(r"libc[.-]"), "libc"),
)
"""By the name of the file, without the folders."""
OBJECTS = (
    *(name for _, name in _OBJECTS),
    KERNEL_FUTEX,
    KERNEL_SOCKETS,
    KERNEL_REST,
    OTHERS,
)
"""All names that `objects_of` returns."""

_PERF_FRAME = re.compile(r"\s*[0-9a-f]+ (.*) \((.*)\)")


def objects_of(script: str) -> dict[int, Counter[str]]:
    """Count the samples of each process by shared object; those of the kernel by system call.

    `script` is the output of `perf script -F pid,ip,sym,dso` for a record with -g.
    """
    counted: dict[int, Counter[str]] = {}
    for sample in re.split(r"\n\s*\n", script):
        head, *lines = sample.strip().splitlines() or [""]
        frames = [match for line in lines if (match := _PERF_FRAME.fullmatch(line))]
        if head.strip().isdecimal() and frames:
            name = _object_of([(match[1], match[2]) for match in frames])
            counted.setdefault(int(head), Counter())[name] += 1
    return counted


def _object_of(frames: Sequence[tuple[str, str]]) -> str:
    """Return the shared object of a sample of perf; its innermost frame is first."""
    _, innermost = frames[0]
    if _in_kernel(innermost):
        calls = [
            match[1]
            for function, file in frames
            if _in_kernel(file) and (match := _SYSCALL.search(function))
        ]
        if any(_FUTEX.search(call) for call in calls):
            return KERNEL_FUTEX
        return KERNEL_SOCKETS if any(_SOCKETS.search(call) for call in calls) else KERNEL_REST
    for pattern, name in _OBJECTS:
        if pattern.search(innermost.rpartition("/")[2]):
            return name
    return OTHERS


def _in_kernel(file: str) -> bool:
    """Whether a sample's file is the kernel or a kernel module: perf puts both in brackets."""
    return file.startswith("[") and file not in {"[unknown]", "[vdso]"}
