"""An issuer of tokens, and the tokens that nobody may accept."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from base64 import urlsafe_b64encode
from functools import cache
from typing import TYPE_CHECKING, Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from margin_local.tokens.key_set import keys_of
from margin_local.tokens.verification import Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from margin_local.tokens.key_set import VerificationKey

ISSUER = "https://issuer.example.com/pool"
AUDIENCE = "margin-test"
KEY_ID = "signing-1"
EC_KEY_ID = "signing-ec"
LEEWAY_S = 5
POLICY = Policy(issuer=ISSUER, audiences=frozenset({AUDIENCE, "margin-other"}), leeway_s=LEEWAY_S)


def private_key(name: str = KEY_ID, bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return the RSA key of a name; making one takes a while, so that is done once."""
    return _rsa_key(name, bits)


@cache
def _rsa_key(_name: str, bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@cache
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def jwk(name: str = KEY_ID, bits: int = 2048, **changes: Any) -> dict[str, Any]:
    """Return the public half of a key, as a key set has it."""
    public = RSAAlgorithm.to_jwk(private_key(name, bits).public_key(), as_dict=True)
    return {**public, "kid": name, "use": "sig", "alg": "RS256", **changes}


def key_set(*entries: Mapping[str, Any]) -> bytes:
    """Return a key set; by default that of the issuer, who also has an EC key."""
    of_ec = {**ECAlgorithm.to_jwk(ec_key().public_key(), as_dict=True), "kid": EC_KEY_ID, "use": "sig", "alg": "ES256"}
    return json.dumps({"keys": list(entries) or [jwk(), of_ec]}).encode()


class FixedKeys:
    """Keys that are there."""

    def __init__(self, document: bytes) -> None:
        self._keys = keys_of(document)

    async def find(self, key_id: str) -> VerificationKey | None:
        return self._keys.get(key_id)


def claims(**changes: Any) -> dict[str, Any]:
    """Return the claims of a good token; None takes one away."""
    now_s = int(time.time())
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "desk", "iat": now_s, "nbf": now_s, "exp": now_s + 600}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def token(given: Mapping[str, Any] | None = None, *, algorithm: str = "RS256", **changes: Any) -> str:
    """Return a token that is signed with the issuer's key, with claims that no library would write, if need be."""
    payload = json.dumps({**(claims() if given is None else given), **changes}).encode()
    return token_of(payload, algorithm)


def token_of(payload: bytes, algorithm: str = "RS256") -> str:
    """Return bytes that are signed with the issuer's key."""
    return jwt.PyJWS().encode(payload, private_key(), algorithm=algorithm, headers={"kid": KEY_ID})


def signed(
    header: Mapping[str, Any] | bytes, payload: Mapping[str, Any] | bytes, sign: Callable[[bytes], bytes]
) -> str:
    """Put a token together as nobody's library would."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    content = b".".join(map(_base64, parts))
    return (content + b"." + _base64(sign(content))).decode()


def _base64(raw: bytes) -> bytes:
    return urlsafe_b64encode(raw).rstrip(b"=")


def _with_public_key_as_secret(given: dict[str, Any]) -> str:
    secret = (
        private_key()
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return signed(
        {"alg": "HS256", "typ": "JWT", "kid": KEY_ID},
        given,
        lambda content: hmac.digest(secret, content, hashlib.sha256),
    )


def _signature_of(other: str) -> Callable[[bytes], bytes]:
    """Return a signer that puts another token's signature below whatever is to be signed."""
    raw = jwt.utils.base64url_decode(other.rpartition(".")[2])
    return lambda _content: raw


def _without(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    return {claim: value for claim, value in given.items() if claim != name}


def _of_another(given: dict[str, Any], **header: Any) -> str:
    return jwt.encode(given, private_key("another"), algorithm="RS256", headers=header)


def _relabelled(given: dict[str, Any]) -> str:
    genuine = jwt.encode(given, ec_key(), algorithm="ES256", headers={"kid": EC_KEY_ID})
    return signed({"alg": "RS256", "kid": EC_KEY_ID}, given, _signature_of(genuine))


def _bearer(make: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], list[str]]:
    return lambda given: [f"Bearer {make(given)}"]


