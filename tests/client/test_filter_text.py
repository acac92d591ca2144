"""Filters as people write them: what a text says, and where it is refused."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorshard.client.filter_text import filter_from_text
from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.filters import And, Equals, Exists, Filter, In, Not, Or, Range

A, B, C = Equals("a", 1.0), Equals("b", True), Exists("c")


@pytest.mark.parametrize(
    ("text", "filter_"),
    [
        ("a = 1", A),
        ("a == 1", A),
        ("a=1 and b=true", And((A, B))),
        ("a != 1", Not(A)),
        ("a < 1", Range("a", lt=1.0)),
        ("a <= -1.5e3", Range("a", lte=-1500.0)),
        ("a > .5", Range("a", gt=0.5)),
        ("a >= +1.", Range("a", gte=1.0)),
        ('lang = "en"', Equals("lang", "en")),
        ("lang = 'it''s'", None),
        ('lang = "say \\"hi\\" \\u00e4"', Equals("lang", 'say "hi" ä')),
        ("lang = 'C:\\temp'", Equals("lang", "C:\\temp")),
        ("b = FALSE", Equals("b", False)),
        ("c exists", C),
        ("c EXISTS", C),
        ("tag in (\"a\", 'b', 3, true)", In("tag", ("a", "b", 3.0, True))),
        ("a = 1 and b = true and c exists", And((A, B, C))),
        ("a = 1 or b = true and c exists", Or((A, And((B, C))))),
        ("(a = 1 or b = true) and c exists", And((Or((A, B)), C))),
        ("not a = 1 and b = true", And((Not(A), B))),
        ("not (a = 1 or not c exists)", Not(Or((A, Not(C))))),
        ("not not c exists", Not(Not(C))),
        ("`and` = 1", Equals("and", 1.0)),
        ("`two words` exists", Exists("two words")),
        ("größe.x-1 >= 2", Range("größe.x-1", gte=2.0)),
        ("  a\n=\t1  ", A),
    ],
)
def test_a_text_says_what_it_seems_to_say(text: str, filter_: Filter | None) -> None:
    if filter_ is None:
        with pytest.raises(InvalidParameter):
            filter_from_text(text)
    else:
        assert filter_from_text(text) == filter_


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "column 1: expected a field name, `not` or `(`, found the end"),
        ("a", "column 2: expected a comparison, `in` or `exists` after `a`, found the end"),
        ("a =", "column 4: expected a value, found the end"),
        ("a = en", 'column 5: expected a value; text needs quotes: "en"'),
        ("a = 1 b = 2", "column 7: expected `and`, `or` or the end, found `b`"),
        ("(a = 1", "column 7: expected `)`, found the end"),
        ("a in 1", "column 6: expected `(`, found `1`"),
        ("a in ()", "column 7: expected a value, found `)`"),
        ("a < 'x'", "column 5: expected a number, found `'x'`"),
        ('a = "x', 'column 5: the string that starts here has no closing "'),
        ("a = 1 and b = 'x", "column 15: the string that starts here has no closing '"),
        ("`a b = 1", "column 1: the name that starts here has no closing `"),
        ("a = 1;", "column 6: ';' is not a name, a value or a comparison"),
        ("a = 12x", "column 5: '12x' is not a name, a value or a comparison"),
        ('a = "\\x"', 'column 5: "\\x" contains an invalid JSON escape'),
        ("and = 1", "column 1: expected a field name, `not` or `(`, found `and`"),
    ],
)
def test_what_says_nothing_is_refused_where_it_goes_wrong(text: str, told: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        filter_from_text(text)
    assert caught.value.reason == told
    assert caught.value.field == "filter"


@pytest.mark.parametrize("text", [100_000 * "not ", 100_000 * "(", 100_000 * "(not "])
def test_no_text_is_too_deep_to_be_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="levels of nesting"):
        filter_from_text(text + "a = 1")


@given(st.text(alphabet="ab1.\"'`\\ ()=<>!,-ä\n") | st.text())
def test_any_text_is_a_filter_or_is_refused(text: str) -> None:
    with suppress(InvalidParameter):
        filter_from_text(text)
