"""`vectorshard demo`: the main job from end to end, as a person starts it."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.system.conftest import VECTORSHARD

pytestmark = pytest.mark.system


def test_the_demo_shows_neighbours_receipt_ledger_and_times_and_exits_0() -> None:
    ended = subprocess.run(
        [str(VECTORSHARD), "demo"], capture_output=True, text=True, timeout=100, check=False
    )
    shown = ended.stdout
    assert ended.returncode == 0, shown + ended.stderr
    assert "Traceback" not in shown + ended.stderr

    [coffee] = re.findall(r"^\s*coffee\s+(.*)$", shown, re.MULTILINE)
    assert {"tea", "drinks", "beer"} <= set(re.findall(r"[a-z]+", coffee))
    assert coffee.startswith("tea ")
    assert "1 of 1 shard answered, coverage 100%" in shown
    assert "20,000 accepted, adds up" in shown
    assert len(re.findall(r"^\s*0\s+TRAINED", shown, re.MULTILINE)) == 1

    [ratio] = re.findall(r"a batch of 8 takes .*: ([0-9.]+) times as long", " ".join(shown.split()))
    assert float(ratio) >= 1

    sightings = re.findall(
        r"^\s*(BUFFERING|TRAINING|TRAINED)\b.*?((?:\s+[\d,]+){5})\s*$", shown, re.MULTILINE
    )
    states = [state for state, _ in sightings]
    assert "BUFFERING" in states
    assert "TRAINED" in states
    for _, searches in sightings:
        _, asked, found, _, _ = searches.split()
        assert asked == found
