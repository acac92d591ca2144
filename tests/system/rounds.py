"""Long runs in rounds: each round has a seed, and a run resumes after the rounds of the last one.

Rounds that ended well are in `build/NAME.jsonl`, one line a round, and are not played again. Remove
the file after a change of the code.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.source_tree import ROOT
from tests.system import conftest
from tests.system.conftest import Starter, servers

Line = dict[str, Any]
"""What a round did, by name."""

PATIENCE_S = 200.0
"""How long servers may start and stop: a run takes an hour, and the machine may have other work."""


def resumed_rounds(
    name: str,
    play: Callable[[Starter, Path, int], Line],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Line]:
    """Yield the line of each round, by its seed from 0 on, without an end.

    A round that is not in the results file is played when it is asked for: `play` gets what starts
    servers, an empty directory and the seed.
    """
    monkeypatch.setattr(conftest, "START_S", PATIENCE_S)
    monkeypatch.setattr(conftest, "STOP_S", PATIENCE_S)
    results = ROOT / "build" / f"{name}.jsonl"
    results.parent.mkdir(exist_ok=True)
    results.touch()
    done = {line["seed"]: line for line in map(json.loads, results.read_text().splitlines())}
    for seed in count():
        if seed in done:
            yield done[seed]
            continue
        path = tmp_path_factory.mktemp(f"{name}-{seed}", numbered=False)
        begun_s = time.monotonic()
        with servers(path) as starter:
            line = {"seed": seed, **play(starter, path, seed)}
        line["seconds"] = round(time.monotonic() - begun_s, 1)
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        yield line
