"""Evaluating accounts exactly, and liquidating those whose equity fell below maintenance margin."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from enum import StrEnum
from typing import TYPE_CHECKING

from margin.domain.controls import liquidation_put_off_by
from margin.domain.decimals import plain
from margin.domain.event import EventType
from margin.domain.liquidation import LiquidationResult, liquidate
from margin.domain.risk import liquidation_assessment
from margin.domain.safe_zone import triggers
from margin.errors import MarginError, NoMarkPriceError, UnavailableError
from margin.observability import MetricName, count, logger
from margin.services.journal import Decision, Journal, Outcome, WriteRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from margin.domain.market import Mark
    from margin.ports import AccountStore, AccountView, MarketStore

_ANCHOR_ATTEMPTS_MAX = 5
_EVALUATIONS_AT_ONCE = 8


class Verdict(StrEnum):
    """What an evaluation came to."""

    LIQUIDATED = "liquidated"
    ANCHORED = "anchored"
    """Safe until a mark price crosses one of its triggers, or without positions."""
    PUT_OFF = "put off"
    """A pause switch forbids its liquidation; its triggers stay crossed as for one that is undecided."""
    UNDECIDED = "undecided"
    """Its triggers stay crossed: the next mark price or scan comes back to it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Evaluations:
    """Which accounts were liquidated, whose liquidation was put off, whose evaluation failed, whose was not begun."""

    liquidated: list[int]
    put_off: list[int]
    failed: list[int]
    left: list[int]


class LiquidationService:
    """Decides about accounts at risk.

    Parameters
    ----------
    accounts, market : AccountStore, MarketStore
        Hot state.
    journal : Journal
        The write path.
    """

    def __init__(self, accounts: AccountStore, market: MarketStore, journal: Journal) -> None:
        self._accounts = accounts
        self._market = market
        self._journal = journal

    async def evaluate(self, account_id: int) -> Verdict:
        """Evaluate one account: liquidate it, or anchor its triggers to the marks in force.

        The liquidation's key is made of the version that it is decided on, so that however many evaluate at once it
        happens once; and it commits only at the very marks that it was decided on, and under the same pause switches.

        Raises
        ------
        ConflictError, UnavailableError
            Nothing was decided; the account's triggers stay crossed, so the next mark price or scan comes back to it.
        """
        seen: tuple[str, Mapping[str, Mark], Mapping[str, str]] | None = None
        for _ in range(_ANCHOR_ATTEMPTS_MAX):
            view = await self._accounts.read(account_id)
            if view.account is None or not view.account.positions:
                return Verdict.ANCHORED
            # Without any slack, or with a stale mark, triggers are crossed where they are: nothing new to decide.
            if seen == (view.version, view.market.marks, view.controls):
                return Verdict.UNDECIDED
            seen = (view.version, view.market.marks, view.controls)
            count(MetricName.ACCOUNTS_EVALUATED)
            try:
                liquidatable = _is_liquidatable(view)
            except NoMarkPriceError as error:
                logger.warning("account_not_valued", account_id=account_id, reason=error.detail)
                return Verdict.UNDECIDED
            if liquidatable:
                verdict = await self._liquidate(account_id, view)
                if verdict is not None:
                    return verdict
                continue
            anchors = triggers(view.account, view.market)
            if await self._accounts.anchor(account_id, view.version, anchors, epoch=view.epoch) is False:
                return Verdict.ANCHORED
        return Verdict.UNDECIDED

    async def evaluate_quietly(self, account_ids: Iterable[int], *, budget_s: float = math.inf) -> Evaluations:
        """Evaluate accounts, some at a time, and log what fails instead of raising it: the scan comes back to those.

        Parameters
        ----------
        account_ids : iterable of int
            Whom to evaluate, the most urgent first.
        budget_s : float
            After this many seconds no evaluation is begun.
        """
        limit = asyncio.Semaphore(_EVALUATIONS_AT_ONCE)
        until_s = asyncio.get_running_loop().time() + budget_s
        down = asyncio.Event()
        evaluations = Evaluations([], [], [], [])

        async def one(account_id: int) -> None:
            async with limit:
                if down.is_set() or asyncio.get_running_loop().time() >= until_s:
                    evaluations.left.append(account_id)
                    return
                try:
                    verdict = await self.evaluate(account_id)
                    if verdict is Verdict.LIQUIDATED:
                        evaluations.liquidated.append(account_id)
                    elif verdict is Verdict.PUT_OFF:
                        evaluations.put_off.append(account_id)
                except MarginError as error:
                    if isinstance(error, UnavailableError):
                        down.set()
                    evaluations.failed.append(account_id)
                    logger.warning("evaluation_failed", account_id=account_id, code=error.code)

        await asyncio.gather(*(one(account_id) for account_id in dict.fromkeys(account_ids)))
        return evaluations

    async def _liquidate(self, account_id: int, view: AccountView) -> Verdict | None:
        """Liquidate an account as it was read, unless a switch forbids it; None when it has changed since."""
        put_off_by = None if view.account is None else liquidation_put_off_by(view.controls, view.account)
        if put_off_by is not None:
            count(MetricName.LIQUIDATIONS_PUT_OFF)
            logger.warning("liquidation_put_off", account_id=account_id, control=put_off_by)
            return Verdict.PUT_OFF
        request = WriteRequest(
            account_id=account_id,
            fields={"operation": "liquidation", "version": view.version},
            key=f"~liquidation:{view.version}",
        )
        outcome = await self._journal.execute(request, _decide_for(view.version))
        if outcome is None:
            return None
        _record(account_id, outcome)
        return Verdict.LIQUIDATED


