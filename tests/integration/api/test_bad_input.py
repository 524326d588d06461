"""Bad input of every kind on every route that takes it: a 4xx that names what is wrong, and nothing written."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from margin_local.application import make_application
from tests.integration.api.exchange import HANDLERS, assert_problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.integration.api.exchange import Exchange, Reply


@dataclasses.dataclass(frozen=True)
class Route:
    """A good request: its body as raw JSON text of each field, so that any text can take a field's place."""

    method: str
    path: str
    fields: Mapping[str, str] | None = None
    query: str | None = None

    def text(self, **changes: str) -> str:
        members = {**(self.fields or {}), **changes}
        return "{" + ", ".join(f'"{name}": {text}' for name, text in members.items()) + "}"

    def send(self, exchange: Exchange, **changes: str) -> Reply:
        body = None if self.fields is None else self.text(**changes)
        return exchange.call(self.method, self.path, body, query=self.query)


WRITES = {
    "trade": Route(
        "POST",
        "/trade",
        {"account_id": "7", "symbol": '"BTC-PERP"', "side": '"BUY"', "quantity": "0.1", "price": "50000"},
    ),
    "preview": Route(
        "POST",
        "/trade/preview",
        {"account_id": "7", "symbol": '"BTC-PERP"', "side": '"BUY"', "quantity": "0.1", "price": "50000"},
    ),
    "mark price": Route("POST", "/mark-price", {"symbol": '"BTC-PERP"', "price": "50000"}),
    "mark prices": Route("POST", "/mark-prices", {"prices": '[{"symbol": "BTC-PERP", "price": 50000}]'}),
    "shocks": Route(
        "POST", "/risk/shocks", {"shocks": '[{"name": "crash", "moves": [{"symbol": "BTC-PERP", "move": -0.3}]}]'}
    ),
    "funding": Route("POST", "/funding", {"symbol": '"BTC-PERP"', "rate": "0.00000001"}),
    "deposit": Route("POST", "/accounts/7/deposits", {"amount": "1"}),
    "withdrawal": Route("POST", "/accounts/7/withdrawals", {"amount": "1"}),
    "contribution": Route("POST", "/accounts/7/insurance-contributions", {"amount": "1"}),
    "engine switch": Route("PUT", "/controls/engine", {"state": '"active"', "reason": '"a test"'}),
    "symbol switch": Route("PUT", "/controls/symbols/BTC-PERP", {"state": '"active"', "reason": '"a test"'}),
    "account switch": Route("PUT", "/controls/accounts/7", {"state": '"active"', "reason": '"a test"'}),
    # Each field has a default.
    "instrument": Route("PUT", "/instruments/BTC-PERP", {}),
}
GETS = {
    "positions": Route("GET", "/positions/7"),
    "report": Route("GET", "/margin-report"),
    "ladder": Route("GET", "/risk/ladder", query="symbol=BTC-PERP"),
    "trades": Route("GET", "/trades/7"),
    "marks": Route("GET", "/mark-prices"),
    "past marks": Route("GET", "/mark-prices/BTC-PERP/history"),
    "funding of an account": Route("GET", "/funding/7"),
    "funding rates": Route("GET", "/funding-rates"),
    "liquidations": Route("GET", "/liquidations"),
    "insurance fund": Route("GET", "/insurance-fund"),
    "controls": Route("GET", "/controls"),
    "instruments": Route("GET", "/instruments"),
    "rules of a symbol": Route("GET", "/instruments/BTC-PERP"),
    "health": Route("GET", "/health"),
}
ROUTES = WRITES | GETS
WITH_KEY = ("trade", "funding", "deposit", "withdrawal", "contribution")
MONEY = [
    ("trade", "quantity"),
    ("trade", "price"),
    ("preview", "quantity"),
    ("preview", "price"),
    ("mark price", "price"),
    ("deposit", "amount"),
    ("withdrawal", "amount"),
    ("contribution", "amount"),
]
SYMBOLS = ["trade", "preview", "mark price", "funding"]
SWITCHES = ["engine switch", "symbol switch", "account switch"]
PATHS = [
    *("/positions/{}", "/trades/{}", "/funding/{}", "/controls/accounts/{}"),
    *("/accounts/{}/deposits", "/accounts/{}/withdrawals", "/accounts/{}/insurance-contributions"),
]


