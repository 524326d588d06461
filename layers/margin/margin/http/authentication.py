"""Who sent a request: asked of the gateway's event in Lambda, of nobody where the engine is open to all.

The local server brings an `Authenticator` of its own, which verifies tokens as the gateway does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from fastapi import Request as HttpRequest
from fastapi import Response

from margin import caller
from margin.caller import Caller
from margin.config import AUTH_OFF, Settings
from margin.errors import UnauthenticatedError

Authenticator = Callable[[HttpRequest], Awaitable[Caller]]
"""Returns the caller of a request, or raises `UnauthenticatedError`."""

Page = Callable[[HttpRequest], Awaitable[Response]]

present_caller: ContextVar[Caller] = ContextVar("margin_caller")
"""Who sent the request at hand; its route sets it before anything else is done."""


def by_gateway(scope_prefix: str = "") -> Authenticator:
    """Trust the claims in the gateway's event (HTTP API, payload 2.0), whose authorizer has verified the token.

    An event without them is refused, whatever let it through.
    """

    async def authenticate(request: HttpRequest) -> Caller:
        claims: Any = request.scope.get("aws.event")
        for name in ("requestContext", "authorizer", "jwt", "claims"):
            claims = claims.get(name) if isinstance(claims, dict) else None
        if not isinstance(claims, dict):
            message = "Send a token in the header Authorization: Bearer TOKEN."
            raise UnauthenticatedError(message)
        return caller.caller_of_claims(claims, source_ip(request), scope_prefix=scope_prefix)

    return authenticate


def authenticator(settings: Settings) -> Authenticator:
    """Return how a function knows its callers."""
    return anyone if settings.auth == AUTH_OFF else by_gateway(settings.auth_scope_prefix)


def authenticated(page: Page) -> Page:
    """Return a page that is no operation of the API, for those alone who are known."""

    async def guarded(request: HttpRequest) -> Response:
        await request.app.state.authenticate(request)
        return await page(request)

    return guarded


async def anyone(request: HttpRequest) -> Caller:
    """Allow everything to everybody."""
    return caller.anyone(source_ip(request))


def source_ip(request: HttpRequest) -> str | None:
    """Return the address that a request came from, as the gateway says, or the socket where there is none."""
    event: dict[str, Any] | None = request.scope.get("aws.event")
    if event is not None:
        address = ((event.get("requestContext") or {}).get("http") or {}).get("sourceIp")
        return address if isinstance(address, str) else None
    return request.client.host if request.client else None
