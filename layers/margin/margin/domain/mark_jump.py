"""Prices that move too far to be believed at once: they wait until a later one confirms them.

The store judges, in the step that would store the price. One that is further from the mark than the instrument's
``mark_jump_max``, as a share of the mark, is set aside: it is not the mark, and waits. While it waits the mark is in
doubt, see :meth:`margin.domain.market.Market.is_stale`. The next price that is later, by what their senders say,

- is the mark where it is no further from the one that waits than the same share of it: it confirms it;
- where it is further, but on the same side of the mark, both say that the mark moved, at least as far as the nearer of
  the two. That one is the mark, and the other one waits beside it if it is beyond its bound;
- on the other side of the mark takes the place of the one that waits;
- is the mark where it is within the bound of the mark, and nothing waits any more.

One that is older than the one that waits confirms nothing and replaces nothing: beyond the bound it is forgotten,
within the bound it is the mark and the other one goes on waiting beside it, if it is beyond its bound too. A time
that is ahead of the store's clock counts as the moment at which it came. The very same message again confirms
nothing: it is known by its timestamp; without one a price that is sent twice within a second counts once.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from margin.domain.decimals import exact, plain, quotient_up

__all__ = ["MarkCandidate", "move_pct", "set_aside_message"]

_HUNDRED: Final = Decimal(100)
_PCT_DECIMALS: Final = 2


@dataclass(frozen=True, slots=True)
class MarkCandidate:
    """A price that was set aside and waits to be confirmed.

    Parameters
    ----------
    price : Decimal
        Quote currency for one unit, above 0.
    observed_us : int
        When it was observed, as its sender says, else when it came; microseconds since the epoch.
    source : str or None
        Where it is from, as its sender says.
    """

    price: Decimal
    observed_us: int
    source: str | None = None


@exact
def move_pct(price: Decimal, mark_price: Decimal) -> Decimal:
    """Return by how many percent of the mark a price is above it, below it when negative.

    Two decimals, rounded away from 0, so that what is beyond a bound looks so.

    Raises
    ------
    ZeroDivisionError
        When the mark is 0.
    """
    percent = quotient_up(abs(price - mark_price) * _HUNDRED, mark_price, _PCT_DECIMALS)
    return percent if price >= mark_price else -percent


def set_aside_message(price: Decimal, mark_price: Decimal, jump_max: Decimal) -> str:
    """Say to the sender of a price how far it moves, how far it may, and what confirms it."""
    bound = f"{plain(jump_max * _HUNDRED)} %"
    return (
        f"Set aside: {plain(price)} is {plain(abs(move_pct(price, mark_price)))} % away from the mark price "
        f"{plain(mark_price)}. More than {bound} at once takes a second, later price within {bound} of this one."
    )
