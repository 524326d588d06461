"""Payments of funding: into history first, which decides their order; then into Redis, where they take effect.

A payment that is in history takes effect in every partition, whatever happens: history knows the index after each, so
that whoever comes next, the sender with the same key, the next payment or the drain, brings a partition up from
wherever it stands in one step. No account is touched by it.
"""

from __future__ import annotations

import dataclasses
import uuid
from typing import TYPE_CHECKING

from margin.domain.decimals import plain
from margin.domain.event import canonical, digest
from margin.domain.funding import funding_rise, require_payable
from margin.domain.mark_time import AHEAD_MAX_US
from margin.errors import (
    ContentionError,
    FutureTimestampError,
    HistoryLostError,
    IdempotencyKeyReusedError,
    UnavailableError,
)
from margin.observability import MetricName, count, logger
from margin.ports.funding import FundingRate

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal

    from margin.caller import Caller
    from margin.domain.funding import Funding
    from margin.domain.market import Market
    from margin.ports.funding import FundingHistory, FundingStore, FundingUpdate, KnownFunding, RecordedFunding
    from margin.services.crossed import CrossedAccountsService

ATTEMPTS_MAX = 16


@dataclasses.dataclass(frozen=True, slots=True)
class FundingOutcome:
    """A payment that is in history.

    ``effective``: it is in every partition. ``at_risk``: how many accounts it brought to evaluation, None where nobody
    knows. ``replayed``: it was in history before.
    """

    recorded: RecordedFunding
    at_risk: int | None
    liquidated: tuple[int, ...]
    effective: bool
    replayed: bool


@dataclasses.dataclass(frozen=True, slots=True)
class _Applied:
    """What bringing partitions up to date did; ``n`` is the last payment that all have, None where one failed."""

    n: int | None
    at_risk: int
    liquidated: tuple[int, ...] = ()


