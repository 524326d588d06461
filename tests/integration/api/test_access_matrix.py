"""Every operation with every kind of token: exactly the right answers, and nothing is done for those that are wrong."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from margin_local.tokens.authenticator import TokenAuthenticator
from margin_local.tokens.key_set import DocumentError, KeySet
from tests.access_table import CALLS, GUARDED, OF_ALL_ACCOUNTS, OF_AN_ACCOUNT, PRICE, SCOPED, SCOPES, SYMBOL, Call, Of
from tests.integration.api.exchange import PROBLEM_FIELDS, Exchange, Reply
from tests.integration.api.local_api import PEER, LocalApi
from tests.tokens import POLICY, REFUSED, FixedKeys, claims, key_set, token

if TYPE_CHECKING:
    from collections.abc import Iterator

    from margin.config import Settings
    from tests.integration.api.stores import Stores

OWN, ANOTHERS, NOBODYS = 7, 8, 999
ACCOUNTS_MAX = 200


class House:
    """The local application over real stores, which two accounts trade on."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.api = LocalApi(TokenAuthenticator(FixedKeys(key_set()), POLICY))

    def send(self, call: Call, account_id: int = OWN, body: Any = None, **token_claims: Any) -> Reply:
        """Send the call about an account, with a genuine token that has these claims besides."""
        content = call.content(account_id) if body is None else body
        bearer = f"Bearer {token(claims(**token_claims))}"
        return self.api.call(call.method, call.url(account_id), content, authorization=[bearer])

    def post(self, url: str, body: Any, *, key: str = "", **token_claims: Any) -> Reply:
        return self.api.call("POST", url, body, authorization=[f"Bearer {token(claims(**token_claims))}"], key=key)


@pytest.fixture(scope="module")
def house(api_settings: Settings, stores: Stores) -> Iterator[House]:
    exchange = Exchange(api_settings, stores)
    exchange.start()
    exchange.mark(SYMBOL, PRICE)
    for account_id in (OWN, ANOTHERS):
        exchange.deposit(account_id, "100000")
        exchange.trade(account_id, "BUY", "0.1", PRICE)
    yield House(exchange)
    exchange.stop()


@pytest.fixture
def untouched(house: House) -> Iterator[House]:
    """Yield the house, and see to it that the test writes nothing to either store."""
    before = house.exchange.stores.contents()
    yield house
    assert house.exchange.stores.contents() == before


def right(call: Call) -> dict[str, str]:
    """Claims that just suffice for a call about `OWN`."""
    accounts = {Of.ACCOUNT: str(OWN), Of.ALL_ACCOUNTS: "*"}.get(call.of)
    allowed = {"scope": min(call.scopes)} if call.scopes else {}
    return allowed | ({} if accounts is None else {"account_ids": accounts})


def problem(reply: Reply, status: int, code: str) -> str:
    """Check an error answer in full and return its sentence."""
    assert (reply.status, reply.json["status"], reply.json["code"]) == (status, status, code), reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert set(reply.json) == PROBLEM_FIELDS
    assert reply.json["request_id"] == reply.headers["x-request-id"]
    assert ("www-authenticate" in reply.headers) is (status == 401)
    return str(reply.json["detail"])


def by_name(value: object) -> str | None:
    return value.name if isinstance(value, Call) else None


# --- the table is whole ---


def test_every_route_is_in_the_table(house: House) -> None:
    documented = {
        (method.upper(), path) for path, methods in house.api.app.openapi()["paths"].items() for method in methods
    }
    others = {
        (method, route.path)
        for route in house.api.app.routes
        for method in getattr(route, "methods", None) or ()
        if hasattr(route, "path") and method != "HEAD"
    }
    assert documented | others == {(call.method, call.path) for call in CALLS}


# --- who is it? ---


@pytest.mark.parametrize("call", GUARDED, ids=by_name)
def test_nobody_is_401(untouched: House, call: Call) -> None:
    for name, (words, make) in REFUSED.items():
        values = make(claims(scope=" ".join(SCOPES), account_ids="*"))
        reply = untouched.api.call(call.method, call.url(OWN), call.content(OWN), authorization=values)
        assert words in problem(reply, 401, "UNAUTHENTICATED"), name
        assert reply.headers["www-authenticate"] == "Bearer", name


@pytest.mark.parametrize("name", ["no header", "expired", "alg none"])
def test_health_is_for_everybody(untouched: House, name: str) -> None:
    reply = untouched.api.call("GET", "/health", authorization=REFUSED[name][1](claims()))
    assert (reply.status, reply.json) == (200, {"status": "healthy"})


