"""The start of `vectorshard` and `python -m vectorshard`: environment first, then commands.

The imports at the head of this file must not load numpy, faiss or grpc, which read these variables
once, when they are loaded.
"""

from __future__ import annotations

import os
import sys

ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # the shards run matrix products in their own threads
    "OMP_NUM_THREADS": "1",  # faiss: threads that may use more cores request them
    "OMP_WAIT_POLICY": "PASSIVE",  # an idle OpenMP thread spins on a core that a search needs
    "GRPC_VERBOSITY": "NONE",  # our own errors report what it would write to stderr
    # The event engine's threads read the sockets of a server: else one connection that floods it
    # with tiny frames keeps all others waiting. Those of its links are read by the thread that
    # waits for finished operations, which costs less.
    # grpc ignores an unknown name silently; tests/system/test_transport.py detects that.
    "GRPC_EXPERIMENTS": "-event_engine_client,event_engine_listener",
}
"""Defaults; a variable that is already set takes precedence."""

REFUSED_OPTIMIZED = (
    "vectorshard does not run under `python -O` or PYTHONOPTIMIZE: "
    "faiss would no longer check the dimension of its inputs"
)

INSTALL_SERVER = "install the servers and the command line with pip install 'vectorshard[server]'"

MODULES_OF_SERVER = frozenset(
    {
        *("faiss", "google_crc32c", "grpc_health", "grpc_reflection", "prometheus_client"),
        *("pyroaring", "rich", "structlog", "threadpoolctl", "typer", "uvloop", "xxhash"),
    }
)
"""What the extra `server` installs. Another module that is missing has another remedy."""


def set_environment() -> None:
    """Set the variables that libraries read when they are loaded, unless they are set."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def main() -> None:
    """Run the command line and end the process: code 2 under -O, 1 without the extra."""
    if sys.flags.optimize:
        print(REFUSED_OPTIMIZED, file=sys.stderr)
        sys.exit(2)
    set_environment()
    if sys.argv[1:] == ["--version"]:  # needs no extra
        from vectorshard import __version__

        print(f"vectorshard {__version__}")
        return
    try:
        from vectorshard.cli.app import app

        app()
    except KeyboardInterrupt:  # while modules are loaded; a command ends so, too
        os._exit(130)
    except ModuleNotFoundError as missing:
        if missing.name not in MODULES_OF_SERVER:
            raise
        print(f"the module {missing.name} is not installed; {INSTALL_SERVER}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as leaving:
        # A training that outlives its server still runs in its thread, inside FAISS, and would
        # crash while the interpreter shuts down. Everything else is closed by now.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(leaving.code if isinstance(leaving.code, int) else bool(leaving.code))


if __name__ == "__main__":
    main()
