"""What was measured of each call: times in HDR histograms, statuses, the first answers.

Pure: told the times, it has no clock. Memory does not grow with the number of calls.
"""

from __future__ import annotations

from collections import Counter

from hdrh.histogram import HdrHistogram

from benchmarks.load.schedule import Start

LONGEST_US = 3_600_000_000
DIGITS = 3
ANSWERS_MAX = 10_000
ANSWERS_BYTES = 256 * 1024 * 1024
"""Bounds on the answers that are kept to be looked at after the run."""


class Times:
    """A distribution of times from 1 µs to 1 h, to three digits; longer ones count as 1 h."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, LONGEST_US, DIGITS)

    def add(self, seconds: float) -> None:
        """Count one; a negative one, of clocks that disagree, as 0."""
        self._histogram.record_value(min(max(round(seconds * 1e6), 0), LONGEST_US))

    def __len__(self) -> int:
        """Return how many were counted."""
        return int(self._histogram.total_count)

    def percentile_ms(self, percentile: float) -> float:
        """Return what so many percent of the times do not exceed; 100 is the longest."""
        return float(self._histogram.get_value_at_percentile(percentile)) / 1e3

    @property
    def mean_ms(self) -> float:
        """The arithmetic mean."""
        return float(self._histogram.get_mean_value()) / 1e3


class Record:
    """The calls of a run that count.

    `latency` runs from the intended start to the answer, whatever its status. `lag` is what the
    generator itself was late by: from the moment in which the call could start, to its sending.
    `wait` is how long calls waited for one of the `concurrency` slots beyond their intended start.
    `answers` has the bytes of the first answer to each of the `distinct` requests, by its number.
    """

    def __init__(self, distinct: int) -> None:
        self.latency = Times()
        self.lag = Times()
        self.wait = Times()
        self.codes: Counter[str] = Counter()
        self.answers: dict[int, bytes] = {}
        self.unfinished = 0
        self.sent = 0
        """All calls, those of the warm-up too."""
        self.ended_s = 0.0
        """When the last answer came."""
        self._distinct = distinct
        self._answers_left_bytes = ANSWERS_BYTES

    def note(
        self,
        start: Start,
        *,
        free_s: float,
        sent_s: float,
        ended_s: float,
        code: str,
        answer: bytes | None,
    ) -> None:
        """Count a call that ended; times in seconds since the run began.

        `free_s` is when a slot was free for it, which may be before its intended start.
        """
        self.sent += 1
        if not start.counts:
            return
        self.codes[code] += 1
        self.latency.add(ended_s - start.at_s)
        self.lag.add(sent_s - max(free_s, start.at_s))
        if free_s > start.at_s:
            self.wait.add(free_s - start.at_s)
        if ended_s > self.ended_s:
            self.ended_s = ended_s
        if answer is not None:
            self._keep(start.number % self._distinct, answer)

    def note_unfinished(self, start: Start) -> None:
        """Count a call that was sent and given up when the run was interrupted."""
        self.sent += 1
        self.unfinished += start.counts

    def _keep(self, request: int, answer: bytes) -> None:
        if request in self.answers or len(self.answers) >= ANSWERS_MAX:
            return
        if self._answers_left_bytes >= len(answer):
            self._answers_left_bytes -= len(answer)
            self.answers[request] = answer