def test_nothing_of_a_token_is_logged(house: House, log: list[dict[str, Any]]) -> None:
    everything = []
    for _, make in REFUSED.values():
        values = make(claims(scope="admin", account_ids="*", sub="a-subject-that-is-not-for-the-log"))
        everything += [part for value in values for part in re.split(r"[ .]", value) if len(part) > 8]
        house.api.call("GET", "/controls", authorization=values)
    lines = "\n".join(map(str, log))
    assert [part for part in everything if part in lines] == []
    assert "a-subject-that-is-not-for-the-log" not in lines


@pytest.mark.parametrize("call", GUARDED, ids=by_name)
def test_while_the_issuers_keys_were_never_had_nobody_is_judged(untouched: House, call: Call) -> None:
    def unreachable() -> bytes:
        raise DocumentError("it cannot be reached")

    api = LocalApi(TokenAuthenticator(KeySet(unreachable), POLICY))
    reply = api.call(call.method, call.url(OWN), call.content(OWN), authorization=[f"Bearer {token(**right(call))}"])
    problem(reply, 503, "KEYS_UNAVAILABLE")
    assert reply.headers["retry-after"] == "1"
    assert api.call("GET", "/health").status == 200


# --- may it? ---


@pytest.mark.parametrize("call", SCOPED, ids=by_name)
def test_all_other_scopes_are_403_whatever_the_body_is(untouched: House, call: Call) -> None:
    others = " ".join(SCOPES - call.scopes)
    bodies = [None] if call.body is None else [None, b"{", b"", b'{"account_id": "x"}', b" " * 300_000]
    for scope in (others, "", f"margin/{min(call.scopes)}", min(call.scopes).upper(), "admin:" + min(call.scopes)):
        for body in bodies:
            reply = untouched.send(call, body=body, scope=scope, account_ids="*")
            detail = problem(reply, 403, "FORBIDDEN")
            assert all(f"the scope {named}" in detail for named in call.scopes)


@pytest.mark.parametrize("call", OF_ALL_ACCOUNTS, ids=by_name)
@pytest.mark.parametrize("accounts", [str(OWN), f"{OWN} {ANOTHERS}", "", None])
def test_some_accounts_are_not_all(untouched: House, call: Call, accounts: str | None) -> None:
    reply = untouched.send(call, **{**right(call), "account_ids": accounts})
    assert "account_id" in problem(reply, 403, "FORBIDDEN")


@pytest.mark.parametrize("call", OF_AN_ACCOUNT, ids=by_name)
def test_anothers_account_is_404_as_one_that_does_not_exist(untouched: House, call: Call) -> None:
    replies = {
        (account_id, accounts): untouched.send(call, account_id, **{**right(call), "account_ids": accounts})
        for account_id in (ANOTHERS, NOBODYS)
        for accounts in (str(OWN), "", None)
    }
    for (account_id, _), reply in replies.items():
        assert (
            problem(reply, 404, "UNKNOWN_ACCOUNT")
            == f"Account {account_id} does not exist; the first deposit opens it."
        )
    assert len({_without_identity(reply) for reply in replies.values()}) == 1


# Deposits and switches make what they name, and a list can be empty.
EXISTING_ONLY = tuple(
    call
    for call in OF_AN_ACCOUNT
    if call.path not in {"/accounts/{account_id}/deposits", "/controls/accounts/{account_id}", "/liquidations"}
)


@pytest.mark.parametrize("call", EXISTING_ONLY, ids=by_name)
def test_anothers_account_is_answered_as_the_engine_answers_for_none(untouched: House, call: Call) -> None:
    really_none = untouched.send(call, NOBODYS, **{**right(call), "account_ids": "*"})
    hidden = untouched.send(call, ANOTHERS, **right(call))
    assert _without_identity(really_none) == _without_identity(hidden)


def _without_identity(reply: Reply) -> str:
    """Status, headers and body, but for the request's id and the account's number, whose digits are counted."""
    identity = reply.headers["x-request-id"]
    headers = {name: value for name, value in reply.headers.items() if name not in {"x-request-id", "content-length"}}
    text = re.sub(r"Account \d+", "Account N", reply.text.replace(identity, "ID"))
    return f"{reply.status} {sorted(headers.items())} {text}"


@pytest.mark.parametrize(
    ("call", "scope"),
    [(call, scope) for call in SCOPED for scope in sorted(call.scopes)],
    ids=lambda value: value.name if isinstance(value, Call) else value,
)
def test_one_scope_and_the_account_suffice(house: House, call: Call, scope: str) -> None:
    reply = house.send(call, **{**right(call), "scope": scope})
    assert reply.status == 200, reply.text


