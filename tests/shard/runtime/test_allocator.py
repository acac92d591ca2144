"""The C library's allocator gives memory back, or is another one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vectorshard.shard.runtime import allocator

WHAT_STAYS = """
import re
from pathlib import Path
from vectorshard.shard.runtime.allocator import give_back

def own_mb():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1000

pieces = [bytearray(50_000) for _ in range(2_000)]  # too small for pages of their own
last = bytearray(50_000)  # what lies above the others keeps them
del pieces
before = own_mb()
give_back()
print(before - own_mb())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_what_nobody_uses_is_given_back() -> None:
    asked = subprocess.run(
        [sys.executable, "-c", WHAT_STAYS], check=True, capture_output=True, text=True
    )
    assert float(asked.stdout) > 50


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    allocator.keep_few_arenas()
    allocator.give_back()
