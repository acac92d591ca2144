"""What the commands print on: the terminal's width, or a log's, and the progress bars.

Nothing here asks a server. The tables are in `tables` and `explanations`.
"""

from __future__ import annotations

import shutil
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

LOG_WIDTH: Final = 132
"""Columns where there is no terminal: a log must not fold its tables."""


def terminal(*, silent: bool = False) -> Console:
    """Return stdout's console: as wide as the terminal or COLUMNS, or LOG_WIDTH without either.

    A `silent` one prints nothing, for a command that prints JSON instead.
    """
    console = Console(highlight=False, quiet=silent)
    if not console.is_terminal:
        console.width = shutil.get_terminal_size((LOG_WIDTH, 0)).columns  # it reads COLUMNS
    return console


class RowsPerSecond(ProgressColumn):
    """The rate of a task whose unit is rows."""

    def render(self, task: Task) -> Text:
        """Return the current rate, or the mean rate of a finished task."""
        rate = task.finished_speed or task.speed
        return Text(f"{rate:,.0f} rows/s" if rate else "")


def rows_progress(console: Console) -> Progress:
    """Return a progress bar of rows: live on a terminal, one line at the end in a log."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("rows"),
        RowsPerSecond(),
        TimeElapsedColumn(),
        console=console,
    )


def steps_progress(console: Console) -> Progress:
    """Return a progress bar of any unit: live on a terminal, one line at the end in a log."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
