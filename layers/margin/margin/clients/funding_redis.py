"""Funding in Redis: of every symbol its index, and how far it has moved the triggers of the partition."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from margin.clients import keys
from margin.clients.account_format import funding_text
from margin.clients.base_redis import Script
from margin.clients.market_redis import MarketRedisClient
from margin.ports.funding import FundingUpdate

if TYPE_CHECKING:
    from margin.domain.funding import Funding
    from margin.domain.market import Market

_SET = Script("set_funding")


class FundingRedisClient(MarketRedisClient):
    """Implements `margin.ports.funding.FundingStore`, beside all that concerns the market."""

    async def set_funding(
        self, partition: int, symbol: str, funding: Funding, *, market: Market, crossed_max: int
    ) -> FundingUpdate | None:
        """Put funding in place of that of a market, and answer whom it brings to evaluation.

        Parameters
        ----------
        partition : int
        symbol : str
        funding : Funding
            What it is to be.
        market : Market
            What it was computed from, as the partition held it.
        crossed_max : int
            How many accounts to name; all are counted.

        Returns
        -------
        FundingUpdate or None
            None, and nothing written, when funding or rules of the symbol are no longer those of the market; also where
            this call itself was executed and its reply lost.

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        fields = (*_change(symbol, funding, market), crossed_max)
        outcome, *reply = await self.ask(_SET, partition, self.partitions, *fields)
        if outcome == "CONFLICT":
            return None
        crossed_count, crossed, to_warn = reply
        return FundingUpdate(crossed_count, tuple(map(int, crossed)), tuple(map(int, to_warn)))

    async def restore_funding(self, partition: int, symbol: str, funding: Funding, *, market: Market) -> bool:
        """Put funding in place in a partition that is closed; False when the partition is no longer as in the market.

        Raises
        ------
        RedisUnavailableError
        """
        marker = keys.marker(partition, self.partitions)

        async def restore(redis: Any) -> Any:
            return await _SET.run(redis, marker, self.partitions, *_change(symbol, funding, market), "")

        return bool((await self.twice(restore))[0] == "OK")


def _change(symbol: str, funding: Funding, market: Market) -> tuple[str, str, str, str]:
    """Write what is to be put in place of what, as the script takes it."""
    present = market.funding.get(symbol)
    return (
        symbol,
        "" if present is None else funding_text(present),
        funding_text(funding) if funding.n else "",
        json.dumps([[symbol, market.instrument_version(symbol)]]),
    )
