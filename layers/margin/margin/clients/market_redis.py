"""Mark prices, those that wait to be confirmed, and instruments in Redis, the same in every partition."""

from __future__ import annotations

import dataclasses
import itertools
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from margin.caller import NOBODY
from margin.clients import keys
from margin.clients.account_format import candidate_of, funding_of, mark_of
from margin.clients.base_redis import BaseRedisClient, Script
from margin.clients.instrument_json import parse_instrument
from margin.clients.rate_limit_format import limits_text, require_unlimited
from margin.domain.decimals import plain
from margin.domain.mark_time import AHEAD_MAX_US, OlderPrice, future_timestamp, older_mark_price
from margin.domain.market import Mark, Market
from margin.domain.safe_zone import TriggerSide
from margin.errors import LimitExceededError, OutcomeUnknownError, RedisRefusedError, RedisUnavailableError
from margin.ports import MarkUpdate, SetAside

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin.caller import Caller
    from margin.domain.mark_jump import MarkCandidate
    from margin.ports import RateLimit

SYMBOLS_MAX = 1000

_MARKET = (
    *("mark_prices", "mark_stamps", "mark_times", "mark_sources", "mark_senders", "mark_candidates"),
    *("instruments", "funding"),
)

_TRIGGERS_PER_PAGE = 200
_MARKS = ("mark_prices", "mark_stamps", "mark_times", "mark_sources", "mark_candidates")
"""Hashes by symbol. What the last three hold stands beside the stamp that it belongs to, and counts beside no other."""
_SENDERS = ("mark_senders", "mark_waiting_senders")
"""Who sent them, in partition 0 alone: the first beside the stamp of a mark, the second beside when a price came."""

_SET_MARKS = Script("set_marks")
_ALIGN_WAITING = Script("align_waiting")
_SWEEP = Script("sweep_triggers")
_RESTORE = Script("restore_marks")


class _Placed(NamedTuple):
    """A price as its script takes it, and what waits beside it.

    "" stands for no source, for a stamp or time that partition 0 is to give, for nothing that waits, and for the price
    of a mark that stays.
    """

    price: str
    stamp: str
    time: str
    source: str
    waiting: str


class _Answer(NamedTuple):
    """What a partition made of a price: the mark in force, and whom it crosses.

    ``jump_max`` is "" but where the price that was sent was set aside.
    """

    symbol: str
    placed: _Placed
    mark_price: str
    jump_max: str
    crossings: tuple[int, list[str], list[str]]


def _mark(price: str, stamp: str, kept_time: str | None, kept_source: str | None, kept_sender: str | None) -> Mark:
    mark = mark_of(price, stamp, kept_time)
    of, _, source = (kept_source or "").partition(":")
    if of == stamp:
        mark = dataclasses.replace(mark, source=source)
    of, _, sender = (kept_sender or "").partition(":")
    if of == stamp:
        source_ip, _, subject = sender.partition(" ")
        mark = dataclasses.replace(mark, subject=subject or None, source_ip=source_ip or None)
    return mark


def _sender(caller: Caller) -> str:
    known = caller.source_ip is not None or caller.subject is not None
    return f"{caller.source_ip or ''} {caller.subject or ''}" if known else ""


