"""What `make setup` and continuous integration need of the machine: found, installed or named."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / ".ci" / "prerequisites"
SUITABLE = "exit 0"
TOO_OLD_OR_WITHOUT_VENV = "exit 1"
COMMAND = "apt-get install"


class Machine:
    """A PATH of fakes, and the log of what they were asked."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        self.log = directory / "log"
        self.bin.mkdir()
        self.log.touch()
        (self.bin / "env").symlink_to("/usr/bin/env")

    def has(self, name: str, script: str) -> None:
        """Put a command there."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def has_apt(self, *, uid: int) -> None:
        """Put an apt-get there that installs a python3 and a make, for root alone."""
        self.has("id", f"echo {uid}")
        bin_ = self.bin
        install = "; ".join(
            f"printf '#!/bin/sh\\nexit 0\\n' >{bin_ / name}; /bin/chmod 755 {bin_ / name}"
            for name in (
                "python3",
                "make",
                "gcc",
                "kubectl",
                "ip",
                "iptables",
                "dnsmasq",
                "strace",
                "node",
                "npm",
            )
        )
        self.has(
            "apt-get", f'echo "apt-get $*" >>{self.log}\n[ "$1" = update ] || {{ {install}; }}'
        )

    def prerequisites(
        self, *candidates: str, stdin: int = subprocess.DEVNULL, stderr: int = subprocess.PIPE
    ) -> subprocess.CompletedProcess[str]:
        """Run the script there."""
        return subprocess.run(
            ["/bin/bash", str(SCRIPT), *candidates],
            env={**os.environ, "PATH": str(self.bin)},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with nothing on it."""
    return Machine(tmp_path)


def test_the_first_suitable_python_is_taken_and_nothing_is_installed(machine: Machine) -> None:
    machine.has_apt(uid=0)
    machine.has("make", SUITABLE)
    machine.has("python3.11", TOO_OLD_OR_WITHOUT_VENV)
    machine.has("python3", SUITABLE)
    ended = machine.prerequisites()
    assert (ended.returncode, ended.stdout) == (0, f"{machine.bin / 'python3'}\n")
    assert not machine.log.read_text()


def test_root_gets_what_is_missing_installed(machine: Machine) -> None:
    machine.has_apt(uid=0)
    machine.has("python3", TOO_OLD_OR_WITHOUT_VENV)
    ended = machine.prerequisites()
    assert (ended.returncode, ended.stdout) == (0, f"{machine.bin / 'python3'}\n")
    assert "python3-venv make" in machine.log.read_text()


@pytest.mark.parametrize(("answer", "installed"), [("y", True), ("YES", True), ("", False)])
def test_root_is_asked_first_where_there_is_a_terminal(
    machine: Machine, answer: str, installed: bool
) -> None:
    machine.has_apt(uid=0)
    machine.has("python3", TOO_OLD_OR_WITHOUT_VENV)
    ours, terminal = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    try:
        ended = machine.prerequisites(stdin=terminal, stderr=terminal)
        said = os.read(ours, 10_000).decode()
    finally:
        os.close(terminal)
        os.close(ours)
    assert ended.returncode == (0 if installed else 1)
    assert "Run 'apt-get install --yes --no-install-recommends python3-venv make'? [y/N]" in said
    assert ("install" in machine.log.read_text()) is installed


def test_sudo_is_never_used(machine: Machine) -> None:
    machine.has_apt(uid=1000)
    machine.has("sudo", f'echo sudo >>{machine.log}; shift; exec "$@"')
    machine.has("true", SUITABLE)
    assert machine.prerequisites().returncode == 1
    assert not machine.log.read_text()


MORE = [
    ("--compiler", "build-essential"),
    ("--kubectl", "kubernetes-client"),
    ("--net", "iproute2 iptables dnsmasq-base"),
    ("--strace", "strace"),
    ("--node", "nodejs npm"),
]


@pytest.mark.parametrize(("option", "packages"), MORE)
def test_more_is_installed_only_where_it_is_asked_for(
    machine: Machine, option: str, packages: str
) -> None:
    machine.has_apt(uid=0)
    machine.has("make", SUITABLE)
    machine.has("python3", SUITABLE)
    assert machine.prerequisites().returncode == 0
    assert not machine.log.read_text()
    ended = machine.prerequisites(option)
    assert (ended.returncode, ended.stdout) == (0, f"{machine.bin / 'python3'}\n")
    assert machine.log.read_text().endswith(f"-recommends {packages}\n")


def test_what_is_there_already_is_not_installed_again_from_another_package(
    machine: Machine,
) -> None:
    machine.has_apt(uid=0)
    for name in ("make", "python3", "kubectl"):
        machine.has(name, SUITABLE)
    assert machine.prerequisites("--kubectl", "--net").returncode == 0
    assert machine.log.read_text().endswith("-recommends iproute2 iptables dnsmasq-base\n")


def test_everything_that_is_asked_for_is_installed_at_once(machine: Machine) -> None:
    machine.has_apt(uid=0)
    assert machine.prerequisites(*(option for option, _ in MORE)).returncode == 0
    packages = " ".join(packages for _, packages in MORE)
    assert machine.log.read_text().endswith(f"python3-venv make {packages}\n")


@pytest.mark.parametrize(("option", "packages"), MORE)
def test_who_cannot_install_more_is_told_the_command(
    machine: Machine, option: str, packages: str
) -> None:
    machine.has_apt(uid=1000)
    machine.has("make", SUITABLE)
    machine.has("python3", SUITABLE)
    ended = machine.prerequisites(option)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"{COMMAND} {packages}" in ended.stderr


def test_an_option_that_there_is_not_is_refused(machine: Machine) -> None:
    assert machine.prerequisites("--nett").returncode == 2


@pytest.mark.parametrize("sudo", [None, TOO_OLD_OR_WITHOUT_VENV])
def test_everybody_else_is_told_the_command(machine: Machine, sudo: str | None) -> None:
    machine.has_apt(uid=1000)
    machine.has("make", SUITABLE)
    machine.has("python3", TOO_OLD_OR_WITHOUT_VENV)
    if sudo is not None:
        machine.has("sudo", sudo)
    ended = machine.prerequisites()
    assert (ended.returncode, ended.stdout) == (1, "")
    assert COMMAND in ended.stderr
    assert not machine.log.read_text()


def test_a_python_of_ones_own_is_the_only_candidate(machine: Machine) -> None:
    machine.has("id", "echo 1000")
    machine.has("make", SUITABLE)
    machine.has("python3", SUITABLE)
    machine.has("mine", TOO_OLD_OR_WITHOUT_VENV)
    assert machine.prerequisites("mine").returncode == 1
    machine.has("mine", SUITABLE)
    assert machine.prerequisites("mine").stdout == f"{machine.bin / 'mine'}\n"
