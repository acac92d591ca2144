"""Start a system's server: python -m benchmarks.compare.serve SYSTEM DIRECTORY.

Prints its target and pids as a line of JSON, and kills it when its standard input ends.
"""

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from benchmarks.compare.systems import load

if __name__ == "__main__":
    target, pids = load(sys.argv[1]).start(Path(sys.argv[2]))
    print(json.dumps({"target": target, "pids": pids}), flush=True)
    sys.stdin.read()
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