@pytest.mark.parametrize("route", ROUTES)
def test_the_good_request_that_the_bad_ones_are_made_of_is_accepted(furnished: Exchange, route: str) -> None:
    assert ROUTES[route].send(furnished).status == 200


def test_every_route_of_the_api_is_here() -> None:
    documented = {
        (method.upper(), path.replace("{account_id}", "7").replace("{symbol}", "BTC-PERP"))
        for path, methods in make_application().openapi()["paths"].items()
        for method in methods
    }
    assert {(route.method, route.path) for route in ROUTES.values()} == documented


def test_what_is_compared_before_and_after_sees_a_write(furnished: Exchange) -> None:
    keys, rows = furnished.stores.contents()
    assert WRITES["deposit"].send(furnished).status == 200
    assert (furnished.stores.keys() != keys, furnished.stores.rows() != rows) == (True, True)
    keys, rows = furnished.stores.contents()
    assert WRITES["mark price"].send(furnished).status == 200
    assert (furnished.stores.keys() != keys, furnished.stores.rows() != rows) == (True, False)


# --- fields ---

NOT_MONEY = {
    "true": "true",
    "null": "null",
    "an array": "[1]",
    "an object": '{"a": 1}',
    "a word": '"ten"',
    "an empty string": '""',
    "zero": "0",
    "zero as a string": '"0.00"',
    "negative": "-1",
    "negative as a string": '"-0.00000001"',
    "NaN as a string": '"NaN"',
    "Infinity as a string": '"Infinity"',
    "-Infinity as a string": '"-Infinity"',
    "1e400": "1e400",
    "1e400 as a string": '"1e400"',
    "1e-400": "1e-400",
    "40 digits": "1234567890123456789012345678901234567890",
    "40 digits as a string": '"1234567890123456789012345678901234567890"',
    "40 digits, most of them decimals": "1.234567890123456789012345678901234567890",
    "nine decimals": "0.123456789",
    "nine decimals as a string": '"0.123456789"',
    "one trillion": "1000000000000",
}


@pytest.mark.parametrize(("route", "field"), MONEY)
@pytest.mark.parametrize("text", NOT_MONEY.values(), ids=NOT_MONEY)
def test_what_is_no_amount_is_refused_by_name(unchanged: Exchange, route: str, field: str, text: str) -> None:
    assert_problem(WRITES[route].send(unchanged, **{field: text}), 422, "INVALID_REQUEST", field)


@pytest.mark.parametrize(("route", "field"), MONEY)
@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_json_does_not_have_is_refused(unchanged: Exchange, route: str, field: str, text: str) -> None:
    detail = assert_problem(WRITES[route].send(unchanged, **{field: text}), 422, "INVALID_REQUEST", "body")
    assert "finite" in detail


NOT_A_SYMBOL = {
    "empty": "",
    "10 kB": "A" * 10_240,
    "a colon": "BTC:PERP",
    "an asterisk": "BTC*",
    "an opening brace": "{BTC",
    "a closing brace": "BTC}",
    "a newline": "BTC\n",
    "a newline in the middle": "BTC\nPERP",
    "a null character": "BTC\0",
    "lower case": "btc-perp",
    "Cyrillic": "\u0412\u0422\u0421",
}


@pytest.mark.parametrize("route", SYMBOLS)
@pytest.mark.parametrize("symbol", NOT_A_SYMBOL.values(), ids=NOT_A_SYMBOL)
def test_what_is_no_symbol_is_refused_by_name(unchanged: Exchange, route: str, symbol: str) -> None:
    reply = WRITES[route].send(unchanged, symbol=json.dumps(symbol))
    assert_problem(reply, 422, "INVALID_REQUEST", "symbol")


