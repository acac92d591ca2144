"""The sweep beside a target recall, and starts over many rows: the arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.million import files_of, forget, growth
from benchmarks.peers import Setting
from benchmarks.start import Starts
from benchmarks.targets import CANDIDATES_MAX, Sweep

MISSING = CANDIDATES_MAX


def test_a_sweep_knows_the_fewest_candidates_for_each_nprobe() -> None:
    swept = Sweep(
        {
            1: np.array([[0, 4, MISSING, MISSING]]),
            2: np.array([[0, 9, 19, MISSING]]),
            4: np.array([[0, 9, 24, 49]]),
        }
    )
    assert swept.reaching(0.75, 4) == [Setting(2, 20), Setting(4, 25)]
    assert swept.reaching(1.0, 4) == [Setting(4, 50)]


def test_a_search_has_as_many_candidates_as_hits_at_least() -> None:
    assert Sweep({1: np.array([[0, 0, 0]])}).reaching(0.9, 3) == [Setting(1, 3)]


def test_only_the_first_k_neighbors_count() -> None:
    assert Sweep({1: np.array([[7, MISSING]])}).reaching(1.0, 1) == [Setting(1, 8)]


def starts(answered_s: float) -> Starts:
    """Return the starts of a kind that took so long."""
    made = Starts()
    made.answered_s.append(answered_s)
    return made


def test_growth_leaves_out_what_a_start_of_nothing_takes() -> None:
    assert growth(starts(0.7), starts(1.1), starts(0.5)) == pytest.approx(3.0)
    assert growth(starts(0.5), starts(1.1), starts(0.5)) == float("inf")


def test_files_are_forgotten_below_a_directory_and_stay(tmp_path: Path) -> None:
    file = tmp_path / "below" / "rows"
    file.parent.mkdir()
    file.write_bytes(b"rows")
    assert list(files_of(tmp_path)) == [file]
    forget(file)
    assert file.read_bytes() == b"rows"
