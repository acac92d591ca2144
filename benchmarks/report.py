"""Tables of measurements: for a terminal, as Markdown, as JSON. Nothing here measures."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

Cell = str | int | float
Row = tuple[Cell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The results of a measurement. A column's name ends in its unit; `notes` give the method."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: Sequence[Row]
    notes: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine and libraries of the measurements."""

    cores: int
    cpu: str
    python: str
    faiss: str
    grpcio: str
    numpy: str

    def __str__(self) -> str:
        return (
            f"{self.cores} cores of {self.cpu}, Python {self.python}, faiss-cpu {self.faiss}, "
            f"grpcio {self.grpcio}, numpy {self.numpy}"
        )


def this_machine() -> Machine:
    """Return this machine."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        cpu=models[0] if models else platform.machine(),
        python=platform.python_version(),
        faiss=version("faiss-cpu"),
        grpcio=version("grpcio"),
        numpy=version("numpy"),
    )


def shown(cell: Cell) -> str:
    """Return a cell as text: a float with three digits, more than a shared machine reproduces."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int) or abs(cell) >= 1_000:
        return f"{round(cell):,}"
    decimals = 3 if abs(cell) < 1 else 2 if abs(cell) < 10 else 1 if abs(cell) < 100 else 0
    return f"{cell:.{decimals}f}"


def command_of(table: Table, options: Sequence[str]) -> str:
    """Return the command that produces a table."""
    return " ".join([".venv/bin/python -m benchmarks", *options, "--only", table.name])


def rich_table(table: Table, command: str, ran_on: str) -> RichTable:
    """Return a table for a terminal."""
    rich = RichTable(
        title=table.title,
        caption=f"{table.notes}\n{ran_on}\n{command}",
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
    )
    for column, cell in zip(table.columns, table.rows[0], strict=True):
        rich.add_column(column, justify="left" if isinstance(cell, str) else "right")
    for row in table.rows:
        rich.add_row(*map(shown, row))
    return rich


def markdown(table: Table, command: str, ran_on: str) -> str:
    """Return a table as benchmarks/README.md shows it."""
    ruler = ["---" if isinstance(cell, str) else "---:" for cell in table.rows[0]]
    lines = [table.columns, ruler, *(tuple(map(shown, row)) for row in table.rows)]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"### {table.title}\n\n`{command}`\n\n{body}\n\n{table.notes} Ran on {ran_on}.\n"


def write_json(path: Path, tables: Sequence[Table], machine: Machine) -> None:
    """Write all tables, unrounded, with what they ran on."""
    content = {"machine": asdict(machine), "tables": [asdict(table) for table in tables]}
    path.write_text(json.dumps(content, indent=2) + "\n")
