"""A client of gRPC over bare HTTP/2: cheap enough to offer ten times what a server can answer.

grpc's Python client costs more than the server's answer, so on shared cores it would starve the
server. This one sends prepared bytes, and reads of an answer its status only. It behaves as the
clients of gRPC do: it keeps to the streams that the server allows on a connection, holds the
excess back, and cancels a call when its deadline passes.

As a program it reads a `Load` as JSON from stdin, and prints a `Told`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import subprocess
import sys
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Final, cast

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 1, 3, 4
CANCEL: Final = 8
WIDE: Final = 2**30
FRAME_MAX: Final = 16_384
SWEEP_S: Final = 0.002

GRPC_CODES: Final = {"0": "OK", "1": "CANCELLED", "4": "DEADLINE_EXCEEDED", "14": "UNAVAILABLE"}
GRPC_CODES.update({"8": "RESOURCE_EXHAUSTED", "13": "INTERNAL", "12": "UNIMPLEMENTED"})
RESET_CODES: Final = {7: "REFUSED_STREAM", 8: "CANCELLED", 11: "ENHANCE_YOUR_CALM"}


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Return a frame, as RFC 9113 lays it out."""
    return (
        struct.pack(">HBBBI", len(payload) >> 8, len(payload) & 255, kind, flags, stream) + payload
    )


def setting(number: int, value: int) -> bytes:
    """Return one parameter of a SETTINGS frame."""
    return struct.pack(">HI", number, value)


def header_block(path: str, timeout_ms: int) -> bytes:
    """Return the header block of a call, without any entry for the dynamic table."""

    def literal(prefix: bytes, *texts: bytes) -> bytes:
        return prefix + b"".join(bytes([len(text)]) + text for text in texts)

    return b"".join(
        (
            b"\x83\x86",  # :method POST, :scheme http
            literal(b"\x04", path.encode()),
            literal(b"\x01", b"server"),  # :authority
            literal(b"\x0f\x10", b"application/grpc"),  # content-type
            literal(b"\x00", b"te", b"trailers"),
            literal(b"\x00", b"grpc-timeout", b"%dm" % timeout_ms) if timeout_ms else b"",
        )
    )


def grpc_message(payload: bytes) -> bytes:
    """Return a message as gRPC puts it into DATA."""
    return b"\0" + len(payload).to_bytes(4, "big") + payload


@dataclass(slots=True, kw_only=True)
class Load:
    """What to offer. Without `per_s`, `callers` on each connection wait for their answers."""

    host: str
    port: int
    path: str
    payloads: list[str]
    """Base64 of requests, sent in turn."""
    seconds: float
    connections: int = 4
    per_s: float = 0.0
    callers: int = 2
    timeout_s: float = 2.0
    warm_s: float = 1.0
    """The start of an open loop, which counts for no rate: the queues fill."""


@dataclass(slots=True)
class Told:
    """How calls have ended, by the name of their status or reset."""

    latencies_s: dict[str, list[float]] = field(default_factory=dict)
    answered_per_s: float = 0.0
    offered: int = 0
    without_retry: int = 0
    """Refusals without a google.rpc.Status."""
    closed: int = 0
    """Connections that the server has closed."""
    late_s: float = 0.0
    """The latest that this process itself was."""

    def note(self, code: str, took_s: float) -> None:
        """Note the end of a call."""
        self.latencies_s.setdefault(code, []).append(took_s)

    @property
    def counts(self) -> Counter[str]:
        """How many calls have ended how."""
        return Counter({code: len(times) for code, times in self.latencies_s.items()})

    def quantile_s(self, code: str, share: float) -> float:
        """Return how long calls that ended so took; 0 if there are none."""
        sorted_s = sorted(self.latencies_s.get(code, ()))
        return sorted_s[min(len(sorted_s) - 1, int(share * len(sorted_s)))] if sorted_s else 0.0


