"""Money that enters and leaves an account: from and to outside, or to the insurance fund."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from margin.domain.decimals import exact, plain, require_amount
from margin.domain.ledger import LedgerAccount, LedgerLine, balanced
from margin.domain.risk import AccountRisk, assess
from margin.errors import InsufficientWithdrawableError, NoMarkPriceError, StaleMarkPriceError

if TYPE_CHECKING:
    from decimal import Decimal

    from margin.domain.account import Account
    from margin.domain.market import Market

__all__ = ["CashResult", "contribute", "deposit", "withdraw"]


@dataclass(frozen=True, slots=True)
class CashResult:
    """A deposit, withdrawal or contribution.

    Parameters
    ----------
    account : Account
        After it.
    risk : AccountRisk or None
        After it, at mark prices; None when a position has no mark price, which hinders no deposit.
    ledger_lines : tuple of LedgerLine
        They add up to zero; the line of CASH is the change of the balance.
    """

    account: Account
    risk: AccountRisk | None
    ledger_lines: tuple[LedgerLine, ...]


@exact
def deposit(account: Account, amount: Decimal, market: Market) -> CashResult:
    """Add an amount of quote currency to the balance.

    Raises
    ------
    ValueError
        Unless 0 < amount < 1e12 with at most 8 decimals.
    """
    require_amount("amount", amount)
    after = account.with_balance_change(amount)
    try:
        risk = assess(after, market)
    except NoMarkPriceError:
        risk = None
    return CashResult(after, risk, _lines(amount, LedgerAccount.EXTERNAL))


@exact
def withdraw(account: Account, amount: Decimal, market: Market) -> CashResult:
    """Take an amount of quote currency out of the balance, at most max(0, min(B, E - IM)).

    Raises
    ------
    NoMarkPriceError
        When a position has no mark price.
    StaleMarkPriceError
        When the mark price of a position is stale.
    InsufficientWithdrawableError
        When the amount is more than may leave the account.
    ValueError
        Unless 0 < amount < 1e12 with at most 8 decimals.
    """
    return _take_out(account, amount, market, LedgerAccount.EXTERNAL)


@exact
def contribute(account: Account, amount: Decimal, market: Market) -> CashResult:
    """Give an amount of quote currency to the insurance fund; parameters and errors as :func:`withdraw`."""
    return _take_out(account, amount, market, LedgerAccount.INSURANCE)


def _take_out(account: Account, amount: Decimal, market: Market, receiver: LedgerAccount) -> CashResult:
    require_amount("amount", amount)
    for symbol in account.positions:
        if market.is_stale(symbol):
            raise StaleMarkPriceError(f"{market.why_stale(symbol)}; nothing can be withdrawn until a new one.")
    withdrawable = assess(account, market).withdrawable(account.balance)
    if amount > withdrawable:
        raise InsufficientWithdrawableError(f"Withdrawable: {plain(withdrawable)}, requested: {plain(amount)}")
    after = account.with_balance_change(-amount)
    return CashResult(after, assess(after, market), _lines(-amount, receiver))


def _lines(amount: Decimal, other: LedgerAccount) -> tuple[LedgerLine, ...]:
    return balanced((LedgerLine(LedgerAccount.CASH, amount), LedgerLine(other, -amount)))