@pytest.mark.parametrize("route", SYMBOLS)
@pytest.mark.parametrize("text", ["1", "true", "null", '["BTC-PERP"]', '{"a": "BTC-PERP"}'])
def test_a_symbol_of_another_type_is_refused_by_name(unchanged: Exchange, route: str, text: str) -> None:
    assert_problem(WRITES[route].send(unchanged, symbol=text), 422, "INVALID_REQUEST", "symbol")


@pytest.mark.parametrize("symbol", NOT_A_SYMBOL.values(), ids=NOT_A_SYMBOL)
def test_what_is_no_symbol_in_the_query_is_refused_by_name(unchanged: Exchange, symbol: str) -> None:
    reply = unchanged.call("GET", "/trades/7", query={"symbol": symbol})
    assert_problem(reply, 422, "INVALID_REQUEST", "query.symbol")


@pytest.mark.parametrize("text", ['"buy"', '"HOLD"', '""', '"BUY "', "1", "true", "null", '["BUY"]'])
def test_an_unknown_side_is_refused_by_name(unchanged: Exchange, text: str) -> None:
    assert_problem(WRITES["trade"].send(unchanged, side=text), 422, "INVALID_REQUEST", "side")


@pytest.mark.parametrize("text", ['"true"', '"false"', "1", "0", "null", '"yes"', "[true]"])
def test_reduce_only_that_is_no_boolean_is_refused(unchanged: Exchange, text: str) -> None:
    assert_problem(WRITES["trade"].send(unchanged, reduce_only=text), 422, "INVALID_REQUEST", "reduce_only")


@pytest.mark.parametrize("text", ['"maker"', '"BOTH"', '""', "null", "1", '["MAKER"]'])
def test_liquidity_that_is_none_is_refused(unchanged: Exchange, text: str) -> None:
    assert_problem(WRITES["trade"].send(unchanged, liquidity=text), 422, "INVALID_REQUEST", "liquidity")


CLIENT_ORDER_IDS = {
    "empty": '""',
    "65 characters": f'"{"a" * 65}"',
    "a line break inside": r'"a\nb"',
    "a line break at the end": r'"a\n"',
    "a tab": r'"a\tb"',
    "NUL": r'"a\u0000b"',
    "DEL": r'"a\u007fb"',
    "beyond ASCII": '"caf\u00e9"',
    "a number": "17",
    "a boolean": "true",
    "an array": '["a"]',
}


@pytest.mark.parametrize("text", CLIENT_ORDER_IDS.values(), ids=list(CLIENT_ORDER_IDS))
def test_client_order_id_of_another_form_is_refused(unchanged: Exchange, text: str) -> None:
    assert_problem(WRITES["trade"].send(unchanged, client_order_id=text), 422, "INVALID_REQUEST", "client_order_id")


@pytest.mark.parametrize("text", ["a", " ", "~" * 64, r'"quoted" \ and <b>', "1e5"])
def test_client_order_id_of_any_printable_characters_comes_back_as_it_went(furnished: Exchange, text: str) -> None:
    reply = WRITES["trade"].send(furnished, client_order_id=json.dumps(text), quantity="0.00000001")
    assert (reply.status, reply.json["client_order_id"]) == (200, text)
    assert furnished.get("/trades/7", limit=1)["trades"][0]["client_order_id"] == text


@pytest.mark.parametrize("symbol", NOT_A_SYMBOL.values(), ids=NOT_A_SYMBOL)
def test_what_is_no_symbol_in_the_path_is_refused_by_name(unchanged: Exchange, symbol: str) -> None:
    good = WRITES["symbol switch"]
    reply = Route(good.method, f"/controls/symbols/{quote(symbol)}", good.fields).send(unchanged)
    if symbol:
        assert_problem(reply, 422, "INVALID_REQUEST", "path.symbol")
    else:
        assert_problem(reply, 404, "UNKNOWN_PATH")


@pytest.mark.parametrize("route", SWITCHES)
@pytest.mark.parametrize("text", ['"Paused"', '"reduce_only"', '""', '"paused "', "1", "true", "null", '["paused"]'])
def test_an_unknown_state_is_refused_by_name(unchanged: Exchange, route: str, text: str) -> None:
    assert_problem(WRITES[route].send(unchanged, state=text), 422, "INVALID_REQUEST", "state")


