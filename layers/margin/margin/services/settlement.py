"""Paying for shortfalls: the insurance fund first, then, where it is allowed, the deleveraging of counterparties.

Each shortfall is paid step by step (see `margin.domain.settlement`): as long as the fund has something it pays; when it
has nothing a counterparty is deleveraged, which brings money into the fund, and the fund pays again.

What the fund has goes to the oldest. Deleveraging takes the shortfalls in turn, because there may be many that nobody
can be deleveraged for: a run begins behind the one with which the last run ended, and goes round once.
"""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from margin.domain.controls import ENGINE_CONTROL, liquidation_put_off_by, symbol_control
from margin.domain.deleveraging import (
    BankruptPosition,
    most_to_deleverage,
)
from margin.domain.deleveraging_shares import (
    quantities_to_deleverage,
    shares_to_deleverage,
)
from margin.domain.event import EventType
from margin.domain.settlement import Place, SettlementStep, settlement_amount
from margin.errors import StateNotLoadedError
from margin.observability import MetricName, count, logger
from margin.ports.settlement import StepOutcome
from margin.services.counterparties import Counterparties
from margin.services.settlement_steps import SettlementSteps, fence_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from margin.domain.market import Market
    from margin.domain.settlement import Shortfall, Standing
    from margin.ports import AccountView, MarketStore
    from margin.ports.settlement import HolderIndex, SettlementHistory, SettlementSession

SHORTFALLS_PER_PAGE = 100
STEPS_MAX = 1000
"""How many steps one run plans for one shortfall; the next run goes on."""

_BEHIND_ALL: Final = Place(2**62, 2**62)


class Waiting(StrEnum):
    """Why nothing can be done for a shortfall in this run."""

    STEP_UNDECIDED = "it is not known what became of its last step"
    ACCOUNT_NOT_READY = "the liquidated account is held, or its events are not in history"
    PUT_OFF = "a pause switch forbids it, or a mark is missing or stale"
    SWITCHED_OFF = "the fund is empty, and deleveraging is switched off"
    NOBODY = "the fund is empty, and nobody on the other side has won enough"
    FUND_LACKS_IT = "what was raised for it is not in the fund any more"
    TIME_IS_UP = "time is up"


