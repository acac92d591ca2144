"""The rules of the house: who may import whom, what stays out of the core, what must be fresh.

Read from the source by its syntax tree: nothing but the client is imported to be judged. The tables
name rooms and packages; a new module needs no line in them. A file whose text rules a fault out is
not parsed for it: most of `tests`.
"""

from __future__ import annotations

import ast
import gc
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

from tests.source_tree import (
    HOUSE,
    PACKAGES,
    ROOT,
    Module,
    house,
    import_statements,
    imports,
    imports_at_the_head,
    is_within,
    modules,
    origins,
)

SHARD_ROOMS = (
    "shard",
    "shard.wire",
    "shard.rows",
    "shard.index",
    "shard.search",
    "shard.storage",
    "shard.engine",
    "shard.server",
)
"""The rooms of the shard, from the vocabulary up: each imports only those before it."""

ROOMS: Mapping[str, frozenset[str]] = {
    **{room: frozenset(SHARD_ROOMS[:place]) for place, room in enumerate(SHARD_ROOMS)},
    "shard.runtime": frozenset(),
    "shard.server": frozenset({*SHARD_ROOMS, "shard.runtime"}),
    "client": frozenset({"shard", "shard.wire", "shard.server.status"}),
    "router": frozenset(),
    "router.fan_out": frozenset(
        {"shard", "shard.wire", "shard.rows", "shard.index", "shard.engine"}
    ),
    "router.remote": frozenset({"shard", "shard.wire", "shard.server.status", "client"}),
    "backup": frozenset({*SHARD_ROOMS[:-1], "router.fan_out", "router.remote", "client"}),
    "cli": frozenset(
        {*SHARD_ROOMS, "shard.runtime", "router.fan_out", "router.remote", "client", "backup"}
    ),
}
"""Each room, and the rooms, or single modules, that it imports beside its own."""

PURE = frozenset({"shard", "shard.wire", "shard.rows", "shard.index", "shard.search"})
PURE_MODULES = frozenset(
    {
        "backup.manifest",
        "client.arguments",
        "client.calls",
        "client.config_arguments",
        "client.filter_text",
        "client.id_arguments",
        "client.metadata_arguments",
        "client.methods",
        "client.results",
        "client.upload",
        "client.vector_arguments",
        "router.fan_out.memory",
        "router.fan_out.absence",
        "router.fan_out.merge",
        "router.fan_out.placement",
        "router.fan_out.verdicts",
        "shard.engine.commit_plan",
        "shard.engine.upkeep",
        "shard.engine.validation",
        "shard.server.search_work",
    }
)
"""Rooms and modules that are given what they need of clock, chance, environment and network."""

IMPORTED_ONLY_BY: Mapping[str, frozenset[str]] = {
    "faiss": frozenset({"shard.index"}),
    "obstore": frozenset({"backup"}),
    "pyroaring": frozenset({"shard.rows"}),
    "vectorshard.v1": frozenset({"shard.wire"}),
    "vectorshard.internal": frozenset({"shard.wire"}),
    "google.protobuf": frozenset({"shard.wire", "shard.server"}),
    "google.rpc": frozenset({"shard.server"}),
    "grpc": frozenset({"shard.server", "router.remote", "client"}),
    "grpc_health": frozenset({"shard.server"}),
    "grpc_reflection": frozenset({"shard.server"}),
    "prometheus_client": frozenset({"shard.server", "router.remote"}),
    "sqlite3": frozenset({"shard.storage"}),
    "typer": frozenset({"cli"}),
    "rich": frozenset({"cli"}),
    "uvloop": frozenset({"cli"}),
}
"""Foreign packages, and the only rooms that import them."""

CLIENT_IMPORTS_NONE_OF = (
    *("faiss", "pandas", "pyarrow", "pyroaring", "rich", "sqlite3", "torch"),
    *("typer", "uvloop", "xxhash"),
)

ONLY_ON_UNIX = frozenset({"fcntl", "grp", "pwd", "resource", "termios", "uvloop"})
"""What Python has on no Windows."""

