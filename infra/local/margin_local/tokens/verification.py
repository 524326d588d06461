"""Whether a token is genuine, for this engine, and valid now: decided as API Gateway's JWT authorizer decides it.

https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-jwt-authorizer.html says what that is: RSA alone,
a ``kid`` of the issuer's key set, ``iss``, one of the audiences in ``aud`` (in ``client_id`` where there is no
``aud``), ``exp``, ``nbf`` and ``iat``. Nothing of a token is repeated in an error: what is wrong is said by claim.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any, Protocol

import jwt

from margin.errors import UnauthenticatedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from margin_local.tokens.key_set import VerificationKey

ALGORITHMS = ("RS256", "RS384", "RS512")
TOKEN_LENGTH_MAX = 8192

_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_MOMENTS = ("exp", "nbf", "iat")


class Keys(Protocol):
    """Where an issuer's keys are."""

    async def find(self, key_id: str) -> VerificationKey | None:
        """Return the key of that name, if the issuer has one."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Which tokens are for this engine.

    Parameters
    ----------
    issuer : str
        What ``iss`` must be, letter by letter.
    audiences : frozenset of str
        Of which ``aud`` must name one.
    leeway_s : int
        By how many seconds the issuer's clock may differ.
    """

    issuer: str
    audiences: frozenset[str]
    leeway_s: int


async def verified_claims(token: str, keys: Keys, policy: Policy) -> dict[str, Any]:
    """Return the claims of a token.

    Parameters
    ----------
    token : str
        In its compact form, three parts with points between them.
    keys : Keys
        The issuer's.
    policy : Policy
        What the token must say.

    Raises
    ------
    UnauthenticatedError
        The token is not genuine, not for this engine, or not valid now.
    UnavailableError
        The issuer's keys cannot be had.
    """
    algorithm, key_id = _read_header(token)
    key = await keys.find(key_id)
    if key is None or algorithm not in key.algorithms:
        raise UnauthenticatedError("The token must be signed with a key that its issuer publishes (header kid).")
    try:
        claims = jwt.decode(
            token,
            key.public_key,
            algorithms=list(key.algorithms),
            issuer=policy.issuer,
            leeway=policy.leeway_s,
            # The audience can stand in one of two claims, see below.
            options={"require": ["exp", "iss"], "verify_aud": False, "enforce_minimum_key_length": True},
        )
    except jwt.PyJWTError as error:
        # Without the cause: its words can repeat what was sent.
        raise UnauthenticatedError(_sentence(error)) from None
    _check_moments(claims)
    _check_audience(claims, policy.audiences)
    return claims


def _read_header(token: str) -> tuple[str, str]:
    """Return algorithm and key id, which nobody has vouched for yet: they select, and decide nothing."""
    if len(token) > TOKEN_LENGTH_MAX:
        raise UnauthenticatedError(f"The token must have at most {TOKEN_LENGTH_MAX} characters.")
    try:
        header = jwt.get_unverified_header(token) if _TOKEN.fullmatch(token) else {}
    except jwt.PyJWTError:
        header = {}
    if not header:
        raise UnauthenticatedError("The token must be a signed JSON Web Token: three parts in base64url, with points.")
    algorithm, key_id = header.get("alg"), header.get("kid")
    if algorithm not in ALGORITHMS:
        raise UnauthenticatedError(f"The token must be signed with {', '.join(ALGORITHMS[:-1])} or {ALGORITHMS[-1]}.")
    if not isinstance(key_id, str) or not key_id:
        raise UnauthenticatedError("The token must name the key that it is signed with (header kid).")
    return str(algorithm), key_id


def _sentence(error: jwt.PyJWTError) -> str:
    if isinstance(error, jwt.ExpiredSignatureError):
        return "The token has expired: get another one."
    if isinstance(error, jwt.ImmatureSignatureError):
        return "The token is not valid yet: nbf and iat must not be in the future."
    if isinstance(error, jwt.InvalidIssuerError):
        return "The token must be from the issuer that this engine trusts (claim iss)."
    if isinstance(error, jwt.MissingRequiredClaimError):
        return "The token must have the claims iss and exp."
    if isinstance(error, jwt.InvalidSignatureError):
        return "The token's signature must fit its content and the issuer's key."
    return "The token must be a signed JSON Web Token with well-formed claims."


def _check_moments(claims: Mapping[str, Any]) -> None:
    """Refuse what the library would convert: a moment is a JSON number."""
    if any(name in claims and type(claims[name]) not in (int, float) for name in _MOMENTS):
        raise UnauthenticatedError("The token's exp, nbf and iat must be numbers: seconds since 1970.")


def _check_audience(claims: Mapping[str, Any], audiences: frozenset[str]) -> None:
    named = claims["aud"] if "aud" in claims else claims.get("client_id")
    listed = named if isinstance(named, list) and "aud" in claims else [named]
    if not any(isinstance(one, str) and one in audiences for one in listed):
        message = "The token must be for this engine: claim aud, or client_id where there is no aud."
        raise UnauthenticatedError(message)
