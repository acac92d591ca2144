"""Where `vectorshard` and `python -m vectorshard.cli` start: environment first, then command line.

What is imported at the head of this file must not load numpy, faiss or grpc: they read these
variables once, when they are loaded.
"""

from __future__ import annotations

import os
import sys

ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # matrix products run inside the shards' own threads
    "OMP_NUM_THREADS": "1",  # faiss: threads that may use more cores ask for them
    "OMP_WAIT_POLICY": "PASSIVE",  # an idle OpenMP thread spins on a core that a search needs
    "GRPC_VERBOSITY": "NONE",  # what it notes on stderr is told by our own errors
    # The thread that waits for finished operations reads the sockets itself, instead of being woken
    # by the event engine's threads: a fifth less CPU for an empty call, of servers and links alike.
    # A name that grpc does not know is ignored without a word; tests/system/test_transport.py sees.
    "GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener",
}
"""Defaults; what the caller has set wins."""

REFUSED_OPTIMIZED = (
    "vectorshard does not run under `python -O` or PYTHONOPTIMIZE: "
    "faiss would no longer check the dimension of what it is given"
)


def set_environment() -> None:
    """Set what the libraries read when they are loaded, where the caller has not."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def main() -> None:
    """Run the command line and end the process; with code 2 under `python -O`."""
    if sys.flags.optimize:
        print(REFUSED_OPTIMIZED, file=sys.stderr)
        sys.exit(2)
    set_environment()
    from vectorshard.cli.app import app

    try:
        app()
    except SystemExit as leaving:
        # A training that a server left behind runs on in its thread, inside FAISS, and would not
        # survive Python taking itself apart around it. Everything else is closed by now.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(leaving.code if isinstance(leaving.code, int) else bool(leaving.code))


if __name__ == "__main__":
    main()
