"""The moment a mark price was observed, as its sender says: what is refused because of it.

A price that says it is older than the stored one is refused, so that messages which overtake each other do not put the
market back. An equal time is the same price again, or corrected: the last one stands. The store compares, in the step
that would store the price; here is what it goes by, and how it is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from margin.errors import FutureTimestampError, OlderMarkPriceError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["AHEAD_MAX_US", "OlderPrice", "future_timestamp", "older_mark_price"]

AHEAD_MAX_US: Final = 10_000_000
"""How far a sender's clock may be ahead of the store's, in microseconds.

A fast clock keeps all others from the symbol for as long as it is ahead, so this is short; clocks that are kept in time
at all are within a second of each other. A stored time that is further ahead than that was given by a clock which was
put back since, and compared with nothing.
"""

_NAMED_MAX = 100
_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class OlderPrice:
    """A price that says it is older than the stored one: both times in microseconds since the epoch."""

    symbol: str
    observed_us: int
    stored_us: int


def future_timestamp(symbol: str, observed_us: int, now_us: int) -> FutureTimestampError:
    """Refuse a price that says it is from the future; times in microseconds since the epoch."""
    message = (
        f"{symbol} is said to be of {_text(observed_us)}, and it is {_text(now_us)}: "
        f"a timestamp may be at most {AHEAD_MAX_US // 1_000_000} s ahead. No price of this call was stored."
    )
    return FutureTimestampError(message, symbol)


def older_mark_price(older: Sequence[OlderPrice]) -> OlderMarkPriceError:
    """Refuse a call because of those of its prices that are older than the stored ones."""
    named = [
        f"{price.symbol} of {_text(price.observed_us)} is older than the stored price of {_text(price.stored_us)}"
        for price in older[:_NAMED_MAX]
    ]
    if len(older) > _NAMED_MAX:
        named.append(f"so are {len(older) - _NAMED_MAX} more")
    return OlderMarkPriceError(f"{'; '.join(named)}. No price of this call was stored.")


def _text(moment_us: int) -> str:
    moment = _EPOCH + timedelta(microseconds=moment_us)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