OUTSIDE_THE_CORE = frozenset(
    {
        "asyncio",
        "datetime",
        "grpc",
        "logging",
        "os",
        "random",
        "secrets",
        "socket",
        "sqlite3",
        "structlog",
        "subprocess",
        "tempfile",
        "time",
        "uuid",
    }
)
"""Clock, chance, environment and the world: the core is given what it needs of them."""

LOADERS = frozenset({"importlib", "runpy"})
LOADS_BY_NAME = frozenset({"cli.app"})
"""What imports modules by a name that no test can read, and the one module that does."""

ENVIRONMENT = frozenset({"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"})
"""What of the module os reads and sets variables of the environment."""

BANNED_WORDS = frozenset(
    {"manager", "helper", "helpers", "util", "utils", "data", "info", "process", "handle"}
)
TERMS = ("server_info", "corrupt_data", "data_directory")
"""Of the contract and of the command line, which are named so throughout."""
LINES_A_FILE = {"tests": 700, "benchmarks": 500, **dict.fromkeys(HOUSE, 500)}
LINES_A_FUNCTION = 60
LEFT_OVER = re.compile(r"\b(TO[D]O|FIX[M]E|XX[X]|HA[C]K)\b")  # brackets: not found in itself
TEXT_SUFFIXES = frozenset({".py", ".proto", ".md", ".toml", ".yaml", ".yml", ""})
PAGES = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "deploy/README.md",
    "examples/README.md",
    "examples/typescript/README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
)
"""What people read of the project, but for its changelog."""
READ_BY_USERS = (
    *(page for page in PAGES if page != "benchmarks/README.md"),
    "CHANGELOG.md",
    "Makefile",
    "deploy/Dockerfile",
    "deploy/check",
)
"""Pages, and files whose comments and targets speak to users."""
READ_BY_USERS_IN = {"protos": "*.proto", "deploy": "*.yaml", ".ci": "*"}
OLD_NAMES = re.compile(r"^\| `[^|]*` \|", re.MULTILINE)
"""The first cell of a row of the changelog, whose names are what they were."""
BANNED_PHRASES = (
    "anew",
    "cannot be",
    "for good",
    "is none",
    "leavings",
    "may come to",
    "nobody",
    "of its own",
    "by itself",
    "somebody",
    "taken for",
    "who waits",
    "whoever",
    "whose turn",
)
ALLOWED_PHRASES: Mapping[str, str] = {"is None": "Python's value, and not a headless clause"}
"""What looks like one of them, each with its reason."""


def room_of(name: str) -> str:
    """Return the room of a dotted name: the longest that it is in."""
    return max((room for room in ROOMS if is_within(name, room)), key=len, default="")


def is_pure(module: Module) -> bool:
    """Whether a module has no clock, chance, environment or network."""
    return room_of(module.name) in PURE or module.name in PURE_MODULES


@pytest.fixture(scope="module", autouse=True)
def no_collection() -> Iterator[None]:
    """Syntax trees are many objects and no garbage: a collector would look at them all the time."""
    gc.disable()
    yield
    gc.enable()


