"""Deposits, withdrawals and contributions to the insurance fund."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from margin.domain.account import Account
from margin.domain.cash import CashResult, contribute, deposit, withdraw
from margin.domain.controls import allow_withdrawal
from margin.domain.decimals import plain
from margin.domain.event import EventType
from margin.errors import UnknownAccountError
from margin.observability import logger
from margin.services.journal import Decision, Journal, Outcome, WriteRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from margin.caller import Caller
    from margin.ports import AccountView
    from margin.services.liquidation import LiquidationService


class FundsService:
    """Moves money between an account and the outside, or the insurance fund.

    Parameters
    ----------
    journal : Journal
        The write path.
    liquidations : LiquidationService
        Evaluates an account that a mark price crossed meanwhile.
    """

    def __init__(self, journal: Journal, liquidations: LiquidationService) -> None:
        self._journal = journal
        self._liquidations = liquidations

    async def deposit(self, account_id: int, amount: Decimal, *, key: str | None, caller: Caller) -> Outcome:
        """Credit an account; the first deposit opens it.

        Raises
        ------
        ConflictError, UnavailableError
        """

        def decide(view: AccountView) -> Decision:
            account = view.account or Account(account_id, Decimal(0), {})
            return _decision(EventType.DEPOSIT, deposit(account, amount, view.market), amount, view, guarded=False)

        return await self._move("deposit", account_id, amount, decide, key=key, caller=caller)

    async def withdraw(self, account_id: int, amount: Decimal, *, key: str | None, caller: Caller) -> Outcome:
        """Debit an account, at most what is withdrawable at the marks in force when it is committed.

        Raises
        ------
        InsufficientWithdrawableError, NoMarkPriceError, StaleMarkPriceError, NotActiveError
        UnknownAccountError, ConflictError, UnavailableError
        """

        def decide(view: AccountView) -> Decision:
            if view.account is None:
                raise UnknownAccountError(account_id)
            allow_withdrawal(view.controls, view.account)
            return _decision(
                EventType.WITHDRAWAL, withdraw(view.account, amount, view.market), amount, view, guarded=True
            )

        return await self._move("withdrawal", account_id, amount, decide, key=key, caller=caller)

    async def contribute(self, account_id: int, amount: Decimal, *, key: str | None, caller: Caller) -> Outcome:
        """Give money of an account to the insurance fund, at most what could be withdrawn, under the same switches.

        Raises
        ------
        InsufficientWithdrawableError, NoMarkPriceError, StaleMarkPriceError, NotActiveError
        UnknownAccountError, ConflictError, UnavailableError
        """

        def decide(view: AccountView) -> Decision:
            if view.account is None:
                raise UnknownAccountError(account_id)
            allow_withdrawal(view.controls, view.account)
            given = contribute(view.account, amount, view.market)
            return _decision(EventType.CONTRIBUTION, given, amount, view, guarded=True)

        return await self._move("contribution", account_id, amount, decide, key=key, caller=caller)

    async def _move(
        self,
        operation: str,
        account_id: int,
        amount: Decimal,
        decide: Callable[[AccountView], Decision],
        *,
        key: str | None,
        caller: Caller,
    ) -> Outcome:
        fields = {"operation": operation, "account_id": str(account_id), "amount": plain(amount)}
        request = WriteRequest(account_id=account_id, fields=fields, key=key, caller=caller)
        outcome = await self._journal.execute(request, decide)
        if outcome is None:
            raise AssertionError("money moves or the request is refused")
        logger.info(
            f"{operation}_executed",
            account_id=account_id,
            entry_id=outcome.event_id,
            final=outcome.final,
            replayed=outcome.replayed,
        )
        if outcome.crossed:
            await self._liquidations.evaluate_quietly([account_id])
        return outcome


def _decision(
    event_type: EventType, cash: CashResult, amount: Decimal, view: AccountView, *, guarded: bool
) -> Decision:
    account, risk = cash.account, cash.risk
    return Decision(
        type=event_type,
        account=account,
        ledger_lines=cash.ledger_lines,
        detail={"amount": plain(amount)},
        result={
            "account_id": account.account_id,
            "balance": plain(account.balance),
            "equity": None if risk is None else plain(risk.equity),
            "withdrawable": None if risk is None else plain(risk.withdrawable(account.balance)),
        },
        marks={symbol: view.market.mark_price(symbol) for symbol in account.positions} if guarded else {},
    )
