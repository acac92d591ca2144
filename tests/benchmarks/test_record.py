"""What is noted of a call: which time is which, and the bounds on what is kept."""

from __future__ import annotations

import pytest

from benchmarks.load import record as record_module
from benchmarks.load.record import LONGEST_US, Record, Times
from benchmarks.load.schedule import Start


def note(record: Record, number: int = 0, answer: bytes | None = b"a") -> None:
    """Note a call that was meant for 1 s, found a slot at 3 s, was sent at 3.5 s, ended at 7 s."""
    start = Start(number, 1.0, counts=True)
    record.note(start, free_s=3.0, sent_s=3.5, ended_s=7.0, code="OK", answer=answer)


def test_times_are_kept_to_three_digits_from_1_us_to_1_h() -> None:
    times = Times()
    for seconds in (0.000_001, 0.001_234, 1.0, 3_600.0):
        times.add(seconds)
    assert len(times) == 4
    assert times.percentile_ms(25) == 0.001
    assert times.percentile_ms(50) == pytest.approx(1.234, rel=1e-3)
    assert times.percentile_ms(75) == pytest.approx(1_000, rel=1e-3)
    assert times.percentile_ms(100) == pytest.approx(LONGEST_US / 1e3, rel=1e-3)


def test_what_is_longer_than_1_h_or_negative_is_counted_at_the_end_of_the_range() -> None:
    times = Times()
    times.add(1e9)
    times.add(-1.0)
    assert len(times) == 2
    assert times.percentile_ms(1) == 0
    assert times.percentile_ms(100) == pytest.approx(LONGEST_US / 1e3, rel=1e-3)


def test_latency_counts_from_the_intended_start_the_wait_to_the_slot_the_lag_from_there() -> None:
    record = Record(distinct=1)
    note(record)
    assert record.latency.percentile_ms(100) == pytest.approx(6_000, rel=1e-3)
    assert record.wait.percentile_ms(100) == pytest.approx(2_000, rel=1e-3)
    assert record.lag.percentile_ms(100) == pytest.approx(500, rel=1e-3)
    assert record.ended_s == 7.0


def test_a_slot_that_was_free_beforehand_is_no_wait() -> None:
    record = Record(distinct=1)
    start = Start(0, 1.0, counts=True)
    record.note(start, free_s=0.2, sent_s=1.5, ended_s=2.0, code="OK", answer=b"")
    assert len(record.wait) == 0
    assert record.lag.percentile_ms(100) == pytest.approx(500, rel=1e-3)


def test_the_first_answer_to_each_distinct_request_is_kept() -> None:
    record = Record(distinct=3)
    for number in range(9):
        note(record, number, b"answer %d" % number)
    assert record.answers == {0: b"answer 0", 1: b"answer 1", 2: b"answer 2"}


def test_answers_are_kept_up_to_a_bound_in_number_and_in_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(record_module, "ANSWERS_MAX", 2)
    few = Record(distinct=10)
    for number in range(5):
        note(few, number)
    assert set(few.answers) == {0, 1}
    monkeypatch.setattr(record_module, "ANSWERS_BYTES", 7)
    small = Record(distinct=10)
    note(small, 0, b"12345")
    note(small, 1, b"123")
    note(small, 2, b"12")
    assert set(small.answers) == {0, 2}
