"""Check crash states of many histories, and resume: `python -m tests.crash_recorder --help`.

Each history that is done is a line of the results, so a run that was ended goes on where it was.
Remove the file after a change of the code. What a violation needs stays in `build/crash-states`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tests.crash_recorder.live import Order, quiet_logs
from tests.crash_recorder.recorder import BUILD, check_recording, operations, run_recorded
from tests.crash_recorder.states import check_lives, lives

RESULTS: Final = BUILD / "crash-states.jsonl"
FAULTS: Final = 0.2
"""The share of rounds in which a sync fails, in every third history."""

KEPT: Final = BUILD / "crash-states"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one history."""

    seed: int
    states: int
    operations: int
    violations: tuple[str, ...]
    warned: dict[str, int]
    cpu_s: float

    def __str__(self) -> str:
        line = f"history {self.seed}: {self.states} states of {self.operations} operations"
        return "\n  ".join([f"{line}, {len(self.violations)} violations", *self.violations])


def checked(order: Order, states: int) -> Result:
    """Record a history, compare the recording with the directory, and check its crash states."""
    begun = time.process_time()
    with tempfile.TemporaryDirectory(prefix="crash-states-", ignore_cleanup_errors=True) as place:
        base = Path(place)
        root, log = base / "root", base / "log"
        scratch = base / "scratch"
        for directory in (root, scratch, base / "whole"):
            directory.mkdir()
        violations: list[str] = []
        warned: Counter[str] = Counter()
        count = 0
        try:
            ordered = json.dumps([asdict(order)])
            run_recorded(["-m", "tests.crash_recorder.live", root, log, ordered], root, log)
        except subprocess.CalledProcessError as error:  # a start after a power cut failed
            violations.append(f"the history ended with {error.returncode}")
        else:
            recorded = operations(log, root)
            count = len(recorded)
            check_recording(recorded, root, base / "whole")
            found = check_lives(recorded, lives(recorded), scratch, order.seed, states, warned)
            violations.extend(map(str, found))
        if violations:
            kept = KEPT / str(order.seed)
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(base, kept, symlinks=True)
    cpu_s = round(time.process_time() - begun, 2)
    return Result(order.seed, states, count, tuple(violations), dict(warned), cpu_s)


def read(results: Path) -> dict[int, dict[str, Any]]:
    """Return the newest result of each seed."""
    if not results.exists():
        return {}
    return {line["seed"]: line for line in map(json.loads, results.read_text().splitlines())}


def run(seeds: Sequence[int], states: int, results: Path) -> list[dict[str, Any]]:
    """Check the histories of `seeds` that have no result without violations yet; return all."""
    results.parent.mkdir(exist_ok=True)
    for seed in seeds:
        before = read(results).get(seed)
        if before is not None and not before["violations"] and before["states"] >= states:
            continue
        faults = FAULTS if seed % 3 == 0 else 0.0
        result = checked(Order(seed, rounds=60, cuts=2, faults=faults), states)
        with results.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        print(result, flush=True)
    found = read(results)
    return [found[seed] for seed in seeds]


def main() -> None:
    """Parse the command line, and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--histories", type=int, default=200)
    parser.add_argument(
        "--every", type=int, default=1, help="take every n-th seed: shards of a run"
    )
    parser.add_argument("--states", type=int, default=100, help="of each history")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    quiet_logs()
    seeds = range(options.first, options.first + options.histories, options.every)
    found = run(seeds, options.states, options.results)
    violations = sum(len(each["violations"]) for each in found)
    states = sum(each["states"] for each in found)
    print(f"{len(found)} histories, {states} states, {violations} violations")
    raise SystemExit(violations > 0)


if __name__ == "__main__":
    main()
