"""What holds of marks behind a jump guard, whatever prices come, in whatever order."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from margin.domain.instrument import Instrument
from margin.errors import OlderMarkPriceError
from tests.fakes import Exchange
from tests.mark_oracle import MarkOracle, Message

if TYPE_CHECKING:
    from collections.abc import Sequence

BTC = "BTC-PERP"
SECOND_US = 1_000_000
bounds = st.sampled_from([Decimal("0.01"), Decimal("0.1"), Decimal("0.5"), Decimal("1.5")])
levels = st.sampled_from([Decimal(price) for price in (40, 80, 90, 99, 100, 101, 102, 104, 110, 121, 150, 260, 400)])


class _Feed:
    """One symbol of an exchange, and its clock."""

    def __init__(self, exchange: Exchange, bound: Decimal) -> None:
        self._exchange = exchange
        exchange.redis.instruments[BTC] = Instrument(BTC, mark_jump_max=bound, version=1)

    @classmethod
    async def open(cls, bound: Decimal) -> _Feed:
        return cls(await Exchange().open(), bound)

    @property
    def now_us(self) -> int:
        return self._exchange.clock.now_us

    @property
    def mark(self) -> Decimal:
        return self._exchange.redis.marks[BTC].price

    @property
    def times(self) -> tuple[int | None, int | None]:
        waiting = self._exchange.redis.waiting_beside(BTC)
        return self._exchange.redis.marks[BTC].observed_us, waiting and waiting.candidate.observed_us

    @property
    def waiting(self) -> Decimal | None:
        return self._exchange.redis.live_market().waiting.get(BTC)

    async def send(self, price: Decimal, *, after_us: int = SECOND_US, said_us: int | None = None) -> bool | None:
        self._exchange.clock.now_us += after_us
        observed_us = {} if said_us is None else {BTC: said_us}
        try:
            (update,) = await self._exchange.market.set_marks({BTC: price}, crossed_max=0, observed_us=observed_us)
        except OlderMarkPriceError:
            return None
        return update.set_aside is None


messages = st.tuples(
    levels,
    st.sampled_from([1, 300_000, SECOND_US - 1, SECOND_US, 3 * SECOND_US]),
    st.none() | st.sampled_from([-4, -1, 0, 1, 5]).map(lambda seconds: seconds * SECOND_US),
)


@settings(deadline=None, max_examples=150)
@given(bounds, st.lists(messages, min_size=1, max_size=30))
def test_mark_and_what_waits_are_what_the_rules_say(
    bound: Decimal, sent: Sequence[tuple[Decimal, int, int | None]]
) -> None:
    async def run() -> None:
        feed, oracle = await _Feed.open(bound), MarkOracle(Fraction(bound))
        for price, after_us, ahead_us in sent:
            came_us = feed.now_us + after_us
            said_us = None if ahead_us is None else came_us + ahead_us
            told = oracle.take(Message(price, came_us, said_us))
            assert await feed.send(price, after_us=after_us, said_us=said_us) is told
            assert oracle.mark is not None
            waiting = oracle.waiting
            assert (feed.mark, feed.waiting) == (oracle.mark.price, waiting and waiting.price)
            assert feed.times == (oracle.mark.observed_us, waiting and waiting.observed_us)

    asyncio.run(run())


@settings(deadline=None, max_examples=200)
@given(bounds, st.data())
def test_one_wrong_price_among_right_ones_is_never_the_mark(bound: Decimal, data: st.DataObject) -> None:
    near = st.integers(0, 10).map(lambda tenths: 100 + 10 * bound * tenths)
    right = data.draw(st.lists(near, min_size=2, max_size=10))
    wrong, place = data.draw(levels), data.draw(st.integers(1, len(right)))

    async def run() -> None:
        feed = await _Feed.open(bound)
        for number, price in enumerate(right):
            if number == place:
                before = feed.mark
                is_mark = await feed.send(wrong)
                assert is_mark is (abs(wrong - before) <= bound * before)
                assert feed.mark == (wrong if is_mark else before)
                if is_mark:
                    return
            assert await feed.send(price)
            assert (feed.mark, feed.waiting) == (price, None)

    asyncio.run(run())


@settings(deadline=None, max_examples=200)
@given(bounds, st.lists(levels, min_size=2, max_size=10, unique=True), st.booleans())
def test_market_that_goes_on_moving_one_way_is_followed_one_message_later(
    bound: Decimal, prices: list[Decimal], falls: bool
) -> None:
    async def run() -> None:
        feed, before = await _Feed.open(bound), None
        for price in sorted(prices, reverse=falls):
            await feed.send(price)
            if before is not None:
                assert feed.mark <= before if falls else feed.mark >= before
            before = price

    asyncio.run(run())


@settings(deadline=None, max_examples=200)
@given(bounds, st.lists(messages, min_size=1, max_size=30))
def test_mark_is_always_a_price_that_was_sent_and_its_time_never_goes_back(
    bound: Decimal, sent: Sequence[tuple[Decimal, int, int | None]]
) -> None:
    async def run() -> None:
        feed, seen, last_us = await _Feed.open(bound), set(), 0
        for price, after_us, ahead_us in sent:
            seen.add(price)
            said_us = None if ahead_us is None else feed.now_us + after_us + ahead_us
            await feed.send(price, after_us=after_us, said_us=said_us)
            observed_us, _ = feed.times
            assert feed.mark in seen
            assert observed_us is not None
            # A price that says no time is of now, whatever a clock that is ahead said before.
            assert said_us is None or observed_us >= last_us
            last_us = observed_us

    asyncio.run(run())