def _record(account_id: int, outcome: Outcome) -> None:
    """Log and count a liquidation, once, whoever else evaluated the account at the same time."""
    if outcome.replayed:
        return
    count(MetricName.LIQUIDATIONS)
    shortfall = outcome.result["shortfall"]
    if shortfall != "0":
        count(MetricName.LIQUIDATION_SHORTFALLS)
    logger.warning(
        "account_liquidated",
        account_id=account_id,
        liquidation_id=outcome.event_id,
        equity=outcome.result["equity"],
        maintenance_margin=outcome.result["maintenance_margin"],
        shortfall=shortfall,
        final=outcome.final,
    )


def _is_liquidatable(view: AccountView) -> bool:
    if view.account is None:
        return False
    return liquidation_assessment(view.account, view.market).liquidatable


def _decide_for(version: str) -> Callable[[AccountView], Decision | None]:
    """Decide only about the very state that the key was made for."""

    def decide(view: AccountView) -> Decision | None:
        if view.account is None or view.version != version or liquidation_put_off_by(view.controls, view.account):
            return None
        result = liquidate(view.account, view.market)
        if result is None or not result.closed:
            return None
        return _decision(view, result)

    return decide


def _decision(view: AccountView, liquidation: LiquidationResult) -> Decision:
    account_id = liquidation.account.account_id
    detail = {
        "equity": plain(liquidation.equity),
        "maintenance_margin": plain(liquidation.maintenance_margin),
        "reason": liquidation.reason,
        "positions": [
            {
                "symbol": closed.symbol,
                "quantity": plain(closed.quantity),
                "entry_price": plain(closed.entry_price),
                "price": plain(closed.price),
                "realised_pnl": plain(closed.realised_pnl),
            }
            for closed in liquidation.closed
        ],
        "shortfall": plain(liquidation.shortfall),
    }
    return Decision(
        type=EventType.LIQUIDATION,
        account=liquidation.account,
        ledger_lines=liquidation.ledger_lines,
        detail=detail,
        result={"account_id": account_id, **detail},
        marks={symbol: view.market.mark_price(symbol) for symbol in (view.account.positions if view.account else ())},
    )
