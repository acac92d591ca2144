"""The wheel, built once, and environments that hold it with chosen distributions of this one.

An environment is a separate venv. The distributions in it are links to the files that are installed
here: nothing is resolved or downloaded, and nothing else can be imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
UV = ROOT / ".venv" / "bin" / "uv"

NewEnvironment = Callable[[Iterable[str]], Path]
"""Returns the `bin` of an environment with the wheel and these distributions."""


def required_by(lines: Iterable[str], extra: str = "") -> Iterator[str]:
    """Yield the names of the distributions that requirements name, and that those require."""
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield canonicalize_name(requirement.name)
            yield from required_by(distribution(requirement.name).requires or ())


def link_distribution(name: str, site: Path) -> None:
    """Link the files of an installed distribution into another site-packages, but no programs."""
    for file in distribution(name).files or ():
        if file.parts[0] != "..":
            link = site / file
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(str(file.locate())).resolve())


def build(target: str, source: Path, folder: Path) -> Path:
    """Build the wheel or the sdist of `source` into an empty folder, and return it."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target]
    subprocess.run([*command, "--directory", str(folder)], cwd=source, check=True)
    [built] = folder.iterdir()
    return built


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as `pip wheel --no-build-isolation` does, with the build tools from here."""
    return build("wheel", ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def new_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> NewEnvironment:
    """Return what makes an environment."""

    def new_environment(names: Iterable[str]) -> Path:
        folder = tmp_path_factory.mktemp("environment")
        venv.create(folder, symlinks=True)
        python = folder / "bin" / "python"
        install = [str(UV), "pip", "install", "--quiet", "--offline", "--no-index", "--no-deps"]
        cache = ["--no-config", "--no-cache"]
        subprocess.run([*install, *cache, "--python", str(python), str(wheel)], check=True)
        [site] = folder.glob("lib/python*/site-packages")
        for name in {*names}:
            link_distribution(name, site)
        return python.parent

    return new_environment


def run(
    command: Path, *arguments: str, cwd: Path, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a program of an environment, with no path of this one."""
    environment = {name: value for name, value in os.environ.items() if name[:6] != "PYTHON"}
    return subprocess.run(
        [str(command), *arguments],
        cwd=cwd,
        env=environment,
        check=check,
        capture_output=True,
        text=True,
    )
