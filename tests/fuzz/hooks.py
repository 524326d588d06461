"""What Schemathesis loads: requests that lead further than chance would, and checks of our own."""

from __future__ import annotations

import itertools
import json
import re
import zlib
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import schemathesis

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schemathesis import Case, CheckContext, HookContext, Response

ACCOUNTS = (1, 2, 3)
SYMBOLS = ("BTC-PERP", "ETH-PERP")
MARKS = {"BTC-PERP": "50000", "ETH-PERP": "3000"}
"""What `tests.fuzz.engine` furnishes an engine with."""

ACCOUNT_MAX = 2**63 - 1
_SYMBOL = re.compile(r"[A-Z0-9][A-Z0-9._-]{0,31}")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_DECIMAL = re.compile(r"-?[0-9.eE+-]+")
_keys = itertools.count(1)
# Of every hundred requests this many are about what exists.
_KNOWN_OF_100 = 80

# What the descriptions say and JSON Schema cannot: 1e3 is 1000 and has no decimals, 0.00e5 is nothing.
_NO_DECIMALS = {"account_id", "symbol", "name", "source", "client_order_id", "reason"}
_LIMIT = r"(at least|at most|less than|greater than) -?[0-9.]+"
UNSAID = (
    re.compile(rf"must be {_LIMIT}( and {_LIMIT})?"),
    re.compile(r"must be (a share of the mark price )?from -?[0-9.]+ to [0-9.]+"),
    # 7.0 is a whole number to JSON Schema, and beyond 2^63 the document's generator would write a wrong limit.
    re.compile(r"must be a whole number from 1 to 9223372036854775807"),
    re.compile(r"must have at most 8 decimals"),
    re.compile(r"must name each symbol once"),
    re.compile(r"must have names of their own"),
)
AHEAD = re.compile(r"may be at most \d+ s ahead")
"""Of a timestamp, which no schema compares with the clock."""


@schemathesis.hook
def before_call(ctx: HookContext, case: Case[Any], **_: Any) -> None:
    """Turn numbers and symbols that exist nowhere into ones that do, most of the time; what is malformed stays so."""
    creates = case.method == "PUT" and case.path.startswith("/instruments")
    for place in (case.path_parameters, case.query, case.body):
        if isinstance(place, dict):
            _lead(place, creates=creates)
    # What is made to be refused stays so: Schemathesis would take it for right as soon as its headers are touched.
    if case.meta is not None and case.meta.generation.mode.is_positive:
        _set_new_key(case)
        _forget_cursor(case)
        case.body = _with_fine_decimals(case.body)


def _set_new_key(case: Case[Any]) -> None:
    """Give a request a key of its own, most of the time: one that was used before is refused, whatever it asks for."""
    number = next(_keys)
    if not case.headers:
        return
    key = case.headers.get("Idempotency-Key")
    if isinstance(key, str) and _KEY.fullmatch(key) and number % 100 < _KNOWN_OF_100:
        case.headers["Idempotency-Key"] = f"fuzz-{number}"


def _forget_cursor(case: Case[Any]) -> None:
    """Ask for a first page, half of the time: a cursor that no answer held is refused."""
    cursor = (case.query or {}).get("cursor")
    if isinstance(cursor, str) and zlib.crc32(cursor.encode()) % 2:
        del case.query["cursor"]


def _lead(fields: dict[str, Any], *, creates: bool) -> None:
    account, symbol = fields.get("account_id"), fields.get("symbol")
    if _is_account(account) and int(str(account)) % 100 < _KNOWN_OF_100:
        known = ACCOUNTS[int(str(account)) % len(ACCOUNTS)]
        fields["account_id"] = known if isinstance(account, int) else str(known)
    if not (isinstance(symbol, str) and _SYMBOL.fullmatch(symbol)):
        return
    drawn = sum(symbol.encode())
    if creates:
        # The rules that it would be given are of no use to those who trade it.
        fields["symbol"] = "NEW-PERP" if symbol in SYMBOLS else symbol
    elif drawn % 100 < _KNOWN_OF_100:
        fields["symbol"] = SYMBOLS[drawn % len(SYMBOLS)]


