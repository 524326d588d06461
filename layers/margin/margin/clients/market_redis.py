"""Mark prices and instruments in Redis, the same in every partition."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from margin.clients import keys
from margin.clients.account_format import mark_of
from margin.clients.base_redis import BaseRedisClient, Script
from margin.clients.instrument_json import parse_instrument
from margin.domain.decimals import plain
from margin.domain.mark_time import AHEAD_MAX_US, OlderPrice, future_timestamp, older_mark_price
from margin.domain.market import Mark, Market
from margin.domain.safe_zone import TriggerSide
from margin.errors import LimitExceededError, OutcomeUnknownError, RedisRefusedError, RedisUnavailableError
from margin.ports import MarkUpdate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

SYMBOLS_MAX = 1000

_TRIGGERS_PER_PAGE = 200

_SET_MARKS = Script("set_marks")
_SWEEP = Script("sweep_triggers")
_RESTORE = Script("restore_marks")


class MarketRedisClient(BaseRedisClient):
    """Market data operations."""

    async def market(self) -> Market:
        """All marks and instruments, as partition 0 holds them, at one moment."""
        prices, stamps, times, instruments, (now_s, now_us) = await self.twice(self._read_market)
        return Market(
            {symbol: mark_of(price, stamps[symbol], times.get(symbol)) for symbol, price in prices.items()},
            {symbol: parse_instrument(text) for symbol, text in instruments.items()},
            now_s * 1_000_000 + now_us,
        )

    async def set_marks(
        self, prices: Mapping[str, Decimal], *, crossed_max: int, observed_us: Mapping[str, int] | None = None
    ) -> list[MarkUpdate]:
        """Store mark prices, partition 0 first: it stamps them, the others apply only what is newer.

        Partition 0 also judges the times that senders say, in the step that stores the prices: what it refuses is
        stored nowhere, and what it accepts the others do not judge again.

        Parameters
        ----------
        prices : mapping of str to Decimal
            Price by symbol; all are in place before the first account is named.
        crossed_max : int
            How many accounts to name in each partition, those of all symbols together; all are counted.
        observed_us : mapping of str to int, optional
            When a price was observed, as its sender says, by symbol, in microseconds since the epoch; those without
            are of now.

        Returns
        -------
        list of MarkUpdate
            One for each symbol, summed over the partitions.

        Raises
        ------
        FutureTimestampError, OlderMarkPriceError
            A price says that it is from the future, or older than the stored one; none of them was stored.
        LimitExceededError
            There would be more than 1000 symbols.
        OutcomeUnknownError
            The prices may be stored, in some partitions or in all. The same call again is accepted as long as no later
            price came in between; the scan brings partitions in line.
        StateNotLoadedError, RedisUnavailableError
        """
        await self.freshen()
        said = observed_us or {}
        texts = {symbol: plain(price) for symbol, price in prices.items()}
        placed = {symbol: ("", str(said.get(symbol, ""))) for symbol in prices}
        counts = dict.fromkeys(prices, 0)
        crossed: dict[str, list[int]] = {symbol: [] for symbol in prices}
        to_warn: dict[str, list[int]] = {symbol: [] for symbol in prices}
        for partition in range(self.partitions):
            for symbol, stamp, time, count, *named in await self._set_marks(partition, crossed_max, texts, placed):
                placed[symbol] = (stamp, time)
                counts[symbol] += count
                crossed[symbol] += [int(account_id) for account_id in named[0]]
                to_warn[symbol] += [int(account_id) for account_id in named[1]]
        return [
            MarkUpdate(symbol, int(placed[symbol][0]), counts[symbol], tuple(crossed[symbol]), tuple(to_warn[symbol]))
            for symbol in prices
        ]

    async def align_marks(self) -> int:
        """Bring partitions that lag behind partition 0 up to its marks: who set marks may have died between two.

        Returns
        -------
        int
            How many marks were brought up.

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        if self.partitions == 1:
            return 0
        prices, stamps, times, _, _ = await self.twice(self._read_market)
        aligned = 0
        for partition in range(1, self.partitions):
            present = await self._stamps(partition)
            lagging = [symbol for symbol, stamp in stamps.items() if int(present.get(symbol, "0")) < int(stamp)]
            if lagging:
                marks = {symbol: mark_of(prices[symbol], stamps[symbol], times.get(symbol)) for symbol in lagging}
                placed = {
                    symbol: (stamps[symbol], str(mark.stamp_us if mark.observed_us is None else mark.observed_us))
                    for symbol, mark in marks.items()
                }
                await self._set_marks(partition, 0, prices, placed)
                aligned += len(lagging)
        return aligned

    async def restore_marks(self, partition: int, marks: Mapping[str, Mark]) -> int:
        """Give a partition, if it is closed, the marks that it lacks or has only older than these; how many.

        Their stamp says that they are stale: nobody knows what the price did after they were kept. What is older than
        they were is refused as before.
        """
        if not marks:
            return 0
        marker = keys.marker(partition, self.partitions)
        fields = [
            field
            for symbol, mark in marks.items()
            for field in (symbol, plain(mark.price), mark.stamp_us, mark.as_of_us)
        ]
        reply = await self.twice(lambda redis: _RESTORE.run(redis, marker, *fields))
        return int(reply[1])

    async def forget_marks(self, partition: int) -> None:
        """Drop the marks of a partition, which is closed."""
        names = [self.key(partition, name) for name in ("mark_prices", "mark_stamps", "mark_times")]
        await self.twice(lambda redis: redis.delete(*names))

    async def sweep_triggers(self, partition: int) -> int:
        """Take triggers away whose account does not hold their symbol, in a partition that is closed."""
        marker = keys.marker(partition, self.partitions)
        removed = 0
        market = await self.market()
        for symbol in {**market.marks, **market.instruments}:
            for index, side in itertools.product(("triggers", "warnings"), TriggerSide):
                removed += await self._sweep_side(marker, index, symbol, str(side))
        return removed

    async def _set_marks(
        self, partition: int, crossed_max: int, prices: Mapping[str, str], placed: Mapping[str, tuple[str, str]]
    ) -> list[Any]:
        """Store prices with stamp and time, "" for those that partition 0 is to give, in one partition."""
        fields = [field for symbol, (stamp, time) in placed.items() for field in (symbol, prices[symbol], stamp, time)]
        limits = (crossed_max, SYMBOLS_MAX, AHEAD_MAX_US)
        reply: list[Any]
        try:
            outcome, *reply = await self.run(_SET_MARKS, partition, self.partitions, *limits, *fields)
        except RedisUnavailableError as error:
            # A refusal of partition 0 is before anything is stored; otherwise the reply alone may be what was lost.
            if partition == 0 and isinstance(error, RedisRefusedError):
                raise
            message = f"{error.detail} The price may be stored all the same: send the present one."
            raise OutcomeUnknownError(message) from error
        if outcome == "AHEAD":
            symbol, time, now = reply
            raise future_timestamp(symbol, int(time), int(now))
        if outcome == "OLDER":
            raise older_mark_price([OlderPrice(symbol, int(time), int(stored)) for symbol, time, stored in reply[0]])
        if outcome == "TOO_MANY":
            message = f"There are {SYMBOLS_MAX} symbols with a mark price already; that is the most."
            raise LimitExceededError(message)
        return reply

    async def _sweep_side(self, marker: str, index: str, symbol: str, side: str) -> int:
        cursor, removed = "0", 0

        async def sweep(redis: Any) -> Any:
            return await _SWEEP.run(redis, marker, index, symbol, side, cursor, _TRIGGERS_PER_PAGE)

        while True:
            _, cursor, swept = await self.twice(sweep)
            removed += int(swept)
            if cursor == "0":
                return removed

    async def _read_market(self, redis: Any) -> list[Any]:
        async with redis.pipeline(transaction=True) as pipeline:
            for name in ("mark_prices", "mark_stamps", "mark_times", "instruments"):
                pipeline.hgetall(self.key(0, name))
            pipeline.time()
            reply: list[Any] = await pipeline.execute()
        return reply

    async def _stamps(self, partition: int) -> dict[str, str]:
        name = self.key(partition, "mark_stamps")
        stamps: dict[str, str] = await self.twice(lambda redis: redis.hgetall(name))
        return stamps
