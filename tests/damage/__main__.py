"""Damage many copies, and resume: `python -m tests.damage --trials 20000 --results FILE`.

Each trial that is done is a line of the results, so a run that was ended goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog

from tests.damage.harm import Harm, class_of, drawn
from tests.damage.stores import Stores, made_below
from tests.damage.trial import Noticed, Verdict, tried

RESULTS: Final = Path(__file__).resolve().parent.parent.parent / "build" / "damage.jsonl"


def trial_of(seed: int, stores: Stores, scratch: Path) -> tuple[Harm, Verdict]:
    """Draw and try the harm of a seed: one of a directory that was closed, or of a running one."""
    rng = np.random.default_rng(seed)
    base = stores.closed if rng.random() < 0.5 else stores.running
    harm = drawn(rng, base, stores.yesterday)
    return harm, tried(harm, stores, base, scratch)


def trials(seeds: Sequence[int], place: Path) -> Iterator[tuple[int, Harm, Verdict]]:
    """Try the harms of many seeds."""
    stores = made_below(place)
    for seed in seeds:
        yield seed, *trial_of(seed, stores, place / "scratch")


def summary(lines: Sequence[dict[str, Any]]) -> str:
    """Return who noticed the harms, by kind of file."""
    counts = Counter((line["file"], line["noticed"]) for line in lines)
    names = [noticed.value for noticed in Noticed]
    table = [f"{'file':<16}" + "".join(f"{name:>10}" for name in names)]
    for file in [*sorted({file for file, _ in counts}), "all"]:
        of_file = {name: counts[file, name] for name in names}
        if file == "all":
            of_file = {
                name: sum(n for (_, by), n in counts.items() if by == name) for name in names
            }
        table.append(f"{file:<16}" + "".join(f"{of_file[name]:>10,}" for name in names))
    return "\n".join(table)


def main() -> int:
    """Run the trials that are not done; print what became of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first trial")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    seeds = range(options.first, options.first + options.trials)
    return 1 if run(seeds, options.results) else 0


def run(seeds: Sequence[int], results: Path) -> int:
    """Try those that are not done; print a table of all; return how many were silent."""
    results.parent.mkdir(exist_ok=True)
    lines = []
    if results.exists():
        lines = [json.loads(line) for line in results.read_text().splitlines()]
    done = {line["seed"] for line in lines}
    with tempfile.TemporaryDirectory() as place, results.open("a") as file:
        for seed, harm, verdict in trials([s for s in seeds if s not in done], Path(place)):
            line = {
                "seed": seed,
                "harm": str(harm),
                "file": class_of(harm.file),
                "noticed": verdict.noticed.value,
                "how": verdict.how,
                "silent": verdict.silent,
            }
            lines.append(line)
            print(json.dumps(line), file=file, flush=True)
            if verdict.silent:
                print(f"SILENT seed {seed}: {harm}: {verdict.silent}", file=sys.stderr, flush=True)
    asked = [line for line in lines if line["seed"] in seeds]
    print(summary(asked))
    return sum(bool(line["silent"]) for line in asked)


if __name__ == "__main__":
    raise SystemExit(main())
