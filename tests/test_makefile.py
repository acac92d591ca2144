"""What the Makefile gives to the processes that it starts, and in which order tests run."""

from __future__ import annotations

import os
import subprocess

from tests.conftest import LONGEST, TESTS
from tests.source_tree import ROOT


def test_processes_of_make_cache_their_bytecode() -> None:
    asked = ["make", "--silent", "--eval", "shown: ; @env", "shown"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    told = subprocess.run(
        asked, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert "PATH=" in told.stdout
    assert "PYTHONDONTWRITEBYTECODE" not in told.stdout


def test_all_tests_that_run_alone_are_where_make_looks_for_them() -> None:
    """`make test` collects the others once, and not again for these few."""
    mark = "pytest.mark." + "alone"
    marked = [path for path in TESTS.rglob("*.py") if mark in path.read_text()]
    assert marked
    assert all(path.is_relative_to(TESTS / "system") for path in marked)


def test_the_longest_files_exist() -> None:
    assert not [file for file in LONGEST if not (TESTS / file).is_file()]


def test_make_runs_all_long_tests() -> None:
    mark = "mark." + "system_long"
    marked = [path for path in TESTS.rglob("*.py") if mark in path.read_text()]
    recipes = [line for line in (ROOT / "Makefile").read_text().splitlines() if "-m sys" in line]
    asked = [ROOT / word for line in recipes for word in line.split() if word.startswith("tests")]
    assert marked
    missed = [path for path in marked if not any(path.is_relative_to(each) for each in asked)]
    assert not missed, "name their folders in `make test-long`"
