"""Rate limits as scripts take them, and what scripts answer where one forbids a request."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from margin.errors import RateLimitedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from margin.ports import RateLimit

_MICROSECONDS = 1_000_000
_MILLISECONDS = 1000


def limits_text(limits: Sequence[RateLimit]) -> str:
    """Write limits for a script, "" for none."""
    return json.dumps([[limit.name, limit.per_s, limit.burst] for limit in limits]) if limits else ""


def require_unlimited(reply: Sequence[Any]) -> None:
    """Tell by a script's reply whether a limit forbade the request.

    Raises
    ------
    RateLimitedError
        Says whose limit it is, and when a request passes.
    """
    if reply[0] == "LIMITED":
        kind, _, name = str(reply[1]).partition(":")
        whose = {"account": f"changes of account {name}", "reads": f"reads of account {name}"}.get(kind, "this token")
        raise RateLimitedError(
            f"The limit of {whose} is {reply[2]} requests a second, and {reply[3]} at once. "
            "This request was not looked at: send it again, with the same key.",
            max(1, math.ceil(int(reply[4]) / _MICROSECONDS)),
        )


def too_many_keys(keys_max: int, wait_ms: int) -> RateLimitedError:
    """Return the error for a request whose key would be one too many."""
    return RateLimitedError(
        f"The account has {keys_max} idempotency keys that are remembered still, as many as it may. Nothing was done.",
        max(1, math.ceil(wait_ms / _MILLISECONDS)),
    )
