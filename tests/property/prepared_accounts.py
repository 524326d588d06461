"""Equity against maintenance margin of thousands of accounts at once, in whole numbers prepared for each account.

What a look at everybody costs is multiplying and comparing integers. Prices, sizes and rates count 1e-8 of their unit,
so what is compared with 0 counts 1e-24 of the quote currency, and nothing is ever rounded. The rules are worked out
anew from each table of tiers.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from margin.domain.account import Account
    from margin.domain.instrument import Instrument

_UNITS = 10**8
_SLACK_UNITS = 10**24
_Line = tuple[int, int]


class PreparedAccounts:
    """Accounts of which it is to be known, at any prices, whose equity is below maintenance margin.

    Parameters
    ----------
    instruments : mapping of str to Instrument
        Of every symbol that is ever held.
    """

    def __init__(self, instruments: Mapping[str, Instrument]) -> None:
        self._places = {symbol: place for place, symbol in enumerate(sorted(instruments))}
        self._brackets = {symbol: _brackets(instrument) for symbol, instrument in instruments.items()}
        # Of each account: what no price changes, a line for each position of one tier, all lines for each of several.
        self._prepared: dict[int, tuple[int, tuple[tuple[int, int], ...], tuple[tuple[int, list[_Line]], ...]]] = {}

    def put(self, account: Account) -> None:
        """Take in an account as it is now."""
        fixed = _whole(account.balance, _SLACK_UNITS)
        straight, bent = [], []
        for symbol, position in account.positions.items():
            place = self._places[symbol]
            size, cost = _whole(position.quantity, _UNITS), _whole(position.entry_cost, _SLACK_UNITS)
            lines = [(size * _UNITS - rate * abs(size), relief - cost) for rate, relief in self._brackets[symbol]]
            if len(lines) == 1:
                fixed += lines[0][1]
                straight.append((place, lines[0][0]))
            else:
                bent.append((place, lines))
        self._prepared[account.account_id] = (fixed, tuple(straight), tuple(bent))

    def below_margin(self, prices: Mapping[str, Decimal]) -> set[int]:
        """Find everybody whose equity is strictly below maintenance margin.

        Parameters
        ----------
        prices : mapping of str to Decimal
            Of every symbol, with at most 8 decimals.
        """
        units = self._units(prices)
        return {account_id for account_id in self._prepared if self._slack(account_id, units) < 0}

    def slack(self, account_id: int, prices: Mapping[str, Decimal]) -> Fraction:
        """Equity less maintenance margin of one account, exact, in quote currency."""
        return Fraction(self._slack(account_id, self._units(prices)), _SLACK_UNITS)

    def _units(self, prices: Mapping[str, Decimal]) -> list[int]:
        return [_whole(prices[symbol], _UNITS) for symbol in self._places]

    def _slack(self, account_id: int, units: Sequence[int]) -> int:
        slack, straight, bent = self._prepared[account_id]
        for place, slope in straight:
            slack += slope * units[place]
        for place, lines in bent:
            price = units[place]
            # Rates rise with notional, so what is due is the most that any bracket's line asks for.
            slack += min([slope * price + rest for slope, rest in lines])
        return slack


def _brackets(instrument: Instrument) -> list[_Line]:
    """Rate of each bracket in 1e-8, and by how much the brackets below it are cheaper, taken together, in 1e-24."""
    found: list[_Line] = []
    lower, paid_below = Fraction(0), Fraction(0)
    for tier in instrument.tiers:
        rate = Fraction(tier.maintenance_rate)
        found.append((_whole(rate, _UNITS), _whole(rate * lower - paid_below, _SLACK_UNITS)))
        if tier.notional_cap is not None:
            upper = Fraction(tier.notional_cap)
            paid_below += rate * (upper - lower)
            lower = upper
    return found


def _whole(value: Decimal | Fraction, units: int) -> int:
    numerator, denominator = value.as_integer_ratio()
    whole, rest = divmod(numerator * units, denominator)
    if rest:
        raise ValueError(f"{value} is no whole number of units")
    return whole
