"""The examples' vector store of LangChain, by LangChain's own suite, where it is installed."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "langchain"

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        find_spec("langchain_tests") is None, reason="pip install langchain-tests runs this"
    ),
]


def test_the_vector_store_passes_the_suite_of_langchain() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "-o", "asyncio_mode=auto"]
    ended = subprocess.run(
        [*command, "-p", "no:cacheprovider", str(EXAMPLE)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    [passed] = re.findall(r"\n(\d+) passed in", ended.stdout) or pytest.fail(ended.stdout)
    assert ended.returncode == 0
    assert f"All {passed} tests of langchain-tests" in (EXAMPLE / "README.md").read_text()
