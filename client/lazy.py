"""The names of client.parts, which load when the first of them is used.

They take several times as long to load as the class of a client, so `from vectorshard import
Client` does not load them. The constructor of a client does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vectorshard.client import parts
else:

    class _Parts:
        """Stands for the module; a name that was used is an attribute."""

        def __getattr__(self, name: str) -> Any:
            from vectorshard.client import parts

            part = self.__dict__[name] = getattr(parts, name)
            return part

    parts: Final = _Parts()

__all__ = ["parts"]