_HEADER, _FORM, _ALGORITHM, _KEY = "in the header Authorization", "three parts", "signed with RS256", "header kid"
_SIGNATURE = "signature must fit"

_REFUSED_TOKENS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "malformed": (_FORM, lambda _given: "not-a-token"),
    "cut off": (_FORM, lambda given: token(given).rpartition(".")[0]),
    "four parts": (_FORM, lambda given: f"{token(given)}.e30"),
    "not base64url": (_FORM, lambda given: token(given).replace(".", ".+", 1)),
    "too long": ("at most 8192 characters", lambda given: token(given, filling="x" * 8192)),
    "expired": ("has expired", lambda given: token(given, exp=int(time.time()) - LEEWAY_S - 1)),
    "without expiry": ("claims iss and exp", lambda given: token(_without("exp", given))),
    "expiry as a text": ("must be numbers", lambda given: token(given, exp=str(given["exp"]))),
    "not yet valid": ("not valid yet", lambda given: token(given, nbf=int(time.time()) + LEEWAY_S + 60)),
    "issued in the future": ("not valid yet", lambda given: token(given, iat=int(time.time()) + LEEWAY_S + 60)),
    "wrong issuer": ("claim iss", lambda given: token(given, iss=f"{ISSUER}/")),
    "without issuer": ("claims iss and exp", lambda given: token(_without("iss", given))),
    "wrong audience": ("claim aud", lambda given: token(given, aud="another")),
    "wrong audience, right client": ("claim aud", lambda given: token(given, aud=["another"], client_id=AUDIENCE)),
    "wrong client, no audience": ("claim aud", lambda given: token(_without("aud", given), client_id="another")),
    "alg none": (_FORM, lambda given: signed({"alg": "none", "kid": KEY_ID}, given, lambda _content: b"")),
    "alg none with a signature": (
        _ALGORITHM,
        lambda given: signed({"alg": "none", "kid": KEY_ID}, given, _signature_of(token(given))),
    ),
    "HS256 with the public key as secret": (_ALGORITHM, _with_public_key_as_secret),
    "ES256": (_ALGORITHM, lambda given: jwt.encode(given, ec_key(), algorithm="ES256", headers={"kid": EC_KEY_ID})),
    "ES256 said to be RS256": (_KEY, _relabelled),
    "PS256": (_ALGORITHM, lambda given: jwt.encode(given, private_key(), algorithm="PS256", headers={"kid": KEY_ID})),
    "unknown kid": (_KEY, lambda given: _of_another(given, kid="another")),
    "another's key under a known kid": (_SIGNATURE, lambda given: _of_another(given, kid=KEY_ID)),
    "without kid": (_KEY, lambda given: jwt.encode(given, private_key(), algorithm="RS256")),
    "key in the header": (_KEY, lambda given: _of_another(given, kid="another", jwk=jwk("another"))),
    "key's address in the header": (
        _KEY,
        lambda given: _of_another(given, kid="another", jku="https://attacker.example.com/jwks.json"),
    ),
    "content changed": (
        _SIGNATURE,
        lambda given: signed({"alg": "RS256", "kid": KEY_ID}, {**given, "sub": "root"}, _signature_of(token(given))),
    ),
    "claims that are no object": ("well-formed claims", lambda given: token_of(json.dumps([given]).encode())),
}

REFUSED: dict[str, tuple[str, Callable[[dict[str, Any]], list[str]]]] = {
    "no header": (_HEADER, lambda _given: []),
    "empty header": (_HEADER, lambda _given: [""]),
    "no token": (_HEADER, lambda _given: ["Bearer"]),
    "another scheme": (_HEADER, lambda given: [f"Basic {token(given)}"]),
    "token without a scheme": (_HEADER, lambda given: [token(given)]),
    "two tokens in one header": (_HEADER, lambda given: [f"Bearer {token(given)} {token(given)}"]),
    "two headers": (_HEADER, lambda given: [f"Bearer {token(given)}"] * 2),
    **{name: (words, _bearer(make)) for name, (words, make) in _REFUSED_TOKENS.items()},
}
"""What makes, of good claims, values of the header Authorization with which a request is nobody's.

Before each stands what the answer's sentence says about it."""
