"""What a process writes down about the signal that ends it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vectorshard.shard.runtime.faults import FILE_NAME, ended_by_failed_read

RECORDED = """
import os, signal
from pathlib import Path
from vectorshard.shard.runtime.faults import record_faults
record_faults(Path({directory!r}))
os.kill(os.getpid(), {number})
"""


def end_by(directory: Path, number: int) -> None:
    """Run a process that records its faults and is ended by a signal; by none for 0."""
    program = RECORDED.format(directory=str(directory), number=int(number))
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == -number


@pytest.mark.parametrize(
    ("number", "recorded"), [(signal.SIGBUS, True), (signal.SIGKILL, False), (0, False)]
)
def test_only_a_failed_read_of_a_memory_map_is_remembered(
    tmp_path: Path, number: int, recorded: bool
) -> None:
    assert not ended_by_failed_read(tmp_path)
    end_by(tmp_path, number)
    assert ended_by_failed_read(tmp_path) is recorded


def test_it_is_remembered_until_the_next_process_records_its_faults(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("Fatal Python error: Bus error\n")
    assert ended_by_failed_read(tmp_path)
    end_by(tmp_path, 0)
    assert not ended_by_failed_read(tmp_path)


def test_a_directory_that_is_missing_records_nothing(tmp_path: Path) -> None:
    end_by(tmp_path / "missing", 0)
    assert not ended_by_failed_read(tmp_path / "missing")