class MarketRedisClient(BaseRedisClient):
    """Market data operations."""

    async def market(self, partition: int = 0) -> Market:
        """All marks, instruments and funding, as a partition holds them at one moment, open or not."""
        return (await self._read(partition))[0]

    async def loaded_market(self) -> Market:
        """All marks, instruments and funding of partition 0, which is open at that moment.

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        return (await self._read(0, has_to_be_open=True))[0]

    async def market_and_candidates(self) -> tuple[Market, dict[str, MarkCandidate]]:
        """Read the same, and the prices that wait to be confirmed.

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        market, waiting, _ = await self._read(0, has_to_be_open=True)
        return market, waiting

    async def _read(
        self, partition: int, *, has_to_be_open: bool = False
    ) -> tuple[Market, dict[str, MarkCandidate], dict[str, str]]:
        """Read the market, what waits beside its marks, and that as it is written."""
        read = await self.twice(lambda redis: self._read_market(redis, partition))
        prices, stamps, times, sources, senders, candidates, instruments, funding, marker, (now_s, now_us) = read
        if has_to_be_open:
            self.require_loaded(*marker)
        rules = {symbol: parse_instrument(text) for symbol, text in instruments.items()}
        found = {symbol: candidate_of(text, stamps.get(symbol)) for symbol, text in candidates.items()}
        waiting = {symbol: candidate for symbol, candidate in found.items() if candidate is not None}
        market = Market(
            {
                symbol: _mark(price, stamps[symbol], times.get(symbol), sources.get(symbol), senders.get(symbol))
                for symbol, price in prices.items()
            },
            {symbol: in_force for symbol, (in_force, _) in rules.items()},
            now_s * 1_000_000 + now_us,
            {symbol: funding_of(text) for symbol, text in funding.items()},
            {symbol: staged for symbol, (_, staged) in rules.items() if staged is not None},
            {symbol: candidate.price for symbol, candidate in waiting.items()},
        )
        return market, waiting, {symbol: text for symbol, text in candidates.items() if symbol in waiting}

    async def set_marks(
        self,
        prices: Mapping[str, Decimal],
        *,
        crossed_max: int,
        observed_us: Mapping[str, int] | None = None,
        sources: Mapping[str, str] | None = None,
        caller: Caller = NOBODY,
        limits: Sequence[RateLimit] = (),
    ) -> list[MarkUpdate]:
        """Store mark prices, partition 0 first: it stamps them, the others apply only what is newer.

        Partition 0 also judges the times that senders say and how far prices move, in the step that stores them: what
        it refuses is stored nowhere, what it sets aside waits in all of them beside the mark that stays, and what it
        accepts the others do not judge again.

        Parameters
        ----------
        prices : mapping of str to Decimal
            Price by symbol; all are in place before the first account is named.
        crossed_max : int
            How many accounts to name in each partition, those of all symbols together; all are counted.
        observed_us : mapping of str to int, optional
            When a price was observed, as its sender says, by symbol, in microseconds since the epoch; those without
            are of now.
        sources : mapping of str to str, optional
            Where a price is from, as its sender says, by symbol.
        caller : Caller
            Who sends them.
        limits : sequence of RateLimit
            How often this may be done; partition 0 counts.

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
        RateLimitedError
            None was stored.
        StateNotLoadedError, RedisUnavailableError
        """
        await self.freshen()
        said, origins = observed_us or {}, sources or {}
        sent = {
            symbol: _Placed(plain(price), "", str(said.get(symbol, "")), origins.get(symbol, ""), "")
            for symbol, price in prices.items()
        }
        judged = {answer.symbol: answer for answer in await self._set_marks(0, crossed_max, sent, caller, limits)}
        found = {symbol: [answer.crossings] for symbol, answer in judged.items()}
        placed = {symbol: answer.placed for symbol, answer in judged.items()}
        for partition in range(1, self.partitions):
            for answer in await self._set_marks(partition, crossed_max, placed):
                found[answer.symbol].append(answer.crossings)
        return [_update(judged[symbol], found[symbol]) for symbol in prices]

    async def align_marks(self) -> int:
        """Bring partitions that lag behind partition 0 up to its marks: who set marks may have died between two.

        Returns
        -------
        int
            How many marks were brought up, and how many prices that wait.

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        if self.partitions == 1:
            return 0
        market, _, waiting = await self._read(0)
        aligned = 0
        for partition in range(1, self.partitions):
            present, beside = await self._stamps(partition)
            placed = {
                symbol: _Placed(
                    plain(mark.price),
                    str(mark.stamp_us),
                    str(mark.stamp_us if mark.observed_us is None else mark.observed_us),
                    mark.source or "",
                    waiting.get(symbol, ""),
                )
                for symbol, mark in market.marks.items()
                if int(present.get(symbol, "0")) < mark.stamp_us
            }
            if placed:
                await self._set_marks(partition, 0, placed)
            differing = [
                text
                for symbol in sorted((waiting.keys() | beside.keys()) - placed.keys())
                for text in (symbol, beside.get(symbol, ""), waiting.get(symbol, ""))
                if beside.get(symbol) != waiting.get(symbol)
            ]
            if differing:
                reply = await self.ask(_ALIGN_WAITING, partition, self.partitions, *differing)
                aligned += int(reply[1])
            aligned += len(placed)
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
        """Drop the marks of a partition, which is closed, and its funding."""
        names = [self.key(partition, name) for name in (*_MARKS, *_SENDERS, "funding")]
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
        self,
        partition: int,
        crossed_max: int,
        placed: Mapping[str, _Placed],
        caller: Caller = NOBODY,
        limits: Sequence[RateLimit] = (),
    ) -> list[_Answer]:
        """Store prices in one partition; what it made of each, and whom it crosses."""
        fields = [field for symbol, mark in placed.items() for field in (symbol, *mark)]
        terms = (crossed_max, SYMBOLS_MAX, AHEAD_MAX_US, _sender(caller), limits_text(limits))
        reply: list[Any]
        try:
            outcome, *reply = await self.run(_SET_MARKS, partition, self.partitions, *terms, *fields)
        except RedisUnavailableError as error:
            # A refusal of partition 0 is before anything is stored; otherwise the reply alone may be what was lost.
            if partition == 0 and isinstance(error, RedisRefusedError):
                raise
            message = f"{error.detail} The price may be stored all the same: send the present one."
            raise OutcomeUnknownError(message) from error
        require_unlimited([outcome, *reply])
        if outcome == "AHEAD":
            symbol, time, now = reply
            raise future_timestamp(symbol, int(time), int(now))
        if outcome == "OLDER":
            raise older_mark_price([OlderPrice(symbol, int(time), int(stored)) for symbol, time, stored in reply[0]])
        if outcome == "TOO_MANY":
            message = f"There are {SYMBOLS_MAX} symbols with a mark price already; that is the most."
            raise LimitExceededError(message)
        return [_answer(fields) for fields in reply]

    async def _sweep_side(self, marker: str, index: str, symbol: str, side: str) -> int:
        cursor, removed = "0", 0

        async def sweep(redis: Any) -> Any:
            return await _SWEEP.run(redis, marker, index, symbol, side, cursor, _TRIGGERS_PER_PAGE)

        while True:
            _, cursor, swept = await self.twice(sweep)
            removed += int(swept)
            if cursor == "0":
                return removed

    async def _read_market(self, redis: Any, partition: int) -> list[Any]:
        async with redis.pipeline(transaction=True) as pipeline:
            for name in _MARKET:
                pipeline.hgetall(self.key(partition, name))
            pipeline.hmget(keys.marker(partition, self.partitions), ["epoch", "partitions"])
            pipeline.time()
            reply: list[Any] = await pipeline.execute()
        return reply

    async def _stamps(self, partition: int) -> tuple[dict[str, str], dict[str, str]]:
        """Read the stamps of the marks of a partition, and what waits there, however void."""
        names = [self.key(partition, name) for name in ("mark_stamps", "mark_candidates")]

        async def read(redis: Any) -> Any:
            async with redis.pipeline(transaction=True) as pipeline:
                for name in names:
                    pipeline.hgetall(name)
                return await pipeline.execute()

        stamps, waiting = await self.twice(read)
        return stamps, waiting


def _answer(fields: Sequence[Any]) -> _Answer:
    symbol, price, stamp, time, source, waiting, mark_price, jump_max, count, crossed, to_warn = fields
    placed = _Placed(price, stamp, time, source, waiting)
    return _Answer(symbol, placed, mark_price, jump_max, (int(count), crossed, to_warn))


def _update(judged: _Answer, found: Sequence[tuple[int, list[str], list[str]]]) -> MarkUpdate:
    """Sum up what partitions answered of a symbol; what became of the price, partition 0 says."""
    aside = None
    if judged.jump_max:
        aside = SetAside(Decimal(judged.mark_price), Decimal(judged.jump_max), moved_mark=bool(judged.placed.price))
    return MarkUpdate(
        judged.symbol,
        int(judged.placed.stamp),
        sum(count for count, _, _ in found),
        tuple(int(account_id) for _, crossed, _ in found for account_id in crossed),
        tuple(int(account_id) for _, _, to_warn in found for account_id in to_warn),
        aside,
    )
