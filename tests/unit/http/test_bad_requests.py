"""Every kind of bad input ends in a 4xx that names what is wrong and repeats nothing of it."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from margin.contract.instruments import InstrumentRequest
from margin.contract.mark_price import MarkPricesRequest
from margin.contract.risk import ShocksRequest
from margin.http import BODY_BYTES_MAX, Request
from tests.unit.http import exchange
from tests.unit.http.exchange import TRADE, Reply, call, trade, trade_text


@pytest.fixture(autouse=True)
def _nothing_reaches_the_endpoint() -> object:
    exchange.received.clear()
    yield
    assert exchange.received == []


def assert_refused(reply: Reply, field: str | None, status: int = 422, code: str = "INVALID_REQUEST") -> str:
    assert reply.status == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json
    assert problem["code"] == code
    assert problem.get("field") == field
    assert problem["request_id"] == reply.headers["x-request-id"]
    return str(problem["detail"])


NOT_MONEY = {
    "zero": "0",
    "negative zero": "-0.0",
    "zero with a huge exponent": "0e400",
    "negative": "-1",
    "small negative": "-0.00000001",
    "1e400": "1e400",
    "the largest exponent": "1e999999999999999999",
    "the smallest exponent": "1e-999999999999999999",
    "40 digits": "1234567890123456789012345678901234567890",
    "40 digits and decimals": "1234567890123456789012345678901234567890.5",
    "5000 digits": "9" * 5000,
    "5000 decimals": "0." + "1" * 5000,
    "one trillion": "1000000000000",
    "one trillion as an exponent": "1e12",
    "nine decimals": "0.123456789",
    "nine decimals as an exponent": "1e-9",
    "nine decimals behind twelve digits": "123456789012.123456789",
    "true": "true",
    "false": "false",
    "null": "null",
    "an array": "[1]",
    "an object": '{"a":1}',
    "an empty string": '""',
    "a word": '"ten"',
    "NaN as a string": '"NaN"',
    "Infinity as a string": '"Infinity"',
    "-Infinity as a string": '"-Infinity"',
    "spaces": '" 1"',
    "a trailing newline": r'"1\n"',
    "underscores": '"1_000"',
    "a thousands separator": '"1,000"',
    "a plus sign": '"+1"',
    "a leading zero": '"01"',
    "no digit before the point": '".5"',
    "no digit after the point": '"5."',
    "hexadecimal": '"0x10"',
    "Arabic digits": r'"\u0661"',
    "full-width digits": r'"\uff11"',
    "negative as a string": '"-1"',
    "zero as a string": '"0.000"',
    "1e400 as a string": '"1e400"',
    "nine decimals as a string": '"0.000000001"',
    "a long string": '"' + "1" * 10_000 + '"',
}


@pytest.mark.parametrize("field", ["quantity", "price"])
@pytest.mark.parametrize("text", NOT_MONEY.values(), ids=NOT_MONEY.keys())
def test_what_is_no_money_is_refused_by_name(field: str, text: str) -> None:
    assert_refused(trade_text(**{field: text}), field)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_json_does_not_have_is_refused(text: str) -> None:
    assert "finite" in assert_refused(trade_text(price=text), "body")


NOT_AN_ACCOUNT = {
    "zero": "0",
    "negative": "-1",
    "2^63": str(2**63),
    "40 digits": "1" * 40,
    "5000 digits": "1" * 5000,
    "true": "true",
    "1.0": "1.0",
    "1e0": "1e0",
    "null": "null",
    "an array": "[1]",
    "an empty string": '""',
    "zero as a string": '"0"',
    "a leading zero": '"01"',
    "a sign": '"+1"',
    "a decimal string": '"1.0"',
    "a space": '"1 "',
    "a newline": r'"1\n"',
    "an underscore": '"1_0"',
    "Arabic digits": r'"\u0661"',
    "2^63 as a string": f'"{2**63}"',
    "a key of another account": '"1:BTC"',
}


@pytest.mark.parametrize("text", NOT_AN_ACCOUNT.values(), ids=NOT_AN_ACCOUNT.keys())
def test_what_is_no_account_is_refused_by_name(text: str) -> None:
    assert_refused(trade_text(account_id=text), "account_id")


@pytest.mark.parametrize(
    "account", ["0", "-1", str(2**63), "1.0", "01", "true", "+1", "%201", "1%0A", "1:2", "%D9%A1", "1" * 5000]
)
def test_what_is_no_account_in_the_path_is_refused_by_name(account: str) -> None:
    assert_refused(call("GET", f"/trades/{account}"), "path.account_id")


NOT_A_SYMBOL = (
    *("", "A" * 33, "A" * 10_240, "BTC:PERP", "BTC*", "{BTC}", "BTC}", "BTC\n", "\nBTC", "B\r\nC", "BTC PERP"),
    *("btc", "-BTC", ".", "BTC\x00", "\u0412\u0422\u0421", "\uff22TC"),
    *(1, None, True, ["BTC"], {"BTC": 1}),
)


@pytest.mark.parametrize("symbol", NOT_A_SYMBOL)
def test_what_is_no_symbol_is_refused_by_name(symbol: object) -> None:
    assert_refused(trade(symbol=symbol), "symbol")


@pytest.mark.parametrize("side", ["buy", "Buy", "BUY ", "", "HOLD", 1, None, True, ["BUY"]])
def test_an_unknown_side_is_refused_by_name(side: object) -> None:
    assert_refused(trade(side=side), "side")


def test_a_missing_field_is_refused_by_name() -> None:
    for field in TRADE:
        body = {name: value for name, value in TRADE.items() if name != field}
        assert "is required" in assert_refused(call("POST", "/trade", body), field)


def test_an_unknown_field_is_refused_by_name() -> None:
    assert "not a field" in assert_refused(trade(qantity=1), "qantity")


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "x" * 1000, "a\nb", "é", ""])
def test_an_unknown_field_with_an_odd_name_is_refused_without_repeating_it(name: str) -> None:
    reply = trade(**{name: 1})
    assert_refused(reply, "?")
    assert not name or name not in reply.text


def test_several_wrong_fields_are_all_listed() -> None:
    reply = trade(side="HOLD", price="-5", quantity="x")
    assert "3 fields" in assert_refused(reply, "side")
    assert [item["field"] for item in reply.json["errors"]] == ["side", "quantity", "price"]
    assert "must be greater than 0" in reply.text


def test_a_thousand_wrong_fields_give_a_short_answer() -> None:
    reply = trade(**{f"field{number}": 1 for number in range(1000)})
    assert "1000 fields" in assert_refused(reply, "field0")
    assert len(reply.json["errors"]) == 20


def test_values_are_never_repeated() -> None:
    secret = "S3CRET-5417"
    for field in TRADE:
        reply = trade(**{field: f"{secret}:"})
        assert reply.status == 422
        assert secret not in reply.text


@pytest.mark.parametrize("body", ["null", "[]", "[1]", "1", "true", '"text"', json.dumps([TRADE])])
def test_json_that_is_no_object_is_refused(body: str) -> None:
    assert "must be a JSON object" in assert_refused(call("POST", "/trade", body), "body")


def test_no_body_is_refused() -> None:
    assert "is required" in assert_refused(call("POST", "/trade"), "body")
    assert "is required" in assert_refused(call("POST", "/trade", ""), "body")


def test_no_body_without_content_type_is_refused_as_a_missing_body() -> None:
    assert "is required" in assert_refused(call("POST", "/trade", headers={"content-length": "0"}), "body")


@pytest.mark.parametrize("body", ["{", "{'account_id': 1}", "account_id=1", "\x00", " "])
def test_what_is_not_json_is_refused(body: str) -> None:
    assert "not JSON" in assert_refused(call("POST", "/trade", body), "body")


def test_a_key_given_twice_is_refused_by_name() -> None:
    assert "twice" in assert_refused(call("POST", "/trade", json.dumps(TRADE)[:-1] + ', "price": 1}'), "price")


@pytest.mark.parametrize("body", ["[" * 10_000 + "]" * 10_000, '{"a":' * 10_000 + "1" + "}" * 10_000])
def test_ten_thousand_levels_are_refused(body: str) -> None:
    assert "nested" in assert_refused(call("POST", "/trade", body), "body")


def test_bytes_that_are_not_utf_8_are_refused() -> None:
    body = json.dumps(TRADE).encode().replace(b"BTC", b"\xff\xfe\xfd")
    assert "UTF-8" in assert_refused(call("POST", "/trade", body, base64=True), "body")


def test_a_byte_order_mark_is_refused() -> None:
    body = b"\xef\xbb\xbf" + json.dumps(TRADE).encode()
    assert "byte order mark" in assert_refused(call("POST", "/trade", body, base64=True), "body")


@pytest.mark.parametrize("field", ["symbol", "side", "price"])
def test_half_a_surrogate_pair_is_refused(field: str) -> None:
    assert "surrogate" in assert_refused(trade_text(**{field: r'"\ud800"'}), "body")


def test_half_a_surrogate_pair_in_a_field_name_is_refused() -> None:
    assert "surrogate" in assert_refused(call("POST", "/trade", r'{"\udc00": 1}'), "body")


def padded(length: int) -> str:
    text = json.dumps(TRADE | {"extra": ""})
    return text.replace('""', '"' + "x" * (length - len(text)) + '"')


def test_a_body_at_the_limit_is_read_and_one_byte_more_is_not() -> None:
    assert_refused(call("POST", "/trade", padded(BODY_BYTES_MAX)), "extra")
    assert_refused(call("POST", "/trade", padded(BODY_BYTES_MAX + 1)), None, 413, "BODY_TOO_LARGE")


def test_two_megabytes_are_refused_whatever_they_are_declared_as() -> None:
    assert_refused(call("POST", "/trade", "x" * 2_000_000), None, 413, "BODY_TOO_LARGE")
    reply = call("POST", "/trade", "x" * 2_000_000, headers={"content-type": "text/plain"})
    assert_refused(reply, None, 413, "BODY_TOO_LARGE")


NOT_JSON = (
    *("application/x-www-form-urlencoded", "multipart/form-data", "application/xml", "application/json-patch"),
    *("text/plain", "text/json", "json", "", ";", "application/json; charset=latin-1"),
)


@pytest.mark.parametrize("content_type", NOT_JSON)
def test_a_body_not_declared_as_json_is_refused_with_what_is_right(content_type: str) -> None:
    reply = call("POST", "/trade", TRADE, headers={"content-type": content_type})
    assert "JSON" in assert_refused(reply, None, 415, "UNSUPPORTED_MEDIA_TYPE")
    assert "Content-Type" in reply.json["detail"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limitt": "5"}, "query.limitt"),
        ({"Limit": "5"}, "query.Limit"),
        ({"<b>": "5"}, "query.?"),
        ("limit=5&limit=6", "query.limit"),
        ("limit=5&limit=5", "query.limit"),
        ({"account_id": "2"}, "query.account_id"),
        *(
            ({"limit": limit}, "query.limit")
            for limit in ("0", "-1", "1001", "1.0", "1e2", "", " 5", "ten", "010", "9" * 5000)
        ),
        *(
            ({"cursor": cursor}, "query.cursor")
            for cursor in ("", "a b", "a+b", "a/b", "é", "a\n", "=", "a===", "a" * 513)
        ),
        *(({"symbol": symbol}, "query.symbol") for symbol in ("", "btc", "BTC*", "BTC\n", "A" * 33)),
        *(({"other_account": account}, "query.other_account") for account in ("0", "x", "1.0", str(2**63))),
        *(
            ({"since": since}, "query.since")
            for since in (
                "",
                "now",
                "0",
                "2026-01-31",
                "2026-01-31T12:00:00",
                "2026-01-31T12:00:00 01:00",
                "2026-01-31 12:00:00Z",
                "2026-02-30T12:00:00Z",
                "2026-01-31T25:00:00Z",
                "2026-01-31T12:00:00.1234567Z",
                "2026-01-31T12:00:00+99:00",
                "0001-01-01T00:00:00+14:00",
                "9999-12-31T23:59:59-14:00",
                "2026-W05-6T12:00:00Z",
            )
        ),
        ("since=2026-01-31T12:00:00+01:00", "query.since"),
    ],
)
def test_a_bad_query_is_refused_by_name(query: dict[str, str] | str, field: str) -> None:
    assert_refused(call("GET", "/trades/1", query=query), field)


def test_an_unknown_query_parameter_of_a_post_is_refused() -> None:
    assert "none" in assert_refused(call("POST", "/trade", TRADE, query={"dry_run": "true"}), "query.dry_run")


@pytest.mark.parametrize("key", ["", " ", "-a", "a b", "a,b", "a\tb", "é", "x" * 129, "{a}", "a*"])
def test_a_bad_idempotency_key_is_refused_by_name(key: str) -> None:
    assert_refused(call("POST", "/trade", TRADE, headers={"Idempotency-Key": key}), "header.Idempotency-Key")


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (MarkPricesRequest, {"prices": [{}] * 5000}),
        (ShocksRequest, {"shocks": [{}] * 5000}),
        (ShocksRequest, {"shocks": [{"name": "crash", "moves": [{}] * 5000}]}),
        (InstrumentRequest, {"tiers": [{}] * 5000}),
    ],
)
def test_a_list_that_is_too_long_is_not_looked_at_item_by_item(model: type[Request], body: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as refused:
        model.model_validate(body)
    assert [error["type"] for error in refused.value.errors()] == ["too_long"]