NOT_A_REASON = {
    "empty": "",
    "a space": " ",
    "a space before it": " because",
    "two lines": "because\nof this",
    "a null character": "because\0",
    "501 characters": "x" * 501,
}


@pytest.mark.parametrize("route", SWITCHES)
@pytest.mark.parametrize("reason", NOT_A_REASON.values(), ids=NOT_A_REASON)
def test_what_is_no_reason_is_refused_by_name(unchanged: Exchange, route: str, reason: str) -> None:
    reply = WRITES[route].send(unchanged, reason=json.dumps(reason))
    assert_problem(reply, 422, "INVALID_REQUEST", "reason")


SOURCES = {
    "a number": "1",
    "null": "null",
    "a list": '["index-1"]',
    "nothing": '""',
    "too long": '"' + "x" * 65 + '"',
    "a letter with an accent": r'"caf\u00e9"',
    "a line feed": r'"a\n"',
    "a zero byte": r'"\u0000"',
    "DEL": r'"\u007f"',
}


@pytest.mark.parametrize("text", SOURCES.values(), ids=SOURCES)
def test_what_is_no_source_is_refused_by_name(unchanged: Exchange, text: str) -> None:
    assert_problem(WRITES["mark price"].send(unchanged, source=text), 422, "INVALID_REQUEST", "source")
    entry = f'[{{"symbol": "BTC-PERP", "price": 50000, "source": {text}}}]'
    assert_problem(WRITES["mark prices"].send(unchanged, prices=entry), 422, "INVALID_REQUEST", "prices.0.source")


NOT_AN_ACCOUNT = ["0", "-1", str(2**63), "true", "1.0", "1e0", "01", "1:2", "\u0661", "1" * 40, "seven"]


@pytest.mark.parametrize("account", NOT_AN_ACCOUNT)
def test_what_is_no_account_as_a_string_is_refused_by_name(unchanged: Exchange, account: str) -> None:
    reply = WRITES["trade"].send(unchanged, account_id=json.dumps(account))
    assert_problem(reply, 422, "INVALID_REQUEST", "account_id")


@pytest.mark.parametrize("text", ["0", "-1", str(2**63), "true", "1.0", "1e0", "null", '""', "[7]", "{}", "1" * 40])
def test_what_is_no_account_in_the_body_is_refused_by_name(unchanged: Exchange, text: str) -> None:
    assert_problem(WRITES["trade"].send(unchanged, account_id=text), 422, "INVALID_REQUEST", "account_id")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("account", [*NOT_AN_ACCOUNT, " 7", "7\n", "7\0", "{7}", "*"])
def test_what_is_no_account_in_the_path_is_refused_by_name(unchanged: Exchange, path: str, account: str) -> None:
    (good,) = (route for route in ROUTES.values() if route.path == path.format(7))
    reply = Route(good.method, path.format(quote(account)), good.fields).send(unchanged)
    assert_problem(reply, 422, "INVALID_REQUEST", "path.account_id")


@pytest.mark.parametrize("account", [*NOT_AN_ACCOUNT, ""])
def test_what_is_no_account_in_the_query_is_refused_by_name(unchanged: Exchange, account: str) -> None:
    reply = unchanged.call("GET", "/liquidations", query={"account_id": account})
    assert_problem(reply, 422, "INVALID_REQUEST", "query.account_id")


FIELDS = [(name, field) for name, route in WRITES.items() for field in route.fields or ()]


@pytest.mark.parametrize(("route", "field"), FIELDS)
def test_a_missing_field_is_refused_by_name(unchanged: Exchange, route: str, field: str) -> None:
    good = WRITES[route]
    fields = {name: text for name, text in (good.fields or {}).items() if name != field}
    reply = Route(good.method, good.path, fields).send(unchanged)
    assert "required" in assert_problem(reply, 422, "INVALID_REQUEST", field)


