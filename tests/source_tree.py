"""The source tree, read by its syntax trees: modules by name, and what each imports.

Nothing is imported to be judged. A syntax tree is parsed when it is first asked for.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parent.parent
HOUSE = ("shard", "router", "client", "backup", "cli")
"""What is installed, each as a folder of the package `vectorshard`."""
PACKAGES = (*HOUSE, "vectorshard", "tests", "benchmarks")

Node = TypeVar("Node", bound=ast.AST)


@dataclass(frozen=True)
class Module:
    """A module of the source tree: its dotted name, its file, and its syntax tree when asked."""

    name: str
    path: Path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text, filename=str(self.path))

    @cached_property
    def _nodes(self) -> Mapping[type[ast.AST], list[ast.AST]]:
        found: defaultdict[type[ast.AST], list[ast.AST]] = defaultdict(list)
        for node in ast.walk(self.tree):
            found[type(node)].append(node)
        return found

    def nodes(self, kind: type[Node]) -> list[Node]:
        """Return all nodes of exactly this kind."""
        return self._nodes.get(kind, [])  # type: ignore[return-value]  # by kind

    @property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        """All functions: nested ones and methods too."""
        return [*self.nodes(ast.FunctionDef), *self.nodes(ast.AsyncFunctionDef)]

    @property
    def has_docstring(self) -> bool:
        """Whether it says what it is for."""
        return self.text.startswith('"""') or bool(ast.get_docstring(self.tree))


@cache
def modules(package: str) -> tuple[Module, ...]:
    """Return the modules of a folder by name, which is without the leading `vectorshard`."""
    paths = [path for path in sorted((ROOT / package).rglob("*.py")) if "_pb2" not in path.name]
    return tuple(
        Module(
            name=".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"),
            path=path,
            text=path.read_text(),
        )
        for path in paths
    )


def house() -> Iterator[Module]:
    """Yield the modules of what is installed."""
    for package in HOUSE:
        yield from modules(package)


@cache
def import_statements(tree: ast.AST) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """Return the import statements anywhere below `tree`. Expressions contain none."""
    found: list[ast.Import | ast.ImportFrom] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
        elif not isinstance(node, ast.expr):
            waiting += ast.iter_child_nodes(node)
    return tuple(found)


@cache
def imports(tree: ast.AST) -> tuple[str, ...]:
    """Return the dotted names that are imported anywhere below `tree`.

    `from a import b` names ``a.b`` if that is a module of ours, and otherwise ``a`` and ``a.b``.
    Names of what is installed come without the leading `vectorshard`, but for the contract's.
    """
    names: list[str] = []
    for node in import_statements(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        else:
            assert node.module is not None, "relative imports are not used here"
            named = [f"{node.module}.{alias.name}" for alias in node.names]
            names += named if modules_of_ours().issuperset(named) else [node.module, *named]
    return tuple(
        name.removeprefix("vectorshard.") if name.split(".")[1:2] and is_ours(name) else name
        for name in names
    )


@cache
def modules_of_ours() -> frozenset[str]:
    """Return the modules and packages of what is installed, as they are imported."""
    return frozenset(f"vectorshard.{name}" for name in (*HOUSE, *(each.name for each in house())))


def origins(tree: ast.AST) -> Mapping[str, str]:
    """Return what the names that are imported below `tree` stand for, by their name there."""
    found: dict[str, str] = {}
    for node in import_statements(tree):
        for alias in node.names:
            if isinstance(node, ast.ImportFrom):
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            elif alias.asname:
                found[alias.asname] = alias.name
            else:
                top = alias.name.split(".")[0]
                found[top] = top
    return found


def is_ours(name: str) -> bool:
    """Whether a dotted name is of a folder that is installed."""
    return any(is_within(name, f"vectorshard.{package}") for package in HOUSE)


def imports_at_the_head(tree: ast.Module) -> Iterator[str]:
    """Yield what is imported when the module itself is: not in functions, not for types only."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)


def is_within(name: str, package: str) -> bool:
    """Whether `name` is `package` or something in it."""
    return name == package or name.startswith(f"{package}.")
