"""vectorshard: a distributed vector search service over gRPC.

    from vectorshard import Client

    with Client("127.0.0.1:7700") as client:
        client.create_collection("words", dim=100)

Names are loaded when they are first used, so that a program may still set the environment of numpy
and grpc after `import vectorshard`. Everything a caller needs is here; `vectorshard.v1` is the
generated contract.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vectorshard.client.client import AsyncClient as AsyncClient
    from vectorshard.client.client import Client as Client

__version__: Final = "0.1.0"

_HOME: Final = {
    "AsyncClient": "vectorshard.client.client",
    "Client": "vectorshard.client.client",
}
"""The module of each public name."""

__all__ = ["AsyncClient", "Client", "__version__"]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value
