"""`make token`: a key that this machine alone has, made once, and tokens that say what was asked for."""

from __future__ import annotations

import json
import stat
import threading
import time
from typing import TYPE_CHECKING, Any

import jwt
import pytest

from margin.caller import ACCOUNTS_MAX, Scope
from margin_local.tokens.__main__ import main
from margin_local.tokens.development import AUDIENCE, ISSUER, DevelopmentKey, DevelopmentKeyError, key_set_path
from margin_local.tokens.key_set import keys_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a data directory, in a working directory without settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_DIR", "data")
    monkeypatch.delenv("AUTH_SCOPE_PREFIX", raising=False)
    return tmp_path / "data"


def claims_of(data: Path, token: str) -> dict[str, Any]:
    keys = keys_of(key_set_path(str(data)).read_bytes())
    key = keys[jwt.get_unverified_header(token)["kid"]]
    return jwt.decode(token, key.public_key, algorithms=list(key.algorithms), issuer=ISSUER, audience=AUDIENCE)


def made(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """Return the token and the hint."""
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    return captured.out.strip(), captured.err


def test_token_alone_is_on_standard_output_and_allows_what_was_asked_for(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--subject", "desk 1", "--scopes", "trade:write positions:read", "--accounts", "1 2")
    token, hint = made(capsys, *arguments, "--expires", "2h")
    claims = claims_of(data, token)
    assert claims.pop("exp") - claims.pop("iat") == 7200
    assert claims == {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "desk 1",
        "scope": "trade:write positions:read",
        "account_ids": "1 2",
    }
    assert hint.startswith("For desk 1: trade:write, positions:read; accounts 1 2; for 7200 s.")
    assert token not in hint


def test_without_arguments_it_allows_everything_for_half_a_day(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claims = claims_of(data, made(capsys)[0])
    assert (set(claims["scope"].split()), claims["account_ids"]) == (set(Scope), "*")
    assert 43_000 < claims["exp"] - time.time() <= 43_200


def test_prefix_of_scopes_is_the_engines(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTH_SCOPE_PREFIX", "margin/")
    token, _ = made(capsys, "--scopes", "admin risk:read")
    assert claims_of(data, token)["scope"] == "margin/admin margin/risk:read"


def test_key_is_made_once_and_nobody_else_can_read_it(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(capsys)
    key, published = data / "auth" / "key.pem", key_set_path(str(data))
    before = key.read_bytes(), published.read_bytes()
    made(capsys)
    assert (key.read_bytes(), published.read_bytes()) == before
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert sorted(path.name for path in key.parent.iterdir()) == ["jwks.json", "key.pem"]
    (entry,) = json.loads(before[1])["keys"]
    assert set(entry) == {"kty", "n", "e", "kid", "use", "alg"}


def test_key_set_that_was_lost_is_made_of_the_same_key(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = made(capsys)
    key_set_path(str(data)).unlink()
    made(capsys)
    assert claims_of(data, first)["sub"] == "developer"


def test_two_first_tokens_at_once_are_of_one_key(data: Path) -> None:
    tokens: list[str] = []
    barrier = threading.Barrier(2)

    def make() -> None:
        barrier.wait()
        tokens.append(DevelopmentKey(str(data)).token({"sub": "me"}, lifetime_s=60))

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [claims_of(data, token)["sub"] for token in tokens] == ["me", "me"]


@pytest.mark.parametrize(
    ("content", "mode", "complaint"),
    [
        (b"", 0o600, "is no key"),
        (b"-----BEGIN NONSENSE-----", 0o600, "is no key"),
        (None, 0o644, "can be read by others: chmod 600"),
    ],
)
def test_key_that_cannot_be_used_is_said_so(data: Path, content: bytes | None, mode: int, complaint: str) -> None:
    DevelopmentKey(str(data))
    key = data / "auth" / "key.pem"
    if content is not None:
        key.write_bytes(content)
    key.chmod(mode)
    with pytest.raises(DevelopmentKeyError, match=complaint):
        DevelopmentKey(str(data))


def test_data_directory_that_is_a_file_is_said_so(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data.write_text("")
    assert main([]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert "cannot be used" in captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--accounts", "1 a"),
        ("--accounts", "0"),
        ("--accounts", "*1"),
        ("--accounts", " ".join(map(str, range(1, ACCOUNTS_MAX + 2)))),
        ("--subject", ""),
        ("--subject", "x\ny"),
    ],
)
def test_token_that_no_engine_would_accept_is_not_made(
    data: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, str]
) -> None:
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert not data.exists()


@pytest.mark.parametrize(
    "arguments",
    [("--scopes", "trade:read"), ("--expires", "0"), ("--expires", "31d"), ("--expires", "-1"), ("--expires", "1y")],
)
def test_argument_that_is_none_is_said_so(
    data: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert capsys.readouterr().out == ""
    assert not data.exists()
