"""Funding in memory: history's and Redis's side of it."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.domain.decimals import exact
from margin.ports.funding import FundingUpdate, KnownFunding, RecordedFunding
from tests.fakes.redis import WARNED_PER_CALL_MAX, FakeMarket

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin.domain.funding import Funding
    from margin.domain.market import Market
    from margin.ports.funding import FundingRate, PaymentQuery, RateQuery
    from tests.fakes.faults import Faults
    from tests.fakes.history import FakeHistory


class FakeFundingHistory:
    """Implements `margin.ports.funding.FundingHistory`."""

    def __init__(self, history: FakeHistory, faults: Faults) -> None:
        self.payments_of: dict[str, list[RecordedFunding]] = {}
        self._history = history
        self._faults = faults

    @exact
    def _write(self, rate: FundingRate) -> RecordedFunding:
        made = self.payments_of.setdefault(rate.symbol, [])
        index = made[-1].funding_index if made else Decimal(0)
        recorded = RecordedFunding(
            *(rate.symbol, len(made) + 1, rate.rate, rate.mark_price, index + rate.rise, rate.occurred_us),
            *(rate.key, rate.request_hash, False, None),
        )
        made.append(recorded)
        return recorded

    async def record(self, rate: FundingRate) -> tuple[RecordedFunding, bool] | None:
        await self._faults.before("funding_history.record")
        present = self._find(rate.symbol, rate.key)
        answer = (self._write(rate), False) if present is None else (present, True)
        await self._faults.after("funding_history.record")
        return answer

    async def recorded(self, symbol: str, key: str) -> RecordedFunding | None:
        await self._faults.before("funding_history.recorded")
        return self._find(symbol, key)

    async def applied(self, symbol: str, n: int, at_risk: int) -> None:
        await self._faults.before("funding_history.applied")
        made = self.payments_of.get(symbol, [])
        for place, payment in enumerate(made):
            if payment.n <= n and not payment.applied:
                known = at_risk if payment.n == n else payment.at_risk
                made[place] = dataclasses.replace(payment, applied=True, at_risk=known)
        await self._faults.after("funding_history.applied")

    async def waiting(self) -> list[str]:
        await self._faults.before("funding_history.waiting")
        return [symbol for symbol, made in self.payments_of.items() if not all(payment.applied for payment in made)]

    async def known(self, present: Mapping[str, int], symbols: Sequence[str] | None = None) -> dict[str, KnownFunding]:
        await self._faults.before("funding_history.known")
        wanted = self.payments_of if symbols is None else symbols
        return {symbol: self._known(symbol, present.get(symbol, 0)) for symbol in wanted if symbol in self.payments_of}

    async def payments(self, query: PaymentQuery) -> list[dict[str, Any]]:
        await self._faults.before("funding_history.payments")
        rows = [
            {
                "id": link.event_id,
                "place": place,
                "symbol": payment["symbol"],
                "quantity": Decimal(payment["quantity"]),
                "funding_index": Decimal(payment["index"]),
                "amount": Decimal(payment["amount"]),
                "timestamp_us": link.at_us,
            }
            for link in reversed(self._history.chains.get(query.account_id, []))
            for place, payment in enumerate(link.body.get("funding", ()), start=1)
            if query.symbol in {None, payment["symbol"]}
            and (query.since_us is None or link.at_us >= query.since_us)
            and (query.until_us is None or link.at_us < query.until_us)
            and (query.before is None or (-link.event_id, place) > (-query.before[0], query.before[1]))
        ]
        return rows[: query.limit]

    async def rates(self, query: RateQuery) -> list[dict[str, Any]]:
        await self._faults.before("funding_history.rates")
        payments = [payment for made in self.payments_of.values() for payment in made]
        rows = [
            {
                **{name: getattr(payment, name) for name in ("symbol", "n", "rate", "mark_price", "funding_index")},
                "effective": payment.applied,
                "timestamp_us": payment.occurred_us,
                "recorded_us": payment.occurred_us,
            }
            for payment in sorted(payments, key=lambda one: (-one.occurred_us, one.symbol, -one.n))
            if query.symbol in {None, payment.symbol}
            and (
                query.before is None
                or (-payment.occurred_us, payment.symbol, -payment.n)
                > (-query.before[0], query.before[1], -query.before[2])
            )
        ]
        return rows[: query.limit]

    def _find(self, symbol: str, key: str) -> RecordedFunding | None:
        return next((payment for payment in self.payments_of.get(symbol, []) if payment.key == key), None)

    def _known(self, symbol: str, n: int) -> KnownFunding:
        made = self.payments_of[symbol]
        index_then = Decimal(0) if n == 0 else made[n - 1].funding_index if n <= len(made) else None
        return KnownFunding(made[-1].n, made[-1].funding_index, index_then)


class FakeFunding(FakeMarket):
    """Implements `margin.ports.funding.FundingStore`; the fake's partitions share their funding."""

    @property
    def partitions(self) -> int:
        return self._redis.partitions

    async def set_funding(
        self, partition: int, symbol: str, funding: Funding, *, market: Market, crossed_max: int
    ) -> FundingUpdate | None:
        redis = self._redis
        await redis.faults.before("funding.set_funding")
        redis.require_loaded(partition)
        if not self._place(symbol, funding, market):
            return None
        crossed = redis.crossed_by(symbol) if symbol in redis.marks else []
        left = min(crossed_max - len(crossed[:crossed_max]), WARNED_PER_CALL_MAX)
        update = FundingUpdate(len(crossed), tuple(crossed[:crossed_max]), tuple(redis.to_warn(symbol)[:left]))
        await redis.faults.after("funding.set_funding")
        return update

    async def restore_funding(self, partition: int, symbol: str, funding: Funding, *, market: Market) -> bool:
        await self._redis.faults.before("funding.restore_funding")
        placed = partition not in self._redis.markers and self._place(symbol, funding, market)
        await self._redis.faults.after("funding.restore_funding")
        return placed

    def _place(self, symbol: str, funding: Funding, market: Market) -> bool:
        redis = self._redis
        versions = {symbol: market.instrument_version(symbol)}
        if redis.funding.get(symbol) != market.funding.get(symbol) or not redis.same_instruments(versions):
            return False
        if funding.n:
            redis.funding[symbol] = funding
        else:
            redis.funding.pop(symbol, None)
        return True
