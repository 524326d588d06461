"""Funding that accounts have received, paid and still owe, and the rates of it, in pages."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from margin.caller import ENGINE, Caller
from margin.errors import UnknownAccountError
from margin.ports.funding import PaymentQuery, RateQuery
from margin.services.cursors import decode_cursor, encode_cursor, require_moment
from margin.services.rate_limits import NO_LIMITS, RateLimits

if TYPE_CHECKING:
    from decimal import Decimal

    from margin.ports import AccountStore, AccountView
    from margin.ports.funding import FundingHistory


@dataclasses.dataclass(frozen=True, slots=True)
class PendingFunding:
    """What a position is still to receive (above 0) or to pay, exact."""

    symbol: str
    quantity: Decimal
    amount: Decimal


@dataclasses.dataclass(frozen=True, slots=True)
class FundingPage:
    """What was paid, newest first, what is pending at this moment, and the cursor of the next page (None: no more)."""

    rows: list[dict[str, Any]]
    pending: list[PendingFunding]
    next_cursor: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class RatePage:
    """Rates, newest first, and the cursor of the next page (None on the last)."""

    rows: list[dict[str, Any]]
    next_cursor: str | None


class FundingListService:
    """Reads funding.

    Parameters
    ----------
    history : FundingHistory
        Where it is final.
    accounts : AccountStore
        Where what is pending can be told.
    """

    def __init__(self, history: FundingHistory, accounts: AccountStore, limits: RateLimits = NO_LIMITS) -> None:
        self._history = history
        self._accounts = accounts
        self._limits = limits

    async def payments(
        self,
        account_id: int,
        *,
        symbol: str | None = None,
        since_us: int | None = None,
        until_us: int | None = None,
        limit: int = 100,
        cursor: str | None = None,
        caller: Caller = ENGINE,
    ) -> FundingPage:
        """Funding of an account; ``since_us`` is inclusive, ``until_us`` exclusive; neither concerns what is pending.

        Raises
        ------
        UnknownAccountError, CursorInvalidError, RateLimitedError, UnavailableError
        """
        kind, before = f"funding:{account_id}", None
        if cursor is not None:
            event_id, place = decode_cursor(kind, cursor, int, int)
            before = (event_id, place)
        view = await self._accounts.read(account_id, limits=self._limits.of(caller, account_id, reads=True))
        if view.account is None:
            raise UnknownAccountError(account_id)
        rows = await self._history.payments(
            PaymentQuery(
                account_id=account_id,
                symbol=symbol,
                since_us=since_us,
                until_us=until_us,
                before=before,
                limit=limit + 1,
            )
        )
        more = len(rows) > limit
        rows = rows[:limit]
        next_cursor = encode_cursor(kind, rows[-1]["id"], rows[-1]["place"]) if more else None
        return FundingPage(rows, _pending(view, symbol), next_cursor)

    async def rates(self, *, symbol: str | None = None, limit: int = 100, cursor: str | None = None) -> RatePage:
        """Rates of one symbol, or of all.

        Raises
        ------
        CursorInvalidError, UnavailableError
        """
        kind, before = f"funding-rates:{symbol or ''}", None
        if cursor is not None:
            recorded_us, after_symbol, n = decode_cursor(kind, cursor, int, str, int)
            require_moment(recorded_us)
            before = (recorded_us, after_symbol, n)
        rows = await self._history.rates(RateQuery(symbol=symbol, before=before, limit=limit + 1))
        more = len(rows) > limit
        rows = rows[:limit]
        last = rows[-1] if rows else {}
        next_cursor = encode_cursor(kind, last["recorded_us"], last["symbol"], last["n"]) if more else None
        return RatePage(rows, next_cursor)


def _pending(view: AccountView, symbol: str | None) -> list[PendingFunding]:
    positions = view.account.positions if view.account is not None else {}
    held = [positions[name] for name in sorted(positions) if symbol in (None, name)]
    amounts = {one.symbol: one.pending_funding(view.market.funding_index(one.symbol)) for one in held}
    return [PendingFunding(one.symbol, one.quantity, amounts[one.symbol]) for one in held if amounts[one.symbol]]
