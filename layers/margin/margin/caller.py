"""Who sent a request, and what its token allows."""

from __future__ import annotations

import dataclasses
import re
from enum import StrEnum, unique
from typing import TYPE_CHECKING, Any

from margin.errors import UnauthenticatedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ACCOUNTS_MAX = 200
ALL_ACCOUNTS = "*"
SUBJECT_LENGTH_MAX = 256

_ACCOUNT_ID = re.compile(r"[1-9][0-9]{0,18}")
_ENGINE, _OPERATOR, _DEPLOYMENT = "engine", "operator:", "deployment:"
_RESERVED = re.compile(f"{_ENGINE}|(?:{_OPERATOR}|{_DEPLOYMENT}).*", re.IGNORECASE)


@unique
class Scope(StrEnum):
    """What a token can allow; each operation names those of which one suffices."""

    TRADE_WRITE = "trade:write"
    POSITIONS_READ = "positions:read"
    HISTORY_READ = "history:read"
    ACCOUNTS_WRITE = "accounts:write"
    MARKS_WRITE = "marks:write"
    RISK_READ = "risk:read"
    ADMIN = "admin"


@dataclasses.dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated subject of a request, the address it came from, and what it may do.

    Parameters
    ----------
    subject : str or None
        Who it is; None when the endpoint is open to all.
    source_ip : str or None
        Where the request came from.
    scopes : frozenset of Scope
        What the token allows.
    accounts : frozenset of int, or None
        For which accounts it does; None for all.
    """

    subject: str | None
    source_ip: str | None
    scopes: frozenset[Scope] = frozenset()
    accounts: frozenset[int] | None = frozenset()

    def has_any(self, scopes: Iterable[Scope]) -> bool:
        """Whether the token has one of ``scopes``."""
        return not self.scopes.isdisjoint(scopes)

    def may_use(self, account_id: int) -> bool:
        """Whether the token is for this account."""
        return self.accounts is None or account_id in self.accounts


NOBODY = Caller(subject=None, source_ip=None)
ENGINE = Caller(subject=_ENGINE, source_ip=None)


def operator(name: str) -> Caller:
    """Return the caller of a command that comes with no token: past the API, from whoever may run it.

    Such subjects have no address, and none of a token is taken that looks like one.
    """
    return Caller(subject=f"{_OPERATOR}{name}", source_ip=None)


def deployment(name: str) -> Caller:
    """Return the caller of what a deployment does by itself."""
    return Caller(subject=f"{_DEPLOYMENT}{name}", source_ip=None)


def anyone(source_ip: str | None) -> Caller:
    """Return the caller of an engine that is open to all: nobody is known, and everything is allowed."""
    return Caller(subject=None, source_ip=source_ip, scopes=frozenset(Scope), accounts=None)


def caller_of_claims(claims: Mapping[str, Any], source_ip: str | None, *, scope_prefix: str = "") -> Caller:
    """Read the caller from the claims of a token that somebody else has verified.

    Parameters
    ----------
    claims : mapping
        ``sub`` or ``client_id`` says who it is, ``scope`` (or ``scp``) what is allowed, ``account_ids`` for which
        accounts: their numbers between spaces, or ``*`` for all. Without ``account_ids`` it is for none.
    source_ip : str or None
        Where the request came from.
    scope_prefix : str
        What the issuer puts in front of a scope, such as "margin/"; scopes without it are others'.

    Raises
    ------
    UnauthenticatedError
        The token names nobody, or its accounts cannot be read or are more than `ACCOUNTS_MAX`.
    """
    subject = claims.get("sub") or claims.get("client_id")
    if not isinstance(subject, str) or len(subject) > SUBJECT_LENGTH_MAX or not subject.isprintable():
        message = f"The token must name its subject in the claim sub, in at most {SUBJECT_LENGTH_MAX} characters."
        raise UnauthenticatedError(message)
    if _RESERVED.fullmatch(subject.strip()):
        message = "This subject is the engine's own, or its operator's: history could not tell one from the other."
        raise UnauthenticatedError(message)
    return Caller(
        subject=subject,
        source_ip=source_ip,
        scopes=_scopes(claims["scope"] if "scope" in claims else claims.get("scp"), scope_prefix),
        accounts=_accounts(claims.get("account_ids", "")),
    )


def _scopes(text: object, prefix: str) -> frozenset[Scope]:
    if not isinstance(text, str):
        return frozenset()
    # The gateway writes a list of texts as "[first second]".
    names = (text[1:-1] if text.startswith("[") and text.endswith("]") else text).split(" ")
    known = {f"{prefix}{scope}": scope for scope in Scope}
    return frozenset(known[name] for name in names if name in known)


def _accounts(text: object) -> frozenset[int] | None:
    if text == ALL_ACCOUNTS:
        return None
    identities = [identity for identity in text.split(" ") if identity] if isinstance(text, str) else [""]
    if len(identities) > ACCOUNTS_MAX or not all(_ACCOUNT_ID.fullmatch(identity) for identity in identities):
        message = (
            f"The token's claim account_ids must be a text with at most {ACCOUNTS_MAX} account numbers between spaces, "
            f"or {ALL_ACCOUNTS} for all accounts."
        )
        raise UnauthenticatedError(message)
    return frozenset(map(int, identities))
