"""Mark prices and instruments in Redis, the same in every partition."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.clients import keys
from margin.clients.base_redis import BaseRedisClient, Script
from margin.clients.instrument_json import parse_instrument
from margin.domain.decimals import plain
from margin.domain.market import Mark, Market
from margin.domain.safe_zone import TriggerSide
from margin.errors import LimitExceededError
from margin.ports import MarkUpdate

if TYPE_CHECKING:
    from collections.abc import Mapping

SYMBOLS_MAX = 1000

_TRIGGERS_PER_PAGE = 200

_SET_MARKS = Script("set_marks")
_SWEEP = Script("sweep_triggers")
_RESTORE = Script("restore_marks")


class MarketRedisClient(BaseRedisClient):
    """Market data operations."""

    async def market(self) -> Market:
        """All marks and instruments, as partition 0 holds them, at one moment."""
        prices, stamps, instruments, (now_s, now_us) = await self.twice(self._read_market)
        return Market(
            {symbol: Mark(Decimal(price), int(stamps[symbol])) for symbol, price in prices.items()},
            {symbol: parse_instrument(text) for symbol, text in instruments.items()},
            now_s * 1_000_000 + now_us,
        )

    async def set_marks(self, prices: Mapping[str, Decimal], *, crossed_max: int) -> list[MarkUpdate]:
        """Store mark prices, partition 0 first: it stamps them, the others apply only what is newer.

        Parameters
        ----------
        prices : mapping of str to Decimal
            Price by symbol; all are in place before the first account is named.
        crossed_max : int
            How many accounts to name for each symbol and partition; all are counted.

        Returns
        -------
        list of MarkUpdate
            One for each symbol, summed over the partitions.

        Raises
        ------
        LimitExceededError
            There would be more than 1000 symbols.
        StateNotLoadedError, RedisUnavailableError
        """
        await self.freshen()
        stamps = dict.fromkeys(prices, "")
        counts = dict.fromkeys(prices, 0)
        crossed: dict[str, list[int]] = {symbol: [] for symbol in prices}
        for partition in range(self.partitions):
            triples = [text for symbol in prices for text in (symbol, plain(prices[symbol]), stamps[symbol])]
            reply = await self.run(_SET_MARKS, partition, self.partitions, crossed_max, SYMBOLS_MAX, *triples)
            if reply[0] == "TOO_MANY":
                message = f"There are {SYMBOLS_MAX} symbols with a mark price already; that is the most."
                raise LimitExceededError(message)
            for symbol, stamp, count, named in reply[1:]:
                stamps[symbol] = stamp
                counts[symbol] += count
                crossed[symbol] += [int(account_id) for account_id in named]
        return [MarkUpdate(symbol, int(stamps[symbol]), counts[symbol], tuple(crossed[symbol])) for symbol in prices]

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
        prices, stamps, _, _ = await self.twice(self._read_market)
        aligned = 0
        for partition in range(1, self.partitions):
            present = await self._stamps(partition)
            lagging = [symbol for symbol, stamp in stamps.items() if int(present.get(symbol, "0")) < int(stamp)]
            if lagging:
                triples = [text for symbol in lagging for text in (symbol, prices[symbol], stamps[symbol])]
                await self.run(_SET_MARKS, partition, self.partitions, 0, SYMBOLS_MAX, *triples)
                aligned += len(lagging)
        return aligned

    async def restore_marks(self, partition: int, marks: Mapping[str, Mark]) -> int:
        """Give a partition, if it is closed, the marks that it lacks or has only older than these; how many.

        Their stamp says that they are stale: nobody knows what the price did after they were kept.
        """
        if not marks:
            return 0
        marker = keys.marker(partition, self.partitions)
        triples = [field for symbol, mark in marks.items() for field in (symbol, plain(mark.price), mark.stamp_us)]
        reply = await self.twice(lambda redis: _RESTORE.run(redis, marker, *triples))
        return int(reply[1])

    async def forget_marks(self, partition: int) -> None:
        """Drop the marks of a partition, which is closed."""
        names = [self.key(partition, name) for name in ("mark_prices", "mark_stamps")]
        await self.twice(lambda redis: redis.delete(*names))

    async def sweep_triggers(self, partition: int) -> int:
        """Take triggers away whose account does not hold their symbol, in a partition that is closed."""
        marker = keys.marker(partition, self.partitions)
        removed = 0
        market = await self.market()
        for symbol in {**market.marks, **market.instruments}:
            for side in TriggerSide:
                removed += await self._sweep_side(marker, symbol, str(side))
        return removed

    async def _sweep_side(self, marker: str, symbol: str, side: str) -> int:
        cursor, removed = "0", 0

        async def sweep(redis: Any) -> Any:
            return await _SWEEP.run(redis, marker, symbol, side, cursor, _TRIGGERS_PER_PAGE)

        while True:
            _, cursor, swept = await self.twice(sweep)
            removed += int(swept)
            if cursor == "0":
                return removed

    async def _read_market(self, redis: Any) -> list[Any]:
        async with redis.pipeline(transaction=True) as pipeline:
            for name in ("mark_prices", "mark_stamps", "instruments"):
                pipeline.hgetall(self.key(0, name))
            pipeline.time()
            reply: list[Any] = await pipeline.execute()
        return reply

    async def _stamps(self, partition: int) -> dict[str, str]:
        name = self.key(partition, "mark_stamps")
        stamps: dict[str, str] = await self.twice(lambda redis: redis.hgetall(name))
        return stamps
