"""Walks along joint price paths: many accounts over many symbols, an index of their triggers, and who tries to fool it.

Now and then prices are chosen by an adversary who reads the index under test and takes an account as far as it can go
without crossing a trigger.
"""

from __future__ import annotations

import dataclasses
import random
from collections import defaultdict
from decimal import Decimal
from typing import TYPE_CHECKING

from margin.domain.account import Account
from margin.domain.decimals import round_down, round_up
from margin.domain.instrument import Instrument, Tier
from margin.domain.liquidation import LiquidationPolicy, liquidate
from margin.domain.market import Mark, Market
from margin.domain.risk import assess
from margin.domain.safe_zone import Trigger, TriggerSide, covers, triggers
from tests.property.prepared_accounts import PreparedAccounts
from tests.property.strategies import NOW_US, at_prices, position_at
from tests.property.trigger_indexes import furthest_uncrossed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.property.trigger_indexes import Index

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
_GAP = 0.3
_CALM = 0.01
_COMMITS_SHARE = 0.025


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """What is walked; equal walks are the same steps.

    ``brink`` and ``gap`` are the shares of the steps that an adversary chooses, and that are gaps.
    """

    seed: int
    accounts: int
    steps: int
    brink: float = 0.3
    gap: float = 0.1


@dataclasses.dataclass(slots=True)
class Tally:
    """What was seen so far: ``missed`` are those below maintenance margin whom no trigger named."""

    steps: int = 0
    evaluations: int = 0
    crossed: int = 0
    below_margin: int = 0
    partly: int = 0
    wholly: int = 0
    missed: list[tuple[int, int]] = dataclasses.field(default_factory=list)


