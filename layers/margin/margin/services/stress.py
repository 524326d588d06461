"""Stress tests: whom price moves would liquidate, and whether the insurance fund would pay for it.

They read only. Nothing is kept: each call reads every account anew.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from margin.domain.ledger import LedgerAccount
from margin.domain.stress import StressTest
from margin.errors import LimitExceededError
from margin.services.all_accounts import all_accounts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from margin.domain.liquidation import LiquidationPolicy
    from margin.domain.market import Market
    from margin.domain.stress import StressOutcome
    from margin.ports import AccountStore, MarketStore
    from margin.ports.history import History

_PER_MILLE: Final = (500, 400, 300, 250, 200, 150, 100, 75, 50, 25, 10)
_RISES: Final = tuple(Decimal(move).scaleb(-3) for move in reversed(_PER_MILLE))
LADDER_MOVES: Final = (*(-rise for rise in reversed(_RISES)), Decimal(0), *_RISES)
"""Shares of its mark by which the ladder moves the price of a symbol, from the deepest fall to the highest rise."""

_TURN_S: Final = 0.02
"""How long others in the process wait for a test at most, one account apart."""


@dataclasses.dataclass(frozen=True, slots=True)
class Shock:
    """Prices that move together: by symbol the share of its mark, -0.3 for a fall by 30 %."""

    name: str
    moves: Mapping[str, Decimal]


@dataclasses.dataclass(frozen=True, slots=True)
class ShockReport:
    """What a shock comes to.

    ``prices`` are the marks after it, of the symbols that move. ``fund_missing`` is what the insurance fund, with the
    fees of these liquidations, lacks to pay the shortfall; 0 when it suffices.
    """

    shock: Shock
    prices: Mapping[str, Decimal]
    outcome: StressOutcome
    fund_missing: Decimal

    @property
    def fund_suffices(self) -> bool:
        """Whether the fund can pay for all of it."""
        return self.fund_missing == 0


@dataclasses.dataclass(frozen=True, slots=True)
class StressReport:
    """Shocks in the order in which they were asked for, each by itself.

    ``as_of_us`` is when the marks were read that all shocks move from, and the time at which they are judged stale. The
    insurance fund was read right after them, and then the accounts, page by page: who changed meanwhile counts as the
    page found it.
    """

    as_of_us: int
    accounts: int
    fund_balance: Decimal
    shocks: tuple[ShockReport, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class RiskLadder:
    """One symbol at each of `LADDER_MOVES`, all others at their marks."""

    symbol: str
    mark_price: Decimal
    report: StressReport


class StressService:
    """Runs stress tests over all accounts.

    Parameters
    ----------
    accounts, market : AccountStore, MarketStore
        Hot state.
    history : History
        Where the insurance fund is: the sum over its ledger lines.
    policy : LiquidationPolicy
        That of the liquidations.
    accounts_max : int
        The most accounts that a test covers.
    turn_s : float
        For how many seconds a test works before all else in the process has its turn.
    """

    def __init__(
        self,
        accounts: AccountStore,
        market: MarketStore,
        history: History,
        policy: LiquidationPolicy,
        *,
        accounts_max: int,
        turn_s: float = _TURN_S,
    ) -> None:
        self._accounts = accounts
        self._market = market
        self._history = history
        self._policy = policy
        self._accounts_max = accounts_max
        self._turn_s = turn_s

    async def ladder(self, symbol: str, *, keep_going: Callable[[], bool] = lambda: True) -> RiskLadder:
        """Move the price of one symbol through `LADDER_MOVES`.

        Parameters
        ----------
        symbol : str
        keep_going : callable
            Whether there is still time for more accounts.

        Raises
        ------
        NoMarkPriceError
            The symbol has no mark price, or a position cannot be valued.
        LimitExceededError
            There are more accounts than a test covers, or than there is time for.
        UnavailableError
        """
        market = await self._market.loaded_market()
        mark_price = market.mark_price(symbol)
        shocks = [Shock(f"{move:f}", {symbol: move}) for move in LADDER_MOVES]
        report = await self._run(market, shocks, keep_going)
        return RiskLadder(symbol, mark_price, report)

    async def shocks(self, shocks: Sequence[Shock], *, keep_going: Callable[[], bool] = lambda: True) -> StressReport:
        """Move several prices together, shock by shock.

        Parameters
        ----------
        shocks : sequence of Shock
        keep_going : callable
            Whether there is still time for more accounts.

        Raises
        ------
        NoMarkPriceError
            A symbol that is to move has no mark price, or a position cannot be valued.
        LimitExceededError
            There are more accounts than a test covers, or than there is time for.
        UnavailableError
        """
        return await self._run(await self._market.loaded_market(), shocks, keep_going)

    async def _run(self, market: Market, shocks: Sequence[Shock], keep_going: Callable[[], bool]) -> StressReport:
        test = StressTest(market, [shock.moves for shock in shocks], self._policy)
        sums = await self._history.ledger_sums([LedgerAccount.INSURANCE])
        fund_balance = sums.get(LedgerAccount.INSURANCE, Decimal(0))
        accounts = 0
        turn_ends_s = time.monotonic() + self._turn_s
        async for page in all_accounts(self._accounts, accounts_max=self._accounts_max):
            if not keep_going():
                raise _out_of_time(accounts)
            for account in page:
                test.add(account)
                accounts += 1
                if time.monotonic() >= turn_ends_s:
                    await asyncio.sleep(0)
                    if not keep_going():
                        raise _out_of_time(accounts)
                    turn_ends_s = time.monotonic() + self._turn_s
        reports = (
            ShockReport(shock, prices, outcome, outcome.missing(fund_balance))
            for shock, prices, outcome in zip(shocks, test.prices, test.outcomes, strict=True)
        )
        return StressReport(market.now_us, accounts, fund_balance, tuple(reports))


def _out_of_time(accounts: int) -> LimitExceededError:
    return LimitExceededError(
        f"The time for this request ran out after {accounts} accounts. "
        "Ask POST /risk/shocks for fewer shocks, or for moves of fewer symbols."
    )
