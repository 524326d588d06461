"""Carrying out the steps of settling: each happens once, right where it was planned, or never."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from margin.domain.controls import liquidation_put_off_by
from margin.domain.deleveraging import deleverage, most_to_deleverage
from margin.domain.deleveraging_record import deleveraging_record
from margin.domain.event import EventType, parse_version
from margin.domain.settlement import Fence, settlement_lines, settlement_record
from margin.errors import ConflictError
from margin.observability import MetricName, count, logger
from margin.ports.settlement import StepOutcome
from margin.services.journal import Decision, WriteRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from margin.domain.account import Account
    from margin.domain.market import Market
    from margin.domain.settlement import SettlementStep
    from margin.ports import AccountStore, AccountView
    from margin.ports.settlement import SettlementSession
    from margin.services.drain import DrainService
    from margin.services.journal import Journal, Outcome
    from margin.services.liquidation import LiquidationService

_HOLD_S = 1.0
_READS_MAX = 3


class SettlementSteps:
    """Carries out steps.

    Parameters
    ----------
    accounts : AccountStore
        Hot state.
    journal : Journal
        The write path.
    drain : DrainService
        Brings an account's events into history, which alone says what became of a step.
    liquidations : LiquidationService
        Evaluates an account that a mark price crossed meanwhile.
    """

    def __init__(
        self, accounts: AccountStore, journal: Journal, drain: DrainService, liquidations: LiquidationService
    ) -> None:
        self._accounts = accounts
        self._journal = journal
        self._drain = drain
        self._liquidations = liquidations

    async def settled_view(self, account_id: int, session: SettlementSession) -> AccountView | None:
        """Read an account all of whose events are in history: what a step can be planned on.

        None when it is not so, or when the account is held, because it is being rebuilt.

        Raises
        ------
        UnavailableError
        """
        for _ in range(_READS_MAX):
            view = await self._accounts.read(account_id)
            if view.account is None or _is_held(view):
                return None
            if view.version == await session.version(account_id):
                return view
            try:
                await self._drain.drain_account(account_id)
            except ConflictError as error:
                logger.warning("account_not_drained", account_id=account_id, code=error.code)
        return None

    async def carry_out(self, step: SettlementStep, session: SettlementSession) -> StepOutcome | None:
        """Make a planned step happen, or make sure that it never does; None when neither can be said yet.

        It happens at the very version that it was planned for. When the account has gone on, or the conditions of the
        step do not hold any more, it is void, and another one is planned.

        Raises
        ------
        UnavailableError
            What became of the step is found out by the next run.
        """
        outcome = await self._execute(step)
        became = await self._became(step, session)
        # A key that history knows from elsewhere, because the plan was lost, does not make it happen here.
        if became is None and (outcome is None or outcome.replayed):
            became = await self._give_up(step, session)
        if became is StepOutcome.VOID:
            logger.warning("settlement_step_void", **_named(step))
        return became

    async def _execute(self, step: SettlementStep) -> Outcome | None:
        account_id = step.fence.account_id
        fields = {"operation": step.type.lower(), "step": str(step.id), "version": step.fence.version}
        request = WriteRequest(account_id=account_id, fields=fields, key=step.key)
        try:
            outcome = await self._journal.execute(request, _decide_for(step))
        except ConflictError as error:
            logger.warning("settlement_step_failed", **_named(step), code=error.code)
            return None
        if outcome is None:
            return None
        if not outcome.replayed:
            _record(step, outcome)
        if outcome.crossed:
            await self._liquidations.evaluate_quietly([account_id])
        return outcome

    async def _became(self, step: SettlementStep, session: SettlementSession) -> StepOutcome | None:
        """Ask history, after it got what may still wait for it."""
        became = await session.outcome(step)
        if became is None:
            try:
                await self._drain.drain_account(step.fence.account_id)
            except ConflictError as error:
                logger.warning("account_not_drained", account_id=step.fence.account_id, code=error.code)
            became = await session.outcome(step)
        return became

    async def _give_up(self, step: SettlementStep, session: SettlementSession) -> StepOutcome | None:
        """See to it that a step cannot happen any more, though its account stands where it was.

        A hold on the account changes what every commit compares, for ever: one that was decided before it either came
        before, and the account's version has moved, or never comes. An epoch that has ended does the same.
        """
        account_id = step.fence.account_id
        view = await self._accounts.read(account_id)
        if _stands(view, step.fence):
            hold = await self._accounts.hold(account_id, _HOLD_S)
            await self._accounts.release(account_id, hold)
            view = await self._accounts.read(account_id)
        if view.version != step.fence.version:
            return await self._became(step, session)
        if _stands(view, step.fence):
            return None
        return await session.give_up(step)


def fence_of(view: AccountView, account_id: int) -> Fence:
    """Where a step that is planned on an account as it was read is to happen."""
    n, event_id = parse_version(view.version)
    return Fence(account_id, n, event_id, view.epoch, view.hold)


def _is_held(view: AccountView) -> bool:
    """Whether nothing commits on an account now: a hold is named by its end, in microseconds."""
    return view.hold.isdecimal() and int(view.hold) > view.market.now_us


def _stands(view: AccountView, fence: Fence) -> bool:
    """Whether an account is still as it was when a step was planned."""
    return (view.version, view.epoch, view.hold) == (fence.version, fence.epoch, fence.hold)


def _decide_for(step: SettlementStep) -> Callable[[AccountView], Decision | None]:
    """Decide only about the very state that the step was planned for, under the pause switches of a liquidation."""

    def decide(view: AccountView) -> Decision | None:
        account = view.account
        if account is None or not _stands(view, step.fence) or liquidation_put_off_by(view.controls, account):
            return None
        if step.type is EventType.SETTLEMENT:
            return _settlement(step, account)
        return _deleveraging(step, account, view.market)

    return decide


def _settlement(step: SettlementStep, account: Account) -> Decision:
    record = settlement_record(step)
    return Decision(
        type=EventType.SETTLEMENT,
        account=account,
        ledger_lines=settlement_lines(step.amount),
        detail=record,
        result={"account_id": account.account_id, **record},
    )


def _deleveraging(step: SettlementStep, account: Account, market: Market) -> Decision | None:
    """Deleverage by what was planned, if the account still bears all of it at the marks in force."""
    bankrupt = step.bankrupt
    if bankrupt is None or most_to_deleverage(account, market, bankrupt, step.quantity) != step.quantity:
        return None
    result = deleverage(account, market, bankrupt, step.quantity)
    record = deleveraging_record(step, account, market, bankrupt, result)
    # The answer is kept with the key for a day, and nobody but the log asks for it.
    answered = {name: value for name, value in record.items() if name != "market"}
    return Decision(
        type=EventType.DELEVERAGING,
        account=result.account,
        ledger_lines=result.ledger_lines,
        detail=record,
        result={"account_id": account.account_id, **answered},
        marks={symbol: market.mark_price(symbol) for symbol in account.positions},
    )


def _record(step: SettlementStep, outcome: Outcome) -> None:
    """Log and count a step, once, whoever else carried it out at the same time."""
    if step.type is EventType.SETTLEMENT:
        count(MetricName.SETTLEMENTS)
    else:
        count(MetricName.DELEVERAGINGS)
    told = {name: value for name, value in outcome.result.items() if name not in {"account_id", "liquidation_id"}}
    name = "shortfall_settled" if step.type is EventType.SETTLEMENT else "account_deleveraged"
    logger.warning(name, **{**told, **_named(step)}, event_id=outcome.event_id, final=outcome.final)


def _named(step: SettlementStep) -> dict[str, Any]:
    return {
        "account_id": step.fence.account_id,
        "liquidated_account_id": step.account_id,
        "liquidation_id": step.liquidation_id,
        "step": step.number,
        "step_type": str(step.type),
    }
