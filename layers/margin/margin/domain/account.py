"""An account: its balance and its open positions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from margin.domain.decimals import exact

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from decimal import Decimal

    from margin.domain.position import Position

__all__ = ["Account", "calculate_equity"]


@dataclass(frozen=True, slots=True)
class Account:
    """One margin account; its positions share its balance (cross margin).

    Parameters
    ----------
    account_id : int
    balance : Decimal
        Cash in quote currency, 8 decimals; below 0 only while positions are open.
    positions : mapping of symbol to Position
        Open ones only.

    Raises
    ------
    ValueError
        When a position is filed under another symbol than its own.
    """

    account_id: int
    balance: Decimal
    positions: Mapping[str, Position]

    def __post_init__(self) -> None:
        if any(symbol != position.symbol for symbol, position in self.positions.items()):
            raise ValueError("positions are filed under their symbol")

    @exact
    def with_balance_change(self, amount: Decimal) -> Account:
        """Return the account with an amount, possibly negative, added to its balance."""
        return replace(self, balance=self.balance + amount)

    def with_position(self, symbol: str, position: Position | None) -> Account:
        """Return the account with the position in a symbol replaced, or removed when None."""
        positions = {held: other for held, other in self.positions.items() if held != symbol}
        if position is not None:
            positions[symbol] = position
        return replace(self, positions=positions)


@exact
def calculate_equity(balance: Decimal, values: Iterable[Decimal]) -> Decimal:
    """Equity E = balance + sum of what positions are worth: unrealised P&L and pending funding, in quote currency."""
    return sum(values, start=balance)
