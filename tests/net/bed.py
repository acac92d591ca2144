"""A network of hosts on one bridge, with DNS whose answers change and hosts that can be cut off.

A host is a network namespace. This process stands at the bridge and is the client of all of them;
it must be in namespaces of its own (tests/net/isolated), with which everything here goes.
"""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.system.conftest import wait_until

NETWORK: Final = "10.77.0"
BRIDGE: Final = "bridge0"
HERE: Final = f"{NETWORK}.1"
"""Where this process is, and the DNS server."""

DOMAIN: Final = "bed"
READY: Final = "dns"
"""A name that is known when the DNS server is ready; it would not survive a SIGHUP before."""

HOSTS_MAX: Final = 40
ESTABLISHED: Final = "01"
"""A connection's state in /proc/net/tcp."""

DNS_S: Final = 5.0
"""How long a change of the names may take to be answered."""


def run(*command: str) -> None:
    """Run a command that must succeed."""
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert ended.returncode == 0, f"{' '.join(command)}: {ended.stderr}"


@dataclass(frozen=True, slots=True)
class Host:
    """A network namespace with one address on the bridge."""

    name: str
    address: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """What runs a command on this host, in front of the command."""
        return ("ip", "netns", "exec", self.name)

    @contextmanager
    def black_hole(self) -> Iterator[None]:
        """Drop every packet to and from it, without a word to anybody."""
        rules = (("INPUT", "-i"), ("OUTPUT", "-o"))
        for chain, direction in rules:
            run(*self.prefix, "iptables", "-A", chain, direction, "eth0", "-j", "DROP")
        try:
            yield
        finally:
            for chain, direction in rules:
                run(*self.prefix, "iptables", "-D", chain, direction, "eth0", "-j", "DROP")


class Bed:
    """The bridge, its hosts, and its DNS server. Use `network`.

    Parameters
    ----------
    directory
        Where the DNS server's file is.
    """

    def __init__(self, directory: Path) -> None:
        self._names = directory / "names"
        self._said: dict[str, str] = {}
        self._hosts = 0
        self._dns: subprocess.Popen[bytes] | None = None

    def _start(self) -> None:
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{HERE}/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        self._names.write_text(f"{HERE} {READY}.{DOMAIN}\n")
        resolver = self._names.with_name("resolv.conf")
        resolver.write_text(f"nameserver {HERE}\n")
        place = Path("/etc/resolv.conf").resolve()
        if not place.exists():  # it was below /run, which is empty here
            place.parent.mkdir(parents=True)
            place.touch()
        run("mount", "--bind", str(resolver), str(place))
        command = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file"]
        command += ["--user=root", "--group=root", "--bind-interfaces", f"--listen-address={HERE}"]
        command += [
            "--no-resolv",
            "--no-hosts",
            f"--addn-hosts={self._names}",
            f"--local=/{DOMAIN}/",
        ]
        self._dns = subprocess.Popen(command)
        wait_until(lambda: _answer(READY) == HERE, DNS_S)

    def _stop(self) -> None:
        if self._dns is not None:
            self._dns.kill()
            self._dns.wait()

    def host(self) -> Host:
        """Add a host."""
        assert self._hosts < HOSTS_MAX
        self._hosts += 1
        host = Host(f"h{self._hosts}", f"{NETWORK}.{10 + self._hosts}")
        port = f"port{self._hosts}"
        inside = ("ip", "-n", host.name)
        run("ip", "netns", "add", host.name)
        run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.name)
        run("ip", "link", "set", port, "master", BRIDGE, "up")
        run(*inside, "address", "add", f"{host.address}/24", "dev", "eth0")
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "link", "set", "eth0", "up")
        return host

    def say(self, addresses: Mapping[str, str]) -> None:
        """Have DNS answer with these addresses, by names of the domain; all others are unknown."""
        assert self._dns is not None
        lines = [f"{address} {name}.{DOMAIN}\n" for name, address in addresses.items()]
        self._names.write_text("".join(lines))
        self._dns.send_signal(signal.SIGHUP)
        known = {name: addresses.get(name, "") for name in {*self._said, *addresses}}
        wait_until(lambda: all(_answer(name) == to for name, to in known.items()), DNS_S)
        self._said = dict(addresses)


def _answer(name: str) -> str:
    """Return the address that DNS gives a name; "" when it knows none."""
    try:
        return socket.gethostbyname(f"{name}.{DOMAIN}")
    except socket.gaierror:
        return ""


def connections_to(port: int, pid: int) -> set[int]:
    """Return the local ports of a process' connections to that port of other hosts."""
    ports = set()
    for table in ("tcp", "tcp6"):  # grpc reaches IPv4 addresses by IPv6 sockets
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, remote, state, *_ = line.split()
            if state == ESTABLISHED and int(remote.split(":")[1], 16) == port:
                ports.add(int(local.split(":")[1], 16))
    return ports


@contextmanager
def network(directory: Path) -> Iterator[Bed]:
    """Lend a network without hosts."""
    bed = Bed(directory)
    try:
        bed._start()
        yield bed
    finally:
        bed._stop()
