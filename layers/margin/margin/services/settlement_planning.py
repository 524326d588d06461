"""Planning the next step for a shortfall: a payment of the fund, or the deleveraging of one counterparty."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING

from margin.domain.controls import ENGINE_CONTROL, liquidation_put_off_by, symbol_control
from margin.domain.deleveraging import BankruptPosition, most_to_deleverage
from margin.domain.deleveraging_shares import quantities_to_deleverage, shares_to_deleverage
from margin.domain.event import EventType
from margin.domain.settlement import SettlementStep, settlement_amount
from margin.errors import StateNotLoadedError
from margin.observability import logger
from margin.services.settlement_steps import SettlementSteps, fence_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from margin.domain.market import Market
    from margin.domain.settlement import Standing
    from margin.ports import AccountView, MarketStore
    from margin.ports.settlement import SettlementSession
    from margin.services.counterparties import Counterparties


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


@dataclasses.dataclass(slots=True)
class Run:
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


class SettlementPlanner:
    """Plans; nothing happens by it.

    Parameters
    ----------
    steps : SettlementSteps
        Knows on which accounts a step can be planned.
    market : MarketStore
        Marks that counterparties are found at.
    auto_deleveraging : bool
        Whether counterparties are deleveraged where the fund does not suffice.
    """

    def __init__(self, steps: SettlementSteps, market: MarketStore, *, auto_deleveraging: bool) -> None:
        self._steps = steps
        self._market = market
        self._auto_deleveraging = auto_deleveraging

    async def next_step(self, standing: Standing, run: Run, *, fund_only: bool) -> SettlementStep | Waiting:
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

    async def _settlement(self, standing: Standing, amount: Decimal, run: Run) -> SettlementStep | Waiting:
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

    async def _deleveraging(self, standing: Standing, run: Run) -> SettlementStep | Waiting:
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

    async def _against(self, ask: _Ask, market: Market, standing: Standing, run: Run) -> _Candidate | None:
        """Find who is to be closed against a position; None for nobody."""
        shortfall, bankrupt = standing.shortfall, ask.bankrupt
        if not market.are_fresh((bankrupt.symbol,)):
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

    async def _view(self, account_id: int, run: Run) -> AccountView | None:
        """Read a counterparty as a step can be planned on it; None when it is to be passed over."""
        try:
            return await self._steps.settled_view(account_id, run.session)
        except StateNotLoadedError as error:
            run.report.complete = False
            logger.warning("counterparty_left", account_id=account_id, reason=error.detail)
            return None

    @staticmethod
    def _put_off_by(view: AccountView, run: Run) -> str | None:
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
