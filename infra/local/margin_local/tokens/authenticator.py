"""Who sent a request, by the token in its header: what the local engine has in the place of the gateway."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from margin.caller import caller_of_claims
from margin.errors import UnauthenticatedError
from margin.http.authentication import source_ip
from margin_local.tokens.verification import verified_claims

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import Request

    from margin.caller import Caller
    from margin_local.tokens.verification import Keys, Policy

_BEARER = re.compile(r"bearer +(\S+)", re.IGNORECASE)


class TokenAuthenticator:
    """Verifies the token of each request; an `Authenticator`.

    Parameters
    ----------
    keys : Keys
        The issuer's.
    policy : Policy
        Which tokens are for this engine.
    scope_prefix : str
        What the issuer puts in front of a scope.
    """

    def __init__(self, keys: Keys, policy: Policy, *, scope_prefix: str = "") -> None:
        self._keys = keys
        self._policy = policy
        self._scope_prefix = scope_prefix

    async def __call__(self, request: Request) -> Caller:
        """Return who sent a request.

        Raises
        ------
        UnauthenticatedError
            It has no token, or one that is not accepted.
        UnavailableError
            The issuer's keys cannot be had.
        """
        claims = await verified_claims(_token(request), self._keys, self._policy)
        return caller_of_claims(as_the_gateway_passes(claims), source_ip(request), scope_prefix=self._scope_prefix)


def as_the_gateway_passes(claims: Mapping[str, Any]) -> dict[str, str]:
    """Return claims as API Gateway hands them to a function: each a text, a list as "[first second]".

    A list of accounts is refused there, so it is here.

    Examples
    --------
    >>> as_the_gateway_passes({"sub": "desk", "exp": 1, "scp": ["risk:read", "admin"]})
    {'sub': 'desk', 'exp': '1', 'scp': '[risk:read admin]'}
    """
    return {name: _as_text(value) for name, value in claims.items()}


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{' '.join(map(_as_text, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _token(request: Request) -> str:
    given = request.headers.getlist("Authorization")
    matched = _BEARER.fullmatch(given[0]) if len(given) == 1 else None
    if matched is None:
        raise UnauthenticatedError("Send a token in the header Authorization: Bearer TOKEN, once.")
    return matched[1]
