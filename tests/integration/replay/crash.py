"""Replays a crash on real stores; after every moment everybody is looked at without the index, at last the records."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING

from margin.caller import NOBODY
from margin.domain.decimals import plain
from margin.domain.event import EventType
from margin.domain.order import Order
from margin.domain.position import Side
from margin.errors import MarginError
from margin.observability import MetricName, counted
from margin_local.demo.checks import every_check
from margin_local.demo.evidence import collect
from margin_local.demo.mark_path import MarkPath, PostedMarks
from tests.integration.replay.market import SYMBOLS
from tests.property.trigger_indexes import excess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from margin.domain.account import Account
    from margin.domain.market import Market
    from margin.ports import SweepPage
    from margin.runtime import Engine
    from margin_local.demo.evidence import Evidence
    from tests.integration.replay.market import Moment

_AT_ONCE = 8
_EVALUATED_AGAIN_MAX = 20
_CROSSED_MAX = 100_000
_HOLDS_PCT = 75
_LEVERAGE_PCT = (50, 480)
_ACTS_PER_1000 = 8
_SETTLED_EVERY = 4
_QUANTUM = Decimal("0.0001")


@dataclass(slots=True)
class Judged:
    """What a replay came to; ``wrong`` are sentences about what should not be."""

    moments: int = 0
    looks: int = 0
    accepted: int = 0
    refused: int = 0
    events: Counter[str] = field(default_factory=Counter)
    unpaid: Decimal = Decimal(0)
    misses: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(self.events.items()))
        return f"{self.moments:,} moments, {self.looks:,} looks at an account; {kinds}; {plain(self.unpaid)} unpaid"


class CrashReplay:
    """One replay.

    Parameters
    ----------
    engine : Engine
        On empty stores, opened.
    moments : sequence of Moment
    accounts : int
        How many hold random books, long and short.
    seed : int
        Decides the books, and who trades when.
    """

    def __init__(self, engine: Engine, moments: Sequence[Moment], *, accounts: int, seed: int) -> None:
        self._engine = engine
        self._moments = moments
        self._account_ids = range(1, accounts + 1)
        self._chance = random.Random(seed)  # noqa: S311 - a test's own sequence
        self._steps: list[PostedMarks] = []
        self._prices = dict(moments[0].prices)
        self.judged = Judged()

    async def run(self, tell: Callable[[str], None] = lambda _line: None) -> Judged:
        """Replay everything, and judge what is recorded; ``tell`` hears after each day how far it is."""
        await self.open_books()
        return await self.go_on(tell)

    async def open_books(self) -> None:
        """Post the first prices, and open every account with a book."""
        await self._post(self._moments[0])
        books = [(account_id, self._deposit(), self._book()) for account_id in self._account_ids]
        await self._side_by_side([self._open(account_id, amount, book) for account_id, amount, book in books])

    async def go_on(self, tell: Callable[[str], None] = lambda _line: None) -> Judged:
        """Replay all prices but the first; see :meth:`run`."""
        misses = counted(MetricName.LIQUIDATION_MISSES)
        for number, moment in enumerate(self._moments[1:], start=2):
            await self._post(moment)
            await self._look(moment)
            if number % _SETTLED_EVERY == 0:
                await self._engine.settlement.settle()
                await self._look(moment)
            await self._trade()
            self.judged.moments = number
            if moment.label[:10] != self._moments[number - 2].label[:10]:
                tell(f"{moment.label[:10]}, {len(self.judged.wrong)} wrong")
        settled = await self._engine.settlement.settle()
        self._require(settled.complete and not settled.undecided, f"shortfalls were not settled: {settled}")
        self.judged.unpaid = settled.uncovered
        await self._judge_records()
        self.judged.misses = counted(MetricName.LIQUIDATION_MISSES) - misses
        return self.judged

    async def _post(self, moment: Moment) -> None:
        """Set all marks of a moment in one call, and evaluate whom that call had no time for."""
        self._prices = dict(moment.prices)
        await self._engine.marks.set_marks(moment.prices)
        for _ in range(_EVALUATED_AGAIN_MAX):
            crossed = await self._crossed()
            if not crossed:
                break
            await self._engine.liquidations.evaluate_quietly(crossed)
        marks = (await self._engine.market.market()).marks
        self._steps.append(PostedMarks({symbol: marks[symbol] for symbol in moment.prices}, moment.label))

    async def _crossed(self) -> list[int]:
        found = [await self._engine.accounts.crossed(number, _CROSSED_MAX, 0) for number in self._partitions]
        return [account_id for each in found for named in each.by_symbol.values() for account_id in named]

    async def _look(self, moment: Moment) -> None:
        """Look at every account in the store: nobody below maintenance margin, nobody crossed and undecided."""
        seen: set[int] = set()
        for partition in self._partitions:
            cursor = "0"
            while True:
                page = await self._engine.accounts.sweep(partition, cursor)
                seen.update(self._look_at(page, moment))
                cursor = page.cursor
                if cursor == "0":
                    break
        self._require(seen == set(self._account_ids), f"{moment.label}: {len(seen)} accounts in the store")
        self._require(not await self._crossed(), f"{moment.label}: the index still names somebody")

    def _look_at(self, page: SweepPage, moment: Moment) -> list[int]:
        for indexed in page.accounts:
            account = indexed.row.account
            self._require(
                _slack(account, page.market, moment) >= 0,
                f"{moment.label}: account {account.account_id} is below maintenance margin",
            )
            crossed = [s for s, trigger in indexed.triggers.items() if trigger.is_crossed(moment.prices[s])]
            self._require(
                not crossed and indexed.triggers.keys() >= account.positions.keys(),
                f"{moment.label}: account {account.account_id} is crossed at {crossed}",
            )
            self.judged.looks += 1
        return [indexed.row.account.account_id for indexed in page.accounts]

    async def _open(self, account_id: int, amount: Decimal, book: dict[str, int]) -> None:
        await self._engine.funds.deposit(account_id, amount, key=None, caller=NOBODY)
        for symbol, leverage_pct in book.items():
            await self._order(account_id, symbol, amount * leverage_pct / 100)

    def _deposit(self) -> Decimal:
        return Decimal(self._chance.randint(5, 500) * 100)

    def _book(self) -> dict[str, int]:
        """Choose symbols, and leverage in percent for each, signed: long or short."""
        held = [symbol for symbol in SYMBOLS if self._chance.randrange(100) < _HOLDS_PCT] or [
            self._chance.choice(SYMBOLS)
        ]
        leverage = [self._chance.randint(*_LEVERAGE_PCT) // len(held) for _ in held]
        return {symbol: pct * self._chance.choice((-1, 1)) for symbol, pct in zip(held, leverage, strict=True)}

    async def _trade(self) -> None:
        """Let a few put money in and open anew, or change a position they may have."""
        actors = [one for one in self._account_ids if self._chance.randrange(1000) < _ACTS_PER_1000]
        books = [(account_id, self._deposit(), self._book()) for account_id in actors]
        await self._side_by_side([self._open(account_id, amount, book) for account_id, amount, book in books])

    async def _order(self, account_id: int, symbol: str, notional: Decimal) -> None:
        price = self._prices[symbol]
        quantity = (abs(notional) / price).quantize(_QUANTUM)
        if not quantity:
            return
        side = Side.BUY if notional > 0 else Side.SELL
        try:
            await self._engine.trading.trade(Order(account_id, symbol, side, quantity, price), key=None, caller=NOBODY)
            self.judged.accepted += 1
        except MarginError:
            self.judged.refused += 1

    @staticmethod
    async def _side_by_side(calls: Sequence[object]) -> None:
        limit = asyncio.Semaphore(_AT_ONCE)

        async def one(call: object) -> None:
            async with limit:
                await call  # type: ignore[misc]

        await asyncio.gather(*(one(call) for call in calls))

    async def _judge_records(self) -> None:
        evidence = await asyncio.to_thread(collect, self._engine.settings, self._account_ids)
        path = MarkPath(self._steps, evidence.instruments)
        for check in every_check(evidence, path):
            self.judged.wrong += [f"{check.title}: {failure}" for failure in check.failures]
        self._require(not evidence.scan.missed, f"the index could have missed {evidence.scan.missed}")
        self._require(not evidence.scan.liquidated, f"the scan found {evidence.scan.liquidated}")
        self.judged.events = _count(evidence)

    @property
    def _partitions(self) -> range:
        return range(self._engine.accounts.partitions)

    def _require(self, holds: object, sentence: str) -> None:
        if not holds:
            self.judged.wrong.append(sentence)


def _slack(account: Account, market: Market, moment: Moment) -> object:
    """Equity less maintenance margin, in another arithmetic than the engine's, at the prices that were posted."""
    return excess(account, market, moment.prices)


def _count(evidence: Evidence) -> Counter[str]:
    kinds: Counter[str] = Counter()
    for chain in evidence.chains.values():
        for event in chain:
            if event.type != EventType.LIQUIDATION:
                kinds[event.type.lower().replace("_", " ")] += 1
                continue
            detail = event.body["detail"]
            kinds["liquidation in part" if Decimal(detail["maintenance_margin_after"]) else "liquidation whole"] += 1
            kinds["liquidation with a shortfall"] += detail["shortfall"] != "0"
            kinds["liquidation of several positions"] += len(detail["positions"]) > 1
    return kinds
