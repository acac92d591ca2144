"""What numpy computes, the thread that asks computes alone."""

from __future__ import annotations

import subprocess
import sys

CPU_BESIDE_THE_THREADS_OWN = """
import time
import numpy as np
from vectorshard.shard.runtime.numpy_threads import use_one_thread

use_one_thread()
square = np.ones((1_000, 1_000), np.float32)
everybodys, own = time.process_time(), time.thread_time()
while time.thread_time() < own + 0.5:
    square @ square
print((time.process_time() - everybodys) / (time.thread_time() - own))
"""


def test_no_other_thread_takes_part_in_a_product() -> None:
    command = [sys.executable, "-c", CPU_BESIDE_THE_THREADS_OWN]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(told.stdout) < 1.5  # threads that numpy has started spin for a moment
