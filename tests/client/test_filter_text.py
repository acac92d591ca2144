"""Filters as people write them: what a text says, and where it is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorshard.client.filter_text import filter_from_text
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.filters import And, Equals, Exists, Filter, In, Not, Or, Range
from vectorshard.shard.wire.filters import decode_filter, encode_filter

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


@pytest.mark.parametrize(
    ("literal", "number"),
    [
        ("0", 0.0),
        ("-0", 0.0),
        ("-0.0", 0.0),
        ("0e-999999999999999999999", 0.0),
        ("007", 7.0),
        ("-9007199254740992", -(2.0**53)),
        ("0000000009007199254740992", 2.0**53),
        (5_000 * "0" + "1", 1.0),
        ("1e3", 1_000.0),
        ("1E22", 1e22),
        ("1e23", 1e23),
        ("9007199254740992.0", 2.0**53),
        ("9007199254740994.000", 2.0**53 + 2),
        ("0.1", 0.1),
        ("0.1000000000000000055511151231257827", 0.1),
        ("3.14159265358979323846", 3.141592653589793),
        ("1.7976931348623157e308", 1.7976931348623157e308),
        ("5e-324", 5e-324),
        ("2251799813685248.5", 2251799813685248.5),
    ],
)
def test_a_number_is_the_double_that_is_written(literal: str, number: float) -> None:
    assert filter_from_text(f"n = {literal}") == Equals("n", number)
    assert filter_from_text(f"n < {literal}") == Range("n", lt=number)
    (value,) = filter_from_text(f"n in ({literal})").values  # type: ignore[attr-defined]
    assert type(value) is float


@pytest.mark.parametrize(
    ("literal", "told"),
    [
        ("9007199254740993", "integer 9,007,199,254,740,993 is not in -2**53..2**53"),
        ("-9007199254740993", "is not in -2**53..2**53"),
        ("9223372036854775807", "is not in -2**53..2**53"),
        ("1" + 50 * "0", "is not in -2**53..2**53"),
        (5_000 * "9", "is not in -2**53..2**53"),
        ("9007199254740993.0", "would round it to 9007199254740992"),
        ("9007199254740993e0", "would round it to 9007199254740992"),
        ("9.007199254740993e15", "would round it to 9007199254740992"),
        ("9007199254740992.5", "would round it to 9007199254740992"),
        ("0.99999999999999999999", "would round it to 1"),
        ("123456789012345678e1", "a double does not hold 123456789012345678e1 exactly"),
        ("1e-400", "would round it to 0"),
        ("-1e-99999999999999999999999", "would round it to -0"),
        ("1e400", "number 1e400 is beyond the range of a double"),
        ("-1e99999999999999999999999", "is beyond the range of a double"),
        ("1.8e308", "is beyond the range of a double"),
        (400 * "1" + ".5", "number " + 40 * "1" + "... is beyond the range of a double"),
        ("0x10", "is not a name, a value or a comparison"),
        ("1_000", "is not a name, a value or a comparison"),
        ("1e", "is not a name, a value or a comparison"),
        ("1.2.3", "is not a name, a value or a comparison"),
        ("--1", "is not a name, a value or a comparison"),
        ("\u0661\u0662", "is not a name, a value or a comparison"),
        ("inf", None),
        ("nan", None),
    ],
)
def test_a_number_that_a_double_would_change_is_refused_where_it_is(
    literal: str, told: str | None
) -> None:
    for text in (f"a = 1 and n = {literal}", f"a = 1 and n < {literal}", f"n in (1, {literal})"):
        with pytest.raises(InvalidParameter) as caught:
            filter_from_text(text)
        column = text.index(literal) + 1
        assert caught.value.reason.startswith(f"column {column}: ")
        if told is not None:
            assert told in caught.value.reason


@given(st.integers(-(2**70), 2**70))
def test_an_integer_is_exact_or_is_refused_as_the_typed_form_is(number: int) -> None:
    typed = read = None
    with suppress(InvalidParameter):
        typed = decode_filter(encode_filter(Range("n", lt=number)), Limits())
    with suppress(InvalidParameter):
        read = filter_from_text(f"n < {number}")
    assert read == typed
    if read is not None:
        assert read == Range("n", lt=number)
    assert (read is not None) == (abs(number) <= 2**53)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_double_that_is_printed_is_read_back(number: float) -> None:
    assert filter_from_text(f"n = {number!r}") == Equals("n", number)


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_no_other_number_becomes_an_integer(number: Decimal) -> None:
    with suppress(InvalidParameter):
        value = filter_from_text(f"n = {number}").value  # type: ignore[attr-defined]
        assert not value.is_integer() or value == number or Decimal(repr(value)) == number


@given(st.text())
def test_any_string_is_read_back_from_json(text: str) -> None:
    assert filter_from_text(f"lang = {json.dumps(text)}") == Equals("lang", text)


@pytest.mark.parametrize("text", [100_000 * "not ", 100_000 * "(", 100_000 * "(not "])
def test_no_text_is_too_deep_to_be_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="levels of nesting"):
        filter_from_text(text + "a = 1")


@given(st.text(alphabet="ab1.\"'`\\ ()=<>!,-ä\n") | st.text())
def test_any_text_is_a_filter_or_is_refused(text: str) -> None:
    with suppress(InvalidParameter):
        filter_from_text(text)
