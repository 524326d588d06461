"""What is to be closed of others against each position of a liquidated account, so that its debt is paid.

Bankruptcy prices share the debt among all positions that were closed. Where nobody can be closed against one of them,
what it was to bring is shared anew among the others, at prices beyond their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from margin.domain.decimals import exact, multiple_up

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from margin.domain.deleveraging import BankruptPosition
    from margin.domain.market import Market

__all__ = ["Shares", "quantities_to_deleverage", "shares_to_deleverage"]


@dataclass(frozen=True, slots=True)
class Shares:
    """What is to be closed against each position, so that all of them together bring what is uncovered.

    Parameters
    ----------
    quantities : tuple of (BankruptPosition, Decimal)
        Units above 0, a whole number of lots, or all that is left of what was closed.
    notional : Decimal or None
        Where the debt is shared anew: the notional among which it is; None at the recorded bankruptcy prices.
    """

    quantities: tuple[tuple[BankruptPosition, Decimal], ...] = ()
    notional: Decimal | None = None


@exact
def quantities_to_deleverage(
    positions: Sequence[BankruptPosition],
    done: Mapping[str, Decimal],
    market: Market,
    *,
    uncovered: Decimal,
    raised: Decimal,
) -> list[tuple[BankruptPosition, Decimal]]:
    """Divide what is to be closed at bankruptcy prices among the positions, in the order in which they are to be tried.

    What deleveraging has to raise is shared among the positions in proportion to the notional that was closed of them.
    Behind all shares stands what each could give beyond its own, for when the others find no counterparty.

    Parameters
    ----------
    positions : sequence of BankruptPosition
    done : mapping of str to Decimal
        Units that were closed before against them, by symbol.
    market : Market
        Lots are those of its instruments.
    uncovered, raised : Decimal
        What is still to be paid, and what deleveraging has raised for this liquidation until now.

    Returns
    -------
    list of (BankruptPosition, Decimal)
        Units above 0, a whole number of lots, or all that is left of what was closed; each alone brings no more than
        what is uncovered, but for a lot.
    """
    shares, beyond = _divided(positions, done, market, uncovered, raised)
    return shares + beyond


@exact
def shares_to_deleverage(
    positions: Sequence[BankruptPosition],
    done: Mapping[str, Decimal],
    market: Market,
    *,
    uncovered: Decimal,
    raised: Decimal,
    without: Collection[str] = (),
) -> Shares:
    """Divide what is to be closed so that it brings all that is uncovered, though nobody is found for some positions.

    At bankruptcy prices where those suffice; else what is uncovered is shared anew, by the formula of the bankruptcy
    prices, among what is left to be closed of the others.

    Parameters
    ----------
    positions, done, market, uncovered, raised
        As of :func:`quantities_to_deleverage`.
    without : collection of str
        Symbols against which nobody can be closed.

    Returns
    -------
    Shares
        Empty where nothing is left to be closed, or a price would have to be 0 or less.
    """
    left = {one.symbol: abs(one.quantity) - done.get(one.symbol, Decimal(0)) for one in positions}
    able = [one for one in positions if left[one.symbol] > 0 and one.symbol not in without]
    if sum((one.brings(left[one.symbol]) for one in able), start=Decimal(0)) >= uncovered:
        shares, beyond = _divided(able, done, market, uncovered, raised)
        return Shares(tuple(shares or beyond))
    while able:
        notional = sum((left[one.symbol] * one.price for one in able), start=Decimal(0))
        sharing = [one.sharing(uncovered, notional) for one in able]
        if all((one.bankruptcy_price or 0) > 0 for one in sharing):
            return Shares(tuple((one, left[one.symbol]) for one in sharing), notional)
        able = [one for one, shared in zip(able, sharing, strict=True) if (shared.bankruptcy_price or 0) > 0]
    return Shares()


def _divided(
    positions: Sequence[BankruptPosition],
    done: Mapping[str, Decimal],
    market: Market,
    uncovered: Decimal,
    raised: Decimal,
) -> tuple[list[tuple[BankruptPosition, Decimal]], list[tuple[BankruptPosition, Decimal]]]:
    able = [position for position in positions if position.gap > 0]
    notional = sum((abs(one.quantity) * one.price for one in able), start=Decimal(0))
    shares: list[tuple[BankruptPosition, Decimal]] = []
    beyond: list[tuple[BankruptPosition, Decimal]] = []
    for one in able:
        lot = market.instrument(one.symbol).lot_size
        size, closed = abs(one.quantity), done.get(one.symbol, Decimal(0))
        share = multiple_up((uncovered + raised) * size * one.price, notional * one.gap, lot)
        most = min(size - closed, multiple_up(uncovered, one.gap, lot))
        shares.append((one, min(share - closed, most)))
        beyond.append((one, most))
    return [one for one in shares if one[1] > 0], [one for one in beyond if one[1] > 0]