@pytest.mark.parametrize(("route", "field"), FIELDS)
def test_a_field_given_twice_is_refused_by_name(unchanged: Exchange, route: str, field: str) -> None:
    good = WRITES[route]
    text = f'{good.text()[:-1]}, "{field}": {(good.fields or {})[field]}}}'
    reply = unchanged.call(good.method, good.path, text)
    assert "twice" in assert_problem(reply, 422, "INVALID_REQUEST", field)


@pytest.mark.parametrize("route", WRITES)
def test_an_unknown_field_is_refused_by_name(unchanged: Exchange, route: str) -> None:
    reply = WRITES[route].send(unchanged, leverage="10")
    assert_problem(reply, 422, "INVALID_REQUEST", "leverage")


# --- bodies ---

NO_BODIES = {
    "nothing": "",
    "a space": " ",
    "not JSON": "{account_id: 7}",
    "half of it": '{"amount": ',
    "null": "null",
    "a number": "1",
    "a number with decimals": "1.5",
    "a string": '"text"',
    "an array": "[]",
    "10000 arrays": "[" * 10_000 + "]" * 10_000,
    "5000 objects": '{"a": ' * 5000 + "1" + "}" * 5000,
    "half a surrogate pair": r'{"amount": "\ud800"}',
}


@pytest.mark.parametrize("route", WRITES)
@pytest.mark.parametrize("text", NO_BODIES.values(), ids=NO_BODIES)
def test_what_is_no_json_object_is_refused(unchanged: Exchange, route: str, text: str) -> None:
    reply = unchanged.call(WRITES[route].method, WRITES[route].path, text)
    assert_problem(reply, 422, "INVALID_REQUEST", "body")


@pytest.mark.parametrize("route", WRITES)
def test_a_deeply_nested_field_is_refused(unchanged: Exchange, route: str) -> None:
    reply = WRITES[route].send(unchanged, deep="[" * 5000 + "]" * 5000)
    assert "nested" in assert_problem(reply, 422, "INVALID_REQUEST", "body")


@pytest.mark.parametrize("route", WRITES)
def test_bytes_that_are_not_utf_8_are_refused(unchanged: Exchange, route: str) -> None:
    reply = unchanged.call(WRITES[route].method, WRITES[route].path, b'{"\xff": 1}', base64=True)
    assert "UTF-8" in assert_problem(reply, 422, "INVALID_REQUEST", "body")


@pytest.mark.parametrize("route", WRITES)
def test_two_megabytes_are_refused(unchanged: Exchange, route: str) -> None:
    reply = WRITES[route].send(unchanged, padding='"' + "x" * 2_000_000 + '"')
    assert_problem(reply, 413, "BODY_TOO_LARGE")


@pytest.mark.parametrize("route", WRITES)
@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16", ""]
)
def test_a_body_not_declared_as_json_is_refused(unchanged: Exchange, route: str, content_type: str) -> None:
    good = WRITES[route]
    reply = unchanged.call(good.method, good.path, good.text(), headers={"Content-Type": content_type})
    assert "Content-Type" in assert_problem(reply, 415, "UNSUPPORTED_MEDIA_TYPE")


# --- methods, paths, parameters, headers ---


METHODS = {
    route.path: sorted(other.method for other in ROUTES.values() if other.path == route.path)
    for route in ROUTES.values()
}
WRONG_METHODS = [
    (name, method)
    for name, route in ROUTES.items()
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
    if method not in METHODS[route.path]
]


@pytest.mark.parametrize(("route", "method"), WRONG_METHODS)
def test_another_method_is_405_and_names_the_right_ones(unchanged: Exchange, route: str, method: str) -> None:
    good = ROUTES[route]
    reply = unchanged.call(method, good.path, good.text() if good.fields else None)
    assert good.method in assert_problem(reply, 405, "METHOD_NOT_ALLOWED")
    assert reply.headers["allow"] == ", ".join(METHODS[good.path])


@pytest.mark.parametrize("function", HANDLERS)
@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/trade/", "/Trade", "/positions", "/positions/7/x", "/accounts/7", "//trade", "/redoc"]
)
def test_an_unknown_path_is_404_in_every_function(unchanged: Exchange, function: str, path: str) -> None:
    for method in ("GET", "POST"):
        assert_problem(unchanged.call(method, path, function=function), 404, "UNKNOWN_PATH")


