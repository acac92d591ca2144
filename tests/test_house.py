"""The rules of the house: who may import whom, what stays out of the core, what must be fresh.

Read from the source by its syntax tree, so nothing is imported to be judged. A module that is new
must be given its place in the tables below.
"""

from __future__ import annotations

import ast
import re
import runpy
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("shard", "router", "tests", "benchmarks")

LAYERS: Mapping[str, Sequence[tuple[str, frozenset[str]]]] = {
    "shard": (
        ("vocabulary", frozenset({"types", "errors", "config", "protocol", "filter_expression"})),
        (
            "core",
            frozenset(
                {
                    "admission",
                    "calibration",
                    "checksum",
                    "commit_plan",
                    "config_json",
                    "description",
                    "exact",
                    "explanation",
                    "filter_columns",
                    "filtered_search",
                    "fingerprint",
                    "id_column",
                    "ivf_index",
                    "live_recall",
                    "live_sample",
                    "proposals",
                    "read_write_lock",
                    "allocator",
                    "products",
                    "recall",
                    "row_map",
                    "slots",
                    "snapshot",
                    "tombstones",
                    "training_buffer",
                    "upkeep",
                    "wire",
                }
            ),
        ),
        (
            "storage",
            frozenset(
                {
                    "data_directory",
                    "disk",
                    "filter_file",
                    "checkpoint",
                    "index_file",
                    "rebuild",
                    "row_columns",
                    "row_file",
                    "row_store",
                }
            ),
        ),
        (
            "engine",
            frozenset(
                {
                    "byte_budget",
                    "coalescer",
                    "collection",
                    "local_shard",
                    "search_coalescer",
                    "search_gate",
                    "trainer",
                }
            ),
        ),
        (
            "edge",
            frozenset(
                {
                    "arrivals",
                    "call_metadata",
                    "health",
                    "listening",
                    "search_stream",
                    "server",
                    "service",
                    "status",
                    "telemetry",
                    "upload",
                }
            ),
        ),
    ),
    "router": (
        (
            "core",
            frozenset(
                {
                    "addresses",
                    "breaker",
                    "calls",
                    "explanations",
                    "filter_text",
                    "ingest",
                    "merge",
                    "placement",
                    "retries",
                    "tables",
                    "upload",
                }
            ),
        ),
        (
            "routing",
            frozenset(
                {
                    "children",
                    "connection",
                    "guarded_shard",
                    "link",
                    "partial_write",
                    "remote_shard",
                    "router",
                }
            ),
        ),
        (
            "edge",
            frozenset(
                {
                    "__main__",
                    "client",
                    "console",
                    "demo",
                    "embedded",
                    "fleet",
                    "guard_metrics",
                    "logs",
                    "patience",
                    "streams",
                    "workers",
                }
            ),
        ),
    ),
}
"""From the bottom up. A module imports from its own layer and from those below it."""

PACKAGES_BELOW: Mapping[str, frozenset[str]] = {
    "shard": frozenset({"shard", "vectorshard"}),
    "router": frozenset({"router", "shard", "vectorshard"}),
}
"""The one arrow: protos <- shard <- router."""

IMPORTED_ONLY_BY: Mapping[str, frozenset[str]] = {
    "faiss": frozenset({"shard.ivf_index"}),
    "vectorshard": frozenset({"shard.wire"}),
    "google.protobuf": frozenset({"shard.wire", "shard.status"}),
    "google.rpc": frozenset({"shard.status"}),
    "pyroaring": frozenset({"shard.filter_columns"}),
    "grpc_health": frozenset({"shard.health", "shard.server"}),
    "grpc_reflection": frozenset({"shard.server"}),
    "grpc": frozenset(
        {
            "shard.status",
            "shard.telemetry",
            "shard.service",
            "shard.server",
            "shard.arrivals",
            "shard.health",
            "shard.listening",
            "router.client",
            "router.connection",
            "router.link",
            "router.remote_shard",
            "router.streams",
        }
    ),
    "sqlite3": frozenset({"shard.disk", "shard.row_store", "shard.collection"}),
    "typer": frozenset({"router.console"}),
}
"""Foreign packages and the only modules and packages of shard and router that may import them."""

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

