"""A key of this machine and tokens signed with it: for trying an engine with AUTH=jwt without an issuer.

The key stays in DATA_DIR, and its public half is in no issuer's key set: nothing in AWS accepts such a token.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

if TYPE_CHECKING:
    from collections.abc import Mapping

ISSUER = "urn:margin:development"
AUDIENCE = "margin-local"
ALGORITHM = "RS256"
KEY_BITS = 2048
LIFETIME_S_MAX = 30 * 86_400

_FOLDER = "auth"
_OF_OTHERS = 0o077


class DevelopmentKeyError(Exception):
    """The key of this machine cannot be used."""


def key_set_path(data_directory: str) -> Path:
    """Return where the key set of a data directory is, once there was a token."""
    return Path(data_directory) / _FOLDER / "jwks.json"


class DevelopmentKey:
    """The private key of a data directory, which is made at first use.

    Parameters
    ----------
    data_directory : str
        DATA_DIR of the engine.

    Raises
    ------
    DevelopmentKeyError
        It cannot be made or read, or others on this machine could.
    """

    def __init__(self, data_directory: str) -> None:
        path = key_set_path(data_directory).with_name("key.pem")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                _make_once(path, _new_key())
            if path.stat().st_mode & _OF_OTHERS:
                raise DevelopmentKeyError(f"{path} can be read by others: chmod 600 {path}, or delete it")
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
            if not isinstance(key, rsa.RSAPrivateKey):
                raise DevelopmentKeyError(f"{path} is not an RSA key: delete it, and the next token makes another")
            self._key = key
            self._public: dict[str, Any] = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
            self._key_id = _thumbprint(self._public)
            _write(key_set_path(data_directory), self._key_set())
        except OSError as error:
            raise DevelopmentKeyError(f"{error.filename or path} cannot be used: {error.strerror}") from error
        except ValueError as error:
            raise DevelopmentKeyError(f"{path} is no key: delete it, and the next token makes another") from error

    def token(self, claims: Mapping[str, Any], *, lifetime_s: int) -> str:
        """Sign a token.

        Parameters
        ----------
        claims : mapping
            Beside those of every token: ``iss``, ``aud``, ``iat``, ``exp``.
        lifetime_s : int
            Seconds until it expires.
        """
        now_s = int(time.time())
        own = {"iss": ISSUER, "aud": AUDIENCE, "iat": now_s, "exp": now_s + lifetime_s}
        return jwt.encode({**own, **claims}, self._key, algorithm=ALGORITHM, headers={"kid": self._key_id})

    def _key_set(self) -> bytes:
        key = {**self._public, "kid": self._key_id, "use": "sig", "alg": ALGORITHM}
        key.pop("key_ops", None)
        return json.dumps({"keys": [key]}, indent=2).encode() + b"\n"


def _new_key() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _thumbprint(public: Mapping[str, Any]) -> str:
    """Name a key by its content (RFC 7638)."""
    members = json.dumps({name: public[name] for name in ("e", "kty", "n")}, separators=(",", ":"))
    return urlsafe_b64encode(hashlib.sha256(members.encode()).digest()).rstrip(b"=").decode()


def _make_once(path: Path, content: bytes) -> None:
    """Put a file in its place whole, unless another process was first."""
    made = _beside(path, content)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(made, path)
    finally:
        made.unlink()


def _write(path: Path, content: bytes) -> None:
    """Put a file in its place whole, unless that is what it holds."""
    if not path.exists() or path.read_bytes() != content:
        _beside(path, content).replace(path)


def _beside(path: Path, content: bytes) -> Path:
    # Its user alone can read what this makes.
    number, made = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    with os.fdopen(number, "wb") as file:
        file.write(content)
    return Path(made)
