"""Joint price paths with gaps: at every step the triggers find exactly those whom a look at everybody finds.

Now and then prices are chosen by an adversary who reads the index under test and takes an account as far as it can go
without crossing a trigger.
"""

from __future__ import annotations

import random
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from margin.domain.account import Account
from margin.domain.decimals import round_down, round_up
from margin.domain.instrument import Instrument, Tier
from margin.domain.market import Mark, Market
from margin.domain.risk import assess
from margin.domain.safe_zone import Trigger, TriggerSide, covers, triggers
from tests.property.strategies import NOW_US, at_prices, position_at
from tests.property.trigger_indexes import freezing_the_others, furthest_uncrossed, rounding_the_wrong_way

if TYPE_CHECKING:
    from tests.property.trigger_indexes import Index

ACCOUNTS = 200
STEPS = 100
CENT = Decimal("0.01")
UNIT = Decimal("0.00000001")
RARE = "RARE"
# From prices that doubles are far finer than to one that they are coarser than.
PRICES = {"BTC": "50000", "DOGE": "0.08", "ETH": "2000.5", RARE: "71234567890.12345678", "SOL": "100"}
TABLES = (
    (Tier(None, Decimal("0.2"), Decimal("0.1")),),
    (Tier(None, Decimal("0.02"), Decimal("0.004")),),
    (
        Tier(Decimal(20000), Decimal("0.02"), Decimal("0.01")),
        Tier(Decimal(60000), Decimal("0.1"), Decimal("0.05")),
        Tier(None, Decimal("0.5"), Decimal("0.25")),
    ),
)


class _Exchange:
    """Accounts with an index of triggers, in memory."""

    def __init__(self, seed: int, index: Index) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - a test's own sequence
        self._index = index
        instruments = {symbol: Instrument(symbol, self.chance.choice(TABLES), version=1) for symbol in PRICES}
        instruments[RARE] = Instrument(RARE, TABLES[0])
        self.market = Market({symbol: Mark(Decimal(p), NOW_US) for symbol, p in PRICES.items()}, instruments, NOW_US)
        self.accounts: dict[int, Account] = {}
        self.triggers: dict[int, dict[str, Trigger]] = {}
        for account_id in range(ACCOUNTS):
            self.open(account_id)

    def open(self, account_id: int) -> None:
        """Give an account positions at the present prices, and equity of one to four times its maintenance margin."""
        held = self.chance.sample(sorted(PRICES), self.chance.choice([0, 1, 2, 3, 4])) or [RARE]
        account = Account(account_id, Decimal(0), {})
        for symbol in held:
            price = self.market.mark_price(symbol)
            size = round_up(self.chance.randint(1000, 100000) / price) * self.chance.choice([-1, 1])
            account = account.with_position(symbol, position_at(symbol, size, price))
        margin = assess(account, self.market).maintenance_margin
        slack = (margin * self.chance.choice([0, 1, 30, 100, 300]) / 100).quantize(CENT)
        self.commit(account.with_balance_change(round_up(margin) + slack))

    def commit(self, account: Account) -> None:
        self.accounts[account.account_id] = account
        self.triggers[account.account_id] = self._index(account, self.market)

    def move(self) -> None:
        """Move all prices together: a little, or with a gap, or as far as one account can bear unseen."""
        fate = self.chance.random()
        if fate < 0.3:
            moved = self._to_the_brink(self.chance.choice(list(self.triggers.values())))
        else:
            width = 0.3 if fate > 0.9 else 0.01
            moved = {symbol: self._jump(symbol, width) for symbol in PRICES}
        self.market = at_prices(self.market, moved)

    def crossed(self) -> list[int]:
        marks = self.market.marks
        return [
            account_id
            for account_id, held in self.triggers.items()
            if any(trigger.is_crossed(marks[symbol].price) for symbol, trigger in held.items())
        ]

    def is_liquidatable(self, account_id: int) -> bool:
        return assess(self.accounts[account_id], self.market).liquidatable

    def _jump(self, symbol: str, width: float) -> Decimal:
        start, price = Decimal(PRICES[symbol]), self.market.mark_price(symbol)
        moved = round_down(price * Decimal(1 + self.chance.uniform(-width, width)))
        return min(max(moved, start / 10), start * 10)

    def _to_the_brink(self, held: dict[str, Trigger]) -> dict[str, Decimal]:
        moved = {}
        for symbol, trigger in held.items():
            edge = furthest_uncrossed(trigger)
            price = round_up(edge) if trigger.side is TriggerSide.FLOOR else round_down(edge)
            if not trigger.is_always_crossed and UNIT <= price < Decimal(PRICES[symbol]) * 10:
                moved[symbol] = price
        return moved


def _missed(seed: int, index: Index) -> int:
    """Walk a path, and count whom the index missed; everybody whom it names is evaluated exactly."""
    exchange = _Exchange(seed, index)
    missed = liquidated = 0
    for _ in range(STEPS):
        exchange.move()
        crossed = exchange.crossed()
        by_triggers = {account_id for account_id in crossed if exchange.is_liquidatable(account_id)}
        by_force = {account_id for account_id in exchange.accounts if exchange.is_liquidatable(account_id)}
        missed += len(by_force - by_triggers)
        liquidated += len(by_force)
        assert by_triggers <= by_force
        for account_id in by_force:
            exchange.open(account_id)
        for account_id in set(crossed) - by_force:
            exchange.commit(exchange.accounts[account_id])
        for account_id in exchange.chance.sample(range(ACCOUNTS), 5):
            exchange.commit(exchange.accounts[account_id].with_balance_change(CENT))
        if index is triggers:
            watched = exchange.chance.choice(list(exchange.accounts.values()))
            assert covers(watched, exchange.market, exchange.triggers[watched.account_id])
    assert liquidated > ACCOUNTS, "a path must also ruin many"
    return missed


@pytest.mark.parametrize("seed", range(8))
def test_triggers_find_exactly_those_whom_a_look_at_everybody_finds(seed: int) -> None:
    assert _missed(seed, triggers) == 0


@pytest.mark.parametrize("index", [freezing_the_others, rounding_the_wrong_way])
def test_wrong_index_misses_accounts_on_the_same_paths(index: Index) -> None:
    assert _missed(4, index) > 0