BANNED_WORDS = frozenset(
    {"manager", "helper", "helpers", "util", "utils", "data", "info", "process", "handle"}
)
TERMS = ("server_info", "corrupt_data", "data_directory")
"""Of the contract and of the command line, which are named so throughout."""
LINES_A_FILE = 900
LEFT_OVER = re.compile(r"\b(TO[D]O|FIX[M]E|XX[X]|HA[C]K)\b")  # brackets: not found in itself
TEXT_SUFFIXES = frozenset({".py", ".proto", ".md", ".toml", ".yaml", ".yml", ""})
WITHOUT_ADDRESSES = (
    ".ci/prerequisites",
    ".ci/run",
    "Makefile",
    "benchmarks/stock.lock",
    "buf.yaml",
    "deploy/Dockerfile",
    "deploy/build.lock",
    "deploy/check",
    "deploy/checkers.lock",
    "deploy/requirements.lock",
    "pyproject.toml",
    "requirements.lock",
)


@dataclass(frozen=True, slots=True)
class Module:
    """A module of the source tree: its dotted name, its file and its syntax tree."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """The top of its name."""
        return self.name.split(".")[0]


@cache
def modules(package: str) -> tuple[Module, ...]:
    """Return the modules of a package by name; none when it is not there."""
    paths = sorted((ROOT / package).rglob("*.py"))
    return tuple(
        Module(
            name=".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"),
            path=path,
            tree=ast.parse(path.read_text(), filename=str(path)),
        )
        for path in paths
    )


def house() -> Iterator[Module]:
    """Yield the modules of shard and router."""
    yield from modules("shard")
    yield from modules("router")


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names that are imported anywhere below `tree`.

    `from a import b` yields ``a`` and ``a.b``: b may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "relative imports are not used here"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_at_the_head(tree: ast.Module) -> Iterator[str]:
    """Yield what is imported when the module itself is: not in functions, not for types only."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)


def is_within(name: str, package: str) -> bool:
    """Whether `name` is `package` or something in it."""
    return name == package or name.startswith(f"{package}.")


def layer_of(module: str) -> int | None:
    """Return the layer's number from the bottom; None for what stands in no table."""
    package, _, name = module.partition(".")
    for number, (_, names) in enumerate(LAYERS.get(package, ())):
        if name.split(".")[0] in names:
            return number
    return None


def core() -> Iterator[Module]:
    """Yield the modules of the vocabularies and the pure cores."""
    for module in house():
        layer = layer_of(module.name)
        if layer is not None and LAYERS[module.package][layer][0] in {"vocabulary", "core"}:
            yield module


def test_the_arrow_runs_from_router_to_shard_to_protos_and_never_back() -> None:
    ours = {*PACKAGES, "vectorshard"}
    wrong = [
        f"{module.name} imports {name}"
        for module in house()
        for name in imports(module.tree)
        if (top := name.split(".")[0]) in ours and top not in PACKAGES_BELOW[module.package]
    ]
    assert not wrong


def test_the_tests_of_the_shard_know_nothing_of_the_router() -> None:
    wrong = [
        module.name
        for module in modules("tests")
        if is_within(module.name, "tests.shard")
        and any(is_within(name, "router") for name in imports(module.tree))
    ]
    assert not wrong


def test_benchmarks_are_clients_and_know_of_the_shard_only_its_vocabulary() -> None:
    allowed = {"router.client", "router.ingest", "vectorshard.v1", "benchmarks"}
    allowed |= {f"shard.{name}" for name in LAYERS["shard"][0][1]}
    wrong = [
        f"{module.name} imports {name}"
        for module in modules("benchmarks")
        for name in imports(module.tree)
        if name.split(".")[0] in {*PACKAGES, "vectorshard"}
        and not any(is_within(name, package) for package in allowed)
    ]
    assert not wrong


def test_every_module_has_its_layer() -> None:
    unplaced = [
        module.name
        for module in house()
        if module.name not in LAYERS and layer_of(module.name) is None
    ]
    assert not unplaced, "give them a place in LAYERS"


def test_no_module_imports_from_a_layer_above_its_own() -> None:
    wrong = [
        f"{module.name} imports {name}"
        for module in house()
        for name in imports(module.tree)
        if is_within(name, module.package)
        and (above := layer_of(name)) is not None
        and (own := layer_of(module.name)) is not None
        and above > own
    ]
    assert not wrong


@pytest.mark.parametrize("package", sorted(LAYERS))
def test_modules_do_not_import_each_other_in_a_circle(package: str) -> None:
    names = {module.name for module in modules(package)}
    waiting = {
        module.name: {
            name
            for name in imports_at_the_head(module.tree)
            if name in names and name not in {package, module.name}
        }
        for module in modules(package)
        if module.name != package
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
    }
    assert not {
        name
        for name in importers
        if not any(is_within(name, allowed) for allowed in IMPORTED_ONLY_BY[foreign])
    }


def test_the_core_has_no_clock_no_chance_no_environment_and_no_network() -> None:
    wrong = [
        f"{module.name} imports {name}"
        for module in core()
        for name in imports(module.tree)
        if name.split(".")[0] in OUTSIDE_THE_CORE
    ]
    assert not wrong


