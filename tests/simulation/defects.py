"""Deliberate defects of the engine, each of which the simulation has to find: a judge who never finds is none.

Each is one sound part with one mistake in it, put in its place where a process is composed.
"""

from __future__ import annotations

import dataclasses
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.domain.decimals import quotient_up
from margin.domain.event import EventType
from margin.domain.ledger import LedgerAccount, LedgerLine, balanced, fill_lines
from margin.domain.liquidation import LiquidationPolicy, liquidate
from margin.domain.liquidation_record import liquidation_record
from margin.domain.position import Side, apply_fill
from margin.domain.risk import liquidation_assessment
from margin.errors import RedisRefusedError, RedisUnavailableError
from margin.services.drain import DrainReport, DrainService
from margin.services.healing import HealingService
from margin.services.journal import Journal
from margin.services.opening import OpeningService
from tests.simulation.engine import SOUND, Parts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin.domain.account import Account
    from margin.domain.event import StoredEvent
    from margin.domain.liquidation import ClosedPosition, LiquidationResult
    from margin.domain.market import Market
    from margin.ports import AccountLoad, Commit, Loaded


class _WithoutKey(Journal):
    """Commits under another key than the caller's."""

    def _build(self, request: Any, key: str, view: Any, decision: Any, settlement: Any) -> Commit:
        return super()._build(request, uuid.uuid4().hex, view, decision, settlement)


class _ForgetsFirst(Journal):
    """Takes events off the pending list before history has them."""

    async def settle(self, pending: Mapping[int, Sequence[StoredEvent]], *others: Any, **more: Any) -> Any:
        taken = {account_id: list(events) for account_id, events in pending.items()}
        await self._accounts.forget_pending(taken)
        return await super().settle(pending, *others, **more)


class _AcknowledgesEarly(Journal):
    """Says 200 where history did not answer."""

    async def _finish(self, *arguments: Any) -> Any:
        finished = await super()._finish(*arguments)
        return dataclasses.replace(finished, final=True)


class _CommitsBlindly(Journal):
    """Sends a commit whose reply was lost again, under a key of its own."""

    async def _commit(self, request: Any, key: str, view: Any, decision: Any, settlement: Any) -> Any:
        try:
            return await self._accounts.commit(self._build(request, key, view, decision, settlement))
        except RedisRefusedError:
            raise
        except RedisUnavailableError:
            again = await self._read(request, "")
            return await self._accounts.commit(self._build(request, uuid.uuid4().hex, again, decision, settlement))


class _ReplaysWithoutHistory(Journal):
    """Answers a repeated request with 200 although its event may not be in history."""

    async def _replay(self, request: Any, key: str, view: Any, replay: Any, *others: Any, **more: Any) -> Any:
        return await super()._replay(request, key, view, dataclasses.replace(replay, pending=()), *others, **more)


class _LoadsWhateverWaits:
    """Accounts that are put back to history although the forked event does not wait any more."""

    def __init__(self, accounts: Any) -> None:
        self._accounts = accounts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accounts, name)

    async def load(self, load: AccountLoad) -> Loaded:
        loaded: Loaded = await self._accounts.load(dataclasses.replace(load, forked_event_id=None))
        return loaded


class _HealsNobody(HealingService):
    """Leaves what history refuses where it is."""

    async def heal(self, *_account: Any, **_event: Any) -> bool:
        return False


class _DrainsNothing(DrainService):
    """Drains nothing and says that all is well."""

    async def drain(self, *_partitions: Any, **_time: Any) -> DrainReport:
        return DrainReport()

    async def drain_account(self, *_account: Any, **_epoch: Any) -> bool:
        return True


class _DrainsTheFirstOnly(DrainService):
    """Stores the first of an account's events, and forgets all of them."""

    async def _store(self, batch: Any, *others: Any, **more: Any) -> Any:
        stored = await super()._store({one: events[:1] for one, events in batch.items()}, *others, **more)
        if stored:
            await self._accounts.forget_pending({one: batch[one] for one in stored})
        return stored


class _KeepsWhatWaits(OpeningService):
    """Takes whatever still waits for what history refuses."""

    async def _require_refused(self, *_account: Any, **_epoch: Any) -> None:
        return


class _PassesEveryFence(Journal):
    """Appends what it read before an opening as if it had read it after."""

    async def settle(self, pending: Mapping[int, Sequence[StoredEvent]], *others: Any, **more: Any) -> Any:
        return await super().settle(pending, *others, **{**more, "epoch": 2**30})


class _CreditsTooMuch(Journal):
    """Credits one unit of the last decimal that nobody has paid."""

    def _build(self, request: Any, key: str, view: Any, decision: Any, settlement: Any) -> Commit:
        account = decision.account.with_balance_change(Decimal("0.00000001"))
        return super()._build(request, key, view, dataclasses.replace(decision, account=account), settlement)


