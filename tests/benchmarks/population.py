"""Accounts of an exchange: one to three positions each, long and short, at leverages from 0.5 to 8; seeded, exact.

Who has one position has it in one of `SINGLE`, who has two or three in those of `MULTIPLE`. A price that crosses a
trigger of the former makes the account liquidatable; the latter has used up one symbol's share of its slack only, and
is anchored anew.

All are above maintenance margin at `MARKS`, and no trigger is nearer to a mark than two percent: 8 times leverage with
10 % maintenance margin leaves a slack of 2.5 % of notional.
"""

from __future__ import annotations

import random
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from margin.domain.account import Account
from margin.domain.decimals import quotient_down
from margin.domain.position import Position

if TYPE_CHECKING:
    from collections.abc import Iterator

MARKS: Final = {
    "BTC-PERP": Decimal(50_000),
    "ETH-PERP": Decimal(2_500),
    "BNB-PERP": Decimal(600),
    "SOL-PERP": Decimal(150),
    "LTC-PERP": Decimal(80),
}
SINGLE: Final = ("SOL-PERP", "LTC-PERP")
MULTIPLE: Final = ("BTC-PERP", "ETH-PERP", "BNB-PERP")
NEAREST_TRIGGER: Final = Decimal("0.02")
"""No move of this share of a mark crosses a trigger."""

_POSITIONS_MAX = 3
# So fine that no two accounts have the same trigger: a price is to cross exactly as many as it is asked to.
_LEVERAGE_BILLIONTHS = (500_000_000, 8_000_000_000)
_ENTRY_PERCENT = (90, 110)
_NOTIONAL = (10, 10_000)
_LONG_SHARE = 0.5


def accounts(count: int, *, seed: int = 7) -> Iterator[Account]:
    """Yield accounts 1 to ``count``, the same ones for the same seed."""
    chance = random.Random(seed)  # noqa: S311 - a benchmark's own sequence
    for account_id in range(1, count + 1):
        yield _account(account_id, chance)


def _account(account_id: int, chance: random.Random) -> Account:
    number = chance.randint(1, _POSITIONS_MAX)
    symbols = chance.sample(SINGLE if number == 1 else MULTIPLE, number)
    held = [_position(symbol, chance) for symbol in symbols]
    notional = sum((position.notional(MARKS[position.symbol]) for position in held), start=Decimal(0))
    equity = quotient_down(notional * 10**9, Decimal(chance.randint(*_LEVERAGE_BILLIONTHS)))
    gains = (position.unrealised_pnl(MARKS[position.symbol]) for position in held)
    balance = equity - sum(gains, start=Decimal(0))
    return Account(account_id, balance, {position.symbol: position for position in held})


def _position(symbol: str, chance: random.Random) -> Position:
    """One worth 10 to 10,000 in quote currency, entered near the mark; its cost has no more than 8 decimals."""
    micros = chance.randint(*_NOTIONAL) * 10**6 // int(MARKS[symbol])
    quantity = Decimal(micros if chance.random() < _LONG_SHARE else -micros).scaleb(-6)
    return Position(symbol, quantity, quantity * MARKS[symbol] * chance.randint(*_ENTRY_PERCENT) / 100)
