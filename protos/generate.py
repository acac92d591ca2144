"""Generate the Python of the contract from its .proto files, and the descriptor set buf reads.

    python protos/generate.py                 write the generated files into the tree
    python protos/generate.py --check         fail when those in the tree are stale
    python protos/generate.py --image FILE    write the public contract's descriptor set for buf

The generated files are checked in and never edited: a checkout works without a compiler.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from google.rpc import status_pb2
from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent
PUBLIC = ["vectorshard/v1/vectorshard.proto"]
INTERNAL = ["vectorshard/internal/v1/internal.proto"]


def run_protoc(*arguments: str) -> None:
    """Run protoc with this project's import paths; exit with its message when it fails."""
    includes = [
        PROTOS,
        Path(str(files("grpc_tools"))) / "_proto",
        Path(status_pb2.__file__).parent.parent.parent,
    ]
    if protoc.main(["protoc", *(f"-I{path}" for path in includes), *arguments]) != 0:
        sys.exit("protoc failed")


def generate(target: Path) -> None:
    """Write the generated modules below `target`."""
    run_protoc(f"--python_out={target}", f"--pyi_out={target}", *PUBLIC, *INTERNAL)
    run_protoc(f"--grpc_python_out={target}", *PUBLIC)


def stale_files() -> list[str]:
    """Return the generated files whose content in the tree is not what protoc makes of it."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = {
            path.relative_to(scratch): path.read_bytes() for path in Path(scratch).rglob("*_pb2*")
        }
    in_tree = {path.relative_to(PROTOS): path for path in PROTOS.rglob("*_pb2*.py*")}
    in_tree = {name: path for name, path in in_tree.items() if path.suffix in {".py", ".pyi"}}
    return sorted(
        str(name)
        for name in fresh.keys() | in_tree.keys()
        if name not in fresh or name not in in_tree or in_tree[name].read_bytes() != fresh[name]
    )


def main() -> None:
    """Parse the command line and do what it asks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="fail when the tree is stale")
    parser.add_argument("--image", type=Path, help="write the descriptor set here")
    options = parser.parse_args()
    if options.image:
        run_protoc(
            f"--descriptor_set_out={options.image}",
            "--include_imports",
            "--include_source_info",
            *PUBLIC,
        )
    elif options.check:
        if stale := stale_files():
            sys.exit(f"stale: {', '.join(stale)}; run `make fix`")
    else:
        generate(PROTOS)


if __name__ == "__main__":
    main()
