"""Fatal signals: a process writes down what ended it, for its next start.

A disk that fails a read through a memory map ends the process by SIGBUS, and no other collection is
spared. Without a trace of it, each next process would serve until it reads the same page.
"""

from __future__ import annotations

import faulthandler
from contextlib import suppress
from pathlib import Path
from typing import Final

FILE_NAME: Final = "fault"

_BUS_ERROR: Final = "Bus error"


def ended_by_failed_read(directory: Path) -> bool:
    """Whether the last process that recorded its faults there was ended by SIGBUS."""
    try:
        return _BUS_ERROR in (directory / FILE_NAME).read_text(errors="replace")
    except OSError:
        return False


def record_faults(directory: Path) -> None:
    """Write a fatal signal of this process, and where it was, to a file of an existing directory.

    What was recorded there before is lost. Without room on the disk, nothing is recorded.
    """
    with suppress(OSError):
        # Open until the process ends: a handler of signals writes to its descriptor.
        faulthandler.enable((directory / FILE_NAME).open("w"), all_threads=False)
