"""What the image installs is what the tests ran with, less what only developers need."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(lock: Path) -> dict[tuple[str, str], tuple[str, frozenset[str]]]:
    """Return version and hashes by name and environment marker."""
    pinned: dict[tuple[str, str], tuple[str, frozenset[str]]] = {}
    for line in lock.read_text().replace("\\\n", " ").splitlines():
        if line and not line.lstrip().startswith("#"):
            head, *hashes = line.split("--hash=")
            requirement = Requirement(head.strip())
            key = canonicalize_name(requirement.name), str(requirement.marker or "")
            pinned[key] = str(requirement.specifier), frozenset(map(str.strip, hashes))
    return pinned


@pytest.mark.parametrize("name", ["requirements.lock", "build.lock"])
def test_the_image_is_locked_to_the_versions_and_files_that_are_tested(name: str) -> None:
    tested = {package: pin for (package, _), pin in pins(ROOT / "requirements.lock").items()}
    both = dict(pins(ROOT / "requirements.lock"))
    differing = [
        package
        for (package, marker), pin in pins(DEPLOY / name).items()
        if pin != both.get((package, marker), tested.get(package))
    ]
    assert not differing, "run `make lock`"


@pytest.mark.parametrize("name", ["requirements.lock", "build.lock", "checkers.lock"])
def test_every_lock_has_hashes_and_no_index_of_its_own(name: str) -> None:
    lock = DEPLOY / name
    assert all(version.startswith("==") and hashes for version, hashes in pins(lock).values())
    assert "://" not in lock.read_text()
    assert not [line for line in lock.read_text().splitlines() if line.startswith("-")]


def test_the_image_has_all_that_the_project_depends_on_and_no_tools() -> None:
    locked = {package for package, _ in pins(DEPLOY / "requirements.lock")}
    project = PROJECT["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    needed = {Requirement(line).name for line in asked}
    assert {canonicalize_name(name) for name in needed} <= locked
    assert not locked & {"pytest", "mypy", "ruff", "uv", "h5py", "hatchling", "grpcio-tools"}


def test_the_image_is_built_with_what_the_project_asks_for() -> None:
    assert (DEPLOY / "build.in").read_text().split() == PROJECT["build-system"]["requires"]


def test_the_image_installs_by_hash_wheels_only() -> None:
    recipe = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    installs = [line for line in recipe.replace("&&", "\n").splitlines() if " install " in line]
    for name in ("requirements.lock", "build.lock"):
        [line] = [line for line in installs if f"deploy/{name}" in line]
        assert "--require-hashes" in line
        assert "--only-binary :all:" in line
    assert "://" not in recipe


def test_the_context_of_the_image_holds_what_the_dockerfile_copies() -> None:
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        source
        for line in (DEPLOY / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    packaged = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert copied == allowed
    assert {*packaged, "pyproject.toml"} <= copied
    assert all((ROOT / path).exists() for path in copied)