@pytest.mark.parametrize("call", SCOPED, ids=by_name)
def test_operator_may_use_every_account(house: House, call: Call) -> None:
    reply = house.send(call, ANOTHERS, scope=min(call.scopes), account_ids="*")
    assert reply.status == 200, reply.text


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
def test_pages_are_for_any_valid_token(untouched: House, path: str) -> None:
    (call,) = (call for call in CALLS if call.path == path)
    assert untouched.send(call).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nothing", 404, "UNKNOWN_PATH"), ("DELETE", "/positions/7", 405, "METHOD_NOT_ALLOWED")],
)
def test_what_is_no_operation_needs_no_token_and_tells_nothing(
    untouched: House, method: str, path: str, status: int, code: str
) -> None:
    problem(untouched.api.call(method, path), status, code)


# --- the claim account_ids ---

POSITIONS = next(call for call in CALLS if call.path == "/positions/{account_id}")
TRADE = next(call for call in CALLS if call.path == "/trade")
MARKS = next(call for call in CALLS if call.name == "GET /mark-prices")
LIQUIDATIONS = next(call for call in OF_AN_ACCOUNT if call.path == "/liquidations")


@pytest.mark.parametrize("call", [POSITIONS, TRADE, LIQUIDATIONS], ids=by_name)
def test_account_in_path_body_or_query_is_one_of_two_hundred(house: House, call: Call) -> None:
    many = [*range(1000, 1000 + ACCOUNTS_MAX - 1), OWN]
    assert house.send(call, scope=min(call.scopes), account_ids=" ".join(map(str, many))).status == 200


@pytest.mark.parametrize(
    "accounts",
    [
        " ".join(map(str, range(1, ACCOUNTS_MAX + 2))),
        " ".join([str(OWN)] * (ACCOUNTS_MAX + 1)),
        f"{OWN},{ANOTHERS}",
        f"[{OWN}]",
        [OWN],
        [str(OWN)],
        f"{OWN} *",
        "**",
        "0",
        f"0{OWN}",
        f"-{OWN}",
        f"+{OWN}",
        f"{OWN}.0",
        "1e1",
        "\u0667",
        "seven",
        f"{OWN}\t{ANOTHERS}",
        f"{OWN}\u00a0{ANOTHERS}",
        "9" * 20,
        True,
        {},
    ],
    ids=lambda value: str(value)[:20],
)
@pytest.mark.parametrize("call", [POSITIONS, TRADE, LIQUIDATIONS, MARKS], ids=by_name)
def test_claim_that_cannot_be_read_is_401(untouched: House, call: Call, accounts: object) -> None:
    reply = untouched.send(call, scope=min(call.scopes), account_ids=accounts)
    assert "account_ids" in problem(reply, 401, "UNAUTHENTICATED")


@pytest.mark.parametrize("accounts", ["", " ", None])
def test_without_accounts_the_market_is_all_there_is(untouched: House, accounts: str | None) -> None:
    assert untouched.send(MARKS, scope="risk:read", account_ids=accounts).status == 200
    problem(untouched.send(POSITIONS, scope="positions:read", account_ids=accounts), 404, "UNKNOWN_ACCOUNT")


@pytest.mark.parametrize("accounts", [f"{OWN} {OWN} {OWN}", f"  {OWN}  {ANOTHERS} "])
def test_repetitions_and_spaces_in_the_claim_do_not_matter(untouched: House, accounts: str) -> None:
    assert untouched.send(POSITIONS, scope="positions:read", account_ids=accounts).status == 200


# --- tricks ---


@pytest.mark.parametrize(
    "url",
    [
        f"/liquidations?account_id={OWN}&account_id={ANOTHERS}",
        f"/liquidations?account_id={ANOTHERS}&account_id={OWN}",
        f"/liquidations?account_id={OWN}%20{ANOTHERS}",
        "/liquidations?account_id=",
        "/liquidations?account_id=*",
        f"/liquidations?Account_Id={OWN}",
    ],
)
def test_account_named_twice_or_otherwise_in_the_query_is_422(untouched: House, url: str) -> None:
    bearer = f"Bearer {token(scope='history:read', account_ids=str(OWN))}"
    assert untouched.api.call("GET", url, authorization=[bearer]).status == 422


