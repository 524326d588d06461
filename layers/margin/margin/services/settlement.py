"""Paying for shortfalls: the insurance fund first, then, where it is allowed, the deleveraging of counterparties.

Each shortfall is paid step by step (see `margin.domain.settlement`): as long as the fund has something it pays; when it
has nothing a counterparty is deleveraged, which brings money into the fund, and the fund pays again.

What the fund has goes to the oldest. Deleveraging takes the shortfalls in turn, because there may be many that nobody
can be deleveraged for: a run begins behind the one with which the last run ended, and goes round once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from margin.domain.event import EventType
from margin.domain.settlement import Place, SettlementStep, settlement_amount
from margin.errors import StateNotLoadedError
from margin.observability import MetricName, count, logger
from margin.ports.settlement import StepOutcome
from margin.services.counterparties import Counterparties
from margin.services.settlement_planning import Run, SettlementPlanner, SettlementReport, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from margin.domain.settlement import Shortfall
    from margin.ports import MarketStore
    from margin.ports.settlement import HolderIndex, SettlementHistory
    from margin.services.settlement_steps import SettlementSteps

SHORTFALLS_PER_PAGE = 100
STEPS_MAX = 1000
"""How many steps one run plans for one shortfall; the next run goes on."""

_BEHIND_ALL: Final = Place(2**62, 2**62)


class SettlementService:
    """Settles.

    Parameters
    ----------
    history : SettlementHistory
        Shortfalls and planned steps.
    steps : SettlementSteps
        Carries steps out.
    holders, market : HolderIndex, MarketStore
        Who can be deleveraged.
    auto_deleveraging : bool
        Whether counterparties are deleveraged where the fund does not suffice.
    """

    def __init__(
        self,
        history: SettlementHistory,
        steps: SettlementSteps,
        holders: HolderIndex,
        market: MarketStore,
        *,
        auto_deleveraging: bool,
    ) -> None:
        self._history = history
        self._steps = steps
        self._holders = holders
        self._planner = SettlementPlanner(steps, market, auto_deleveraging=auto_deleveraging)

    async def settle(self, *, keep_going: Callable[[], bool] = lambda: True) -> SettlementReport:
        """Find out what became of the steps that were planned, then settle what can be settled.

        Parameters
        ----------
        keep_going : callable
            Asked before each step and each page of holders; False ends the run, and the next one goes on from there.

        Raises
        ------
        UnavailableError
            A step that was planned stays planned: the next run finds out what became of it.
        """
        report = SettlementReport()
        async with self._history.session() as session:
            if session is None:
                report.complete = False
            else:
                run = Run(session, Counterparties(self._holders), keep_going, report)
                await self._finish_open_steps(run)
                await self._pay_oldest(run)
                await self._go_round(run)
                if run.counterparties.skipped:
                    report.complete = False
        fund = await self._history.fund(0)
        report.balance, report.uncovered = fund.balance, fund.uncovered
        if min(fund.balance, fund.uncovered) < 0:
            count(MetricName.RECONCILE_DIFFERENCES)
            logger.error("fund_below_zero", balance=str(fund.balance), uncovered=str(fund.uncovered))
        return report

    async def _finish_open_steps(self, run: Run) -> None:
        await run.session.close_steps()
        for step in await run.session.open_steps(SHORTFALLS_PER_PAGE):
            if not run.goes_on():
                return
            try:
                await self._carry_out(step, run)
            except StateNotLoadedError as error:
                # An account that is rebuilt, or a partition that is opened, need not hinder the others.
                run.report.undecided += 1
                logger.warning("settlement_step_left", liquidation_id=step.liquidation_id, reason=error.detail)

    async def _pay_oldest(self, run: Run) -> None:
        """Give what the fund has to the oldest; the others come when it is their turn."""
        for shortfall in await run.session.open_shortfalls(Place(), SHORTFALLS_PER_PAGE):
            if not run.goes_on():
                return
            standing = await run.session.standing(shortfall.account_id, shortfall.liquidation_id)
            if standing is None or standing.shortfall.is_open:
                continue
            if not settlement_amount(standing.shortfall, standing.available):
                return
            await self._settle(shortfall, run, fund_only=True)

    async def _go_round(self, run: Run) -> None:
        """Settle each shortfall once, from behind the place where the last run ended."""
        began_at = await run.session.place()
        for after, until in ((began_at, _BEHIND_ALL), (Place(), began_at)):
            page_after: Place | None = after
            while page_after is not None and run.goes_on():
                page = await run.session.open_shortfalls(page_after, SHORTFALLS_PER_PAGE)
                for shortfall in page:
                    if shortfall.place > until or not await self._settle_in_turn(shortfall, run):
                        page_after = None
                        break
                    page_after = shortfall.place
                if len(page) < SHORTFALLS_PER_PAGE:
                    page_after = None

    async def _settle_in_turn(self, shortfall: Shortfall, run: Run) -> bool:
        """Settle one and note that it had its turn; False when time was up before."""
        steps = run.report.settlements + run.report.deleveragings
        try:
            await self._settle(shortfall, run)
        finally:
            # One that takes a whole run for itself, and gets no further, had its turn as well.
            got_further = run.report.settlements + run.report.deleveragings > steps
            if not run.stopped or (run.is_first and not got_further):
                await run.session.note_place(shortfall.place)
            run.is_first = False
        return not run.stopped

    async def _settle(self, shortfall: Shortfall, run: Run, *, fund_only: bool = False) -> None:
        try:
            waiting = await self._settle_by_steps(shortfall, run, fund_only=fund_only)
        except StateNotLoadedError as error:
            run.report.undecided += 1
            logger.warning("shortfall_left", liquidation_id=shortfall.liquidation_id, reason=error.detail)
            return
        if waiting is not None and not fund_only and waiting is not Waiting.TIME_IS_UP:
            run.report.waiting += 1
            logger.warning("shortfall_waits", liquidation_id=shortfall.liquidation_id, reason=str(waiting))

    async def _settle_by_steps(self, shortfall: Shortfall, run: Run, *, fund_only: bool) -> Waiting | None:
        """Plan and carry out one step after the other; why nothing more can be done, None when all is settled."""
        for _ in range(STEPS_MAX):
            if not run.goes_on():
                return Waiting.TIME_IS_UP
            standing = await run.session.standing(shortfall.account_id, shortfall.liquidation_id)
            if standing is None:
                return None
            if standing.shortfall.is_open:
                return Waiting.STEP_UNDECIDED
            step = await self._planner.next_step(standing, run, fund_only=fund_only)
            if isinstance(step, Waiting):
                return step
            # Where another has planned meanwhile, the fund is not what this step was made of.
            if await run.session.plan(step) and await self._carry_out(step, run) is None:
                return Waiting.STEP_UNDECIDED
        return Waiting.TIME_IS_UP

    async def _carry_out(self, step: SettlementStep, run: Run) -> StepOutcome | None:
        became = await self._steps.carry_out(step, run.session)
        if became is None:
            run.report.undecided += 1
        elif became is StepOutcome.VOID:
            run.report.void += 1
            if step.bankrupt is not None:
                run.counterparties.moved(step.fence.account_id)
        elif step.type is EventType.SETTLEMENT:
            run.report.settlements += 1
            run.report.settled += step.amount
        else:
            run.report.deleveragings += 1
        return became
