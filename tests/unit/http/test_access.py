"""Who may call: the claims of the gateway's event, the scope, the account; nothing is open by being forgotten."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

import pytest

from margin.caller import ACCOUNTS_MAX, Scope, caller_of_claims
from margin.config import SettingError, Settings
from margin.errors import UnauthenticatedError
from margin.http import (
    AccountId,
    AccountIdPath,
    AccountIdQuery,
    Answer,
    Request,
    Router,
    anyone,
    create_app,
    of_account,
    of_all_accounts,
    of_market,
    open_to_all,
)
from margin.http.route import HttpRequest
from margin.lambda_entry import http_handler
from tests.events import OPERATOR, LambdaContext, api_gateway_event
from tests.unit.http.exchange import TRADE, Reply, TradeRequest, call, handler, received

TRADER = {"sub": "trader-7", "scope": "trade:write history:read", "account_ids": "1 7"}


class Done(Answer):
    done: bool = True


# --- who it is ---


def test_the_caller_is_the_subject_of_the_token_at_the_address_of_the_request() -> None:
    reply = call("POST", "/trade", TRADE, claims=TRADER, source_ip="198.51.100.9")
    assert (reply.json["subject"], reply.json["source_ip"]) == ("trader-7", "198.51.100.9")


def test_a_token_of_a_machine_without_a_subject_is_its_clients() -> None:
    assert caller_of_claims({"client_id": "4f2"}, None).subject == "4f2"


@pytest.mark.parametrize(
    "authorizer",
    [
        None,
        {},
        {"jwt": None},
        {"jwt": {"claims": None}},
        {"jwt": {"claims": "sub=7"}},
        {"iam": {"userArn": "arn:aws:iam::123456789012:user/desk"}},
        {"lambda": {"sub": "trader-7"}},
        "trader-7",
        {"jwt": ["sub"]},
    ],
)
def test_an_event_without_claims_is_refused_before_its_body_is_read(authorizer: Any) -> None:
    event = api_gateway_event("POST", "/trade", "not json", claims=None)
    if authorizer is not None:
        event["requestContext"]["authorizer"] = authorizer
    answer = handler(event, LambdaContext())
    assert (answer["statusCode"], json.loads(answer["body"])["code"]) == (401, "UNAUTHENTICATED")
    assert answer["headers"]["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"sub": ""},
        {"sub": 7},
        {"sub": "two\nlines"},
        {"sub": "x" * 257},
        {"sub": "a", "account_ids": "1,2"},
        {"sub": "a", "account_ids": "0"},
        {"sub": "a", "account_ids": "-1"},
        {"sub": "a", "account_ids": "* 1"},
        {"sub": "a", "account_ids": "[1 2]"},
        {"sub": "a", "account_ids": 1},
        {"sub": "a", "account_ids": ["1"]},
        {"sub": "a", "account_ids": None},
        {"sub": "a", "account_ids": "٣"},
        {"sub": "a", "account_ids": "7\u00a08"},
        {"sub": "a", "account_ids": "7\t8"},
        {"sub": "a", "account_ids": " ".join(str(n) for n in range(1, ACCOUNTS_MAX + 2))},
    ],
)
def test_claims_that_name_nobody_or_no_accounts_are_refused(claims: dict[str, Any]) -> None:
    with pytest.raises(UnauthenticatedError):
        caller_of_claims(claims, None)


@pytest.mark.parametrize(
    "claims",
    [{"sub": "engine"}, {"client_id": "engine"}, {"sub": "Engine "}, {"sub": "operator:root"}, {"sub": "deployment:x"}],
)
def test_a_token_cannot_take_the_name_of_the_engine(claims: dict[str, str]) -> None:
    with pytest.raises(UnauthenticatedError, match="the engine's own"):
        caller_of_claims(claims, None)


def test_as_many_accounts_as_a_token_may_have_are_read() -> None:
    numbers = range(1, ACCOUNTS_MAX + 1)
    accounts = caller_of_claims({"sub": "a", "account_ids": " ".join(map(str, numbers))}, None).accounts
    assert accounts == frozenset(numbers)


@pytest.mark.parametrize(
    ("text", "prefix", "expected"),
    [
        ("trade:write admin", "", {Scope.TRADE_WRITE, Scope.ADMIN}),
        ("[trade:write admin]", "", {Scope.TRADE_WRITE, Scope.ADMIN}),
        ("margin/trade:write admin", "margin/", {Scope.TRADE_WRITE}),
        ("margin/trade:write", "", set()),
        ("trade:writes TRADE:WRITE trade", "", set()),
        ("", "", set()),
        (["trade:write"], "", set()),
        ("[admin", "", set()),
        ("trade:write\u00a0admin", "", set()),
        ("trade:write\nadmin", "", set()),
        ("trade:write  admin ", "", {Scope.TRADE_WRITE, Scope.ADMIN}),
    ],
)
def test_scopes_are_those_with_the_prefix(text: Any, prefix: str, expected: set[Scope]) -> None:
    assert caller_of_claims({"sub": "a", "scope": text}, None, scope_prefix=prefix).scopes == expected


def test_the_claim_scp_stands_for_scope_where_there_is_none() -> None:
    assert caller_of_claims({"sub": "a", "scope": "", "scp": "admin"}, None).scopes == frozenset()
    assert caller_of_claims({"sub": "a", "scp": "[admin]"}, None).scopes == {Scope.ADMIN}


# --- what it may ---


def test_without_the_scope_nothing_is_read_not_even_the_body() -> None:
    reply = call("POST", "/trade", "not json", claims=TRADER | {"scope": "history:read"})
    assert (reply.status, reply.json["code"]) == (403, "FORBIDDEN")
    assert reply.json["detail"] == "The token needs the scope trade:write."


def test_anothers_account_is_answered_as_one_that_does_not_exist() -> None:
    received.clear()
    for reply in (
        call("POST", "/trade", TRADE | {"account_id": 8}, claims=TRADER),
        call("GET", "/trades/8", claims=TRADER),
    ):
        assert (reply.status, reply.json["code"]) == (404, "UNKNOWN_ACCOUNT")
        assert reply.json["detail"] == "Account 8 does not exist; the first deposit opens it."
    assert received == []
    assert call("GET", "/trades/7", claims=TRADER).status == 200


def test_a_malformed_request_about_anothers_account_is_malformed() -> None:
    assert call("POST", "/trade", TRADE | {"account_id": 8, "side": "HOLD"}, claims=TRADER).status == 422


def test_a_token_without_accounts_is_for_none() -> None:
    claims = {name: value for name, value in TRADER.items() if name != "account_ids"}
    assert call("GET", "/trades/7", claims=claims).status == 404


def _call_app(router: Router, path: str, claims: dict[str, str] | None) -> Reply:
    own = http_handler(create_app(router, title="t", version="1", description="d"))
    path, _, query = path.partition("?")
    answer = own(api_gateway_event("GET", path, query=query, claims=claims), LambdaContext())
    return Reply(answer["statusCode"], answer["headers"], answer["body"])


def test_reaches_differ_in_the_accounts_that_they_need() -> None:
    router = Router()

    @router.get("/everybody")
    @of_all_accounts(Scope.RISK_READ)
    async def everybody() -> Done:
        return Done()

    @router.get("/some")
    @of_account(Scope.RISK_READ)
    async def some(account_id: AccountIdQuery | None = None) -> Done:
        return Done()

    @router.get("/market")
    @of_market(Scope.RISK_READ, Scope.ADMIN)
    async def market() -> Done:
        return Done()

    @router.get("/open")
    @open_to_all
    async def opened() -> Done:
        return Done()

    limited = {"sub": "a", "scope": "risk:read", "account_ids": "7"}
    operator = limited | {"account_ids": "*"}
    expected = {"/everybody": 403, "/some": 403, "/some?account_id=7": 200, "/some?account_id=8": 404, "/market": 200}
    for path, status in expected.items():
        assert _call_app(router, path, limited).status == status
        assert _call_app(router, path, operator).status == 200
    assert _call_app(router, "/market", {"sub": "a", "scope": "admin"}).status == 200
    assert _call_app(router, "/open", None).status == 200


@pytest.mark.parametrize(
    ("claims", "path", "code", "subject"),
    [
        (None, "/trades/7", "UNAUTHENTICATED", None),
        (TRADER | {"scope": ""}, "/trades/7", "FORBIDDEN", "trader-7"),
        (TRADER, "/trades/8", "UNKNOWN_ACCOUNT", "trader-7"),
    ],
)
def test_the_log_says_who_was_refused_what(
    claims: dict[str, str] | None, path: str, code: str, subject: str | None, log: list[dict[str, Any]]
) -> None:
    call("GET", path, claims=claims, source_ip="198.51.100.9")
    (line,) = [line for line in log if line["message"] == "access_refused"]
    assert (line["code"], line["operation"], line["source_ip"]) == (code, "list_trades", "198.51.100.9")
    assert line.get("subject") == subject
    log.clear()
    call("GET", "/trades/7", claims=OPERATOR)
    assert [line for line in log if line["message"] == "access_refused"] == []


# --- what must be declared ---


def test_an_endpoint_that_does_not_say_who_may_call_it_is_not_accepted() -> None:
    router = Router()

    async def forgotten() -> Done: ...

    with pytest.raises(TypeError, match="does not say who may call it"):
        router.get("/forgotten")(forgotten)


def test_an_endpoint_with_an_account_is_declared_so_and_no_other_is() -> None:
    router = Router()

    async def with_account(account_id: AccountIdPath) -> Done: ...

    async def with_body(request: TradeRequest) -> Done: ...

    async def without() -> Done: ...

    for endpoint, declared in (
        (with_account, of_market(Scope.ADMIN)),
        (with_account, open_to_all),
        (with_body, of_all_accounts(Scope.ADMIN)),
        (without, of_account(Scope.ADMIN)),
    ):
        with pytest.raises(TypeError, match="if, and only if, it takes an account_id"):
            router.get("/wrong")(declared(endpoint))


class Leg(Request):
    account_id: AccountId


class Transfer(Request):
    account_id: AccountId
    to_account_id: AccountId


class Legs(Request):
    legs: list[Leg]


class To(Request):
    to_account_id: AccountId


def test_an_endpoint_with_accounts_where_nobody_looks_is_not_accepted() -> None:
    async def path_and_body(account_id: AccountIdPath, request: Leg) -> Done: ...

    async def two_fields(request: Transfer) -> Done: ...

    async def perhaps(request: Leg | None) -> Done: ...

    async def nested(request: Legs) -> Done: ...

    async def listed(requests: list[Leg]) -> Done: ...

    async def otherwise(request: To) -> Done: ...

    async def other_name(account: AccountIdQuery | None = None) -> Done: ...

    for endpoint in (path_and_body, two_fields, perhaps, nested, listed, otherwise, other_name):
        for declared in (of_account(Scope.ADMIN), of_market(Scope.ADMIN), of_all_accounts(Scope.ADMIN), open_to_all):
            with pytest.raises(TypeError, match="one alone is checked"):
                Router().post("/wrong")(declared(endpoint))


def test_an_operation_for_no_scope_must_say_that_it_is_open() -> None:
    with pytest.raises(TypeError, match="open_to_all"):
        of_market()


# --- AUTH=off ---


@pytest.mark.parametrize(
    ("environment", "status"),
    [
        ({}, 401),
        ({"AUTH": "off"}, 401),
        ({"AWS_LAMBDA_FUNCTION_NAME": "trade"}, 401),
        ({"AUTH": "jwt", "AWS_LAMBDA_FUNCTION_NAME": "trade"}, 401),
        ({"AUTH": "jwt", "AWS_LAMBDA_FUNCTION_NAME": "trade", "AWS_SAM_LOCAL": "true"}, 401),
        ({"AUTH": "off", "AWS_LAMBDA_FUNCTION_NAME": "trade", "AWS_SAM_LOCAL": "true"}, 200),
    ],
)
def test_only_where_it_is_switched_off_nobody_is_asked(
    environment: dict[str, str], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    router = Router()

    @router.get("/everybody")
    @of_all_accounts(Scope.RISK_READ)
    async def everybody() -> Done:
        return Done()

    assert _call_app(router, "/everybody", None).status == status


@pytest.mark.parametrize("local", [{}, {"AWS_SAM_LOCAL": "false"}, {"AWS_SAM_LOCAL": ""}])
def test_in_lambda_a_function_that_asks_nobody_does_not_start(
    local: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ({"AUTH": "off", "AWS_LAMBDA_FUNCTION_NAME": "trade"} | local).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingError, match="AUTH=off is for a laptop"):
        http_handler(create_app(Router(), title="t", version="1", description="d"))


def test_authentication_has_two_settings_and_no_third() -> None:
    assert Settings().auth == "jwt"
    for value in ("", "OFF", "none", "false"):
        with pytest.raises(SettingError, match="AUTH must be jwt or off"):
            Settings.from_environment({"AUTH": value})


# --- pages and headers ---


def test_the_pages_of_the_document_are_for_those_who_are_known() -> None:
    app = create_app(Router(), title="t", version="1", description="d", docs=True)
    handler = http_handler(app)
    for path in ("/openapi.json", "/docs"):
        assert handler(api_gateway_event("GET", path, claims=None), LambdaContext())["statusCode"] == 401
        assert handler(api_gateway_event("GET", path, claims={"sub": "a"}), LambdaContext())["statusCode"] == 200


def test_the_page_of_the_document_runs_two_scripts_that_are_known_to_the_byte() -> None:
    handler = http_handler(create_app(Router(), title="t", version="1", description="d", docs=True))
    answer = handler(api_gateway_event("GET", "/docs"), LambdaContext())
    assert answer["headers"]["content-type"] == "text/html; charset=utf-8"
    (own,) = re.findall(r"<script>(.+)</script>", answer["body"])
    (of_others,) = re.findall(r'<script src="https://[^"]+@5\.35\.0/[^"]+" integrity="(sha384-[^"]+)"', answer["body"])
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    policy = dict(part.strip().split(" ", 1) for part in answer["headers"]["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert set(policy["script-src"].split()) == {f"'{of_others}'", f"'sha256-{digest}'"}


@pytest.mark.parametrize(("path", "claims"), [("/trades/7", TRADER), ("/trades/7", None), ("/nothing", None)])
def test_every_answer_tells_a_browser_to_do_nothing_with_it(path: str, claims: dict[str, str] | None) -> None:
    headers = call("GET", path, claims=claims).headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["strict-transport-security"] == "max-age=63072000"
    assert headers["referrer-policy"] == "no-referrer"


async def test_the_address_of_a_server_is_the_peers() -> None:
    request = HttpRequest({"type": "http", "headers": [], "client": ("192.0.2.1", 5000)})
    assert (await anyone(request)).source_ip == "192.0.2.1"
