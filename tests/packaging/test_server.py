"""What deploy/requirements.lock pins is enough for a server."""

from __future__ import annotations

import signal
import subprocess
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

from tests.packaging.conftest import ROOT, NewEnvironment
from tests.system.conftest import START_S, STOP_S, line_of
from vectorshard import Client


def locked() -> dict[str, str]:
    """Return the versions that the image installs, on this machine, by name."""
    text = (ROOT / "deploy" / "requirements.lock").read_text().replace("\\\n", " ")
    pins: dict[str, str] = {}
    for line in text.splitlines():
        if line and not line.lstrip().startswith("#"):
            requirement = Requirement(line.split("--hash")[0].strip())
            if requirement.marker is None or requirement.marker.evaluate():
                pins[requirement.name] = str(requirement.specifier).removeprefix("==")
    return pins


@pytest.mark.system
def test_what_the_image_installs_serves(new_environment: NewEnvironment, tmp_path: Path) -> None:
    pins = locked()
    assert {name: version(name) for name in pins} == pins, "tested with other versions"
    programs = new_environment(pins)
    command = [str(programs / "vectorshard"), "serve", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "--data", str(tmp_path / "data")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        text=True,
    ) as server:
        assert server.stdout is not None
        try:
            address = line_of(server.stdout, START_S).removeprefix("listening on ").strip()
            with Client(address) as client:
                client.create_collection("words", dim=3)
                client.upsert("words", [7, 8], np.eye(2, 3))
                [[hit]] = client.search("words", [0.0, 1.0, 0.0], k=1)
                assert hit.id == 8
            server.send_signal(signal.SIGTERM)
            assert server.wait(STOP_S) == 0
        finally:
            server.kill()