@dataclasses.dataclass(slots=True)
class SettlementReport:
    """What a run did, and how the fund stands after it, in quote currency.

    ``put_off``: steps that a pause switch forbids. ``undecided``: steps of which it is not known yet what became of
    them. ``waiting``: shortfalls that were looked at and for which nothing more can be done now, the log says why. Not
    ``complete``: another one is at it, time was up, or a partition was left out; the next run goes on.
    """

    settlements: int = 0
    deleveragings: int = 0
    void: int = 0
    put_off: int = 0
    undecided: int = 0
    waiting: int = 0
    settled: Decimal = Decimal(0)
    balance: Decimal = Decimal(0)
    uncovered: Decimal = Decimal(0)
    complete: bool = True


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
        self._market = market
        self._auto_deleveraging = auto_deleveraging

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
                run = _Run(session, Counterparties(self._holders), keep_going, report)
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

    async def _finish_open_steps(self, run: _Run) -> None:
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

    async def _pay_oldest(self, run: _Run) -> None:
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

    async def _go_round(self, run: _Run) -> None:
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

    async def _settle_in_turn(self, shortfall: Shortfall, run: _Run) -> bool:
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

    async def _settle(self, shortfall: Shortfall, run: _Run, *, fund_only: bool = False) -> None:
        try:
            waiting = await self._settle_by_steps(shortfall, run, fund_only=fund_only)
        except StateNotLoadedError as error:
            run.report.undecided += 1
            logger.warning("shortfall_left", liquidation_id=shortfall.liquidation_id, reason=error.detail)
            return
        if waiting is not None and not fund_only and waiting is not Waiting.TIME_IS_UP:
            run.report.waiting += 1
            logger.warning("shortfall_waits", liquidation_id=shortfall.liquidation_id, reason=str(waiting))

    async def _settle_by_steps(self, shortfall: Shortfall, run: _Run, *, fund_only: bool) -> Waiting | None:
        """Plan and carry out one step after the other; why nothing more can be done, None when all is settled."""
        for _ in range(STEPS_MAX):
            if not run.goes_on():
                return Waiting.TIME_IS_UP
            standing = await run.session.standing(shortfall.account_id, shortfall.liquidation_id)
            if standing is None:
                return None
            if standing.shortfall.is_open:
                return Waiting.STEP_UNDECIDED
            step = await self._next_step(standing, run, fund_only=fund_only)
            if isinstance(step, Waiting):
                return step
            # Where another has planned meanwhile, the fund is not what this step was made of.
            if await run.session.plan(step) and await self._carry_out(step, run) is None:
                return Waiting.STEP_UNDECIDED
        return Waiting.TIME_IS_UP

    async def _carry_out(self, step: SettlementStep, run: _Run) -> StepOutcome | None:
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

    async def _next_step(self, standing: Standing, run: _Run, *, fund_only: bool) -> SettlementStep | Waiting:
        """Decide what is to be done next for a shortfall, or why nothing can be done now."""
        shortfall = standing.shortfall
        amount = settlement_amount(shortfall, standing.available)
        if amount > 0:
            return await self._settlement(standing, amount, run)
        if fund_only or not self._auto_deleveraging:
            return Waiting.SWITCHED_OFF
        if shortfall.unsettled is not None:
            return Waiting.FUND_LACKS_IT
        return await self._deleveraging(standing, run)

    async def _settlement(self, standing: Standing, amount: Decimal, run: _Run) -> SettlementStep | Waiting:
        shortfall = standing.shortfall
        view = await self._steps.settled_view(shortfall.account_id, run.session)
        if view is None:
            return Waiting.ACCOUNT_NOT_READY
        if self._put_off_by(view, run) is not None:
            return Waiting.PUT_OFF
        return SettlementStep(
            id=standing.last_step_id + 1,
            account_id=shortfall.account_id,
            liquidation_id=shortfall.liquidation_id,
            number=shortfall.last_number + 1,
            type=EventType.SETTLEMENT,
            fence=fence_of(view, shortfall.account_id),
            amount=amount,
            uncovered=shortfall.uncovered - amount,
            source=shortfall.unsettled,
        )

    async def _deleveraging(self, standing: Standing, run: _Run) -> SettlementStep | Waiting:
        """Plan to deleverage whoever ranks highest and can bear it.

        Before anybody is, it is looked whether there is somebody for each position: what those without were to bring is
        shared anew among the others, as long as those have something left that can be closed. Not where a symbol is
        paused, its mark is stale or a partition is left out: it may bring its share later.
        """
        shortfall, market = standing.shortfall, await self._market.market()
        owed = {"uncovered": shortfall.uncovered, "raised": shortfall.raised}
        nobody: set[str] = set()
        while not (nobody & run.put_off or (nobody and run.counterparties.skipped)):
            shares = shares_to_deleverage(shortfall.positions, shortfall.deleveraged, market, without=nobody, **owed)
            found = [
                one
                for bankrupt, quantity in shares.quantities
                if (one := await self._against(_Ask(bankrupt, quantity, shares.notional), market, standing, run))
            ]
            if run.stopped:
                return Waiting.TIME_IS_UP
            if found and len(found) == len(shares.quantities):
                # A scarce one first: what its holders cannot bring is still to be had from the others then.
                scarce = (one for one in found if not one.suffices)
                return next(scarce, found[0]).step
            if not shares.quantities:
                break
            nobody |= {bankrupt.symbol for bankrupt, _ in shares.quantities} - {one.symbol for one in found}
        for bankrupt, quantity in quantities_to_deleverage(shortfall.positions, shortfall.deleveraged, market, **owed):
            candidate = await self._against(_Ask(bankrupt, quantity, None), market, standing, run)
            if candidate is not None:
                return candidate.step
        if run.stopped:
            return Waiting.TIME_IS_UP
        symbols = {position.symbol for position in shortfall.positions}
        return Waiting.PUT_OFF if symbols & run.put_off else Waiting.NOBODY

    async def _against(self, ask: _Ask, market: Market, standing: Standing, run: _Run) -> _Candidate | None:
        """Find who is to be closed against a position; None for nobody."""
        shortfall, bankrupt = standing.shortfall, ask.bankrupt
        if bankrupt.symbol not in market.marks or market.is_stale(bankrupt.symbol):
            run.put_off.add(bankrupt.symbol)
        if bankrupt.symbol in run.put_off:
            return None
        shared = ask.shared_notional is not None
        turn = await run.counterparties.turn(shortfall.liquidation_id, bankrupt, shared=shared, keep_going=run.goes_on)
        mark_price = market.mark_price(bankrupt.symbol)
        while turn is not None and run.goes_on():
            account_id = turn.account_id(bankrupt, mark_price)
            if account_id is None:
                return None
            view = await self._view(account_id, run)
            put_off_by = None if view is None else self._put_off_by(view, run)
            if put_off_by in {ENGINE_CONTROL, symbol_control(bankrupt.symbol)}:
                run.put_off.add(bankrupt.symbol)
                return None
            if view is not None and view.account is not None and put_off_by is None:
                quantity = most_to_deleverage(view.account, view.market, bankrupt, ask.quantity)
                if quantity > 0 and account_id != shortfall.account_id:
                    step = SettlementStep(
                        id=standing.last_step_id + 1,
                        account_id=shortfall.account_id,
                        liquidation_id=shortfall.liquidation_id,
                        number=shortfall.last_number + 1,
                        type=EventType.DELEVERAGING,
                        fence=fence_of(view, account_id),
                        amount=bankrupt.brings(quantity),
                        uncovered=shortfall.uncovered,
                        bankrupt=bankrupt,
                        quantity=quantity,
                        shared_notional=ask.shared_notional,
                    )
                    suffices = turn.suffices(bankrupt, mark_price, ask.quantity)
                    return _Candidate(step, bankrupt.symbol, suffices=suffices)
            turn.pass_over()
        return None

    async def _view(self, account_id: int, run: _Run) -> AccountView | None:
        """Read a counterparty as a step can be planned on it; None when it is to be passed over."""
        try:
            return await self._steps.settled_view(account_id, run.session)
        except StateNotLoadedError as error:
            run.report.complete = False
            logger.warning("counterparty_left", account_id=account_id, reason=error.detail)
            return None

    @staticmethod
    def _put_off_by(view: AccountView, run: _Run) -> str | None:
        """Name the switch that forbids a step on an account, as it would forbid the account's liquidation."""
        if view.account is None:
            return None
        control = liquidation_put_off_by(view.controls, view.account)
        if control is not None:
            run.report.put_off += 1
            logger.warning("settlement_put_off", account_id=view.account.account_id, control=control)
        return control


@dataclasses.dataclass(frozen=True, slots=True)
class _Ask:
    """How much is to be closed against a position; where the debt is shared anew, among which notional."""

    bankrupt: BankruptPosition
    quantity: Decimal
    shared_notional: Decimal | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Candidate:
    """A step that could be planned, and whether the holders of its symbol have all that is asked for."""

    step: SettlementStep
    symbol: str
    suffices: bool


@dataclasses.dataclass(slots=True)
class _Run:
    """One run: who is the only one to plan, who can be deleveraged, how long it may go on, what it did."""

    session: SettlementSession
    counterparties: Counterparties
    keep_going: Callable[[], bool]
    report: SettlementReport
    stopped: bool = False
    is_first: bool = True
    put_off: set[str] = dataclasses.field(default_factory=set)

    def goes_on(self) -> bool:
        """Whether there is time for another step."""
        if not self.stopped and not self.keep_going():
            self.stopped = True
            self.report.complete = False
        return not self.stopped
