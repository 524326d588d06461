"""Closing profitable positions at a liquidated account's bankruptcy price, so that others' losses can be paid.

A liquidation closes at the mark p, against the house. Where the account could not pay, its bankruptcy price b is worse
for it than p, by the gap: b - p for a long, p - b for a short. Closing x units of an opposite position at b hands x
units of what the house took over on to their new owner, and brings x * gap, which the house does not keep: it is flat
at p, and the insurance fund receives the gap.

Where the mark has come back beyond b since, b would be a present to whoever is closed: that is done at the mark then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from margin.domain.decimals import DECIMALS, exact, multiple_up, quotient_up, round_up
from margin.domain.ledger import LedgerAccount, LedgerLine, balanced, fill_lines
from margin.domain.position import Side, apply_fill
from margin.domain.risk import assess

if TYPE_CHECKING:
    from margin.domain.account import Account
    from margin.domain.market import Market
    from margin.domain.position import Position
    from margin.domain.risk import AccountRisk

__all__ = [
    "AUTO_DELEVERAGING",
    "BankruptPosition",
    "Deleveraging",
    "deleverage",
    "deleveraging_rank",
    "has_won",
    "most_to_deleverage",
]

AUTO_DELEVERAGING: Final = "AUTO_DELEVERAGING"

_DUST: Final = Decimal(1).scaleb(-DECIMALS)


@dataclass(frozen=True, slots=True)
class BankruptPosition:
    """A position that was closed by a liquidation with a shortfall.

    Parameters
    ----------
    symbol : str
    quantity : Decimal
        Signed units closed.
    price : Decimal
        The mark that it was closed at.
    bankruptcy_price : Decimal or None
        As recorded with the liquidation, or beyond that where the debt was shared anew; None where there is none.
    """

    symbol: str
    quantity: Decimal
    price: Decimal
    bankruptcy_price: Decimal | None

    @property
    @exact
    def gap(self) -> Decimal:
        """What one unit brings, in quote currency; 0 where nothing can be had, because there is no worse price."""
        if self.bankruptcy_price is None:
            return Decimal(0)
        beyond = self.bankruptcy_price - self.price
        return max(Decimal(0), beyond if self.quantity > 0 else -beyond)

    def closing_price(self, mark_price: Decimal) -> Decimal:
        """Price at which others are closed against it: the bankruptcy price, or the mark where that is worse for them.

        Raises
        ------
        ValueError
            When there is no bankruptcy price.
        """
        if self.bankruptcy_price is None:
            raise ValueError("nothing can be closed at a price that there is not")
        return (max if self.quantity > 0 else min)(self.bankruptcy_price, mark_price)

    @exact
    def brings(self, quantity: Decimal) -> Decimal:
        """Amount that so many units bring, in quote currency, rounded up to 8 decimals: it is charged."""
        return round_up(quantity * self.gap)

    @exact
    def sharing(self, uncovered: Decimal, notional: Decimal) -> BankruptPosition:
        """Return the position with the price at which it brings its share, by its notional, of what is uncovered.

        Parameters
        ----------
        uncovered, notional : Decimal
            What is still to be paid, and the notional, at the prices that they were closed at, of all that shares it.
        """
        gap = quotient_up(uncovered * self.price, notional)
        return replace(self, bankruptcy_price=self.price + (gap if self.quantity > 0 else -gap))

    @property
    def opposite(self) -> Side:
        """Side on which those stand who can be deleveraged: short against a liquidated long."""
        return Side.SELL if self.quantity > 0 else Side.BUY


@dataclass(frozen=True, slots=True)
class Deleveraging:
    """A deleveraging of one account.

    Parameters
    ----------
    account : Account
        After it.
    before, after : AccountRisk
        At the marks.
    symbol : str
    quantity, remaining : Decimal
        Signed units closed and left open.
    entry_price : Decimal
        To the nearest 8th decimal.
    price, mark_price : Decimal
        What they were closed at, and the mark.
    realised_pnl, received : Decimal
        What the account and what the insurance fund received, in 8 decimals.
    ledger_lines : tuple of LedgerLine
        They add up to zero; the line of CASH is the change of the balance.
    """

    account: Account
    before: AccountRisk
    after: AccountRisk
    symbol: str
    quantity: Decimal
    remaining: Decimal
    entry_price: Decimal
    price: Decimal
    mark_price: Decimal
    realised_pnl: Decimal
    received: Decimal
    ledger_lines: tuple[LedgerLine, ...]


@exact
def deleveraging_rank(account: Account, market: Market, symbol: str) -> Fraction | None:
    """Share of profit times effective leverage, by which accounts are deleveraged, the highest first.

    (unrealised profit / entry notional) * (notional / equity), exact.

    Returns
    -------
    Fraction or None
        None for who is not to be deleveraged: without the position, a profit or equity, or with a mark that is missing
        or stale. An entry notional of 0, which only dust of 8 decimals can leave, counts as one unit of dust.
    """
    position = account.positions.get(symbol)
    if position is None or not market.are_fresh(account.positions):
        return None
    price = market.mark_price(symbol)
    profit, equity = position.unrealised_pnl(price), assess(account, market).equity
    if profit <= 0 or equity <= 0:
        return None
    entry_notional = abs(position.entry_cost) or _DUST
    return Fraction(profit) * Fraction(position.notional(price)) / (Fraction(entry_notional) * Fraction(equity))


@exact
def has_won(position: Position, mark_price: Decimal, bankrupt: BankruptPosition) -> bool:
    """Whether a position has a profit at the mark, and no loss at the price that it would be closed at.

    Raises
    ------
    ValueError
        When there is no bankruptcy price.
    """
    closed_at = bankrupt.closing_price(mark_price)
    return position.unrealised_pnl(mark_price) > 0 and position.unrealised_pnl(closed_at) >= 0


@exact
def most_to_deleverage(account: Account, market: Market, bankrupt: BankruptPosition, wanted: Decimal) -> Decimal:
    """Most units, up to those wanted, that an account can be deleveraged by; 0 when it is passed over.

    It must have an unrealised profit in an opposite position, and no loss at the price that it is closed at, so that it
    loses some of its profit and never more; all its marks must be there and fresh; and its equity covers its
    maintenance margin afterwards.

    Returns
    -------
    Decimal
        A whole number of lots, or the whole position, or all that is wanted.
    """
    position = account.positions.get(bankrupt.symbol)
    if position is None or position.quantity * bankrupt.quantity >= 0 or not bankrupt.gap:
        return Decimal(0)
    if not market.are_fresh(account.positions) or not has_won(position, market.mark_price(bankrupt.symbol), bankrupt):
        return Decimal(0)
    risk = assess(account, market)
    if risk.liquidatable:
        return Decimal(0)
    lot = market.instrument(bankrupt.symbol).lot_size
    size = abs(position.quantity)
    quantity = min(wanted, size)
    for room, cost in _bounds(position, market, bankrupt, risk.equity - risk.maintenance_margin):
        if cost > 0 and quantity * cost > room:
            quantity = -multiple_up(-room, cost, lot)
    if quantity == size and deleverage(account, market, bankrupt, quantity).after.liquidatable:
        # Closing all loses dust that a part of it would have kept in its entry cost.
        quantity = multiple_up(size, Decimal(1), lot) - lot
    return quantity


@exact
def deleverage(account: Account, market: Market, bankrupt: BankruptPosition, quantity: Decimal) -> Deleveraging:
    """Close units of an account's position at a liquidated account's bankruptcy price, or at the mark if that is worse.

    Parameters
    ----------
    account : Account
        It has the opposite position, of at least this quantity.
    market : Market
    bankrupt : BankruptPosition
        What was liquidated; it has a gap.
    quantity : Decimal
        Units, above 0.

    Raises
    ------
    NoMarkPriceError
        When a position's symbol has no mark price.
    ValueError
        When the position is not such a one.
    """
    position = account.positions.get(bankrupt.symbol)
    if position is None or position.quantity * bankrupt.quantity >= 0 or abs(position.quantity) < quantity:
        raise ValueError("only an opposite position of at least this quantity can be deleveraged")
    price = bankrupt.closing_price(market.mark_price(bankrupt.symbol))
    exact_amount, received = quantity * bankrupt.gap, bankrupt.brings(quantity)
    closing_side = Side.BUY if position.quantity < 0 else Side.SELL
    index = market.funding_index(bankrupt.symbol)
    fill = apply_fill(position, bankrupt.symbol, closing_side, quantity, price, funding_index=index)
    after = account.with_position(bankrupt.symbol, fill.position).with_balance_change(fill.realised_pnl)
    remaining = Decimal(0) if fill.position is None else fill.position.quantity
    return Deleveraging(
        account=after,
        before=assess(account, market),
        after=assess(after, market),
        symbol=bankrupt.symbol,
        quantity=position.quantity - remaining,
        remaining=remaining,
        entry_price=position.entry_price,
        price=price,
        mark_price=market.mark_price(bankrupt.symbol),
        realised_pnl=fill.realised_pnl,
        received=received,
        ledger_lines=balanced(
            (
                *fill_lines(fill),
                LedgerLine(LedgerAccount.HOUSE_PNL, -exact_amount),
                LedgerLine(LedgerAccount.ROUNDING, exact_amount - received),
                LedgerLine(LedgerAccount.INSURANCE, received),
            )
        ),
    )


def _bounds(
    position: Position, market: Market, bankrupt: BankruptPosition, slack: Decimal
) -> list[tuple[Decimal, Decimal]]:
    """Pair the slack that an account has under each line of its margin with what each unit takes of it.

    Maintenance margin is the largest of the tiers' lines, so the slack E - MM stays at 0 or above where it does so
    under each line; each unit takes what it is closed below its worth, less the margin that the line frees.
    """
    price = market.mark_price(bankrupt.symbol)
    cost = abs(bankrupt.closing_price(price) - price)
    instrument = market.instrument(bankrupt.symbol)
    notional = position.notional(price)
    margin = instrument.maintenance_margin(notional)
    return [
        (slack + margin - (rate * notional - amount), cost - rate * price)
        for rate, amount in instrument.maintenance_lines
    ]