def test_what_is_installed_has_one_name() -> None:
    found = {path.name for path in (ROOT / "vectorshard").iterdir() if path.is_dir()}
    found -= {"__pycache__"}
    assert found == {*HOUSE, "v1", "internal"}
    assert all((ROOT / "vectorshard" / name).is_symlink() for name in found)
    files = {path.name for path in (ROOT / "vectorshard").iterdir() if path.is_file()}
    assert files == {"__init__.py", "__main__.py", "errors.py", "py.typed", "words-20k.npz"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["vectorshard"]


def test_nothing_is_imported_by_its_folder_at_the_root() -> None:
    folders = "|".join({*HOUSE, "protos"})
    at_the_root = re.compile(rf"^\s*(from|import)\s+(.*,\s*)?({folders})\b", re.MULTILINE)
    wrong = [
        f"{module.name}:{node.lineno}"
        for package in PACKAGES
        for module in modules(package)
        if at_the_root.search(module.text)
        for node in import_statements(module.tree)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
        if name.split(".")[0] in {*HOUSE, "protos"}
    ]
    assert not wrong, "write `from vectorshard.shard ...`"


def test_every_room_says_what_it_is_for_and_what_stays_out() -> None:
    rooms = {module.name: module for module in house() if module.name in ROOMS}
    assert rooms.keys() == ROOMS.keys()
    assert not [name for name, module in rooms.items() if not ast.get_docstring(module.tree)]


def is_foreign_to(module: Module, name: str) -> bool:
    """Whether a module's room must not import this name of ours, or the public package itself."""
    own = room_of(module.name)
    if is_within(name, "vectorshard"):
        contract = any(is_within(name, f"vectorshard.{each}") for each in ("v1", "internal"))
        of_cli = own == "cli" and name in {"vectorshard", "vectorshard.__version__"}
        return not contract and not of_cli
    room = room_of(name)
    modules_allowed = ROOMS[own] - ROOMS.keys()
    return room not in {"", own, *ROOMS[own]} and not any(
        is_within(name, each) for each in modules_allowed
    )


def wrong_imports(module: Module) -> list[str]:
    """Return what a module of the house imports and must not, and how it must not."""
    found = [name for name in imports(module.tree) if is_foreign_to(module, name)]
    for node in import_statements(module.tree):
        for alias in node.names:
            unnamed = isinstance(node, ast.Import) and not alias.asname
            if unnamed and alias.name.startswith("vectorshard."):
                found.append(f"{alias.name} under the name vectorshard")
    found += [
        ast.unparse(node)
        for node in module.nodes(ast.Attribute)
        if isinstance(node.value, ast.Name)
        and node.value.id == "vectorshard"
        and node.attr not in {"__version__", "__file__"}
    ]
    if module.name not in LOADS_BY_NAME:
        found += [
            name
            for name in imports(module.tree)
            if name.split(".")[0] in LOADERS and not is_within(name, "importlib.metadata")
        ]
        found += [node.id for node in module.nodes(ast.Name) if node.id == "__import__"]
    return found


def test_a_room_imports_only_the_rooms_that_it_may() -> None:
    wrong = [
        f"{module.name}: {name}"
        for module in house()
        if "vectorshard" in module.text or re.search("import(lib|__)|runpy", module.text)
        for name in wrong_imports(module)
    ]
    assert not wrong


def module_of(name: str, text: str) -> Module:
    """Return a module that is in no file."""
    return Module(name=name, path=ROOT / "absent.py", text=text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("client.calls", "import vectorshard.shard.server as server"),
        ("client.calls", "from vectorshard.shard import engine"),
        ("client.calls", "from vectorshard.shard.server import status, service"),
        ("client.calls", "def f():\n    from vectorshard.shard.index import exact"),
        ("shard.engine.state", "from vectorshard import client"),
        ("shard.engine.state", "from vectorshard import Client"),
        ("shard.engine.state", "import vectorshard"),
        ("router.fan_out.merge", "from vectorshard import errors"),
        ("router.fan_out.merge", "from vectorshard.errors import ShardUnavailable"),
        ("router.fan_out.merge", "import vectorshard.shard.types"),
        ("shard.types", "from vectorshard.shard import wire"),
        ("cli.rows", "from vectorshard import Client"),
        ("cli.rows", "import vectorshard\nvectorshard.shard.server.run"),
        ("cli.rows", "from importlib import import_module"),
        ("shard.config", "import importlib.util"),
        ("shard.config", "__import__('vectorshard.client')"),
        ("shard.config", "import runpy"),
    ],
)
def test_an_import_that_a_room_must_not_have_is_seen(name: str, text: str) -> None:
    assert wrong_imports(module_of(name, text))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("client.calls", "from vectorshard.shard import types, errors"),
        ("client.calls", "from vectorshard.shard.server import status"),
        ("client.calls", "from vectorshard.shard.server.status import STATUS_BY_ERROR"),
        ("cli.app", "import vectorshard\nfrom importlib import import_module"),
        ("cli.__main__", "from vectorshard import __version__"),
        ("shard.wire.ids", "from vectorshard.v1 import vectorshard_pb2"),
    ],
)
def test_an_import_that_a_room_may_have_is_no_fault(name: str, text: str) -> None:
    assert not wrong_imports(module_of(name, text))


