"""Evaluating accounts exactly, and liquidating those whose equity fell below maintenance margin."""

from __future__ import annotations

import dataclasses
import math
from enum import StrEnum
from typing import TYPE_CHECKING

from margin.domain.controls import liquidation_put_off_by
from margin.domain.event import EventType
from margin.domain.liquidation import LiquidationPolicy, liquidate
from margin.domain.liquidation_record import liquidation_record
from margin.domain.margin_warning import MarginWarnings
from margin.domain.risk import is_liquidatable
from margin.errors import NoMarkPriceError
from margin.observability import MetricName, count, logger
from margin.services.anchors import anchor_of
from margin.services.journal import Decision, Journal, Outcome, WriteRequest
from margin.services.quietly import each_quietly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from margin.domain.market import Market
    from margin.ports import AccountStore, AccountView, MarketStore

_ANCHOR_ATTEMPTS_MAX = 5
_ANSWERED = (
    *("equity", "maintenance_margin", "equity_after", "maintenance_margin_after"),
    *("reason", "fee", "shortfall", "positions"),
)


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
    policy : LiquidationPolicy
        How far a liquidation goes.
    warnings : MarginWarnings
        From when on accounts are warned; that itself is another's work.
    """

    def __init__(
        self,
        accounts: AccountStore,
        market: MarketStore,
        journal: Journal,
        *,
        policy: LiquidationPolicy | None = None,
        warnings: MarginWarnings | None = None,
    ) -> None:
        self._accounts = accounts
        self._market = market
        self._journal = journal
        self._policy = policy or LiquidationPolicy()
        self._warnings = warnings or MarginWarnings()

    async def evaluate(self, account_id: int) -> Verdict:
        """Evaluate one account: liquidate it, or anchor its triggers to the marks in force.

        The liquidation's key is made of the version that it is decided on, so that however many evaluate at once it
        happens once; and it commits only at the very marks that it was decided on, and under the same pause switches.

        Raises
        ------
        ConflictError, UnavailableError
            Nothing was decided; the account's triggers stay crossed, so the next mark price or scan comes back to it.
        """
        seen: tuple[str, Market, Mapping[str, str]] | None = None
        for _ in range(_ANCHOR_ATTEMPTS_MAX):
            view = await self._accounts.read(account_id)
            if view.account is None or not view.account.positions:
                return Verdict.ANCHORED
            # Without any slack, or with a stale mark, triggers are crossed where they are: nothing new to decide.
            found = (view.version, dataclasses.replace(view.market, now_us=0), view.controls)
            if seen == found:
                return Verdict.UNDECIDED
            seen = found
            count(MetricName.ACCOUNTS_EVALUATED)
            verdict = await self._judge(account_id, view)
            if verdict is not None:
                return verdict
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
        liquidated: list[int] = []
        put_off: list[int] = []

        async def evaluate(account_id: int) -> None:
            verdict = await self.evaluate(account_id)
            if verdict is Verdict.LIQUIDATED:
                liquidated.append(account_id)
            elif verdict is Verdict.PUT_OFF:
                put_off.append(account_id)

        unfinished = await each_quietly(account_ids, evaluate, budget_s=budget_s, failure="evaluation_failed")
        return Evaluations(liquidated, put_off, unfinished.failed, unfinished.left)

    async def _judge(self, account_id: int, view: AccountView) -> Verdict | None:
        """Do about an account what its state, as it was read, calls for; None when it is to be read again."""
        try:
            liquidatable = _is_liquidatable(view)
        except NoMarkPriceError as error:
            logger.warning("account_not_valued", account_id=account_id, reason=error.detail)
            return Verdict.UNDECIDED
        if liquidatable:
            return await self._liquidate(account_id, view)
        return await self._anchor(view)

    async def _anchor(self, view: AccountView) -> Verdict | None:
        if view.account is None:
            return Verdict.ANCHORED
        anchor = anchor_of(view.account, view.version, view.market, self._warnings, warned=view.warned)
        crossed = await self._accounts.anchor(anchor, epoch=view.epoch)
        return Verdict.ANCHORED if crossed is False else None

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
        outcome = await self._journal.execute(request, _decide_for(view.version, self._policy))
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
        equity_after=outcome.result["equity_after"],
        maintenance_margin_after=outcome.result["maintenance_margin_after"],
        positions=outcome.result["positions"],
        fee=outcome.result["fee"],
        shortfall=shortfall,
        final=outcome.final,
    )


def _is_liquidatable(view: AccountView) -> bool:
    if view.account is None:
        return False
    return is_liquidatable(view.account, view.market)


def _decide_for(version: str, policy: LiquidationPolicy) -> Callable[[AccountView], Decision | None]:
    """Decide only about the very state that the key was made for."""

    def decide(view: AccountView) -> Decision | None:
        account, market = view.account, view.market
        if account is None or view.version != version or liquidation_put_off_by(view.controls, account):
            return None
        liquidation = liquidate(account, market, policy)
        if liquidation is None or not liquidation.closed:
            return None
        record = liquidation_record(account, market, policy, liquidation)
        # The answer is kept with the key for a day, and nobody but the log asks for it.
        answered = {name: record[name] for name in _ANSWERED}
        return Decision(
            type=EventType.LIQUIDATION,
            account=liquidation.account,
            ledger_lines=liquidation.ledger_lines,
            detail=record,
            result={"account_id": account.account_id, **answered},
            marks={symbol: market.mark_price(symbol) for symbol in account.positions},
        )

    return decide
