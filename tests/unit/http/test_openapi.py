"""The API document says what the application does."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from margin.http import create_app
from margin.http.wire import DECIMAL_TEXT_PATTERN, MONEY_PATTERN, SYMBOL_PATTERN
from margin.lambda_entry import http_handler
from tests.events import LambdaContext, api_gateway_event
from tests.unit.http.exchange import app, router, trade

DOCUMENT: dict[str, Any] = json.loads(json.dumps(app.openapi()))
SCHEMAS = DOCUMENT["components"]["schemas"]
TRADE = DOCUMENT["paths"]["/trade"]["post"]
TRADES = DOCUMENT["paths"]["/trades/{account_id}"]["get"]
PARAMETERS = {parameter["name"]: parameter for operation in (TRADE, TRADES) for parameter in operation["parameters"]}


def test_operation_ids_are_the_endpoints_names() -> None:
    assert (TRADE["operationId"], TRADES["operationId"]) == ("execute_trade", "list_trades")


def test_fastapis_own_error_schemas_do_not_appear() -> None:
    assert set(SCHEMAS) == {"TradeRequest", "TradeAnswer", "HistoryAnswer", "Problem", "FieldError"}
    assert "HTTPValidationError" not in json.dumps(DOCUMENT)


def test_every_reference_resolves() -> None:
    references = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(DOCUMENT)))
    assert references <= set(SCHEMAS)


def test_the_answers_of_an_operation_are_documented_in_order() -> None:
    assert list(TRADE["responses"]) == ["200", "202", "400", "401", "403", "404", "409", "413", "415", "422", "503"]
    assert list(TRADES["responses"]) == ["200", "401", "403", "404", "422"]
    assert TRADE["responses"]["202"]["content"]["application/json"]["schema"]["$ref"].endswith("/TradeAnswer")
    assert "Idempotent-Replayed" in TRADE["responses"]["200"]["headers"]
    assert "Retry-After" in TRADE["responses"]["503"]["headers"]


def test_every_problem_is_one_schema_with_examples_that_fit_it() -> None:
    for operation in (TRADE, TRADES):
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                ((media_type, content),) = response["content"].items()
                assert media_type == "application/problem+json"
                assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
                for code, example in content["examples"].items():
                    assert example["value"]["code"] == code
                    assert example["value"]["status"] == int(status)
                    assert set(SCHEMAS["Problem"]["required"]) == set(example["value"])


def test_a_real_problem_fits_the_schema() -> None:
    for reply in (trade(side="x"), trade(side="x", price=0)):
        assert set(SCHEMAS["Problem"]["required"]) <= set(reply.json) <= set(SCHEMAS["Problem"]["properties"])


def test_money_in_requests_is_a_number_or_a_string() -> None:
    for field in ("quantity", "price"):
        schema = SCHEMAS["TradeRequest"]["properties"][field]
        assert [choice["type"] for choice in schema["anyOf"]] == ["number", "string"]
        assert schema["anyOf"][1]["pattern"] == MONEY_PATTERN
        assert "8 decimals" in schema["description"]
        assert schema["examples"]
        for example in schema["examples"]:
            assert trade(**{field: example}).status == 200


def test_money_in_answers_is_a_string() -> None:
    schema = SCHEMAS["TradeAnswer"]["properties"]["notional"]
    assert (schema["type"], schema["pattern"]) == ("string", DECIMAL_TEXT_PATTERN)
    assert re.search(schema["pattern"], trade().json["notional"])


@pytest.mark.parametrize("text", ["1E-8", "0.10", "-", "1.", ".5", "01", "1e4", "+1"])
def test_the_pattern_of_answers_has_one_form_for_a_number(text: str) -> None:
    assert not re.search(DECIMAL_TEXT_PATTERN, text)


def test_bodies_take_no_other_fields() -> None:
    assert SCHEMAS["TradeRequest"]["additionalProperties"] is False


def test_accounts_symbols_and_sides_are_described() -> None:
    properties = SCHEMAS["TradeRequest"]["properties"]
    assert [choice["type"] for choice in properties["account_id"]["anyOf"]] == ["integer", "string"]
    assert properties["symbol"]["pattern"] == SYMBOL_PATTERN
    assert properties["side"]["enum"] == ["BUY", "SELL"]
    assert PARAMETERS["account_id"]["schema"]["maximum"] == 2**63 - 1


def test_parameters_are_described() -> None:
    limit = PARAMETERS["limit"]["schema"]
    assert (limit["type"], limit["minimum"], limit["maximum"], limit["default"]) == ("integer", 1, 1000, 100)
    assert PARAMETERS["Idempotency-Key"]["in"] == "header"
    assert PARAMETERS["Idempotency-Key"]["required"] is False
    assert PARAMETERS["since"]["schema"]["anyOf"][0]["format"] == "date-time"
    assert PARAMETERS["cursor"]["schema"]["anyOf"][0]["maxLength"] == 512


def test_asking_twice_gives_the_same_document() -> None:
    assert json.loads(json.dumps(app.openapi())) == DOCUMENT


def test_the_document_is_served_only_where_asked() -> None:
    served = http_handler(create_app(router, title="Exchange", version="1.0.0", description="d", docs=True))
    answer = served(api_gateway_event("GET", "/openapi.json"), LambdaContext())
    assert answer["statusCode"] == 200
    assert json.loads(answer["body"])["paths"] == DOCUMENT["paths"]
    assert served(api_gateway_event("GET", "/docs"), LambdaContext())["statusCode"] == 200
