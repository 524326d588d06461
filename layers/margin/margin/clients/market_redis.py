"""Mark prices and instruments in Redis, the same in every partition."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.clients.base_redis import BaseRedisClient, Script
from margin.clients.instrument_json import parse_instrument
from margin.domain.decimals import plain
from margin.domain.market import Mark, Market
from margin.errors import LimitExceededError
from margin.ports import MarkUpdate

if TYPE_CHECKING:
    from collections.abc import Mapping

SYMBOLS_MAX = 1000

_SET_MARKS = Script("set_marks")


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
