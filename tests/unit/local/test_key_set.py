"""An issuer's keys: which of a set are used, how often it is read, and what happens while it cannot be."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from jwt.algorithms import RSAAlgorithm

from margin.config import SettingError
from margin_local.tokens.key_set import (
    AGAIN_AFTER_S,
    DOCUMENT_BYTES_MAX,
    FIRST_AGAIN_AFTER_S,
    KEPT_S,
    KEYS_MAX,
    DocumentError,
    KeySet,
    KeysUnavailableError,
    keys_of,
    source_of,
)
from tests.tokens import EC_KEY_ID, KEY_ID, jwk, key_set, private_key

if TYPE_CHECKING:
    from pathlib import Path


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Issuer:
    """A document that changes, and how often it was read."""

    def __init__(self, document: bytes | DocumentError) -> None:
        self.document = document
        self.reads = 0

    def __call__(self) -> bytes:
        self.reads += 1
        if isinstance(self.document, DocumentError):
            raise self.document
        return self.document


def of(*names: str) -> bytes:
    return key_set(*(jwk(name) for name in names))


# --- which keys ---


def test_named_rsa_keys_for_signatures_are_taken_and_others_left() -> None:
    assert set(keys_of(key_set())) == {KEY_ID}
    without_more = {name: value for name, value in jwk("plain").items() if name not in {"use", "alg"}}
    assert keys_of(key_set(without_more))["plain"].algorithms == ("RS256", "RS384", "RS512")
    assert keys_of(key_set(jwk(alg="RS384")))[KEY_ID].algorithms == ("RS384",)


@pytest.mark.parametrize(
    "change",
    [
        {"kid": None},
        {"kid": 1},
        {"kty": "EC"},
        {"kty": "oct", "k": "c2VjcmV0"},
        {"use": "enc"},
        {"use": None},
        {"alg": "HS256"},
        {"alg": "ES256"},
        {"alg": "none"},
        {"alg": ["RS256"]},
        {"n": "AQAB"},
        {"n": ""},
        {"n": "!"},
        {"n": 1},
        {"e": "AA"},
    ],
    ids=str,
)
def test_key_that_is_not_for_this_is_left(change: dict[str, Any]) -> None:
    assert set(keys_of(key_set({**jwk("odd"), **change}, jwk()))) == {KEY_ID}


def test_key_that_is_too_short_is_left() -> None:
    assert set(keys_of(key_set(jwk("short", bits=1024), jwk()))) == {KEY_ID}


def test_private_key_in_a_set_is_left() -> None:
    private = RSAAlgorithm.to_jwk(private_key("published"), as_dict=True)
    assert set(keys_of(key_set({**private, "kid": "published", "use": "sig"}, jwk()))) == {KEY_ID}


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"keys": {}}',
        b'{"keys": []}',
        b'{"keys": [1]}',
        b"[" * 5000,
        json.dumps({"keys": [{"kty": "EC", "kid": EC_KEY_ID}]}).encode(),
        json.dumps({"keys": [{}] * KEYS_MAX + [jwk()]}).encode(),
    ],
)
def test_document_without_keys_is_none(document: bytes) -> None:
    with pytest.raises(DocumentError):
        keys_of(document)


# --- how often it is read ---


async def test_known_key_is_read_once_until_it_is_old() -> None:
    issuer, clock = Issuer(of("a")), Clock()
    keys = KeySet(issuer, clock)
    assert await keys.find("a")
    clock.now_s += KEPT_S - 1
    assert await keys.find("a")
    assert issuer.reads == 1
    issuer.document = of("b")
    clock.now_s += 1
    assert await keys.find("a") is None
    assert await keys.find("b")
    assert issuer.reads == 2


async def test_new_key_is_found_when_it_is_first_asked_for() -> None:
    issuer, clock = Issuer(of("a")), Clock()
    keys = KeySet(issuer, clock)
    assert await keys.find("a")
    issuer.document = of("a", "b")
    clock.now_s += AGAIN_AFTER_S
    assert await keys.find("b")
    assert issuer.reads == 2


async def test_unknown_key_ids_do_not_hammer_the_issuer() -> None:
    issuer, clock = Issuer(of("a")), Clock()
    keys = KeySet(issuer, clock)
    for number in range(100):
        assert await keys.find(f"made-up-{number}") is None
    assert issuer.reads == 1
    clock.now_s += AGAIN_AFTER_S
    for number in range(100):
        assert await keys.find(f"made-up-{number}") is None
    assert issuer.reads == 2


async def test_many_at_once_are_one_read() -> None:
    issuer, clock = Issuer(of("a")), Clock()
    keys = KeySet(issuer, clock)
    found = await asyncio.gather(*(keys.find("a") for _ in range(50)))
    assert all(found)
    assert issuer.reads == 1


async def test_known_key_does_not_wait_for_a_slow_issuer() -> None:
    asked, answer = threading.Event(), threading.Event()
    issuer, clock = Issuer(of("a")), Clock()

    def slow() -> bytes:
        if issuer.reads:
            asked.set()
            answer.wait(10)
        return issuer()

    keys = KeySet(slow, clock)
    assert await keys.find("a")
    clock.now_s += AGAIN_AFTER_S
    waiting = asyncio.create_task(keys.find("b"))
    await asyncio.to_thread(asked.wait, 10)
    clock.now_s += KEPT_S
    assert await keys.find("a")
    assert not waiting.done()
    answer.set()
    assert await waiting is None


# --- while it cannot be read ---


async def test_failed_refresh_keeps_the_keys_and_is_not_repeated_at_once(log: list[dict[str, Any]]) -> None:
    issuer, clock = Issuer(of("a")), Clock()
    keys = KeySet(issuer, clock)
    assert await keys.find("a")
    clock.now_s += KEPT_S
    for broken in (DocumentError("it answers 503"), b"{}"):
        issuer.document = broken
        for _ in range(3):
            assert await keys.find("a")
            assert await keys.find("b") is None
        clock.now_s += AGAIN_AFTER_S
    assert issuer.reads == 3
    assert [(line["message"], line["kept"]) for line in log] == [("issuer_keys_unavailable", 1)] * 2


async def test_while_there_never_was_a_key_the_service_is_unavailable_and_asks_again_soon() -> None:
    issuer, clock = Issuer(DocumentError("it cannot be reached")), Clock()
    keys = KeySet(issuer, clock)
    for _ in range(10):
        with pytest.raises(KeysUnavailableError) as caught:
            await keys.find("a")
    assert (caught.value.status, caught.value.retryable) == (503, True)
    assert issuer.reads == 1
    issuer.document = of("a")
    clock.now_s += FIRST_AGAIN_AFTER_S
    assert await keys.find("a")


# --- where it is ---


@pytest.mark.parametrize(
    "where",
    [
        "http://issuer.example.com/jwks.json",
        "http://169.254.169.254/jwks.json",
        "ftp://127.0.0.1/jwks.json",
        "file:///etc/passwd",
        "no-such-file.json",
        ".",
    ],
)
def test_place_that_cannot_be_trusted_or_is_none_is_refused(where: str) -> None:
    with pytest.raises(SettingError, match="AUTH_JWKS"):
        source_of(where)


def test_file_is_read_each_time(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(of("a"))
    read = source_of(str(path))
    assert set(keys_of(read())) == {"a"}
    path.write_bytes(of("b"))
    assert set(keys_of(read())) == {"b"}
    path.write_bytes(b" " * (DOCUMENT_BYTES_MAX + 1))
    with pytest.raises(DocumentError, match="longer than"):
        read()
    path.unlink()
    with pytest.raises(DocumentError, match="cannot be read"):
        read()
