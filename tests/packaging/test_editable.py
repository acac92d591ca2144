"""What `make setup` puts on the path of every program of the environment: one name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT, run

FOLDERS = ("shard", "router", "client", "backup", "cli", "protos", "tests", "benchmarks")
FIND = f"""
import json
from importlib.util import find_spec
import vectorshard.shard.types
found = [name for name in {FOLDERS!r} if find_spec(name) is not None]
print(json.dumps([vectorshard.__file__, found]))
"""


def test_the_checkout_is_installed_as_one_name(tmp_path: Path) -> None:
    file, found = json.loads(run(Path(sys.executable), "-c", FIND, cwd=tmp_path).stdout)
    assert Path(file).parent == ROOT / "vectorshard"
    assert found == []


@pytest.mark.parametrize("program", [["-m", "vectorshard"], ["-m", "vectorshard.cli"]])
def test_bench_is_that_of_the_checkout_wherever_it_is_started(
    tmp_path: Path, program: list[str]
) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").write_text('raise ImportError("not ours")\n')
    said = run(Path(sys.executable), *program, "bench", "--help", cwd=tmp_path, check=False)
    assert (said.returncode, said.stderr) == (0, "")
    assert "--concurrency" in said.stdout