def test_chance_in_the_house_always_has_a_seed() -> None:
    wrong = [
        f"{module.name}:{node.lineno} {ast.unparse(node)}"
        for module in house()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        and ".random." in (called := ast.unparse(node.func))
        and not (called.endswith(".default_rng") and node.args)
    ]
    assert not wrong


def test_the_environment_is_touched_only_where_the_program_starts() -> None:
    wrong = [
        f"{module.name}:{node.lineno}"
        for module in house()
        if module.name != "router.__main__"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "putenv"}
    ]
    assert not wrong


def test_the_program_sets_the_environment_before_it_loads_anything() -> None:
    heads = {module.name: set(imports_at_the_head(module.tree)) for module in modules("router")}
    assert {name.split(".")[0] for name in heads["router.__main__"]} == {"__future__", "os", "sys"}
    assert not heads["router"]


def test_every_module_says_what_it_is_for() -> None:
    assert not [
        module.name
        for package in PACKAGES
        for module in modules(package)
        if not ast.get_docstring(module.tree)
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
    named = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    wrong = [
        f"{module.name}: {name}"
        for module in (*house(), *modules("benchmarks"))
        for name in (
            module.name,
            *(node.name for node in ast.walk(module.tree) if isinstance(node, named)),
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
        f"{path}:{number}"
        for path, text in texts().items()
        for number, line in enumerate(text.splitlines(), start=1)
        if LEFT_OVER.search(line)
    ]


def test_no_file_is_too_long_to_be_read_at_one_sitting() -> None:
    assert not {
        str(path): lines
        for path, text in texts().items()
        if path.suffix == ".py" and (lines := len(text.splitlines())) > LINES_A_FILE
    }


def test_no_test_is_skipped_and_none_sleeps_but_those_of_real_processes() -> None:
    forbidden = {"pytest.skip", "pytest.mark.skip", "pytest.mark.xfail", "time.sleep"}
    assert not [
        f"{module.name}: {name}"
        for module in modules("tests")
        if not any(is_within(module.name, f"tests.{folder}") for folder in ("system", "net"))
        for name in (
            *imports(module.tree),
            *(
                ast.unparse(node)
                for node in ast.walk(module.tree)
                if isinstance(node, ast.Attribute)
            ),
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


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "benchmarks/README.md",
        "deploy/README.md",
        "docs/operations.md",
        "examples/README.md",
    ],
)
def test_every_path_that_a_page_names_exists(page: str) -> None:
    file = ROOT / page
    markdown = file.read_text() if file.is_file() else ""
    missing = [
        path
        for path in named_paths(markdown)
        if not any(
            place.glob(path) if "*" in path else (place / path).exists()
            for place in (file.parent, ROOT)
        )
    ]
    assert not missing


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


def test_make_setup_installs_what_the_lock_pins_by_hash() -> None:
    recipe = (ROOT / "Makefile").read_text()
    assert "--require-hashes -r requirements.lock" in recipe
    assert "--no-deps --no-build-isolation -e ." in recipe


@pytest.mark.parametrize("name", WITHOUT_ADDRESSES)
def test_the_build_names_no_address(name: str) -> None:
    assert "://" not in (ROOT / name).read_text()


def test_the_lock_sends_nobody_to_an_index_of_its_own() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert not [line for line in lines if line.startswith("-")]


def locked() -> dict[str, tuple[Version, int]]:
    """Return version and number of hashes of each requirement that holds on Python 3.11, Linux."""
    text = (ROOT / "requirements.lock").read_text().replace("\\\n", " ")
    pins: dict[str, tuple[Version, int]] = {}
    for line in text.splitlines():
        if line and not line.lstrip().startswith("#"):
            requirement = Requirement(line.split("--hash")[0].strip())
            if requirement.marker is None or requirement.marker.evaluate(
                {"python_version": "3.11", "python_full_version": "3.11.0"}
            ):
                [pin] = requirement.specifier
                assert pin.operator == "=="
                pins[canonicalize_name(requirement.name)] = (
                    Version(pin.version),
                    line.count("--hash=sha256:"),
                )
    return pins


def test_the_lock_pins_everything_that_the_project_asks_for_by_hash() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(line for extra in project["project"]["optional-dependencies"].values() for line in extra),
    ]
    pins = locked()
    assert all(hashes for _, hashes in pins.values())
    unmet = [
        line
        for line in asked
        if (requirement := Requirement(line))
        and not (
            (pin := pins.get(canonicalize_name(requirement.name)))
            and requirement.specifier.contains(pin[0])
        )
    ]
    assert not unmet, "run `make lock`"
