"""Funding: what those on one side of a symbol pay to those on the other, from time to time.

Each payment moves the funding index of a symbol by rate * mark price: that much a long pays and a short receives for
each unit. Nobody is touched by it. What an account owes counts in its equity from that moment on, and is moved to its
balance with its next event, rounded against it; what rounding leaves stays owed, so that equity is never rounded.

The index of triggers
---------------------
A trigger guards H = E * level - MM, and a payment moves H of everyone on one side by q * level for each unit of the
index. Moving the price by level / (level - rate) for longs, and by level / (level + rate) for shorts, makes up for that
at least, where the rate is the highest of the symbol's margin when the index rises, and the lowest when it falls. So
one number for each side, the shift, moves all of its triggers at once: they are kept as price minus shift, and a price
is compared with them after the shift is taken from it. No account is read, and with one tier nothing is lost. (The
funding index as one more coordinate of the safe zone, measured in units of the price.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from margin.domain.decimals import exact, plain, quotient_down, quotient_up, round_down
from margin.domain.ledger import LedgerAccount, LedgerLine
from margin.errors import FundingRateCapError, StaleMarkPriceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from margin.domain.account import Account
    from margin.domain.market import Market

__all__ = [
    "NO_FUNDING",
    "Funding",
    "FundingPayment",
    "FundingSettlement",
    "Shift",
    "funding_rise",
    "require_payable",
    "settle_funding",
]

SHIFT_DECIMALS: Final = 20
_WHOLE_PCT: Final = Decimal(100)


@dataclass(frozen=True, slots=True)
class Shift:
    """How far funding has moved the triggers of longs (floors) and shorts (ceilings), in quote currency."""

    floor: Decimal = Decimal(0)
    ceiling: Decimal = Decimal(0)

    @exact
    def after(self, rise: Decimal, lines: Sequence[tuple[Decimal, Decimal]], level_pct: Decimal) -> Shift:
        """Return the shift after the index has risen (above 0) or fallen.

        Parameters
        ----------
        rise : Decimal
            Quote currency for one unit.
        lines : sequence of (rate, amount)
            All that any trigger in the index was anchored to.
        level_pct : Decimal
            What the triggers guard, in %; above every rate, else it is taken for 100.
        """
        rates = [rate * 100 for rate, _ in lines]
        level = level_pct if level_pct > max(rates) else _WHOLE_PCT
        # The higher the rate, the less a falling price takes from a long, and the more a rising one takes from a short.
        rate = max(rates) if rise > 0 else min(rates)
        return Shift(
            self.floor + quotient_up(rise * level, level - rate, SHIFT_DECIMALS),
            self.ceiling + quotient_down(rise * level, level + rate, SHIFT_DECIMALS),
        )


@dataclass(frozen=True, slots=True)
class Funding:
    """Funding of one symbol as it stands.

    Parameters
    ----------
    n : int
        How many payments there have been.
    index : Decimal
        Their sum, in quote currency for one unit long, exact.
    liquidation, warning : Shift
        Of the triggers of liquidation and of the margin warning.
    """

    n: int = 0
    index: Decimal = Decimal(0)
    liquidation: Shift = Shift()
    warning: Shift = Shift()

    @exact
    def after(self, rise: Decimal, lines: Sequence[tuple[Decimal, Decimal]], warning_pct: Decimal) -> Funding:
        """Return the funding after one more payment; parameters as :meth:`Shift.after`."""
        return replace(
            self,
            n=self.n + 1,
            index=self.index + rise,
            liquidation=self.liquidation.after(rise, lines, _WHOLE_PCT),
            warning=self.warning.after(rise, lines, warning_pct),
        )

    @exact
    def moved_to(
        self, n: int, index: Decimal, lines: Sequence[tuple[Decimal, Decimal]], warning_pct: Decimal
    ) -> Funding:
        """Return the funding after the ``n``-th payment, when the index is what is given.

        Margin depends on where the index is, not on the way there: several payments count as one.
        """
        return replace(self.after(index - self.index, lines, warning_pct), n=n)


NO_FUNDING: Final = Funding()


@dataclass(frozen=True, slots=True)
class FundingPayment:
    """What one position received (above 0) or paid, in 8 decimals, and the index up to which that was."""

    symbol: str
    quantity: Decimal
    index: Decimal
    amount: Decimal


@dataclass(frozen=True, slots=True)
class FundingSettlement:
    """An account whose pending funding was moved to its balance; the ledger lines add up to zero."""

    account: Account
    payments: tuple[FundingPayment, ...]
    ledger_lines: tuple[LedgerLine, ...]


@exact
def funding_rise(rate: Decimal, mark_price: Decimal) -> Decimal:
    """Calculate what a payment adds to the funding index: rate * mark price, in quote currency for one unit, exact."""
    return rate * mark_price


@exact
def settle_funding(account: Account, market: Market) -> FundingSettlement:
    """Move what an account is to receive or to pay to its balance, position by position, rounded down to 8 decimals.

    So a credit is rounded down and a charge up; what is left of it, less than 0.00000001, is still pending. Equity is
    the same before and after.
    """
    payments: list[FundingPayment] = []
    after = account
    for symbol in sorted(account.positions):
        position, index = account.positions[symbol], market.funding_index(symbol)
        amount = round_down(position.pending_funding(index))
        if amount == 0:
            continue
        paid = replace(position, entry_funding=position.entry_funding - amount)
        after = after.with_position(symbol, paid).with_balance_change(amount)
        payments.append(FundingPayment(symbol, position.quantity, index, amount))
    total = after.balance - account.balance
    lines = (LedgerLine(LedgerAccount.CASH, total), LedgerLine(LedgerAccount.FUNDING, -total))
    return FundingSettlement(after, tuple(payments), lines if payments else ())


@exact
def require_payable(rate: Decimal, symbol: str, market: Market) -> None:
    """Refuse a funding rate that the instrument does not allow, or that there is no price for.

    Parameters
    ----------
    rate : Decimal
        Share of the mark price that a long pays to a short for each unit, below 0 the other way round.
    symbol : str
    market : Market

    Raises
    ------
    FundingRateCapError
        The rate is further from 0 than the instrument allows.
    NoMarkPriceError, StaleMarkPriceError
        There is no mark price to take a share of, or nobody knows whether it still holds.
    """
    cap = market.instrument(symbol).funding_rate_cap
    if abs(rate) > cap:
        raise FundingRateCapError(
            f"The funding rate {plain(rate)} of {symbol} is beyond what its instrument allows:"
            f" from {plain(-cap)} to {plain(cap)}."
        )
    if market.is_stale(symbol):
        raise StaleMarkPriceError(f"{market.why_stale(symbol)}; no funding is paid until a new one.")
