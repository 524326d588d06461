"""How many requests an account and a token may send: told to the first script of a request, which counts them.

So a limit holds over all execution environments, exactly, and costs no round trip. What the engine does by itself is
never limited.
"""

from __future__ import annotations

import dataclasses
import hashlib

from margin.caller import ENGINE, Caller
from margin.ports import RateLimit


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """Requests per second, on average, and at once after a pause; zero where there is no limit.

    The limit of a token is that of its subject, whichever of its tokens it sends, in each partition by itself. What
    only reads an account is counted apart from what changes it: nobody is kept from trading by somebody who looks.
    """

    account_per_s: int = 0
    account_burst: int = 0
    token_per_s: int = 0
    token_burst: int = 0

    def of(self, caller: Caller, account_id: int | None = None, *, reads: bool = False) -> tuple[RateLimit, ...]:
        """Return what limits a request of ``caller`` on an account, or on the market where there is none.

        Parameters
        ----------
        caller : Caller
            Who asks; nothing limits the engine.
        account_id : int or None
            The account that the request is about.
        reads : bool
            Whether it changes nothing.
        """
        if caller is ENGINE:
            return ()
        limits = []
        if account_id is not None and self.account_per_s:
            limits.append(
                RateLimit(f"{'reads' if reads else 'account'}:{account_id}", self.account_per_s, self.account_burst)
            )
        if caller.subject is not None and self.token_per_s:
            # A subject may have any characters and be long; a key must not.
            name = hashlib.sha256(caller.subject.encode()).hexdigest()[:32]
            limits.append(RateLimit(f"token:{name}", self.token_per_s, self.token_burst))
        return tuple(limits)


NO_LIMITS = RateLimits()
