"""The commands of the pages: each parses as it stands, with the options that it names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from vectorshard.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    *("README.md", "benchmarks/README.md", "deploy/README.md", "examples/README.md"),
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").glob("*.md"))),
)
BLOCK = re.compile(r"```[a-z]*\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"^(?:\$ |[\d* ]+ +)?(?:\.venv/bin/)?vectorshard +(.+)$", re.MULTILINE)


COMMANDS: Any = typer.main.get_command(app)


def commands() -> Iterator[tuple[str, str]]:
    """Yield the page and the arguments of each command line in a block."""
    for page in PAGES:
        for block in BLOCK.findall((ROOT / page).read_text()):
            for line in COMMAND.findall(block.replace("\\\n", " ")):
                yield page, re.split(r" && | & *$|&$", line)[0]


def parse(line: str) -> None:
    """Parse a command line; nothing runs. Raises a usage error."""
    words = shlex.split(line, comments=True)
    if words[0].startswith("-"):  # an option of no command
        return
    command = COMMANDS.get_command(None, words[0])
    assert command is not None, f"no command {words[0]}"
    below = getattr(command, "commands", {})
    if words[1:] and words[1] in below:
        command, words = below[words[1]], words[1:]
    command.make_context(words[0], words[1:])


def test_the_commands_of_the_pages_parse() -> None:
    lines = [*commands()]
    assert len(lines) > 40
    wrong = []
    for page, line in lines:
        try:
            parse(line)
        except Exception as error:
            wrong.append(f"{page}: {line}: {error}")
    assert not wrong
    with pytest.raises(Exception, match="colection"):
        parse("search --colection words")