class _LiquidatesOtherwise(Journal):
    """Liquidates by another rule, and records that consistently, as an engine with a mistake in that rule would."""

    def _build(self, request: Any, key: str, view: Any, decision: Any, settlement: Any) -> Commit:
        if decision.type is EventType.LIQUIDATION:
            decision = self._decide_otherwise(view.account, view.market, decision)
        return super()._build(request, key, view, decision, settlement)

    def _decide_otherwise(self, account: Account, market: Market, decision: Any) -> Any:
        policy = LiquidationPolicy()
        right = liquidate(account, market, policy)
        assert right is not None
        after, lines, closed = account, [], []
        for one, quantity in self._closings(account, market, right):
            held = after.positions[one.symbol]
            side = Side.SELL if held.quantity > 0 else Side.BUY
            fill = apply_fill(held, one.symbol, side, quantity, one.price, funding_index=Decimal(0))
            after = after.with_position(one.symbol, fill.position).with_balance_change(fill.realised_pnl)
            lines += fill_lines(fill)
            remaining = Decimal(0) if fill.position is None else fill.position.quantity
            done = {"quantity": held.quantity - remaining, "remaining": remaining, "realised_pnl": fill.realised_pnl}
            closed.append(dataclasses.replace(one, **done))
        shortfall = Decimal(0) if after.positions else max(Decimal(0), -after.balance)
        lines += [LedgerLine(LedgerAccount.CASH, shortfall), LedgerLine(LedgerAccount.UNCOVERED, -shortfall)]
        after = after.with_balance_change(shortfall)
        wrong = dataclasses.replace(
            right,
            account=after,
            after=liquidation_assessment(after, market),
            closed=tuple(closed),
            shortfall=shortfall,
            ledger_lines=balanced(lines),
        )
        record = liquidation_record(account, market, policy, wrong)
        answer = {name: record.get(name, value) for name, value in decision.result.items()}
        return dataclasses.replace(
            decision, account=after, ledger_lines=wrong.ledger_lines, detail=record, result=answer
        )

    def _closings(
        self, account: Account, market: Market, right: LiquidationResult
    ) -> list[tuple[ClosedPosition, Decimal]]:
        raise NotImplementedError


class _ClosesOneLotTooFew(_LiquidatesOtherwise):
    """Rounds the quantity to close down to the lot."""

    def _closings(
        self, account: Account, market: Market, right: LiquidationResult
    ) -> list[tuple[ClosedPosition, Decimal]]:
        lots = {one.symbol: market.instrument(one.symbol).lot_size if one.remaining else 0 for one in right.closed}
        closings = [(one, abs(one.quantity) - lots[one.symbol]) for one in right.closed]
        return [(one, quantity) for one, quantity in closings if quantity > 0]


class _ClosesTheSmallestFirst(_LiquidatesOtherwise):
    """Closes as much notional as is needed, but begins with the position that has the smallest margin."""

    def _closings(
        self, account: Account, market: Market, right: LiquidationResult
    ) -> list[tuple[ClosedPosition, Decimal]]:
        by_symbol = {one.symbol: one for one in right.closed}
        needed = sum((abs(one.quantity) * one.price for one in right.closed), start=Decimal(0))
        closings = []
        fresh = [held for held in account.positions.values() if not market.is_stale(held.symbol)]
        for held in sorted(fresh, key=lambda held: held.notional(market.mark_price(held.symbol))):
            price = market.mark_price(held.symbol)
            quantity = min(abs(held.quantity), quotient_up(needed, price))
            template = by_symbol.get(held.symbol, right.closed[0])
            one = dataclasses.replace(template, symbol=held.symbol, price=price, entry_price=held.entry_price)
            if quantity > 0:
                closings.append((one, quantity))
            needed = max(Decimal(0), needed - quantity * price)
        return closings


@dataclasses.dataclass(frozen=True, slots=True)
class Defect:
    """A defective engine, in which weather and mode it shows, and a seed from which on to look."""

    parts: Parts
    weather: str
    drains: bool = False
    seed: int = 1


def _with(**parts: Any) -> Parts:
    return dataclasses.replace(SOUND, **parts)


DEFECTS = {
    "commits without the caller's key": Defect(_with(journal=_WithoutKey), "showers"),
    "forgets before it appends": Defect(_with(journal=_ForgetsFirst), "showers"),
    "acknowledges before history has it": Defect(_with(journal=_AcknowledgesEarly), "showers"),
    "commits again without asking": Defect(_with(journal=_CommitsBlindly), "storm"),
    "replays without history": Defect(_with(journal=_ReplaysWithoutHistory), "showers"),
    "heals what another has healed": Defect(_with(healed_accounts=_LoadsWhateverWaits), "time machine", seed=20),
    "heals nobody": Defect(_with(healing=_HealsNobody), "time machine", seed=4),
    "opens without draining": Defect(_with(opening_drain=_DrainsNothing), "flickering history", seed=2),
    "drains the first event only": Defect(_with(drain=_DrainsTheFirstOnly), "storm", drains=True),
    "opens over what was not drained": Defect(_with(opening=_KeepsWhatWaits), "flickering history"),
    "passes every fence": Defect(_with(journal=_PassesEveryFence), "flickering history", drains=True, seed=40),
    "closes one lot too few": Defect(_with(journal=_ClosesOneLotTooFew), "calm"),
    "closes the wrong position first": Defect(_with(journal=_ClosesTheSmallestFirst), "calm"),
    "credits too much": Defect(_with(journal=_CreditsTooMuch), "calm"),
}
