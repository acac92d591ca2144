"""What is installed from where: everything by hash, and no address of an index in the build."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_ADDRESSES = (
    ".ci/prerequisites",
    ".ci/run",
    "Makefile",
    "benchmarks/compare/compare.lock",
    "benchmarks/stock.lock",
    "buf.yaml",
    "deploy/Dockerfile",
    "deploy/build.lock",
    "deploy/check",
    "deploy/checkers.lock",
    "deploy/requirements.lock",
    "examples/typescript/package-lock.json",
    "pyproject.toml",
    "requirements.lock",
)


def test_make_setup_installs_what_the_lock_pins_by_hash() -> None:
    recipe = (ROOT / "Makefile").read_text().replace("\\\n", "")
    installs = [line for line in recipe.splitlines() if " -r requirements.lock" in line]
    assert installs
    for line in installs:  # by uv, or by pip
        assert "--no-build --require-hashes" in " ".join(line.split())
        assert "|| $(PIP) -r requirements.lock" in line
    [pip] = re.findall(r"^PIP = .*", recipe, re.MULTILINE)
    assert "--only-binary :all: --require-hashes" in pip
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