class JointPath:
    """Accounts with an index of triggers, in memory, and prices that move.

    Parameters
    ----------
    walk : Walk
    index : Index
        What makes the triggers of an account; only the engine's own has to be right.
    """

    def __init__(self, walk: Walk, index: Index = triggers) -> None:
        self.tally = Tally()
        self._walk = walk
        self._chance = chance = random.Random(walk.seed)  # noqa: S311 - a test's own sequence
        self._index = index
        instruments = {symbol: Instrument(symbol, chance.choice(TABLES), version=1) for symbol in PRICES}
        instruments[RARE] = Instrument(RARE, TABLES[0])
        self.market = Market({symbol: Mark(Decimal(p), NOW_US) for symbol, p in PRICES.items()}, instruments, NOW_US)
        self.accounts: dict[int, Account] = {}
        self.triggers: dict[int, dict[str, Trigger]] = {}
        self._by_side: dict[tuple[str, TriggerSide], dict[int, Trigger]] = defaultdict(dict)
        self._prepared = PreparedAccounts(instruments)
        for account_id in range(walk.accounts):
            self._open(account_id)

    def steps(self) -> Iterator[Tally]:
        """Walk; at each step those found by triggers are compared with those found by looking at everybody.

        Raises
        ------
        AssertionError
            Triggers name somebody as liquidatable who is not, or somebody still is after a liquidation.
        """
        for number in range(1, self._walk.steps + 1):
            self._move()
            self._look(number)
            yield self.tally

    def prices(self) -> dict[str, Decimal]:
        """Mark price of every symbol."""
        return {symbol: mark.price for symbol, mark in self.market.marks.items()}

    def below_margin(self) -> set[int]:
        """Look at everybody."""
        return self._prepared.below_margin(self.prices())

    def slack_is(self, account_id: int) -> tuple[bool, bool]:
        """Whether an account is below margin, by the prepared numbers and by the engine's own rules."""
        prepared = self._prepared.slack(account_id, self.prices()) < 0
        return prepared, assess(self.accounts[account_id], self.market).liquidatable

    def _look(self, number: int) -> None:
        tally = self.tally
        crossed = self._crossed()
        by_triggers = {one for one in crossed if assess(self.accounts[one], self.market).liquidatable}
        by_force = self.below_margin()
        tally.steps = number
        tally.evaluations += len(self.accounts)
        tally.crossed += len(crossed)
        tally.below_margin += len(by_force)
        tally.missed += [(number, account_id) for account_id in sorted(by_force - by_triggers)]
        assert by_triggers <= by_force, f"step {number}: {sorted(by_triggers - by_force)} need no liquidation"
        for account_id in sorted(by_force):
            self._liquidate(account_id)
        for account_id in sorted(crossed - by_force):
            self._commit(self.accounts[account_id])
        others = self._chance.sample(range(self._walk.accounts), max(1, round(self._walk.accounts * _COMMITS_SHARE)))
        for account_id in others:
            self._commit(self.accounts[account_id].with_balance_change(CENT))
        if self._index is triggers:
            watched = self._chance.choice(others)
            assert covers(self.accounts[watched], self.market, self.triggers[watched])

    def _open(self, account_id: int) -> None:
        """Give an account positions at the present prices, and equity of one to four times its maintenance margin."""
        chance = self._chance
        held = chance.sample(sorted(PRICES), chance.choice([0, 1, 2, 3, 4])) or [RARE]
        account = Account(account_id, Decimal(0), {})
        for symbol in held:
            price = self.market.mark_price(symbol)
            size = round_up(chance.randint(1000, 100000) / price) * chance.choice([-1, 1])
            account = account.with_position(symbol, position_at(symbol, size, price))
        margin = assess(account, self.market).maintenance_margin
        slack = (margin * chance.choice([0, 1, 30, 100, 300]) / 100).quantize(CENT)
        self._commit(account.with_balance_change(round_up(margin) + slack))

    def _liquidate(self, account_id: int) -> None:
        """Liquidate as the engine does; half of those who keep something keep it, the others begin anew."""
        result = liquidate(self.accounts[account_id], self.market, LiquidationPolicy())
        assert result is not None, f"step {self.tally.steps}: {account_id} cannot be liquidated"
        if result.account.positions:
            self.tally.partly += 1
            self._commit(result.account)
            left = self._prepared.slack(account_id, self.prices())
            assert left >= 0, f"step {self.tally.steps}: {account_id} still lacks {float(-left)}"
            if self._chance.random() < 0.5:
                return
        else:
            self.tally.wholly += 1
        self._open(account_id)

    def _commit(self, account: Account) -> None:
        account_id = account.account_id
        self.accounts[account_id] = account
        self._prepared.put(account)
        for trigger in self.triggers.get(account_id, {}).values():
            del self._by_side[trigger.symbol, trigger.side][account_id]
        self.triggers[account_id] = self._index(account, self.market)
        for trigger in self.triggers[account_id].values():
            self._by_side[trigger.symbol, trigger.side][account_id] = trigger

    def _crossed(self) -> set[int]:
        """Whom the index names, as the store compares: doubles with the double of the price, the trigger included."""
        crossed: set[int] = set()
        for (symbol, side), held in self._by_side.items():
            price = float(self.market.mark_price(symbol))
            if side is TriggerSide.FLOOR:
                crossed.update([account_id for account_id, trigger in held.items() if price <= trigger.score])
            else:
                crossed.update([account_id for account_id, trigger in held.items() if price >= trigger.score])
        return crossed

    def _move(self) -> None:
        """Move all prices together: a little, or with a gap, or as far as one account can bear unseen."""
        fate = self._chance.random()
        if fate < self._walk.brink:
            moved = self._to_the_brink(self.triggers[self._chance.randrange(self._walk.accounts)])
        else:
            width = _GAP if fate > 1 - self._walk.gap else _CALM
            # Half of the moves are the whole market's, with a little of its own for each symbol.
            common = self._chance.uniform(-width, width) if self._chance.random() < 0.5 else None
            moved = {symbol: self._jump(symbol, width, common) for symbol in PRICES}
        self.market = at_prices(self.market, moved)

    def _jump(self, symbol: str, width: float, common: float | None) -> Decimal:
        start, price = Decimal(PRICES[symbol]), self.market.mark_price(symbol)
        own = self._chance.uniform(-width, width)
        moved = round_down(price * Decimal(1 + (own if common is None else 0.9 * common + 0.1 * own)))
        return min(max(moved, round_up(start / 10)), start * 10)

    def _to_the_brink(self, held: dict[str, Trigger]) -> dict[str, Decimal]:
        moved = {}
        for symbol, trigger in held.items():
            if trigger.is_always_crossed:
                continue
            edge = furthest_uncrossed(trigger)
            price = round_up(edge) if trigger.side is TriggerSide.FLOOR else round_down(edge)
            if UNIT <= price < Decimal(PRICES[symbol]) * 10:
                moved[symbol] = price
        return moved
