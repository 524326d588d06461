"""Parsing bodies: nothing is lost, nothing doubtful passes, and no error is of the parser's own kind."""

from __future__ import annotations

import time
from decimal import Decimal

import pytest

from margin import exact_json
from margin.errors import InvalidRequestError


def refusal(raw: bytes) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        exact_json.loads(raw)
    return caught.value


def test_all_digits_of_a_number_are_kept() -> None:
    value = exact_json.loads(b"[123456789012.12345678, 0.1, 1e2, 7, -0.00000001]")
    assert [str(item) for item in value] == ["123456789012.12345678", "0.1", "1E+2", "7", "-1E-8"]
    assert [type(item) for item in value] == [Decimal, Decimal, Decimal, int, Decimal]


def test_an_integer_of_64_thousand_digits_is_a_decimal_and_takes_no_time() -> None:
    started = time.perf_counter()
    assert exact_json.loads(b"9" * 65_000).adjusted() == 64_999
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize("text", [b"NaN", b"Infinity", b"-Infinity", b'{"a": [NaN]}'])
def test_a_constant_that_is_not_json_is_refused(text: bytes) -> None:
    assert "finite" in refusal(text).detail


@pytest.mark.parametrize("text", [b"1e99999999999999999999", b"-1e-99999999999999999999"])
def test_an_exponent_beyond_every_decimal_is_refused(text: bytes) -> None:
    assert "exponent" in refusal(text).detail


def test_a_key_given_twice_is_refused_by_its_name() -> None:
    assert refusal(b'{"a": 1, "price": 2, "price": 2}').field == "price"
    assert refusal(b'{"x": {"side": 1, "side": 2}}').field == "side"


def test_a_repeated_key_that_is_not_harmless_is_not_echoed() -> None:
    assert refusal(b'{"<script>": 1, "<script>": 2}').field == "?"


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_nesting_up_to_the_limit_passes_and_one_more_is_refused(opening: str) -> None:
    closing = "]" if opening == "[" else "}"
    for depth in (exact_json.DEPTH_MAX, exact_json.DEPTH_MAX + 1):
        raw = (opening * depth + "1" + closing * depth).encode()
        if depth <= exact_json.DEPTH_MAX:
            exact_json.loads(raw)
        else:
            assert "nested" in refusal(raw).detail


def test_brackets_in_strings_are_not_nesting() -> None:
    text = '"' + "[{" * 50 + '\\"' + "[" * 50 + '"'
    assert exact_json.loads(text.encode()) == "[{" * 50 + '"' + "[" * 50


def test_many_brackets_side_by_side_are_not_nesting() -> None:
    assert exact_json.loads(b"[" + b"[]," * 4000 + b"[]]") == [[]] * 4001


@pytest.mark.parametrize("unit", [b"{}", b"0", b"[]", b'"a,b"'])
def test_more_values_than_any_request_has_are_refused(unit: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="more than 8192 values"):
        exact_json.loads(b"[" + (unit + b",") * exact_json.VALUES_MAX + unit + b"]")


def test_as_many_values_as_there_may_be_are_taken() -> None:
    many = exact_json.VALUES_MAX - 1
    assert exact_json.loads(b"[" + b",".join([b"0"] * many) + b"]") == [0] * many


@pytest.mark.parametrize("raw", [b'"' + b'\\"' * 32_000, b'"' * 65_001, b'["' + b"\\" * 65_001, b"[" * 10_000])
def test_text_made_to_be_slow_is_refused_fast(raw: bytes) -> None:
    started = time.perf_counter()
    refusal(raw)
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize(
    "raw", [b"\xff\xfe", b'"\xc3\x28"', "å".encode("latin-1"), '"\ud800"'.encode("utf-8", "surrogatepass")]
)
def test_bytes_that_are_not_utf_8_are_refused(raw: bytes) -> None:
    assert "UTF-8" in refusal(raw).detail


def test_a_byte_order_mark_is_refused_with_a_sentence_about_it() -> None:
    assert "byte order mark" in refusal(b"\xef\xbb\xbf{}").detail


@pytest.mark.parametrize("text", [r'"\ud800"', r'{"\udfff": 1}', r'[{"a": ["x\uD834"]}]', r'"\udd1e\ud834"'])
def test_half_a_surrogate_pair_is_refused(text: str) -> None:
    assert "surrogate" in refusal(text.encode()).detail


@pytest.mark.parametrize(("text", "value"), [(r'"\ud834\udd1e"', "\U0001d11e"), (r'"\\ud800"', r"\ud800")])
def test_a_whole_pair_or_an_escaped_backslash_passes(text: str, value: str) -> None:
    assert exact_json.loads(text.encode()) == value


@pytest.mark.parametrize(
    "raw", [b"", b" ", b"{", b"{'a': 1}", b"[1,]", b"01", b"1.", b"+1", b".5", b"0x10", b'"\n"', b"1 2", b"\x00"]
)
def test_what_is_not_json_is_refused_with_its_place_and_without_its_text(raw: bytes) -> None:
    error = refusal(raw)
    assert error.field == "body"
    assert "not JSON" in error.detail
    assert "line" in error.detail
