"""Stock grpcio, in a separate directory: the baseline of our transport.

Our environment has our chosen version of grpcio, so the stock version is installed once in a second
directory, from the lock `stock.lock`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.load.connections import SERVICE
from benchmarks.server import Server, start_command

HERE = Path(__file__).resolve().parent
LOCK = HERE / "stock.lock"
VERSION = (HERE / "stock.in").read_text().strip().removeprefix("grpcio==")
INSTALLED = HERE.parent / "build" / f"stock-grpcio-{VERSION}"


def install() -> bool:
    """Install it if it is missing; return whether it is installed."""
    if not INSTALLED.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--require-hashes", "--requirement", str(LOCK)]
        unfinished = INSTALLED.with_name(f"{INSTALLED.name}-{os.getpid()}")
        if subprocess.run([*command, "--target", str(unfinished)]).returncode:
            return False
        unfinished.rename(INSTALLED)
    return True


@contextmanager
def serving_stock(log: Path) -> Iterator[Server]:
    """Run benchmarks.stock_server with it, and without our settings of grpc's environment."""
    environment = {name: value for name, value in os.environ.items() if "GRPC" not in name}
    environment["PYTHONPATH"] = str(INSTALLED)
    command = [sys.executable, "-m", "benchmarks.stock_server", VERSION, SERVICE.strip("/")]
    server = start_command(command, log, environment)
    try:
        yield server
    finally:
        server.kill()