def test_the_tests_of_the_shard_know_nothing_of_the_router() -> None:
    wrong = [
        module.name
        for module in modules("tests")
        if is_within(module.name, "tests.shard")
        and re.search(r"vectorshard\.router|vectorshard import", module.text)
        and any(is_within(name, "router") for name in imports(module.tree))
    ]
    assert not wrong


def test_benchmarks_are_clients_and_know_of_the_shard_only_its_vocabulary() -> None:
    wrong = [
        f"{module.name} imports {name}"
        for module in modules("benchmarks")
        for name in imports(module.tree)
        if (room := room_of(name))
        and room not in {"client", "shard"}
        and not is_within(name, "cli.vector_files")
        and not is_within(name, "shard.wire.rpcs")  # names and paths of the contract
    ]
    assert not wrong


@pytest.mark.parametrize("package", HOUSE)
def test_modules_do_not_import_each_other_in_a_circle(package: str) -> None:
    names = {module.name for module in modules(package)}
    waiting = {
        module.name: {
            name
            for name in imports_at_the_head(module.tree)
            if name in names and name not in ROOMS and name != module.name
        }
        for module in modules(package)
        if module.name not in ROOMS
    }
    while ready := {name for name, needed in waiting.items() if not needed}:
        waiting = {name: needed - ready for name, needed in waiting.items() if name not in ready}
    assert not waiting


@pytest.mark.parametrize("foreign", sorted(IMPORTED_ONLY_BY))
def test_a_foreign_package_is_imported_only_where_it_belongs(foreign: str) -> None:
    importers = {
        module.name
        for module in house()
        if any(is_within(name, foreign) for name in imports(module.tree))
        and room_of(module.name) not in IMPORTED_ONLY_BY[foreign]
    }
    assert not importers


def test_the_client_is_light_and_of_every_system() -> None:
    """Run as a caller would: what a client imports, and loads, needs no library of a server."""
    program = (
        "import sys\n"
        "from vectorshard import AsyncClient, Client\n"
        "AsyncClient('127.0.0.1:1'), Client('127.0.0.1:1')\n"
        f"print(sorted(set({CLIENT_IMPORTS_NONE_OF!r}) & set(sys.modules)))\n"
        "print(*(name for name in sys.modules if name.startswith('vectorshard.')))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/"
    )
    heavy, loaded = ended.stdout.splitlines()
    assert heavy == "[]"
    ours = {name.removeprefix("vectorshard.") for name in loaded.split()}
    of_unix = {
        f"{module.name} imports {name}"
        for module in house()
        if module.name in ours
        for name in imports(module.tree)
        if name.split(".")[0] in ONLY_ON_UNIX
    }
    assert "client.parts" in ours
    assert not of_unix


def test_the_core_has_no_clock_no_chance_no_environment_and_no_network() -> None:
    wrong = [
        f"{module.name} imports {name}"
        for module in house()
        if is_pure(module)
        for name in imports(module.tree)
        if name.split(".")[0] in OUTSIDE_THE_CORE
    ]
    assert not wrong


def chance_without_a_seed(module: Module) -> list[str]:
    """Return the calls of a module that draw at random, but for generators with a seed."""
    names = origins(module.tree)
    found = []
    for node in module.nodes(ast.Call):
        first, *others = ast.unparse(node.func).split(".")
        called = ".".join([names.get(first, first), *others])
        seeded = called == "numpy.random.default_rng" and node.args
        if (is_within(called, "random") and first in names) or is_within(called, "numpy.random"):
            found += [] if seeded else [ast.unparse(node)]
    return found


def uses_of_the_environment(module: Module) -> list[str]:
    """Return what of a module reads or sets variables of the environment."""
    return [
        *(node.attr for node in module.nodes(ast.Attribute) if node.attr in ENVIRONMENT),
        *(name for name in imports(module.tree) if name in {f"os.{each}" for each in ENVIRONMENT}),
    ]


def test_chance_in_the_house_always_has_a_seed() -> None:
    suspicious = (module for module in house() if "random" in module.text)
    assert not {
        module.name: calls for module in suspicious if (calls := chance_without_a_seed(module))
    }