def _with_fine_decimals(value: Any) -> Any:
    """Put decimals that the engine can keep in the place of those that a pattern draws, with hundreds of digits."""
    if isinstance(value, dict):
        fine = {name: _with_fine_decimals(field) for name, field in value.items() if name not in _NO_DECIMALS}
        mark = MARKS.get(str(value.get("symbol")))
        if mark is not None and "price" in fine:
            # Near the mark that is in force; one of another time would be older.
            drawn = zlib.crc32(repr(value).encode())
            fine["price"] = str(int(mark) * (95 + drawn % 10) // 100)
            if drawn % 100 < _KNOWN_OF_100:
                value = {name: field for name, field in value.items() if name != "timestamp"}
                fine.pop("timestamp", None)
        return {**value, **fine}
    if isinstance(value, list):
        return [_with_fine_decimals(item) for item in value]
    drawn = zlib.crc32(repr(value).encode())
    if not _is_decimal(value) or isinstance(value, int) or drawn % 100 >= _KNOWN_OF_100:
        return value
    share = Decimal(drawn % 10**8 or 1).scaleb(-8)
    return format(share, "f") if isinstance(value, str) else float(share)


def _is_account(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | str):
        return False
    return re.fullmatch(r"[1-9][0-9]{0,18}", str(value)) is not None and int(value) <= ACCOUNT_MAX


def _is_decimal(value: Any) -> bool:
    if isinstance(value, str):
        return _DECIMAL.fullmatch(value) is not None
    return isinstance(value, int | float) and not isinstance(value, bool)


@schemathesis.check
def refusals_say_what_the_schema_cannot(ctx: CheckContext, response: Response, case: Case[Any]) -> None:
    """A request that fits the schema is malformed only by a rule that no schema can express."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if response.status_code not in (400, 422):
        return
    problem = response.json()
    if response.status_code == 400:
        assert problem["code"] != "INVALID_REQUEST", "a malformed request is 422"
        return
    if AHEAD.search(problem["detail"]):
        return
    unexplained = [message for message in _messages(problem) if not any(rule.fullmatch(message) for rule in UNSAID)]
    assert unexplained == [], f"the schema allows this and the engine does not: {unexplained}"


def _messages(problem: dict[str, Any]) -> Iterator[str]:
    if "errors" in problem:
        yield from (error["message"] for error in problem["errors"])
    else:
        yield problem["detail"].partition(": ")[2].rstrip(".")


@schemathesis.check
def problems_are_complete(ctx: CheckContext, response: Response, case: Case[Any]) -> None:
    """Every error has a code, repeats its status, and carries the request id of its header."""
    if response.status_code < 400:
        return
    kind = response.headers.get("content-type", [""])[0]
    assert kind == "application/problem+json", kind
    problem = response.json()
    assert problem["status"] == response.status_code
    assert problem["code"]
    assert problem["request_id"] == response.headers["x-request-id"][0]


@schemathesis.check
def numbers_are_strings(ctx: CheckContext, response: Response, case: Case[Any]) -> None:
    """No answer holds a float, which would not be exact."""
    if response.headers.get("content-type", [""])[0].startswith("application/json"):
        json.loads(response.content, parse_float=_refuse)


def _refuse(text: str) -> float:
    message = f"{text} is a float in an answer"
    raise AssertionError(message)


@schemathesis.check
def headers_of_refusals_are_there(ctx: CheckContext, response: Response, case: Case[Any]) -> None:
    """401 says how to authenticate, 405 what is allowed, 429 and 503 when to come back."""
    needed = {401: "www-authenticate", 405: "allow", 429: "retry-after", 503: "retry-after"}.get(response.status_code)
    assert needed is None or needed in response.headers, f"{needed} is missing"
