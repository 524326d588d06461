"""An issuer's public keys (a JSON Web Key Set), from a file or a URL, kept and asked for again with restraint."""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import json
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import RSAAlgorithm
from jwt.exceptions import InvalidKeyError

from margin.config import SettingError, is_loopback
from margin.errors import UnavailableError
from margin.observability import logger
from margin_local.tokens.verification import ALGORITHMS

if TYPE_CHECKING:
    from collections.abc import Callable

KEY_BITS_MIN = 2048
KEY_BITS_MAX = 8192
KEYS_MAX = 100
DOCUMENT_BYTES_MAX = 256 * 1024
FETCH_TIMEOUT_S = 3.0
KEPT_S = 300.0
"""A key that the issuer has withdrawn is accepted for no longer, as long as the issuer answers."""
AGAIN_AFTER_S = 30.0
"""Tokens with made-up key ids make the issuer be asked no more often."""
FIRST_AGAIN_AFTER_S = 1.0
"""The same while there was never a key, so that an issuer that starts late is found soon."""


class KeysUnavailableError(UnavailableError):
    """The issuer's keys were never had, so that no token can be verified."""

    code = "KEYS_UNAVAILABLE"
    title = "The issuer's keys are unavailable"


class DocumentError(Exception):
    """A key set cannot be had, or is none."""


@dataclasses.dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key, and the algorithms that its issuer uses it for."""

    public_key: RSAPublicKey
    algorithms: tuple[str, ...]


class KeySet:
    """The keys of one issuer.

    Parameters
    ----------
    read : callable
        Returns the document's bytes, or raises `DocumentError`. It may block: it is called in a thread.
    clock_s : callable
        Tells the time in seconds, from any beginning.
    """

    def __init__(self, read: Callable[[], bytes], clock_s: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._clock_s = clock_s
        self._keys: dict[str, VerificationKey] = {}
        self._read_s = self._tried_s = float("-inf")
        self._reading = asyncio.Lock()

    async def find(self, key_id: str) -> VerificationKey | None:
        """Return the key of that name; one that is not known makes the document be read again, if that is due.

        Raises
        ------
        KeysUnavailableError
            No key was ever had.
        """
        if self._is_due(key_id) and not (key_id in self._keys and self._reading.locked()):
            async with self._reading:
                if self._is_due(key_id):
                    await self._read_again()
        if not self._keys:
            raise KeysUnavailableError("The issuer's keys (AUTH_JWKS) cannot be had now, so no token can be verified.")
        return self._keys.get(key_id)

    def _is_due(self, key_id: str) -> bool:
        now_s = self._clock_s()
        if now_s - self._tried_s < (AGAIN_AFTER_S if self._keys else FIRST_AGAIN_AFTER_S):
            return False
        return key_id not in self._keys or now_s - self._read_s >= KEPT_S

    async def _read_again(self) -> None:
        try:
            # Names are looked up without a timeout of their own.
            async with asyncio.timeout(2 * FETCH_TIMEOUT_S):
                self._keys = keys_of(await asyncio.to_thread(self._read))
            self._read_s = self._clock_s()
        except (DocumentError, TimeoutError) as error:
            # The keys from before stay: an issuer that is down for a moment shuts nobody out.
            logger.warning("issuer_keys_unavailable", reason=str(error) or "it takes too long", kept=len(self._keys))
        finally:
            self._tried_s = self._clock_s()


def keys_of(document: bytes) -> dict[str, VerificationKey]:
    """Take the keys out of a key set that the API Gateway would use: named RSA keys for signatures, long enough.

    Raises
    ------
    DocumentError
        It is no key set, or has no such key.
    """
    try:
        listed = json.loads(document)["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        listed = None
    if not isinstance(listed, list) or len(listed) > KEYS_MAX:
        raise DocumentError(f"it is not a JSON Web Key Set of at most {KEYS_MAX} keys")
    keys = {entry["kid"]: key for entry in listed if (key := _usable(entry)) is not None}
    if not keys:
        raise DocumentError(f"it has no named RSA key for signatures of {KEY_BITS_MIN} to {KEY_BITS_MAX} bits")
    return keys


def _usable(entry: Any) -> VerificationKey | None:
    if not isinstance(entry, dict) or entry.get("kty") != "RSA" or not isinstance(entry.get("kid"), str):
        return None
    named = entry.get("alg")
    if entry.get("use", "sig") != "sig" or named not in (None, *ALGORITHMS):
        return None
    try:
        key = RSAAlgorithm.from_jwk(entry)
    except (InvalidKeyError, ValueError, TypeError):
        return None
    # A private key is in no set that its owner still has to himself.
    if not isinstance(key, RSAPublicKey) or not KEY_BITS_MIN <= key.key_size <= KEY_BITS_MAX:
        return None
    return VerificationKey(key, ALGORITHMS if named is None else (named,))


def source_of(where: str, *, timeout_s: float = FETCH_TIMEOUT_S) -> Callable[[], bytes]:
    """Return what reads the key set at a URL or in a file.

    Parameters
    ----------
    where : str
        AUTH_JWKS.
    timeout_s : float
        Seconds until an address is given up.

    Raises
    ------
    SettingError
        It is a URL that cannot be trusted, or a file that is not there.
    """
    parts = urlsplit(where)
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        return lambda: _fetched(where, timeout_s)
    if "://" in where:
        message = "AUTH_JWKS must be a file or an https address (http on this machine alone)"
        raise SettingError(message)
    path = Path(where)
    if not path.is_file():
        message = f"AUTH_JWKS names no file: {path}"
        raise SettingError(message)
    return lambda: _file_content(path)


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """The keys are at the address that was set, or nowhere."""

    def redirect_request(self, *_arguments: Any, **_options: Any) -> None:
        return None


def _fetched(url: str, timeout_s: float) -> bytes:
    end_s = time.monotonic() + timeout_s
    # What is on this machine is not asked for through another one.
    around = [] if url.startswith("https:") else [urllib.request.ProxyHandler({})]
    opener = urllib.request.build_opener(_NoRedirection, *around)
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 - source_of looked at it
    try:
        with opener.open(request, timeout=timeout_s) as answer:
            if answer.status != HTTPStatus.OK:
                raise DocumentError(f"it answers {answer.status}")
            content = bytearray()
            while piece := answer.read1(DOCUMENT_BYTES_MAX):
                content += piece
                if len(content) > DOCUMENT_BYTES_MAX:
                    raise DocumentError(f"it is longer than {DOCUMENT_BYTES_MAX} bytes")
                if time.monotonic() > end_s:
                    raise DocumentError(f"it takes longer than {timeout_s} s")
            return bytes(content)
    except urllib.error.HTTPError as error:
        raise DocumentError(f"it answers {error.code}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DocumentError(f"it cannot be reached ({type(error).__name__})") from error


def _file_content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(DOCUMENT_BYTES_MAX + 1)
    except OSError as error:
        raise DocumentError(f"the file cannot be read ({error.strerror})") from error
    if len(content) > DOCUMENT_BYTES_MAX:
        raise DocumentError(f"it is longer than {DOCUMENT_BYTES_MAX} bytes")
    return content
