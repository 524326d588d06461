"""Whom the engine on this machine answers, and what it says about that when it starts."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from starlette.requests import Request

from margin.caller import Scope
from margin.config import AUTH_OFF, SettingError, Settings
from margin.errors import ForbiddenError, UnauthenticatedError
from margin_local import access
from margin_local.tokens.development import DevelopmentKey
from tests.tokens import AUDIENCE, ISSUER, key_set, token

if TYPE_CHECKING:
    from pathlib import Path

OFF = Settings(auth=AUTH_OFF)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def request(given: str = "", *, host: str = "127.0.0.1:8000") -> Request:
    headers = [(b"host", host.encode()), *([(b"authorization", f"Bearer {given}".encode())] if given else [])]
    return Request(
        {
            "type": "http",
            "scheme": "http",
            "method": "GET",
            "path": "/",
            "query_string": b"",
            "headers": headers,
            "client": ("127.0.0.1", 4711),
        }
    )


async def test_without_authentication_everybody_may_do_everything() -> None:
    caller = await access.authenticator(OFF)(request(host="localhost:8000"))
    assert (caller.scopes, caller.accounts) == (frozenset(Scope), None)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000"])
async def test_without_authentication_the_names_of_this_machine_are_served(host: str) -> None:
    await access.authenticator(OFF)(request(host=host))


@pytest.mark.parametrize("host", ["rebound.example.com", "localhost.example.com:8000", "192.0.2.1", "", "[::2]"])
async def test_without_authentication_a_page_from_elsewhere_is_not(host: str) -> None:
    with pytest.raises(ForbiddenError, match="the name of this machine alone"):
        await access.authenticator(OFF)(request(host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1"])
def test_without_authentication_this_machine_is_served(host: str) -> None:
    access.refuse_strangers(OFF, host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1"])  # noqa: S104
def test_without_authentication_the_network_is_not(host: str) -> None:
    with pytest.raises(SettingError, match="set AUTH=jwt"):
        access.refuse_strangers(OFF, host)
    access.refuse_strangers(Settings(), host)


def test_open_engine_is_said_to_be_open_in_red_on_a_terminal_alone() -> None:
    for stream, environment, said in [
        (Terminal(), {}, f"\x1b[31m{access.WARNING}\x1b[0m\n"),
        (Terminal(), {"NO_COLOR": "1"}, f"{access.WARNING}\n"),
        (io.StringIO(), {}, f"{access.WARNING}\n"),
    ]:
        access.warn(OFF, environment, stream)
        assert stream.getvalue() == said
    stream = Terminal()
    access.warn(Settings(), {}, stream)
    assert stream.getvalue() == ""


def test_without_issuer_and_without_a_key_of_this_machine_it_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"AUTH_JWKS, AUTH_ISSUER and AUTH_AUDIENCE, .* make token once"):
        access.authenticator(Settings(data_dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"auth_jwks": "https://issuer.example.com/jwks.json"}, "also needs AUTH_ISSUER and AUTH_AUDIENCE:"),
        ({"auth_jwks": "https://issuer.example.com/jwks.json", "auth_issuer": ISSUER}, "also needs AUTH_AUDIENCE:"),
        ({"auth_issuer": ISSUER, "auth_audience": AUDIENCE}, "also needs AUTH_JWKS:"),
        ({"auth_jwks": "jwks.json", "auth_issuer": ISSUER, "auth_audience": " , "}, "also needs AUTH_AUDIENCE:"),
    ],
)
def test_what_is_missing_is_named_even_with_a_key_of_this_machine(
    tmp_path: Path, given: dict[str, str], missing: str
) -> None:
    DevelopmentKey(str(tmp_path))
    with pytest.raises(SettingError, match=missing):
        access.authenticator(Settings(data_dir=str(tmp_path), **given))


async def test_token_of_this_machine_is_accepted_without_further_settings(tmp_path: Path) -> None:
    given = DevelopmentKey(str(tmp_path)).token({"sub": "me", "scope": "admin", "account_ids": "1"}, lifetime_s=60)
    caller = await access.authenticator(Settings(data_dir=str(tmp_path)))(request(given))
    assert (caller.subject, caller.scopes, caller.accounts) == ("me", {Scope.ADMIN}, {1})


@pytest.mark.parametrize("audiences", [f"other {AUDIENCE}", f"other,{AUDIENCE}", f" {AUDIENCE} ,\tother"])
async def test_tokens_of_an_issuer_are_accepted_and_those_of_this_machine_no_more(
    tmp_path: Path, audiences: str
) -> None:
    own = DevelopmentKey(str(tmp_path)).token({"sub": "me"}, lifetime_s=60)
    (tmp_path / "keys.json").write_bytes(key_set())
    authenticate = access.authenticator(
        Settings(
            data_dir=str(tmp_path),
            auth_jwks=str(tmp_path / "keys.json"),
            auth_issuer=ISSUER,
            auth_audience=audiences,
            auth_scope_prefix="margin/",
        )
    )
    caller = await authenticate(request(token(scope="margin/admin trade:write")))
    assert (caller.subject, caller.scopes) == ("desk", {Scope.ADMIN})
    with pytest.raises(UnauthenticatedError):
        await authenticate(request(own))
