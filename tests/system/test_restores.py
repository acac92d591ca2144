"""A backup under writes, a kill -9 and a restore: what is restored is what was there.

Two rounds in `make test`; `make test-long` plays as many as `--restores` says, and resumes: see
`rounds.py`.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from tests.system.conftest import Starter
from tests.system.restores import Round
from tests.system.rounds import Line, resumed_rounds


@pytest.mark.system
@pytest.mark.parametrize("seed", [2, 11])  # the same number of shards, and another
def test_a_restore_holds_what_was_backed_up_under_writes(
    start_server: Starter, tmp_path: Path, seed: int
) -> None:
    print(Round(start_server, tmp_path, seed).run())


def played(start_server: Starter, path: Path, seed: int) -> Line:
    """Play a round; return what it was."""
    return {"round": Round(start_server, path, seed).run()}


@pytest.mark.system_long
def test_many_restores_hold_what_was_backed_up(
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds = resumed_rounds("restores", played, tmp_path_factory, monkeypatch)
    restores = len(list(islice(rounds, request.config.getoption("--restores"))))
    print(f"{restores} restores")