@pytest.mark.parametrize("function", sorted(HANDLERS.keys() - {"health"}))
@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_only_the_function_of_health_serves_the_api_document(unchanged: Exchange, function: str, path: str) -> None:
    assert_problem(unchanged.call("GET", path, function=function), 404, "UNKNOWN_PATH")
    assert unchanged.call("GET", path, function="health").status == 200


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("query", ["dry_run=true", "Limit=1", "%00=1", "=1"])
def test_an_unknown_query_parameter_is_refused_by_name(unchanged: Exchange, route: str, query: str) -> None:
    good = ROUTES[route]
    reply = unchanged.call(good.method, good.path, good.text() if good.fields else None, query=query)
    name = query.split("=", maxsplit=1)[0]
    assert_problem(reply, 422, "INVALID_REQUEST", f"query.{name if name.isidentifier() else '?'}")


PAGED = ("report", "trades", "past marks", "funding of an account", "funding rates", "liquidations", "controls")


@pytest.mark.parametrize("route", PAGED)
@pytest.mark.parametrize("limit", ["0", "-1", "1001", "1.0", "1e2", "ten", "", "9" * 40, "true"])
def test_a_bad_limit_is_refused_by_name(unchanged: Exchange, route: str, limit: str) -> None:
    reply = unchanged.call("GET", GETS[route].path, query={"limit": limit})
    assert_problem(reply, 422, "INVALID_REQUEST", "query.limit")


@pytest.mark.parametrize("route", PAGED)
@pytest.mark.parametrize("cursor", ["", "a b", "a/b", "../..", "*", "{}", "\n", "x" * 513])
def test_what_cannot_be_a_cursor_is_refused_by_name(unchanged: Exchange, route: str, cursor: str) -> None:
    reply = unchanged.call("GET", GETS[route].path, query={"cursor": cursor})
    assert_problem(reply, 422, "INVALID_REQUEST", "query.cursor")