@pytest.mark.parametrize(
    "text",
    [
        "import random\nrandom.random()",
        "from random import random\nrandom()",
        "from random import choice as pick\npick([1])",
        "import numpy as np\nnp.random.default_rng()",
        "import numpy as np\nnp.random.normal()",
        "from numpy import random as drawn\ndrawn.normal()",
        "from numpy.random import default_rng\ndefault_rng()",
        "from numpy.random import default_rng as rng_of\nrng_of()",
    ],
)
def test_chance_without_a_seed_is_seen(text: str) -> None:
    assert chance_without_a_seed(module_of("shard.types", text))


def test_chance_with_a_seed_is_no_fault() -> None:
    text = "from numpy.random import default_rng\nrandom = default_rng(7)\nrandom.normal()"
    assert not chance_without_a_seed(module_of("shard.types", text))


def test_the_environment_is_touched_only_where_the_program_starts() -> None:
    elsewhere = (module for module in house() if module.name != "cli.__main__")
    assert not {
        module.name: uses for module in elsewhere if (uses := uses_of_the_environment(module))
    }


@pytest.mark.parametrize(
    "text",
    ["import os\nos.environ['A']", "from os import environ", "from os import path, getenv as env"],
)
def test_a_use_of_the_environment_is_seen(text: str) -> None:
    assert uses_of_the_environment(module_of("shard.types", text))


def test_the_program_sets_the_environment_before_it_loads_anything() -> None:
    heads = {module.name: set(imports_at_the_head(module.tree)) for module in modules("cli")}
    assert {name.split(".")[0] for name in heads["cli.__main__"]} == {"__future__", "os", "sys"}
    assert not heads["cli"]
    [installed] = [module for module in modules("vectorshard") if module.name == "vectorshard"]
    tops = {name.split(".")[0] for name in imports_at_the_head(installed.tree)}
    assert tops <= {"__future__", "importlib", "typing"}


def test_every_module_says_what_it_is_for() -> None:
    assert not [
        module.name
        for package in PACKAGES
        for module in modules(package)
        if not module.has_docstring
    ]


def public_definitions(
    body: Sequence[ast.stmt], prefix: str
) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield the public classes, functions and methods of a module or class body by dotted name."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("_"):
                continue
            yield f"{prefix}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body, f"{prefix}.{node.name}")


def test_every_public_class_and_function_says_what_it_does() -> None:
    assert not [
        name
        for module in house()
        for name, node in public_definitions(module.tree.body, module.name)
        if not ast.get_docstring(node)
    ]


def words_of(name: str) -> list[str]:
    """Return the words of a snake_case, CamelCase or dotted name, in lower case."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)]


def says_nothing(name: str) -> bool:
    """Whether a word of a name could stand for anything."""
    text = "_".join(words_of(name))
    for term in TERMS:
        text = text.replace(term, "")
    return not BANNED_WORDS.isdisjoint(text.split("_"))


def test_no_module_class_or_function_has_a_name_that_says_nothing() -> None:
    wrong = [
        f"{module.name}: {name}"
        for module in (*house(), *modules("benchmarks"))
        for name in (
            module.name,
            *(node.name for node in (*module.functions, *module.nodes(ast.ClassDef))),
        )
        if says_nothing(name)
    ]
    assert not wrong


@cache
def texts() -> Mapping[Path, str]:
    """Return the files that people write, by path from the root."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in (*PACKAGES, "protos", "examples", "deploy", "docs", ".ci"):
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return {
        path.relative_to(ROOT): path.read_text()
        for path in sorted(found)
        if path.suffix in TEXT_SUFFIXES and "_pb2" not in path.name and path.name != "LICENSE"
    }


def test_no_left_over_markers() -> None:
    assert not [
        f"{path}:{text.count(chr(10), 0, found.start()) + 1}"
        for path, text in texts().items()
        for found in LEFT_OVER.finditer(text)
    ]


def test_no_file_is_too_long_to_be_read_at_one_sitting() -> None:
    assert not {
        str(path): lines
        for path, text in texts().items()
        if path.suffix == ".py"
        and (lines := len(text.splitlines())) > LINES_A_FILE.get(path.parts[0], 500)
    }


