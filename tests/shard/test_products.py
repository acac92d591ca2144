"""What numpy computes, the thread that asks computes alone."""

from __future__ import annotations

import subprocess
import sys

OTHERS = """
import os, time
import numpy as np
from shard.products import use_one_thread

def others_ns():
    tasks = set(os.listdir("/proc/self/task")) - {str(os.getpid())}
    return sum(int(open(f"/proc/self/task/{task}/schedstat").read().split()[0]) for task in tasks)

def at_rest_ns():
    before = -1
    while (now := others_ns()) != before:
        before = now
        time.sleep(0.05)
    return now

use_one_thread()
square = np.ones((1_000, 1_000), np.float32)
before = at_rest_ns()
square @ square
print(at_rest_ns() - before)
"""


def test_no_other_thread_takes_part_in_a_product() -> None:
    told = subprocess.run(
        [sys.executable, "-c", OTHERS], capture_output=True, text=True, check=True
    )
    assert int(told.stdout) == 0
