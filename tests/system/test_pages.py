"""The programs of the pages, run as they stand against a server; only its address is another."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.conftest import Server

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```", re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.system


def run(page: str, server: Server) -> tuple[list[str], list[str]]:
    """Run the Python of a page as one program; return its lines, and those that the page shows."""
    blocks = BLOCK.findall((ROOT / page).read_text())
    program = "".join(text for kind, text in blocks if kind == "python")
    ended = subprocess.run(
        [sys.executable, "-c", program.replace("127.0.0.1:7700", server.address)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "GRPC_VERBOSITY": "NONE"},
    )
    assert ended.returncode == 0, ended.stderr
    shown = "".join(text for kind, text in blocks if kind == "text")
    return ended.stdout.splitlines(), shown.splitlines()


def test_the_program_of_the_readme_prints_what_the_readme_shows(embedded_server: Server) -> None:
    printed, shown = run("README.md", embedded_server)
    hits = 4
    assert printed[:hits] == shown[:hits]
    assert shown[hits] == "1 of 1 shard answered, coverage 100%"
    assert printed[hits] == "2 of 2 shards answered, coverage 100%", "this server has two"


def test_the_programs_about_clients_run(embedded_server: Server) -> None:
    printed, _ = run("docs/clients.md", embedded_server)
    assert any(line.startswith("1 ") and "'year': 1984" in line for line in printed)