def cursor_of(*values: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


FORGED = {
    "noise": "abc",
    "one letter": "a",
    "not JSON": base64.urlsafe_b64encode(b"{").decode().rstrip("="),
    "deep": base64.urlsafe_b64encode(b"[" * 300).decode().rstrip("="),
    "empty": cursor_of(),
    "another kind": cursor_of("events", 1),
    "another account": cursor_of("trades:8", 1),
    "no values": cursor_of("trades:7"),
    "negative": cursor_of("trades:7", -1),
    "2^63": cursor_of("trades:7", 2**63),
    "text for a number": cursor_of("trades:7", "1"),
    "a boolean": cursor_of("liquidations", True, True),
    "a float": cursor_of("liquidations", 1.5, 1),
    "a year beyond all calendars": cursor_of("liquidations", 2**63 - 1, 1),
    "the year 10000": cursor_of("liquidations", 253402300800000000, 1),
    "another's key": cursor_of("report", "x:y", 0),
    "a snapshot in another script": cursor_of("report", "\u0661", 0),
    "no text for a snapshot": cursor_of("report", 1, 0),
    "a null character for a name": cursor_of("controls", "\0"),
    "half a surrogate pair for a name": cursor_of("controls", "\ud800"),
    "funding of another account": cursor_of("funding:8", 1, 1),
    "funding without a place": cursor_of("funding:7", 1),
    "a rate of the year 10000": cursor_of("funding-rates:", 253402300800000000, "BTC-PERP", 1),
    "a null character for a rate's symbol": cursor_of("funding-rates:", 1, "\0", 1),
    "rates of one symbol": cursor_of("funding-rates:BTC-PERP", 1, "BTC-PERP", 1),
}


@pytest.mark.parametrize("route", PAGED)
@pytest.mark.parametrize("cursor", FORGED.values(), ids=FORGED)
def test_a_cursor_that_no_answer_ever_held_is_refused(unchanged: Exchange, route: str, cursor: str) -> None:
    reply = unchanged.call("GET", GETS[route].path, query={"cursor": cursor})
    if reply.status == 404:
        assert_problem(reply, 404, "SNAPSHOT_EXPIRED")
    else:
        assert_problem(reply, 400, "CURSOR_INVALID")


def test_a_cursor_of_another_endpoint_is_refused(furnished: Exchange) -> None:
    cursors = {
        "report": furnished.get("/margin-report", limit=1)["next_cursor"],
        "trades": furnished.get("/trades/7", limit=1)["next_cursor"],
    }
    before = furnished.stores.contents()
    for made_by, cursor in cursors.items():
        for route in set(PAGED) - {made_by}:
            reply = furnished.call("GET", GETS[route].path, query={"cursor": cursor})
            assert_problem(reply, 400, "CURSOR_INVALID")
    reply = furnished.call("GET", "/trades/8", query={"cursor": cursors["trades"]})
    assert_problem(reply, 400, "CURSOR_INVALID")
    assert furnished.stores.contents() == before


@pytest.mark.parametrize("name", ["since", "until"])
@pytest.mark.parametrize(
    "moment",
    [
        *("", "now", "0", "1769860800", "2026-01-31", "2026-01-31T12:00:00", "2026-02-30T12:00:00Z", "NaN"),
        *("2026-01-31T12:00:00+99:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "9" * 5000),
    ],
)
def test_a_bad_timestamp_is_refused_by_name(unchanged: Exchange, name: str, moment: str) -> None:
    reply = unchanged.call("GET", "/trades/7", query={name: moment})
    assert_problem(reply, 422, "INVALID_REQUEST", f"query.{name}")


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00Z", "1969-12-31T23:59:59.999999Z", "9999-12-31T23:59:59Z"])
def test_timestamps_at_the_ends_of_the_calendar_are_answered(unchanged: Exchange, moment: str) -> None:
    for name in ("since", "until"):
        assert unchanged.call("GET", "/trades/7", query={name: moment}).status == 200


@pytest.mark.parametrize("route", WITH_KEY)
@pytest.mark.parametrize("key", ["", " ", "-a", "~liquidation:1:1", "a b", "a\tb", "a*", "{a}", "\xe9", "x" * 129])
def test_a_bad_idempotency_key_is_refused_by_name(unchanged: Exchange, route: str, key: str) -> None:
    good = WRITES[route]
    reply = unchanged.call(good.method, good.path, good.text(), headers={"Idempotency-Key": key})
    assert_problem(reply, 422, "INVALID_REQUEST", "header.Idempotency-Key")


# --- what rules refuse ---


@pytest.mark.parametrize("route", ["trade", "withdrawal", "positions", "trades"])
def test_an_unknown_account_is_404_and_is_not_opened(unchanged: Exchange, route: str) -> None:
    good = ROUTES[route]
    path = good.path.replace("7", "9223372036854775807")
    fields = (
        None
        if good.fields is None
        else {**good.fields, **{k: str(2**63 - 1) for k in good.fields if k == "account_id"}}
    )
    assert_problem(Route(good.method, path, fields).send(unchanged), 404, "UNKNOWN_ACCOUNT")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"account_id": "8", "quantity": "1"}, "INSUFFICIENT_MARGIN"),
        ({"price": "60000.00000001"}, "OUTSIDE_PRICE_BAND"),
        ({"symbol": '"DOGE-PERP"'}, "NO_MARK_PRICE"),
        ({"quantity": "999999999999", "price": "60000"}, "INSUFFICIENT_MARGIN"),
        ({"quantity": "999999999999.99999999", "price": "60000"}, "LIMIT_EXCEEDED"),
    ],
)
def test_a_refused_trade_is_400_with_its_code(unchanged: Exchange, changes: dict[str, str], code: str) -> None:
    assert_problem(WRITES["trade"].send(unchanged, **changes), 400, code)


def test_a_withdrawal_of_more_than_is_withdrawable_is_400(unchanged: Exchange) -> None:
    reply = WRITES["withdrawal"].send(unchanged, amount="100000")
    assert_problem(reply, 400, "INSUFFICIENT_WITHDRAWABLE")
