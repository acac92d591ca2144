"""How a method of a client looks to `help()`, `inspect` and an editor. Pure.

Type checkers see the same without this module: the methods are typed by ParamSpec.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any, TypeVar

MethodT = TypeVar("MethodT", bound=Callable[..., Any])


def method_of(owner: str, build: Callable[..., Any], answer: str, method: MethodT) -> MethodT:
    """Make a method of the class `owner` present itself as the function whose call it sends.

    `build`, of client.calls, gives the name, the parameters and the docstring. `answer` is what the
    method returns, as it is written in an annotation.
    """
    called = signature(build)
    itself = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
    method.__name__, method.__doc__ = build.__name__, build.__doc__
    method.__qualname__ = f"{owner}.{build.__name__}"
    method.__annotations__ = {**build.__annotations__, "return": answer}
    presented = called.replace(
        parameters=[itself, *called.parameters.values()], return_annotation=answer
    )
    vars(method).update(__wrapped__=build, __signature__=presented)
    return method


def answer_of(build: Callable[..., Any]) -> str:
    """Return the annotation of what a call answers: ``int`` of ``UnaryCall[int]``."""
    return str(build.__annotations__["return"]).removeprefix("UnaryCall[").removesuffix("]")
