"""`python -m margin_local.tokens`: print a token for an engine on this machine that runs with AUTH=jwt.

The token alone is on standard output, what it allows on standard error.
"""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING

from margin.caller import ACCOUNTS_MAX, ALL_ACCOUNTS, Scope, caller_of_claims
from margin.config import SettingError, Settings
from margin.errors import MarginError
from margin_local.__main__ import environment
from margin_local.tokens.development import LIFETIME_S_MAX, DevelopmentKey, DevelopmentKeyError

if TYPE_CHECKING:
    from collections.abc import Sequence

_LIFETIME = re.compile(r"([0-9]{1,9})([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a token; one line says what is wrong with what was asked for."""
    given = _parser().parse_args(arguments)
    scopes = given.scopes.split()
    try:
        settings = Settings.from_environment(environment())
        claims = {
            "sub": given.subject,
            "scope": " ".join(f"{settings.auth_scope_prefix}{scope}" for scope in scopes),
            "account_ids": given.accounts,
        }
        caller = caller_of_claims(claims, None, scope_prefix=settings.auth_scope_prefix)
        token = DevelopmentKey(settings.data_dir).token(claims, lifetime_s=given.expires)
    except (SettingError, MarginError, DevelopmentKeyError) as error:
        print(f"margin: {error}", file=sys.stderr)
        return 1
    print(token)
    whose = "all accounts" if caller.accounts is None else f"accounts {given.accounts or 'none'}"
    print(
        f"For {caller.subject}: {', '.join(scopes)}; {whose}; for {given.expires} s. "
        "An engine that AUTH=jwt make run starts on the same DATA_DIR accepts it, nothing else does.",
        file=sys.stderr,
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m margin_local.tokens", description=__doc__)
    parser.add_argument("--subject", default="developer", help="who it is (default developer)")
    parser.add_argument(
        "--scopes", type=_scopes, default=" ".join(Scope), help=f"of {', '.join(Scope)}; by default all"
    )
    parser.add_argument(
        "--accounts",
        default=ALL_ACCOUNTS,
        help=f'account numbers, at most {ACCOUNTS_MAX}, such as "1 2"; {ALL_ACCOUNTS} for all, which is the default',
    )
    parser.add_argument("--expires", type=_lifetime_s, default="12h", help="after 90s, 30m, 12h or 7d (default 12h)")
    return parser


def _scopes(text: str) -> str:
    unknown = set(text.split()) - set(Scope)
    if unknown:
        raise argparse.ArgumentTypeError(f"must be some of {', '.join(Scope)}, with spaces between them")
    return text


def _lifetime_s(text: str) -> int:
    matched = _LIFETIME.fullmatch(text)
    seconds = int(matched[1]) * _SECONDS[matched[2]] if matched else 0
    if not 0 < seconds <= LIFETIME_S_MAX:
        raise argparse.ArgumentTypeError(f"must be like 90s, 30m, 12h or 7d, at most {LIFETIME_S_MAX // 86_400}d")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