class Connection(asyncio.Protocol):
    """One connection. Streams that have ended are noted in `told`."""

    def __init__(self, load: Load, told: Told) -> None:
        self.load = load
        self.told = told
        block = header_block(load.path, round(load.timeout_s * 1e3))
        self._headers = (len(block).to_bytes(3, "big") + bytes([HEADERS, END_HEADERS]), block)
        self._bodies = [_data(base64.b64decode(each)) for each in load.payloads]
        self._next = 0
        self._stream = -1
        self._window = self._stream_window = 65_535  # bytes that the server lets this side send
        self._unsent: OrderedDict[int, _Unsent] = OrderedDict()
        self.open: dict[int, float] = {}  # stream: when it began
        self._began: deque[tuple[float, int]] = deque()
        self.waiting: deque[float] = deque()
        self.streams_max = 0
        self._tail = b""
        self._read = 0
        self.again = False  # each call that ends is followed by another one
        self.on_answer: list[float] | None = None
        self.ready = asyncio.get_running_loop().create_future()
        self.over = False
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        settings = setting(HEADER_TABLE_SIZE, 0) + setting(INITIAL_WINDOW_SIZE, WIDE)
        window = frame(WINDOW_UPDATE, payload=WIDE.to_bytes(4, "big"))
        transport.write(PREFACE + frame(SETTINGS, payload=settings) + window)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(None)
        if not self.over:
            self.told.closed += 1
        now = time.monotonic()
        for began in self.open.values():
            self.told.note("CONNECTION_LOST", now - began)
        self.open.clear()
        if not self.ready.done():
            self.ready.set_result(False)

    # ---- calls ----------------------------------------------------------------------------------

    def offer(self, calls: int, now: float) -> None:
        """Begin so many calls, or hold them back until streams are free."""
        room = max(0, min(calls, self.streams_max - len(self.open)))
        self._send(room, [now] * room)
        self.waiting.extend([now] * (calls - room))

    def _send(self, calls: int, began: list[float]) -> None:
        frames: list[bytes] = []
        head, block = self._headers
        for each in began[:calls]:
            self._stream += 2
            number = self._stream.to_bytes(4, "big")
            length, body = self._bodies[self._next]
            self._next = (self._next + 1) % len(self._bodies)
            if self._unsent or len(body) > min(self._window, self._stream_window, FRAME_MAX):
                frames += (head, number, block)
                self._unsent[self._stream] = _Unsent(body, self._stream_window)
            else:
                frames += (head, number, block, length, number, body)
                self._window -= len(body)
            self.open[self._stream] = each
            self._began.append((each, self._stream))
        if frames:
            self.transport.write(b"".join(frames))
        if self._unsent:
            self._pump()

    def _pump(self) -> None:
        """Send what the windows allow of the requests that did not fit."""
        frames: list[bytes] = []
        for stream in [stream for stream, each in self._unsent.items() if each.window > 0]:
            each = self._unsent[stream]
            while (
                size := min(len(each.body) - each.sent, FRAME_MAX, each.window, self._window)
            ) > 0:
                part = each.body[each.sent : each.sent + size]
                each.sent += size
                each.window -= size
                self._window -= size
                is_last = each.sent == len(each.body)
                frames.append(frame(DATA, END_STREAM * is_last, stream, part))
                if is_last:
                    del self._unsent[stream]
            if not self._window:
                break
        if frames:
            self.transport.write(b"".join(frames))

    def _granted(self, stream: int, size: int) -> None:
        if not stream:
            self._window += size
        elif stream in self._unsent:
            self._unsent[stream].window += size
        if self._unsent:
            self._pump()

    def sweep(self, now: float) -> None:
        """Cancel the calls whose deadline has passed."""
        due = now - self.load.timeout_s
        resets = []
        while self._began and self._began[0][0] <= due:
            began, stream = self._began.popleft()
            if self.open.pop(stream, None) is not None:
                self._unsent.pop(stream, None)
                resets.append(frame(RST_STREAM, 0, stream, CANCEL.to_bytes(4, "big")))
                self._note("DEADLINE_EXCEEDED", now - began)
        while self.waiting and self.waiting[0] <= due:
            self._note("DEADLINE_EXCEEDED", now - self.waiting.popleft())
        if resets:
            self.transport.write(b"".join(resets))
            self._refill()

    def _refill(self) -> None:
        room = min(len(self.waiting), self.streams_max - len(self.open))
        if room > 0:
            self._send(room, [self.waiting.popleft() for _ in range(room)])

    def _note(self, code: str, took_s: float) -> None:
        self.told.note(code, took_s)

    def _end(self, stream: int, code: str, now: float) -> None:
        began = self.open.pop(stream, None)
        if began is None:
            return
        self._unsent.pop(stream, None)
        self._note(code, now - began)
        if code == "OK" and self.on_answer is not None:
            self.on_answer.append(now)

    # ---- frames ---------------------------------------------------------------------------------

    def data_received(self, received: bytes) -> None:
        buffer = self._tail + received if self._tail else received
        at, end, now = 0, len(buffer), time.monotonic()
        ended = 0
        while end - at >= 9:
            length = int.from_bytes(buffer[at : at + 3], "big")
            if end - at < 9 + length:
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            stream = int.from_bytes(buffer[at + 5 : at + 9], "big")
            if kind == DATA:
                self._read += length
            elif kind == HEADERS:
                if flags & END_STREAM:
                    self._end(stream, self._status(buffer[at + 9 : at + 9 + length]), now)
                    ended += 1
            elif kind == RST_STREAM:
                error = int.from_bytes(buffer[at + 9 : at + 13], "big")
                if stream in self.open:
                    self._end(stream, RESET_CODES.get(error, f"RESET_{error}"), now)
                    ended += 1
            else:
                self._control(kind, flags, stream, buffer[at + 9 : at + 9 + length])
            at += 9 + length
        self._tail = buffer[at:]
        if self._read > WIDE // 2:
            self.transport.write(frame(WINDOW_UPDATE, payload=self._read.to_bytes(4, "big")))
            self._read = 0
        if ended and self.again:
            self.offer(ended, now)
        elif ended:
            self._refill()

    def _status(self, block: bytes) -> str:
        at = block.find(b"grpc-status") + 11
        number = block[at + 1 : at + 1 + (block[at] & 127)].decode(errors="replace")
        if number == "8" and b"grpc-status-details-bin" not in block:
            self.told.without_retry += 1
        return GRPC_CODES.get(number, f"CODE_{number}")

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self.streams_max = 2**31
            for at in range(0, len(payload), 6):
                number, value = struct.unpack_from(">HI", payload, at)
                if number == MAX_CONCURRENT_STREAMS:
                    self.streams_max = value
                elif number == INITIAL_WINDOW_SIZE:
                    grown, self._stream_window = value - self._stream_window, value
                    for each in self._unsent.values():
                        each.window += grown
            self.transport.write(frame(SETTINGS, ACK))
            if not self.ready.done():
                self.ready.set_result(True)
        elif kind == PING and not flags & ACK:
            self.transport.write(frame(PING, ACK, payload=payload))
        elif kind == WINDOW_UPDATE:
            self._granted(stream, int.from_bytes(payload, "big"))


