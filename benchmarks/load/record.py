"""The measurements of a run: times in HDR histograms, statuses, the first answers.

Pure: it is given the times and has no clock. Its memory does not grow with the number of calls.
"""

from __future__ import annotations

from collections import Counter

from hdrh.histogram import HdrHistogram

from benchmarks.load.schedule import Start

LONGEST_US = 3_600_000_000
DIGITS = 3
ANSWERS_MAX = 10_000
ANSWERS_BYTES = 256 * 1024 * 1024
"""Bounds on the answers that are kept until after the run."""


class Times:
    """A distribution of times from 1 µs to 1 h, to three digits; longer times count as 1 h."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, LONGEST_US, DIGITS)

    def add(self, seconds: float) -> None:
        """Count one time; a negative one, from clocks that disagree, counts as 0."""
        self._histogram.record_value(min(max(round(seconds * 1e6), 0), LONGEST_US))

    def __len__(self) -> int:
        """Return the number of times counted."""
        return int(self._histogram.total_count)

    def percentile_ms(self, percentile: float) -> float:
        """Return a percentile of the times; 100 is the longest."""
        return float(self._histogram.get_value_at_percentile(percentile)) / 1e3

    @property
    def mean_ms(self) -> float:
        """The arithmetic mean."""
        return float(self._histogram.get_mean_value()) / 1e3


class Record:
    """The calls of a run that count.

    `latency` runs from the intended start to the answer, of any status. `lag` is the generator's
    own delay, from the moment in which a call could start until it was sent. `wait` is how long
    calls waited after their intended start for one of the `concurrency` slots. `answers` has the
    bytes of the first answer to each of the `distinct` requests, by its number.
    """

    def __init__(self, distinct: int) -> None:
        self.latency = Times()
        self.lag = Times()
        self.wait = Times()
        self.codes: Counter[str] = Counter()
        self.reasons: dict[str, str] = {}
        """The text of the first failure of each code."""
        self.answers: dict[int, bytes] = {}
        self.unfinished = 0
        self.sent = 0
        """All calls, including those of the warm-up."""
        self.ended_s = 0.0
        """The time of the last answer."""
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
        """Count a finished call; times are in seconds since the run began.

        `free_s` is when a slot for it became free, perhaps before its intended start.
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
        """Count a call that was sent and then abandoned by an interruption."""
        self.sent += 1
        self.unfinished += start.counts

    def _keep(self, request: int, answer: bytes) -> None:
        if request in self.answers or len(self.answers) >= ANSWERS_MAX:
            return
        if self._answers_left_bytes >= len(answer):
            self._answers_left_bytes -= len(answer)
            self.answers[request] = answer
