"""The example in TypeScript against a server; `make test-typescript` installs what it needs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.system.conftest import Server

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "typescript"
BUILT = ROOT / "build" / "typescript"
"""As deep as the example, so that its paths to the contract hold."""

pytestmark = [pytest.mark.system, pytest.mark.typescript]


@pytest.fixture(scope="module")
def program() -> Path:
    """Compile the example as it is now; return the program."""
    assert (BUILT / "node_modules").is_dir(), (
        "run make test-typescript: it installs node's packages"
    )
    for file in EXAMPLE.iterdir():
        if file.is_file():
            shutil.copy(file, BUILT)
    built = run("npm", "run", "build")
    assert built.returncode == 0, built.stdout + built.stderr
    return BUILT / "dist" / "example.js"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a program in the folder of the build."""
    return subprocess.run(
        command, cwd=BUILT, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("kind", ["embedded_server", "fleet_server"])
def test_the_example_prints_what_its_page_says(
    program: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    server: Server = request.getfixturevalue(kind)
    printed = re.search(r"```text\n(.*?)```", (EXAMPLE / "README.md").read_text(), re.DOTALL)
    assert printed is not None
    ended = run("node", str(program), server.address)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, printed[1], "")


def test_without_a_server_it_ends_with_an_error_in_one_line(program: Path) -> None:
    ended = run("node", str(program), "127.0.0.1:1")
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: 14 UNAVAILABLE")
    assert len(ended.stderr.splitlines()) == 1
