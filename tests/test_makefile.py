"""What the Makefile gives to the processes that it starts."""

from __future__ import annotations

import os
import subprocess

from tests.source_tree import ROOT


def test_processes_of_make_cache_their_bytecode() -> None:
    asked = ["make", "--silent", "--eval", "shown: ; @env", "shown"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    told = subprocess.run(
        asked, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert "PATH=" in told.stdout
    assert "PYTHONDONTWRITEBYTECODE" not in told.stdout
