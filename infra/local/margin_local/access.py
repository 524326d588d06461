"""Who may call the engine on this machine: everybody who reaches its port (AUTH=off), or who has a token (AUTH=jwt)."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

from margin.config import AUTH_OFF, SettingError, is_loopback
from margin.errors import ForbiddenError
from margin.http.authentication import anyone

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TextIO

    from fastapi import Request

    from margin.caller import Caller
    from margin.config import Settings
    from margin.http.authentication import Authenticator

WARNING = "AUTH=off: whoever reaches this port may do anything, on every account. AUTH=jwt wants a token of everybody."

_OF_TOKENS = ("AUTH_JWKS", "AUTH_ISSUER", "AUTH_AUDIENCE")
_RED = "\x1b[31m{}\x1b[0m"


def authenticator(settings: Settings) -> Authenticator:
    """Return how the local engine knows its callers.

    With none of AUTH_JWKS, AUTH_ISSUER and AUTH_AUDIENCE set, tokens of `make token` are accepted.

    Raises
    ------
    SettingError
        AUTH=jwt, and it is not known whose tokens to accept.
    """
    if settings.auth == AUTH_OFF:
        return _anyone_here
    # It takes long to import, and only those with tokens need it.
    from margin_local.tokens import development  # noqa: PLC0415
    from margin_local.tokens.authenticator import TokenAuthenticator  # noqa: PLC0415
    from margin_local.tokens.key_set import KeySet, source_of  # noqa: PLC0415
    from margin_local.tokens.verification import Policy  # noqa: PLC0415

    given = (settings.auth_jwks, settings.auth_issuer, _audiences(settings))
    missing = [name for name, value in zip(_OF_TOKENS, given, strict=True) if not value]
    if len(missing) == len(_OF_TOKENS):
        path = development.key_set_path(settings.data_dir)
        if not path.is_file():
            message = (
                f"AUTH=jwt needs {_listed(missing)}, which say whose tokens are accepted; "
                "or run make token once, to try it with tokens of this machine"
            )
            raise SettingError(message)
        settings = dataclasses.replace(
            settings, auth_jwks=str(path), auth_issuer=development.ISSUER, auth_audience=development.AUDIENCE
        )
    elif missing:
        message = f"AUTH=jwt also needs {_listed(missing)}: {_listed(_OF_TOKENS)} are set together"
        raise SettingError(message)
    policy = Policy(
        issuer=settings.auth_issuer,
        audiences=_audiences(settings),
        leeway_s=settings.auth_leeway_s,
    )
    keys = KeySet(source_of(settings.auth_jwks))
    return TokenAuthenticator(keys, policy, scope_prefix=settings.auth_scope_prefix)


async def _anyone_here(request: Request) -> Caller:
    """Allow everything, but not to a page from elsewhere whose name was made to point to this machine."""
    if not is_loopback(request.url.hostname or ""):
        message = "With AUTH=off the engine is called by the name of this machine alone: localhost, or 127.0.0.1."
        raise ForbiddenError(message)
    return await anyone(request)


def _audiences(settings: Settings) -> frozenset[str]:
    return frozenset(settings.auth_audience.replace(",", " ").split())


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def refuse_strangers(settings: Settings, host: str) -> None:
    """Refuse to serve everybody on the network without tokens.

    Parameters
    ----------
    settings : Settings
        AUTH is asked for.
    host : str
        The address that is listened on, as the system names it.

    Raises
    ------
    SettingError
        Other machines reach that address, and AUTH=off.
    """
    if settings.auth == AUTH_OFF and not is_loopback(host):
        message = (
            f"HOST={settings.host} is reached from other machines, and with AUTH=off anybody there could do anything: "
            "set AUTH=jwt, which wants a token of everybody (make token makes one), or HOST=127.0.0.1"
        )
        raise SettingError(message)


def warn(settings: Settings, environment: Mapping[str, str], stream: TextIO = sys.stderr) -> None:
    """Say that an engine is open, in red where a terminal shows it (https://no-color.org)."""
    if settings.auth == AUTH_OFF:
        coloured = stream.isatty() and "NO_COLOR" not in environment
        print(_RED.format(WARNING) if coloured else WARNING, file=stream, flush=True)