def test_no_function_is_longer_than_a_screen() -> None:
    assert not {
        f"{module.name}.{node.name}": lines
        for module in house()
        for node in module.functions
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > LINES_A_FUNCTION
    }


def test_no_test_is_skipped_and_none_sleeps_but_those_of_real_processes() -> None:
    forbidden = {"pytest.skip", "pytest.mark.skip", "pytest.mark.xfail", "time.sleep"}
    suspicious = re.compile(r"\.(skip|xfail|sleep)\b|from (time|pytest) import")
    assert not [
        f"{module.name}: {name}"
        for module in modules("tests")
        if not any(is_within(module.name, f"tests.{folder}") for folder in ("system", "net"))
        and suspicious.search(module.text.replace("asyncio.sleep", ""))
        for name in (
            *imports(module.tree),
            *(ast.unparse(node) for node in module.nodes(ast.Attribute)),
        )
        if name in forbidden
    ]


def test_the_generated_code_is_what_the_contract_says() -> None:
    stale = runpy.run_path(str(ROOT / "protos" / "generate.py"))["stale_files"]()
    assert not stale, "run `make fix`"


def named_paths(markdown: str) -> Iterator[str]:
    """Yield the paths of this project that a page names: in links, and in backticks."""
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", markdown):
        if "://" not in link:
            yield link
    for code in re.findall(r"`([^`\s]+?)(?:::\w+)?`", markdown):
        folder = code.split("/")[0]
        if ("/" in code and (ROOT / folder).is_dir() and folder) or re.fullmatch(
            r"[\w-]+\.(py|md|toml|lock|yaml|npz|proto)", code
        ):
            yield code


def test_every_path_that_a_page_names_exists() -> None:
    missing = [
        f"{page}: {path}"
        for page in PAGES
        for path in named_paths((ROOT / page).read_text())
        if not any(
            any(place.glob(path)) if "*" in path else (place / path).exists()
            for place in ((ROOT / page).parent, ROOT)
        )
    ]
    assert not missing


def texts_of_users() -> Iterator[tuple[str, str]]:
    """Yield what users read, with its place: pages, the contract, and the strings of the code."""
    paths = [ROOT / page for page in READ_BY_USERS]
    for folder, files in READ_BY_USERS_IN.items():
        paths += [path for path in (ROOT / folder).rglob(files) if path.is_file()]
    for path in paths:
        text = path.read_text()
        if path.name == "CHANGELOG.md":
            text = OLD_NAMES.sub("", text)
        yield str(path.relative_to(ROOT)), re.sub(r"\n\s*(//|#)", "\n", text)
    loads = (each for each in modules("benchmarks") if is_within(each.name, "benchmarks.load"))
    for module in (*house(), *modules("vectorshard"), *loads):
        for node in module.nodes(ast.Constant):
            if isinstance(node.value, str):
                yield f"{module.path.relative_to(ROOT)}:{node.lineno}", node.value


def test_what_users_read_is_plain_english() -> None:
    phrases = "|".join(phrase.replace(" ", r"\s+") for phrase in BANNED_PHRASES)
    banned = re.compile(rf"\b({phrases})\b", re.IGNORECASE)
    found = [
        f"{place}: {' '.join(text[max(0, match.start() - 40) : match.end() + 20].split())}"
        for place, text in texts_of_users()
        for match in banned.finditer(text)
        if match[0] not in ALLOWED_PHRASES
    ]
    assert not found, "say it in terms of the field, with a component as the subject"


def test_every_fault_that_operators_are_told_of_is_shown_by_a_test_that_exists() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    shown = re.findall(r"`([\w/]+\.py)::(\w+)`", page)
    assert shown
    missing = [
        f"{path}::{name}"
        for path, name in shown
        if not re.search(rf"def {name}\(", (ROOT / path).read_text())
    ]
    assert not missing


@pytest.mark.parametrize("page", ["operations", "reliability"])
def test_every_file_of_tests_that_a_page_names_exists(page: str) -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)", (ROOT / f"docs/{page}.md").read_text()))
    assert named
    assert not [path for path in sorted(named) if not (ROOT / path).exists()]
