"""The restore drill of docs/backups.md, run as it stands there, against real processes."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.source_tree import ROOT
from tests.system.conftest import VECTORSHARD, Server, Starter, line_of
from vectorshard.cli import app

pytestmark = pytest.mark.system

HEADING = "## The restore drill"
ROWS = 300
TIMEOUT_S = 100


def commands() -> tuple[list[str], list[str]]:
    """Return the five commands of the page, and the two searches that follow."""
    _, _, chapter = (ROOT / "docs" / "backups.md").read_text().partition(HEADING)
    chapter = chapter.partition("\n## ")[0]
    five, searches = (
        block.strip().splitlines()
        for block in re.findall(r"^```sh\n(.*?)^```", chapter, re.MULTILINE | re.DOTALL)
    )
    return five, searches


def free_address() -> str:
    """Return an address on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def words_of(command: str, here: Mapping[str, str]) -> list[str]:
    """Return a command's words, with the places of this test in those of the page."""
    program, *arguments = shlex.split(command.removesuffix(" &"))
    assert program == "vectorshard"
    return [str(VECTORSHARD), *(here.get(word, word) for word in arguments)]


def run(command: str, here: Mapping[str, str]) -> str:
    """Run a command to its end, and return what it printed."""
    ended = subprocess.run(
        words_of(command, here), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def printed_by(command: str, here: Mapping[str, str]) -> str:
    """Run a command in this process, which is cheaper, and return what it printed."""
    ended = CliRunner().invoke(app.app, words_of(command, here)[1:])
    assert ended.exit_code == 0, ended.output
    return ended.output


@contextmanager
def in_background(command: str, here: Mapping[str, str]) -> Iterator[None]:
    """Run a server until the context ends."""
    with subprocess.Popen(
        words_of(command, here), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert line_of(process.stdout, TIMEOUT_S).startswith("listening on")
            yield
        finally:
            process.terminate()
            process.wait(TIMEOUT_S)


def fill(server: Server) -> None:
    """Write words, of which one is coffee."""
    with server.client() as client:
        client.create_collection("words", dim=4, id_type="string")
        ids = ["coffee", *(f"word-{number}" for number in range(ROWS - 1))]
        vectors = [[1.0, number % 7, number % 11, number % 13] for number in range(ROWS)]
        client.upsert("words", ids, vectors, [{"n": number} for number in range(ROWS)])


def hits_of(printed: str) -> list[str]:
    """Return the hits, best first, without the receipt, which counts shards."""
    return re.findall(r"\b(?:coffee|word-\d+) +\S+", printed)


def test_the_drill_in_the_docs_restores_what_was_backed_up(
    start_server: Starter, tmp_path: Path
) -> None:
    (backup, verify, restore, serve, describe), searches = commands()
    server = start_server(2)
    fill(server)
    here = {
        "127.0.0.1:7700": server.address,
        "127.0.0.1:7799": free_address(),
        "/backups/words": str(tmp_path / "backups"),
        "/tmp/drill": str(tmp_path / "drill"),
    }
    assert serve.endswith(" &")
    assert "complete" in run(backup, here)
    assert run(verify, here).rstrip().endswith("sound")
    restored = run(restore, here)
    assert f"restored {ROWS:,} rows" in restored
    with in_background(serve, here):
        described = run(describe, here)
        assert "restored from" in described
        assert f"{ROWS:,} accepted, adds up" in described
        before, after = (hits_of(printed_by(search, here)) for search in searches)
        assert before == after
        assert len(before) == 10
        assert before[0].startswith("coffee ")