@dataclass(slots=True)
class _Unsent:
    """A request of which a part waits for the server's windows."""

    body: bytes
    window: int
    sent: int = 0


def _data(payload: bytes) -> tuple[bytes, bytes]:
    body = grpc_message(payload)
    return len(body).to_bytes(3, "big") + bytes([DATA, END_STREAM]), body


async def run(load: Load) -> Told:
    """Offer a load, and return how its calls ended."""
    told = Told()
    loop = asyncio.get_running_loop()
    made = [
        (await loop.create_connection(lambda: Connection(load, told), load.host, load.port))[1]
        for _ in range(load.connections)
    ]
    await asyncio.gather(*(each.ready for each in made))
    answers: list[float] = []
    began = last = time.monotonic()
    for each in made:
        each.on_answer = answers
        if not load.per_s:
            each.again = True
            each.offer(load.callers, began)
    end, sent = began + load.seconds, 0
    while (now := time.monotonic()) < end:
        told.late_s = max(told.late_s, now - last - SWEEP_S)
        last = now
        if load.per_s:
            due = int(load.per_s * (now - began)) - sent
            sent += due
            share, rest = divmod(due, len(made))
            for number, each in enumerate(made):
                each.offer(share + (number < rest), now)
        for each in made:
            each.sweep(now)
        await asyncio.sleep(SWEEP_S)
    warm = load.warm_s if load.per_s else 0.0
    told.answered_per_s = sum(began + warm <= at < end for at in answers) / (load.seconds - warm)
    for each in made:
        each.again = False
    while any(each.open or each.waiting for each in made):
        for each in made:
            each.sweep(time.monotonic())
        await asyncio.sleep(SWEEP_S)
    for each in made:
        each.over = True
        each.transport.close()
        await each.lost
    told.offered = told.counts.total()
    return told


def offer(load: Load) -> Told:
    """Offer a load from a process of its own."""
    return next(offer_all([load]))


def offer_all(loads: list[Load]) -> Iterator[Told]:
    """Offer loads at the same time, each from its own process; yield how the calls ended."""
    running = []
    for load in loads:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.http2"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdin is not None
        child.stdin.write(json.dumps(asdict(load)))
        child.stdin.close()
        child.stdin = None
        running.append((child, load))
    for child, load in running:
        out, _ = child.communicate(timeout=load.seconds + load.timeout_s + 60)
        assert child.returncode == 0
        yield Told(**json.loads(out))


if __name__ == "__main__":
    import uvloop

    ended = json.dumps(asdict(uvloop.run(run(Load(**json.load(sys.stdin))))))
    with open(1, "w", closefd=False) as out:  # under PYTHONUNBUFFERED, print may write only a part
        out.write(ended)
