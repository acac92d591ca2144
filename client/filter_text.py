"""Filters written as text.

    lang = "en" and not (year < 1990 or tag in ("draft", "old")) and rating exists

A name consists of letters, digits, ``_``, ``.`` and ``-``, or is anything between backquotes. A
value is text in double or single quotes (JSON escapes in double quotes only), a decimal number,
``true`` or ``false``. Numbers are doubles, and a literal that a double would round to an integer is
an error: another row could have that number. Comparisons are ``= == != < <= > >=``, ``in (...)``
and ``exists``. ``not`` binds more tightly than ``and``, and ``and`` than ``or``. ``x != 1`` means
``not x = 1``: it holds where x is missing.

Pure. shard.filters defines the meaning of a filter.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.filters import And, Equals, Exists, Filter, FilterValue, In, Not, Or, Range
from vectorshard.shard.wire.metadata import check_exact

DEPTH_MAX: Final = 40
"""Levels of ``not`` and parentheses that the parser accepts; a server accepts fewer."""

_INTEGER_DIGITS: Final = 40
"""Digits of an integer that are read: enough to see that it is too large, and to name it."""

_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<text>"(?:[^"\\]|\\.)*"|'[^']*')
      | (?P<number>[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?(?![\w.]))
      | (?P<operator>==|!=|<=|>=|[=<>(),])
      | (?P<name>[^\W\d][\w.-]*|`[^`]+`)
    )""",
    re.VERBOSE,
)
_BOUND_OF: Final = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}
_WORDS: Final = frozenset({"and", "or", "not", "in", "exists", "true", "false"})


@dataclass(frozen=True, slots=True)
class _Token:
    """A piece of the text: its kind, its text, and its offset, from 0."""

    kind: str
    text: str
    at: int


def filter_from_text(text: str) -> Filter:
    """Parse a filter.

    Raises
    ------
    InvalidParameter
        If the text does not parse. Names the column and what was expected there.
    """
    parser = _Parser(_tokens(text))
    parsed = parser.either(0)
    parser.expect_end()
    return parsed


def _tokens(text: str) -> list[_Token]:
    tokens = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            if text[at] in "\"'`" and text[at] not in text[at + 1 : at + 2]:
                what = "name" if text[at] == "`" else "string"
                raise _error(f"the {what} that starts here has no closing {text[at]}", at)
            raise _error(f"{text[at : at + 12]!r} is not a name, a value or a comparison", at)
        kind = match.lastgroup
        assert kind is not None
        word = match[kind]
        if kind == "name" and word.lower() in _WORDS:
            kind, word = "word", word.lower()
        tokens.append(_Token(kind, word, match.start(match.lastgroup or 0)))
        at = match.end()
    return [*tokens, _Token("end", "", end)]


def _error(reason: str, at: int) -> InvalidParameter:
    return InvalidParameter(f"column {at + 1}: {reason}", field="filter")


class _Parser:
    """Recursive descent: one method for each level of precedence."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._place = 0

    @property
    def _next(self) -> _Token:
        return self._tokens[self._place]

    def _take(self) -> _Token:
        token = self._next
        self._place += 1
        return token

    def _take_if(self, *texts: str) -> _Token | None:
        token = self._next
        return self._take() if token.kind in ("word", "operator") and token.text in texts else None

    def _expected(self, what: str) -> InvalidParameter:
        found = f"`{self._next.text}`" if self._next.text else "the end"
        return _error(f"expected {what}, found {found}", self._next.at)

    def expect_end(self) -> None:
        """Raise if tokens are left."""
        if self._next.kind != "end":
            raise self._expected("`and`, `or` or the end")

    def either(self, depth: int) -> Filter:
        """Parse conditions joined by `or`."""
        filters = [self._both(depth)]
        while self._take_if("or"):
            filters.append(self._both(depth))
        return filters[0] if len(filters) == 1 else Or(tuple(filters))

    def _both(self, depth: int) -> Filter:
        filters = [self._one(depth)]
        while self._take_if("and"):
            filters.append(self._one(depth))
        return filters[0] if len(filters) == 1 else And(tuple(filters))

    def _one(self, depth: int) -> Filter:
        if depth > DEPTH_MAX:
            raise _error(f"more than {DEPTH_MAX} levels of nesting", self._next.at)
        if self._take_if("not"):
            return Not(self._one(depth + 1))
        if self._take_if("("):
            inner = self.either(depth + 1)
            self._expect(")")
            return inner
        return self._condition()

    def _expect(self, text: str) -> None:
        if not self._take_if(text):
            raise self._expected(f"`{text}`")

    def _condition(self) -> Filter:
        if self._next.kind != "name":
            raise self._expected("a field name, `not` or `(`")
        field = self._take().text.strip("`")
        if self._take_if("exists"):
            return Exists(field)
        if self._take_if("in"):
            self._expect("(")
            values = [self._value()]
            while self._take_if(","):
                values.append(self._value())
            self._expect(")")
            return In(field, tuple(values))
        if self._take_if("=", "=="):
            return Equals(field, self._value())
        if self._take_if("!="):
            return Not(Equals(field, self._value()))
        comparison = self._take_if(*_BOUND_OF)
        if comparison is None:
            raise self._expected(f"a comparison, `in` or `exists` after `{field}`")
        return Range(field, **{_BOUND_OF[comparison.text]: self._number()})

    def _number(self) -> float:
        if self._next.kind != "number":
            raise self._expected("a number")
        token = self._take()
        try:
            return number_of(token.text)
        except ValueError as error:
            raise _error(str(error), token.at) from None

    def _value(self) -> FilterValue:
        token = self._next
        if token.kind == "number":
            return self._number()
        if token.kind == "text":
            return _text_of(self._take())
        if word := self._take_if("true", "false"):
            return word.text == "true"
        if token.kind == "name":
            raise _error(f'expected a value; text needs quotes: "{token.text}"', token.at)
        raise self._expected("a value")


def number_of(literal: str) -> float:
    """Return the number of a literal: digits with an optional sign, point and exponent.

    Raises ValueError for an integer that `check_exact` rejects, a number beyond the range of a
    double, and one that a double would round to an integer, such as 9007199254740992.5 or 1e-400.
    """
    digits = literal.lstrip("+-").lstrip("0") or "0"
    if digits.isdecimal():  # Python reads no more than 4,300 digits at once
        check_exact(int(digits[:_INTEGER_DIGITS]))
    number = float(literal)
    if math.isinf(number):
        raise ValueError(f"number {_short(literal)} is beyond the range of a double")
    if number.is_integer() and not _is_shown_as(literal, number):
        raise ValueError(
            f"a double does not hold {_short(literal)} exactly, and would round it to {number:.17g}"
        )
    return number


def _is_shown_as(literal: str, number: float) -> bool:
    """Return whether a literal is the shortest decimal of its number, however it is written."""
    if number == 0.0:  # an exponent may be too small for Decimal
        return not re.search("[1-9]", re.split("[eE]", literal)[0])
    return Decimal(literal) == Decimal(repr(number))


def _short(literal: str) -> str:
    return literal if len(literal) <= 40 else f"{literal[:40]}..."


def _text_of(token: _Token) -> str:
    if token.text.startswith("'"):
        return token.text[1:-1]
    try:
        text: str = json.loads(token.text, strict=False)
    except ValueError:
        raise _error(f"{token.text} contains an invalid JSON escape", token.at) from None
    return text
