"""What the wheel holds, and what it needs without extras."""

from __future__ import annotations

import json
import tarfile
from email import message_from_bytes
from email.message import Message
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.packaging.conftest import ROOT, NewEnvironment, build, required_by, run
from vectorshard import __version__
from vectorshard.cli.__main__ import MODULES_OF_SERVER

OWN_FILES = ("router.py", "shard.py", "client.py", "backup.py", "cli.py", "errors.py", "v1.py")
"""What a caller's service may have beside the program that imports the client."""

PROGRAM = """
import json, sys
from importlib.util import find_spec
for name in ("faiss", "pyroaring", "typer", "uvloop", "xxhash"):
    assert find_spec(name) is None, name
import router, shard, client, backup, cli, errors, v1
from vectorshard import AsyncClient, Client, Equals, ShardUnavailable
import vectorshard.errors
rooms = (router, shard, client, backup, cli)
assert {room.OWNER for room in rooms} == {errors.OWNER} == {"the caller"}
assert vectorshard.errors.ShardUnavailable is ShardUnavailable
try:
    vectorshard.open_local()
except vectorshard.errors.Unsupported as error:
    assert "pip install 'vectorshard[server]'" in str(error), error
else:
    raise AssertionError
with Client("127.0.0.1:1", timeout_s=5) as asking:
    try:
        asking.search("words", [[1.0]], filter=Equals("lang", "en"))
    except ShardUnavailable as error:
        print(json.dumps([vectorshard.__file__, vectorshard.__version__, type(error).__name__]))
"""


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    """Return the METADATA of the wheel."""
    with ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


@pytest.fixture(scope="module")
def base(new_environment: NewEnvironment, metadata: Message) -> Path:
    """Return the `bin` of an environment of `pip install vectorshard`."""
    return new_environment(required_by(metadata.get_all("Requires-Dist", [])))


@pytest.fixture
def service(tmp_path: Path) -> Path:
    """Return the folder of a caller's service, whose files have the names of our rooms."""
    for name in OWN_FILES:
        (tmp_path / name).write_text('OWNER = "the caller"\n')
    (tmp_path / "main.py").write_text(PROGRAM)
    return tmp_path


def test_the_wheel_has_one_name_and_its_types_and_no_benchmarks(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names}
    assert tops == {"vectorshard", f"vectorshard-{__version__}.dist-info"}
    expected = ("__init__.py", "errors.py", "py.typed", "shard/types.py", "v1/vectorshard_pb2.py")
    assert {f"vectorshard/{name}" for name in expected} <= names
    assert not [name for name in names if "bench" in name or "tests" in name or "pycache" in name]
    suffixes = {Path(name).suffix for name in names if name.startswith("vectorshard/")}
    assert suffixes == {".py", ".pyi", ".typed", ".proto", ".npz"}
    words = (ROOT / "examples" / "words-20k.npz").read_bytes()
    with ZipFile(wheel) as archive:
        assert archive.read("vectorshard/words-20k.npz") == words, "what `vectorshard demo` writes"


def test_the_wheel_that_is_built_through_the_sdist_is_the_same(wheel: Path, tmp_path: Path) -> None:
    """As `python -m build` does, and pip with an sdist: links do not survive every archive."""
    for folder in ("sdist", "source", "dist"):
        (tmp_path / folder).mkdir()
    with tarfile.open(build("sdist", ROOT, tmp_path / "sdist")) as archive:
        assert not [member.name for member in archive if not (member.isfile() or member.isdir())]
        archive.extractall(tmp_path / "source", filter="data")
    [source] = (tmp_path / "source").iterdir()
    assert {path.name for path in source.iterdir()} == {
        *("LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "vectorshard", ".gitignore")
    }
    with ZipFile(wheel) as direct, ZipFile(build("wheel", source, tmp_path / "dist")) as through:
        contents = [
            {each.filename: each.CRC for each in archive.infolist()}
            for archive in (direct, through)
        ]
    assert contents[0] == contents[1]


def test_the_version_is_that_of_the_package(metadata: Message) -> None:
    assert metadata["Version"] == __version__


def test_the_base_needs_the_clients_few_libraries_only(metadata: Message) -> None:
    lines = metadata.get_all("Requires-Dist", [])
    base = {line.name for line in map(Requirement, lines) if line.marker is None}
    assert base == {"googleapis-common-protos", "grpcio", "numpy", "protobuf", "tenacity"}
    assert {*metadata.get_all("Provides-Extra", [])} == {"bench", "dev", "parquet", "s3", "server"}


def test_the_client_works_beside_files_of_the_caller_that_are_named_as_our_rooms(
    base: Path, service: Path
) -> None:
    said = run(base / "python", "main.py", cwd=service)
    file, version, error = json.loads(said.stdout)
    assert Path(file).is_relative_to(base.parent), "not from this checkout"
    assert (version, error) == (__version__, "ShardUnavailable")


@pytest.mark.parametrize(
    "arguments", [["serve", "--data", "data"], ["--help"], ["search", "words", "--text", "king"]]
)
def test_every_command_says_what_to_install_without_the_servers_libraries(
    base: Path, tmp_path: Path, arguments: list[str]
) -> None:
    said = run(base / "vectorshard", *arguments, cwd=tmp_path, check=False)
    assert (said.returncode, said.stdout) == (1, "")
    [line] = said.stderr.splitlines()
    assert "pip install 'vectorshard[server]'" in line
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("program", [["vectorshard"], ["python", "-m", "vectorshard"]])
def test_the_version_needs_no_extra(base: Path, tmp_path: Path, program: list[str]) -> None:
    said = run(base / program[0], *program[1:], "--version", cwd=tmp_path)
    assert (said.stdout, said.stderr) == (f"vectorshard {__version__}\n", "")


def test_what_the_extra_of_the_servers_installs_is_what_is_advised(metadata: Message) -> None:
    names = {
        canonicalize_name(line.name)
        for line in map(Requirement, metadata.get_all("Requires-Dist", []))
        if line.marker and line.marker.evaluate({"extra": "server"})
    }
    modules = {
        module
        for module, distributions in packages_distributions().items()
        if names & {canonicalize_name(each) for each in distributions}
        and not module.startswith("_")
        and "." not in module
        and find_spec(module)
    }
    assert modules == MODULES_OF_SERVER


def test_a_missing_module_of_something_else_is_a_traceback(base: Path, tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import absent_module\n")
    said = run(base / "python", "-m", "vectorshard", "serve", cwd=tmp_path, check=False)
    assert said.returncode == 1
    assert said.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'absent_module'"


def test_bench_says_that_it_needs_a_checkout(
    new_environment: NewEnvironment, metadata: Message, tmp_path: Path
) -> None:
    (tmp_path / "benchmarks").mkdir()
    requires = metadata.get_all("Requires-Dist", [])
    programs = new_environment(required_by(requires, "server"))
    said = run(programs / "vectorshard", "bench", cwd=tmp_path, check=False)
    assert (said.returncode, said.stdout) == (1, "")
    [line] = said.stderr.splitlines()
    assert "needs a checkout of vectorshard" in line