class FundingService:
    """Takes payments of funding.

    Parameters
    ----------
    history : FundingHistory
        Where payments are kept, in their order.
    store : FundingStore
        Where they take effect.
    crossed : CrossedAccountsService
        Looks at those whom they put at risk.
    warning_pct : Decimal
        Utilisation from which on accounts are warned, in %.
    """

    def __init__(
        self, history: FundingHistory, store: FundingStore, crossed: CrossedAccountsService, *, warning_pct: Decimal
    ) -> None:
        self._history = history
        self._store = store
        self._crossed = crossed
        self._warning_pct = warning_pct

    async def pay(
        self, symbol: str, rate: Decimal, *, caller: Caller, key: str | None = None, occurred_us: int | None = None
    ) -> FundingOutcome:
        """Move the funding index of a symbol by ``rate * mark price``, once for a key.

        Parameters
        ----------
        symbol : str
        rate : Decimal
            Share of the mark price that a long pays to a short for each unit; below 0 the other way round.
        caller : Caller
            Who asks, for the record.
        key : str, optional
            The caller's idempotency key.
        occurred_us : int, optional
            The moment that the sender says it is of, in microseconds since the epoch; now without one.

        Raises
        ------
        FundingRateCapError, NoMarkPriceError, StaleMarkPriceError, FutureTimestampError
            Nothing was paid.
        IdempotencyKeyReusedError
            The key stands for another payment.
        ContentionError
            Others paid for the symbol each time, 16 times in a row.
        OutcomeUnknownError
            PostgreSQL did not say whether the payment was written down; the same key asks again.
        UnavailableError
        """
        fields = {"symbol": symbol, "rate": plain(rate), "timestamp_us": str(occurred_us or "")}
        request_hash = digest(canonical(fields))
        key = key or uuid.uuid4().hex
        recorded, replayed = await self._history.recorded(symbol, key), True
        if recorded is None:
            # Of a Redis that lost its state: no mark is to be missed, and none that is only restored to be paid by.
            market = await self._store.loaded_market()
            require_payable(rate, symbol, market)
            if occurred_us is not None and occurred_us > market.now_us + AHEAD_MAX_US:
                ahead_max_s = AHEAD_MAX_US // 1_000_000
                message = f"timestamp lies in the future; it may be at most {ahead_max_s} s ahead. Nothing was paid."
                raise FutureTimestampError(message, symbol)
            mark_price = market.mark_price(symbol)
            payment = FundingRate(
                symbol=symbol,
                rate=rate,
                mark_price=mark_price,
                rise=funding_rise(rate, mark_price),
                occurred_us=market.now_us if occurred_us is None else occurred_us,
                key=key,
                request_hash=request_hash,
                subject=caller.subject,
                source_ip=caller.source_ip,
            )
            recorded, replayed = await self._record(payment)
        if recorded.request_hash != request_hash:
            message = "This Idempotency-Key was used for another payment; use a new key for a new payment."
            raise IdempotencyKeyReusedError(message)
        if recorded.applied:
            return FundingOutcome(recorded, recorded.at_risk, (), effective=True, replayed=replayed)
        applied = await self._apply(symbol)
        logger.info(
            "funding_paid",
            symbol=symbol,
            n=recorded.n,
            rate=plain(rate),
            funding_index=plain(recorded.funding_index),
            at_risk=applied.at_risk,
            liquidated=len(applied.liquidated),
            effective=applied.n is not None,
        )
        return FundingOutcome(
            recorded, applied.at_risk, applied.liquidated, effective=applied.n is not None, replayed=replayed
        )

    async def complete(self, *, keep_going: Callable[[], bool] = lambda: True) -> int:
        """Bring every partition up to history where it is behind; how many symbols that took.

        Who paid may have died before all had it, and Redis may have come back older.

        Raises
        ------
        PostgresUnavailableError
        """
        behind = {*await self._history.waiting(), *await self._behind()}
        completed = 0
        for symbol in sorted(behind):
            if not keep_going():
                break
            applied = await self._apply(symbol)
            if applied.n is not None:
                logger.info("funding_completed", symbol=symbol, n=applied.n, at_risk=applied.at_risk)
                completed += 1
        if completed < len(behind):
            count(MetricName.FUNDING_NOT_APPLIED, len(behind) - completed)
        return completed

    async def _behind(self) -> set[str]:
        """Name the symbols of which a partition has another number of payments than history.

        A partition that cannot be read is left to the next time: the others are not to wait for it.
        """
        markets: list[Market] = []
        for partition in range(self._store.partitions):
            try:
                markets.append(await self._store.market(partition))
            except UnavailableError as error:
                logger.warning("funding_not_compared", partition=partition, code=error.code)
        known = await self._history.known({})
        numbers = {symbol: there.n for symbol, there in known.items()}
        symbols = {*numbers, *(symbol for market in markets for symbol in market.funding)}
        return {
            symbol
            for symbol in symbols
            if any(market.funding_of(symbol).n != numbers.get(symbol, 0) for market in markets)
        }

    async def _record(self, payment: FundingRate) -> tuple[RecordedFunding, bool]:
        for _ in range(ATTEMPTS_MAX):
            answer = await self._history.record(payment)
            if answer is not None:
                if not answer[1]:
                    count(MetricName.FUNDING_PAYMENTS)
                return answer
        message = f"Others kept paying funding for {payment.symbol}; try again."
        raise ContentionError(message)

    async def _apply(self, symbol: str) -> _Applied:
        """Bring all partitions up to history, and look at whom that puts at risk; one that fails holds up no other."""
        updates: list[FundingUpdate] = []
        reached: list[int] = []
        for partition in range(self._store.partitions):
            try:
                n, update = await self._bring_up(partition, symbol)
            except (UnavailableError, ContentionError) as error:
                say = logger.error if isinstance(error, HistoryLostError) else logger.warning
                say("funding_not_applied", symbol=symbol, partition=partition, code=error.code)
                continue
            reached.append(n)
            updates += [] if update is None else [update]
        attended = await self._crossed.attend(updates)
        if len(reached) < self._store.partitions:
            return _Applied(None, attended.at_risk, attended.liquidated)
        try:
            await self._history.applied(symbol, min(reached), attended.at_risk)
        except UnavailableError as error:
            logger.warning("funding_not_noted", symbol=symbol, n=min(reached), code=error.code)
        return _Applied(min(reached), attended.at_risk, attended.liquidated)

    async def _bring_up(self, partition: int, symbol: str) -> tuple[int, FundingUpdate | None]:
        for _ in range(ATTEMPTS_MAX):
            market = await self._store.market(partition)
            present = market.funding_of(symbol)
            known = (await self._history.known({symbol: present.n}, [symbol])).get(symbol)
            if known is None or not continues(present, known):
                raise history_lost(partition, symbol)
            if known.n == present.n:
                return present.n, None
            lines = market.guarded_lines(symbol)
            funding = present.moved_to(known.n, known.index, lines, self._warning_pct)
            update = await self._store.set_funding(
                partition, symbol, funding, market=market, crossed_max=self._crossed.named_max
            )
            if update is not None:
                return funding.n, update
        message = f"The rules of {symbol} kept changing while its funding was moved."
        raise ContentionError(message)


def continues(present: Funding, known: KnownFunding) -> bool:
    """Tell whether history goes on from where the funding of a partition stands."""
    return known.n >= present.n and known.index_then == present.index


def history_lost(partition: int, symbol: str) -> HistoryLostError:
    """Refuse to go on from funding that history does not know."""
    return HistoryLostError(
        f"Partition {partition} has funding of {symbol} that history does not know: history has lost it."
        " To take history as it is for right, rebuild the partition."
    )
