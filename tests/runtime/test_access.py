"""Every operation behind the gateway, with and without a token's claims in the event: built functions decide alike."""

from __future__ import annotations

import urllib.error
from typing import TYPE_CHECKING, Any

import pytest

from tests.access_table import CALLS, GUARDED, OF_ALL_ACCOUNTS, OF_AN_ACCOUNT, SCOPED, SCOPES, Call, Of
from tests.events import api_gateway_event
from tests.runtime.test_events import contents

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.runtime.deployment import Deployment, Reply
    from tests.runtime.stores import Stores

pytestmark = pytest.mark.runtime

OWN, ANOTHERS, NOBODYS = 1, 2, 999
EVERYTHING = {"sub": "desk", "scope": " ".join(sorted(SCOPES)), "account_ids": "*"}


def request(call: Call, claims: dict[str, str] | None, account_id: int = OWN) -> dict[str, Any]:
    """Return the gateway's event of a call."""
    path, _, query = call.url(account_id).partition("?")
    return api_gateway_event(call.method, path, call.content(account_id), query=query, claims=claims)


def right(call: Call) -> dict[str, str]:
    """Claims that just suffice for a call about `OWN`."""
    accounts = {Of.ACCOUNT: str(OWN), Of.ALL_ACCOUNTS: "*"}.get(call.of)
    allowed = {"scope": min(call.scopes)} if call.scopes else {}
    return {"sub": "desk"} | allowed | ({} if accounts is None else {"account_ids": accounts})


def by_name(value: object) -> str | None:
    return value.name if isinstance(value, Call) else None


def assert_problem(reply: Reply, status: int, code: str) -> None:
    assert (reply.status, reply.json["code"]) == (status, code), reply.text
    assert ("www-authenticate" in reply.headers) is (status == 401)


@pytest.fixture
def untouched(market: Deployment, stores: Stores) -> Iterator[Deployment]:
    """Yield the functions with three accounts, and see to it that the test writes nothing to either store."""
    keys, rows = contents(stores)
    yield market
    keys_after, rows_after = contents(stores)
    assert rows_after == rows
    # What limits a rate is forgotten by itself, when it has run out.
    assert {name for name in keys if name not in keys_after and not name.startswith("rate:")} == set()
    assert {name for name, value in keys_after.items() if keys.get(name) != value} == set()


def test_every_route_of_the_api_is_in_the_table(kept_functions: Deployment) -> None:
    functions = kept_functions.artefact.functions.values()
    routes = {route for function in functions for route in function.routes}
    assert routes == {(call.method, call.path) for call in CALLS}


def test_event_without_claims_is_401(untouched: Deployment) -> None:
    for call in GUARDED:
        for authorizer in (None, {}, {"jwt": {}}, {"jwt": {"claims": {}}}, {"lambda": EVERYTHING}, {"iam": EVERYTHING}):
            event = request(call, None)
            if authorizer is not None:
                event["requestContext"]["authorizer"] = authorizer
            # What the caller sends himself is not what the gateway says.
            event["headers"]["authorization"] = "Bearer made.up.token"
            assert_problem(untouched.send(event), 401, "UNAUTHENTICATED")


def test_claims_without_the_scope_are_403(untouched: Deployment) -> None:
    for call in SCOPED:
        for scope in (" ".join(sorted(SCOPES - call.scopes)), ""):
            assert_problem(untouched.send(request(call, {**EVERYTHING, "scope": scope})), 403, "FORBIDDEN")
    for call in OF_ALL_ACCOUNTS:
        assert_problem(untouched.send(request(call, {**EVERYTHING, "account_ids": str(OWN)})), 403, "FORBIDDEN")


def test_anothers_account_is_404_as_one_that_does_not_exist(untouched: Deployment) -> None:
    for call in OF_AN_ACCOUNT:
        for account_id in (ANOTHERS, NOBODYS):
            reply = untouched.send(request(call, right(call), account_id))
            assert_problem(reply, 404, "UNKNOWN_ACCOUNT")
            assert reply.json["detail"] == f"Account {account_id} does not exist; the first deposit opens it."


@pytest.mark.parametrize("accounts", [f"[{OWN}]", f"[{OWN} {ANOTHERS}]", "0", " ".join(map(str, range(1, 202)))])
def test_claim_that_cannot_be_read_is_401(untouched: Deployment, accounts: str) -> None:
    for call in SCOPED:
        assert_problem(untouched.send(request(call, {**EVERYTHING, "account_ids": accounts})), 401, "UNAUTHENTICATED")


def test_claims_that_just_suffice_are_enough(market: Deployment) -> None:
    market.post("/trade", account_id=OWN, symbol="BTC-PERP", side="BUY", quantity="0.1", price=50000)
    for call in CALLS:
        claims = None if call.of is Of.OPEN else right(call)
        reply = market.send(request(call, claims))
        assert reply.status == 200, (call.name, reply.text)


def test_scopes_as_the_gateway_writes_a_list_are_read(market: Deployment) -> None:
    call = next(call for call in CALLS if call.path == "/positions/{account_id}")
    claims = {"client_id": "desk", "scp": "[risk:read positions:read]", "account_ids": f"{ANOTHERS} {OWN}"}
    assert market.send(request(call, claims)).status == 200


@pytest.mark.parametrize("name", ["TradeFunction", "StatusFunction"])
def test_function_in_aws_does_not_start_open_to_all(functions: Deployment, name: str) -> None:
    environment = functions.fresh(name, AUTH="off")
    with pytest.raises(urllib.error.HTTPError):
        environment.invoke(request(CALLS[0], EVERYTHING))
    assert "SettingError: AUTH=off is for a laptop" in environment.output()
