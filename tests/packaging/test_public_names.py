"""The names of the package: each resolves, lazily, and editors see the same ones."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import vectorshard
import vectorshard.errors
from vectorshard.shard import errors as shard_errors

SOURCE = ast.parse(Path(vectorshard.__file__).read_text())


def imported_for_types() -> dict[str, str]:
    """Return the names of the TYPE_CHECKING block, each with its module."""
    [block] = [node for node in SOURCE.body if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    return {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
        if alias.asname is None
    }


@pytest.mark.parametrize("name", vectorshard.__all__)
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(vectorshard, name)
    if name != "__version__":
        assert inspect.getdoc(value)
    if inspect.isclass(value):
        assert value.__name__ == name
        assert value.__module__ == vectorshard._HOME[name]
    assert name in dir(vectorshard)


def test_editors_see_the_names_that_are_loaded_lazily() -> None:
    lazy = {**vectorshard._HOME, "errors": "vectorshard"}
    assert imported_for_types() == lazy
    assert sorted(vectorshard.__all__) == sorted([*lazy, "__version__"])


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Clinet"):
        vectorshard.__getattr__("Clinet")
    with pytest.raises(ImportError, match="Clinet"):
        exec("from vectorshard import Clinet")


OF_A_START = shard_errors.CannotListen
"""The error of a server that does not start: no client receives it, and no caller of open_local."""


def test_the_errors_are_those_that_the_shard_raises() -> None:
    assert {*vectorshard.errors.__all__} == {
        name
        for name, each in vars(shard_errors).items()
        if inspect.isclass(each)
        and issubclass(each, shard_errors.VectorShardError)
        and not issubclass(each, OF_A_START)
        and each.__base__ is not shard_errors.CorruptData
    }
    for name in vectorshard.errors.__all__:
        assert getattr(vectorshard.errors, name) is getattr(shard_errors, name)
    assert {name for name in vectorshard._HOME if name in vectorshard.errors.__all__} == {
        name for name, home in vectorshard._HOME.items() if home == shard_errors.__name__
    }


def test_importing_the_package_loads_nothing() -> None:
    program = "import sys, vectorshard; print('numpy' in sys.modules, 'grpc' in sys.modules)"
    said = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert said == "False False\n"


def test_an_import_of_the_client_costs_little_beside_those_of_its_libraries() -> None:
    libraries = "import grpc, numpy, google.protobuf"
    rounds = [(cpu_s(libraries), cpu_s("from vectorshard import Client")) for _ in range(3)]
    libraries_s, ours_s = map(min, zip(*rounds, strict=True))
    assert ours_s <= 1.3 * libraries_s


def cpu_s(program: str) -> float:
    """Return the CPU seconds of a new interpreter that runs a program."""
    timed = f"{program}; import time; print(time.process_time())"
    return float(subprocess.check_output([sys.executable, "-c", timed], text=True))


def test_the_errors_are_a_module() -> None:
    assert import_module("vectorshard.errors") is vectorshard.errors
