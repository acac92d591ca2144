"""The environment of the other systems: a venv below build, from compare.lock, by hash."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from hashlib import sha256
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LOCK = HERE / "compare.lock"
HOME = ROOT / "build" / "compare"
PYTHON = HOME / "bin" / "python"
DISTRIBUTIONS = {
    "ours": ("vectorshard", "faiss-cpu", "grpcio"),
    "distributed_faiss": ("faiss-cpu",),
    "chroma": ("chromadb",),
    "pgvector": ("pgserver", "psycopg"),
    "qdrant_edge": ("qdrant-edge-py",),
    "zvec": ("zvec",),
}


def install() -> str:
    """Install the lock, if that was not done; return what was not installed, or nothing.

    If the whole lock cannot be installed, each of its packages is on its own, so that one system
    that is not to be had costs no other.
    """
    done = HOME / f"installed-{sha256(LOCK.read_bytes()).hexdigest()[:16]}"
    if not done.exists():
        venv.create(HOME, clear=True, with_pip=False)
        missing = [] if _install(LOCK) else _install_each()
        done.write_text(", ".join(missing))
    return done.read_text()


def _install(lock: Path) -> bool:
    uv = str(Path(sys.executable).with_name("uv"))
    command = [uv, "pip", "install", "--quiet", "--python", str(PYTHON), "--no-build", "--no-deps"]
    return subprocess.run([*command, "--require-hashes", "-r", str(lock)]).returncode == 0


def _install_each() -> list[str]:
    missing = []
    for entry in re.split(r"\n(?=[a-z])", LOCK.read_text()):
        with tempfile.NamedTemporaryFile("w", suffix=".lock") as one:
            one.write(entry + "\n")
            one.flush()
            if not _install(Path(one.name)):
                missing.append(entry.partition("==")[0])
    return missing


def versions(name: str, checkout: Path | None) -> str:
    """Return the versions of a system's packages, and the commit of a checkout."""
    python = sys.executable if name == "ours" else str(PYTHON)
    script = "import sys, importlib.metadata as m\n"
    script += "print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
    told = _output([python, "-c", script, *DISTRIBUTIONS[name]])
    if name == "distributed_faiss":
        told = f"commit {commit_of(checkout)}, {told}"
    return told


def commit_of(checkout: Path | None) -> str:
    """Return the short hash of a checkout's commit."""
    return _output(["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"])


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