@pytest.mark.parametrize(
    "body",
    [
        b'{"account_id": 7, "account_id": 8, "symbol": "BTC-PERP", "side": "BUY", "quantity": 1, "price": 50000}',
        b'{"account_id": 8, "account_id": 7, "symbol": "BTC-PERP", "side": "BUY", "quantity": 1, "price": 50000}',
        b'{"account_id": [7, 8], "symbol": "BTC-PERP", "side": "BUY", "quantity": 1, "price": 50000}',
        b'{"account_id": "7 8", "symbol": "BTC-PERP", "side": "BUY", "quantity": 1, "price": 50000}',
        b'{"account_id": 7.0, "symbol": "BTC-PERP", "side": "BUY", "quantity": 1, "price": 50000}',
    ],
)
def test_account_named_twice_or_otherwise_in_the_body_is_422(untouched: House, body: bytes) -> None:
    assert untouched.send(TRADE, body=body, **right(TRADE)).status == 422


def test_account_that_is_written_as_a_text_is_the_same_account(untouched: House) -> None:
    body = {**(TRADE.content(OWN) or {}), "account_id": str(ANOTHERS)}
    problem(untouched.send(TRADE, body=body, **right(TRADE)), 404, "UNKNOWN_ACCOUNT")


@pytest.mark.parametrize("call", [call for call in OF_AN_ACCOUNT if call.body], ids=by_name)
def test_malformed_body_about_anothers_account_is_422(untouched: House, call: Call) -> None:
    body = {**(call.content(ANOTHERS) or {}), "unknown": 1}
    reply = untouched.send(call, ANOTHERS, body=body, **right(call))
    assert (reply.status, reply.json["code"]) == (422, "INVALID_REQUEST")
    same = untouched.send(call, OWN, body={**(call.content(OWN) or {}), "unknown": 1}, **right(call))
    assert _without_identity(same) == _without_identity(reply)


@pytest.mark.parametrize("call", [call for call in OF_AN_ACCOUNT if "{account_id}" in call.path], ids=by_name)
@pytest.mark.parametrize("account", ["07", "7%00", "%37%38", "7;8", "7,8", "7%2F..%2F8"])
def test_account_spelt_otherwise_in_the_path_is_no_way_in(untouched: House, call: Call, account: str) -> None:
    path = call.path.replace("{account_id}", account)
    bearer = f"Bearer {token(**right(call))}"
    reply = untouched.api.call(call.method, path, call.content(OWN), authorization=[bearer])
    assert reply.status in {404, 422}, reply.text


# --- idempotency keys ---


def test_key_of_another_account_is_neither_answered_nor_taken(house: House) -> None:
    key = f"shared-{time.monotonic_ns()}"
    mine = {"scope": "trade:write", "account_ids": str(OWN)}
    theirs = {"scope": "trade:write", "account_ids": str(ANOTHERS)}
    first = house.post("/trade", TRADE.content(OWN), key=key, **mine)
    assert (first.status, first.headers.get("idempotent-replayed")) == (200, None)
    stores = house.exchange.stores
    before = stores.contents()
    # The same request of another is another's account, not the answer.
    problem(house.post("/trade", TRADE.content(OWN), key=key, **theirs), 404, "UNKNOWN_ACCOUNT")
    # A token without the scope does not learn of it either.
    problem(house.post("/trade", TRADE.content(OWN), key=key, **mine | {"scope": "admin"}), 403, "FORBIDDEN")
    problem(house.api.call("POST", "/trade", TRADE.content(OWN), key=key), 401, "UNAUTHENTICATED")
    assert stores.contents() == before
    # Under an account of one's own the key is a new one.
    own = house.post("/trade", TRADE.content(ANOTHERS), key=key, **theirs)
    assert (own.status, own.headers.get("idempotent-replayed")) == (200, None)
    assert (own.json["account_id"], own.json["trade_id"]) != (first.json["account_id"], first.json["trade_id"])
    again = house.post("/trade", TRADE.content(OWN), key=key, **mine)
    assert (again.text, again.headers["idempotent-replayed"]) == (first.text, "true")


# --- what is recorded ---


def test_subject_and_address_of_the_caller_are_in_history(house: House) -> None:
    claimed = {"scope": "accounts:write", "account_ids": str(OWN), "sub": "desk 'one'"}
    assert house.post(f"/accounts/{OWN}/deposits", {"amount": "1"}, **claimed).status == 200
    with house.exchange.stores.connect() as connection:
        row = connection.execute(
            "select subject, source_ip from events where account_id = %s order by n desc limit 1", [OWN]
        ).fetchone()
    assert row == ("desk 'one'", PEER)
