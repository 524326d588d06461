"""A token is accepted only where it is genuine, for this engine and valid now, exactly as the gateway has it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from starlette.requests import Request

from margin.caller import Caller, Scope
from margin.errors import UnauthenticatedError
from margin_local.tokens.authenticator import TokenAuthenticator, as_the_gateway_passes
from margin_local.tokens.verification import TOKEN_LENGTH_MAX, verified_claims
from tests.tokens import (
    AUDIENCE,
    ISSUER,
    KEY_ID,
    LEEWAY_S,
    POLICY,
    REFUSED,
    FixedKeys,
    claims,
    jwk,
    key_set,
    signed,
    token,
)

KEYS = FixedKeys(key_set())


def request(*authorization: str) -> Request:
    headers = [(b"authorization", value.encode("latin-1")) for value in authorization]
    return Request({"type": "http", "method": "GET", "path": "/", "headers": headers, "client": ("203.0.113.7", 4711)})


async def verified(given: str) -> dict[str, Any]:
    return await verified_claims(given, KEYS, POLICY)


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512"])
async def test_token_of_each_algorithm_of_the_family_is_accepted(algorithm: str) -> None:
    keys = FixedKeys(key_set(jwk(alg=algorithm)))
    assert (await verified_claims(token(algorithm=algorithm), keys, POLICY))["sub"] == "desk"


async def test_key_without_an_algorithm_verifies_the_whole_family() -> None:
    entry = jwk()
    del entry["alg"]
    keys = FixedKeys(key_set(entry))
    for algorithm in ("RS256", "RS384", "RS512"):
        assert await verified_claims(token(algorithm=algorithm), keys, POLICY)


async def test_key_for_one_algorithm_verifies_no_other() -> None:
    with pytest.raises(UnauthenticatedError, match="header kid"):
        await verified(token(algorithm="RS512"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"aud": ["another", AUDIENCE]},
        {"aud": "margin-other"},
        {"aud": None, "client_id": AUDIENCE},
        {"nbf": None, "iat": None},
    ],
)
async def test_good_claims_are_returned(changes: dict[str, Any]) -> None:
    given = claims(**changes)
    assert await verified(token(given)) == given


@pytest.mark.parametrize("from_now_s", [{"exp": 60.5}, {"exp": 1 - LEEWAY_S}, {"nbf": LEEWAY_S, "iat": LEEWAY_S}])
async def test_clock_of_the_issuer_may_differ_by_the_leeway(from_now_s: dict[str, float]) -> None:
    given = claims(**{name: time.time() + offset for name, offset in from_now_s.items()})
    assert await verified(token(given)) == given


@pytest.mark.parametrize("name", REFUSED)
async def test_request_is_nobodys(name: str) -> None:
    words, make = REFUSED[name]
    headers = make(claims(scope="admin", account_ids="*"))
    with pytest.raises(UnauthenticatedError, match=words) as caught:
        await TokenAuthenticator(KEYS, POLICY)(request(*headers))
    # The sentence says what would be right, and repeats nothing of what was sent.
    assert caught.value.detail.endswith(".")
    assert caught.value.__cause__ is None
    parts = {part for header in headers for part in header.replace(".", " ").split() if len(part) > 8}
    assert [part for part in parts if part in caught.value.detail] == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"iss": ISSUER.upper()}, "claim iss"),
        ({"iss": [ISSUER]}, "claim iss"),
        ({"exp": None}, "iss and exp"),
        ({"aud": "margin"}, "claim aud"),
        ({"aud": [], "client_id": AUDIENCE}, "claim aud"),
        ({"aud": "", "client_id": AUDIENCE}, "claim aud"),
        ({"aud": {AUDIENCE: 1}}, "claim aud"),
        ({"aud": None, "client_id": [AUDIENCE]}, "claim aud"),
        ({"aud": None}, "claim aud"),
        ({"aud": f"{AUDIENCE} margin-other"}, "claim aud"),
    ],
)
async def test_sentence_names_the_claim_that_is_wrong(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnauthenticatedError, match=words):
        await verified(token(claims(**changes)))


@pytest.mark.parametrize("moment", [True, "1", None, [1], {}, float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
async def test_moment_that_is_no_number_is_refused(name: str, moment: Any) -> None:
    with pytest.raises(UnauthenticatedError):
        await verified(token(**{name: moment}))


@pytest.mark.parametrize("header", [b"{", b"[]", b"1", b"\xff", b"[" * 5000, b'{"alg": ["RS256"], "kid": "signing-1"}'])
async def test_header_that_is_none_is_refused(header: bytes) -> None:
    with pytest.raises(UnauthenticatedError):
        await verified(signed(header, claims(), lambda _content: b"signature"))


async def test_header_that_must_be_understood_and_is_not_refuses_the_token() -> None:
    header = {"alg": "RS256", "kid": KEY_ID, "crit": ["exp"], "exp": 1}
    with pytest.raises(UnauthenticatedError):
        await verified(signed(header, claims(), lambda _content: b"signature"))


async def test_longest_token_is_accepted_and_one_more_character_is_not() -> None:
    filling = next(length for length in range(5000, 6200) if len(token(filling="x" * length)) == TOKEN_LENGTH_MAX)
    assert await verified(token(filling="x" * filling))
    with pytest.raises(UnauthenticatedError, match=f"at most {TOKEN_LENGTH_MAX} characters"):
        await verified(token(filling="x" * (filling + 1)))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR "])
async def test_caller_is_what_the_claims_say(scheme: str) -> None:
    given = token(sub="desk 1", scope="margin/trade:write admin other", account_ids="2 1")
    caller = await TokenAuthenticator(KEYS, POLICY, scope_prefix="margin/")(request(f"{scheme} {given}"))
    assert caller == Caller("desk 1", "203.0.113.7", frozenset({Scope.TRADE_WRITE}), frozenset({1, 2}))


async def test_scopes_in_a_list_count_and_accounts_in_a_list_do_not() -> None:
    authenticate = TokenAuthenticator(KEYS, POLICY)
    caller = await authenticate(request(f"Bearer {token(scp=['trade:write', 'risk:read'], account_ids='*')}"))
    assert (caller.scopes, caller.accounts) == ({Scope.TRADE_WRITE, Scope.RISK_READ}, None)
    with pytest.raises(UnauthenticatedError, match="account_ids must be a text"):
        await authenticate(request(f"Bearer {token(account_ids=[1, 2])}"))


async def test_genuine_token_that_names_nobody_is_refused() -> None:
    with pytest.raises(UnauthenticatedError, match="claim sub"):
        await TokenAuthenticator(KEYS, POLICY)(request(f"Bearer {token(claims(sub=None))}"))


def test_claims_are_texts_as_behind_the_gateway() -> None:
    given = {"exp": 1800000000, "admin": True, "scp": ["a", "b"], "account_ids": "1 2", "ratio": 0.5, "none": []}
    assert as_the_gateway_passes(given) == {
        "exp": "1800000000",
        "admin": "true",
        "scp": "[a b]",
        "account_ids": "1 2",
        "ratio": "0.5",
        "none": "[]",
    }
