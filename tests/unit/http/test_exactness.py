"""What is sent arrives digit by digit, and what is answered is shown digit by digit."""

from __future__ import annotations

from decimal import Decimal

import pytest
from pydantic import BaseModel

from margin.http import AccountId, Answer, DecimalText, TimestampText
from tests.unit.http import exchange
from tests.unit.http.exchange import call, trade, trade_text


@pytest.mark.parametrize(
    ("text", "arrives"),
    [
        ("123456789012.12345678", "123456789012.12345678"),
        ('"123456789012.12345678"', "123456789012.12345678"),
        ("999999999999.99999999", "999999999999.99999999"),
        ("0.00000001", "1E-8"),
        ("1e-8", "1E-8"),
        ('"1E-8"', "1E-8"),
        ("0.1", "0.1"),
        ("0.1000000000", "0.1"),
        ('"0.1000000000"', "0.1"),
        ("50000", "50000"),
        ("50000.00", "50000"),
        ("5e4", "50000"),
        ('"5e4"', "50000"),
        ("999999999999", "999999999999"),
        ("1" + "0" * 11 + ".0" + "0" * 40, "100000000000"),
        ("0.00001e11", "1000000"),
        ("1" + "0" * 40 + "e-40", "1"),
    ],
)
def test_a_number_or_string_arrives_exactly_and_in_one_form(text: str, arrives: str) -> None:
    exchange.received.clear()
    assert trade_text(price=text, quantity="1").status == 200
    assert str(exchange.received[0].price) == arrives


@pytest.mark.parametrize(
    ("text", "arrives"), [("1", 1), (str(2**63 - 1), 2**63 - 1), ('"42"', 42), (f'"{2**63 - 1}"', 2**63 - 1)]
)
def test_an_account_arrives_as_an_integer(text: str, arrives: int) -> None:
    assert trade_text(account_id=text).json["account_id"] == arrives


@pytest.mark.parametrize("symbol", ["A", "0", "BTC-PERP", "1INCH_USD.2", "A" * 32])
def test_a_good_symbol_arrives(symbol: str) -> None:
    assert trade(symbol=symbol).json["symbol"] == symbol


@pytest.mark.parametrize(
    ("quantity", "price", "shown", "notional"),
    [
        ("0.00000001", "1", "0.00000001", "0.00000001"),
        ("0.00000001", "0.00000001", "0.00000001", "0.0000000000000001"),
        ("1e4", "1", "10000", "10000"),
        ("0.10", "2.50", "0.1", "0.25"),
        ("123456789012.12345678", "1", "123456789012.12345678", "123456789012.12345678"),
    ],
)
def test_an_answer_shows_decimals_plainly(quantity: str, price: str, shown: str, notional: str) -> None:
    answer = trade_text(quantity=quantity, price=price).json
    assert (answer["quantity"], answer["notional"]) == (shown, notional)


def test_an_answer_shows_no_negative_zero_and_knows_null() -> None:
    assert trade().json["margin_utilisation_pct"] == "0"
    assert trade(symbol="NONE").json["margin_utilisation_pct"] is None


def test_an_answer_is_compact() -> None:
    assert trade().text.startswith('{"account_id":1,"symbol":"BTC-PERP","quantity":"0.1",')


@pytest.mark.parametrize("annotation", [Decimal, float, Decimal | None, list[Decimal], dict[str, float | None]])
def test_an_answer_class_that_would_lose_digits_cannot_be_made(annotation: object) -> None:
    with pytest.raises(TypeError, match=r"Bad\.value must be DecimalText"):
        type("Bad", (Answer,), {"__annotations__": {"value": annotation}, "__module__": __name__})


def test_an_answer_class_of_exact_parts_can_be_made() -> None:
    class Inner(Answer):
        value: DecimalText

    class Outer(Answer):
        one: Inner
        many: list[DecimalText]
        by_symbol: dict[str, DecimalText | None]
        account_id: AccountId
        timestamp: TimestampText | None

    value = Decimal("1E+3")
    outer = Outer(one=Inner(value=value), many=[value], by_symbol={"A": None}, account_id=1, timestamp=None)
    assert outer.model_dump_json() == (
        '{"one":{"value":"1000"},"many":["1000"],"by_symbol":{"A":null},"account_id":1,"timestamp":null}'
    )


def test_an_answer_takes_its_own_form_back() -> None:
    class Shown(Answer):
        value: DecimalText

    assert Shown.model_validate({"value": "123456789012.12345678"}).value == Decimal("123456789012.12345678")


@pytest.mark.parametrize(
    "value", [0.1, 1, True, "0.10", "1E-8", "NaN", " 1", "1\n", "\u0661", Decimal("NaN"), Decimal("Infinity")]
)
def test_an_answer_takes_only_finite_decimals_and_their_own_form(value: object) -> None:
    class Shown(Answer):
        value: DecimalText

    with pytest.raises(ValueError, match="value"):
        Shown(value=value)


def test_requests_and_answers_are_frozen() -> None:
    for model in (exchange.TradeRequest, exchange.TradeAnswer):
        assert issubclass(model, BaseModel)
        assert model.model_config["frozen"] is True
        assert model.model_config["extra"] == "forbid"


def test_a_base64_body_is_read() -> None:
    assert call("POST", "/trade", exchange.TRADE, base64=True).status == 200


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON;charset=UTF-8",
        "application/vnd.margin+json",
    ],
)
def test_a_body_declared_as_json_is_read(content_type: str) -> None:
    assert call("POST", "/trade", exchange.TRADE, headers={"Content-Type": content_type}).status == 200


def test_text_of_all_planes_arrives_in_field_names_of_problems_as_a_placeholder() -> None:
    assert trade(**{"\U0001d11e": 1}).json["field"] == "?"
