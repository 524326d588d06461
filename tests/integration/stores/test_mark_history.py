"""Mark prices in PostgreSQL, sampled: what is added, what is kept for how long, and how it is read."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from margin.domain.market import Mark
from margin.errors import CursorInvalidError
from margin.ports.queries import MarkSampleQuery
from margin.services import mark_records
from margin.services.cursors import encode_cursor
from tests.actions import BTC, ETH, mark
from tests.database import FUNCTIONS, OWNER, connect
from tests.fakes import Exchange

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from margin.config import Settings
    from margin.runtime import Engine
    from tests.integration.conftest import MakeEngine

    Query = Callable[..., list[tuple[Any, ...]]]

DAY_US = 86_400_000_000
BASE_US = 1_700_000_000_000_000
MINUTE_US = 60_000_000
_FILL = """
    insert into mark_price_samples (symbol, at, price, source)
    select symbol, timestamptz '2023-11-14 22:13:20Z' + number * interval '1 minute', number, null
    from unnest(array['BTC-PERP', 'ETH-PERP']) as symbol, generate_series(1, 20000) as number
"""


def samples(query: Query) -> list[tuple[Any, ...]]:
    return query("select symbol, price, source from mark_price_samples order by at")


async def age(engine: Engine, days: float, symbol: str = BTC, price: str = "1") -> None:
    """Put a sample into history that is so old by the clock of Redis."""
    at_us = (await engine.market.market()).now_us - int(days * DAY_US)
    await engine.history_store.save_marks({symbol: Mark(Decimal(price), at_us)})


# --- sampling ---


@pytest.mark.parametrize("partitions", [1, 3])
async def test_price_that_changed_since_the_last_run_is_sampled_with_its_source_and_time(
    make_engine: MakeEngine, store: redis.Redis, query: Query, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions)
    await engine.marks.set_marks({BTC: Decimal("50000.5"), ETH: Decimal(2000)}, sources={BTC: "index-1"})
    await engine.mark_records.save()
    await engine.marks.set_marks({ETH: Decimal(2001)})
    await engine.marks.set_marks({ETH: Decimal(2002)}, sources={ETH: "index-2"})
    await engine.mark_records.save()
    rows = query("select symbol, price, source, extract(epoch from at) * 1000000 from mark_price_samples")
    found = {(symbol, price, source): at_us for symbol, price, source, at_us in rows}
    assert found.keys() == {
        (BTC, Decimal("50000.5"), "index-1"),
        (ETH, Decimal(2000), None),
        (ETH, Decimal(2002), "index-2"),
    }
    prefix = "" if partitions == 1 else "{p0}:"
    assert found[ETH, Decimal(2002), "index-2"] == int(store.hget(f"{prefix}mark_stamps", ETH))


async def test_price_that_did_not_change_is_sampled_once(engine: Engine, query: Query) -> None:
    await mark(engine, "50000")
    for _ in range(3):
        await engine.mark_records.save()
    assert samples(query) == [(BTC, Decimal(50000), None)]


async def test_same_price_that_came_anew_is_no_other_sample_and_one_of_another_source_is(
    engine: Engine, query: Query
) -> None:
    for price, source in (("1", ""), ("1", ""), ("1", "index-1"), ("1", "index-1"), ("2", "index-1"), ("1", "index-1")):
        await engine.marks.set_marks({BTC: Decimal(price)}, sources={BTC: source} if source else {})
        await engine.mark_records.save()
    assert samples(query) == [
        (BTC, Decimal(1), None),
        (BTC, Decimal(1), "index-1"),
        (BTC, Decimal(2), "index-1"),
        (BTC, Decimal(1), "index-1"),
    ]


async def test_drains_at_once_sample_a_price_once(make_engine: MakeEngine, query: Query) -> None:
    engines = [await make_engine() for _ in range(4)]
    symbols = [f"S{number}" for number in range(100)]
    await engines[0].marks.set_marks(dict.fromkeys(symbols, Decimal(1)))
    await asyncio.gather(*(engine.mark_records.save() for engine in engines))
    assert sorted(samples(query)) == sorted((symbol, Decimal(1), None) for symbol in symbols)


async def test_price_that_waits_or_was_put_back_from_history_is_no_sample(
    engine: Engine, store: redis.Redis, query: Query
) -> None:
    await mark(engine, "50000")
    await engine.mark_records.save()
    store.flushall()
    await engine.opening.open()
    assert await engine.mark_records.save() == 0
    assert len(samples(query)) == 1


# --- for how long ---


async def test_sample_that_is_older_than_it_is_kept_goes_and_a_younger_one_stays(
    make_engine: MakeEngine, query: Query
) -> None:
    engine = await make_engine(mark_history_days=30)
    await age(engine, 30.001, price="1")
    await age(engine, 29.999, price="2")
    await age(engine, 4000, ETH, price="3")
    await engine.mark_records.save()
    assert samples(query) == [(BTC, Decimal(2), None)]


async def test_sample_that_is_not_a_day_old_is_not_forgotten_whoever_asks(
    make_engine: MakeEngine, settings: Settings, query: Query
) -> None:
    """Those who clean up ask by the clock of Redis, which may be ahead; whoever hides a price asks for all of them."""
    engine = await make_engine(mark_history_days=1)
    await age(engine, 1.001, price="1")
    await age(engine, 0.999, price="2")
    await age(engine, 0, ETH, price="3")
    await engine.mark_records.save()
    now_us = (await engine.market.market()).now_us
    assert await engine.history_store.forget_mark_samples(now_us + DAY_US, 10) == 0
    assert samples(query) == [(BTC, Decimal(2), None), (ETH, Decimal(3), None)]
    for user in (FUNCTIONS, OWNER):
        with connect(settings, user=user) as connection:
            connection.execute("set session_replication_role = origin" if user == OWNER else "select")
            with pytest.raises(psycopg.DatabaseError, match="mark_price_samples is append-only: delete is refused"):
                connection.execute("delete from mark_price_samples")
    assert len(samples(query)) == 2


async def test_with_no_days_samples_are_kept_for_ever(make_engine: MakeEngine, query: Query) -> None:
    engine = await make_engine(mark_history_days=0)
    await age(engine, 36_000)
    await engine.mark_records.save()
    assert len(samples(query)) == 1


async def test_one_run_takes_the_oldest_and_no_more_than_it_may(
    engine: Engine, settings: Settings, query: Query
) -> None:
    with connect(settings) as connection:
        connection.execute(_FILL)
    removed = mark_records.FORGOTTEN_PER_RUN_MAX
    await engine.mark_records.save()
    assert query("select count(*), min(price) from mark_price_samples") == [(40_000 - removed, 1 + removed // 2)]
    runs = 1
    while query("select count(*) from mark_price_samples") != [(0,)]:
        await engine.mark_records.save()
        runs += 1
        assert runs <= 40_000 // removed


async def test_runs_at_once_take_different_samples_away(make_engine: MakeEngine, settings: Settings) -> None:
    engines = [await make_engine() for _ in range(3)]
    with connect(settings) as connection:
        connection.execute(_FILL)
    later_us = BASE_US + 100_000 * MINUTE_US
    counts = await asyncio.gather(*(engine.history_store.forget_mark_samples(later_us, 5_000) for engine in engines))
    assert counts == [5_000] * 3


# --- reading ---


async def _pages(engine: Engine, limit: int, **window: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = await engine.history.mark_prices(BTC, limit=limit, cursor=cursor, **window)
        assert len(page.rows) <= limit
        rows += page.rows
        if (cursor := page.next_cursor) is None:
            return rows
        assert len(page.rows) == limit


@pytest.mark.parametrize("limit", [1, 3, 7, 10, 1000])
async def test_pages_have_every_price_of_the_symbol_once_and_the_newest_first(engine: Engine, limit: int) -> None:
    for number in range(1, 11):
        marks = {symbol: Mark(Decimal(number), BASE_US + number, source="x") for symbol in (BTC, ETH)}
        await engine.history_store.save_marks(marks)
    assert await _pages(engine, limit) == [
        {"symbol": BTC, "price": Decimal(number), "source": "x", "timestamp_us": BASE_US + number}
        for number in range(10, 0, -1)
    ]


async def test_window_has_its_first_moment_and_not_its_last(engine: Engine) -> None:
    for number in range(1, 11):
        await engine.history_store.save_marks({BTC: Mark(Decimal(number), BASE_US + number)})
    rows = await _pages(engine, 2, since_us=BASE_US + 3, until_us=BASE_US + 8)
    assert [row["price"] for row in rows] == [7, 6, 5, 4, 3]
    assert await _pages(engine, 2, since_us=BASE_US + 8, until_us=BASE_US + 3) == []


async def test_page_goes_on_where_it_was_though_newer_prices_came(engine: Engine) -> None:
    for number in range(1, 5):
        await engine.history_store.save_marks({BTC: Mark(Decimal(number), BASE_US + number)})
    first = await engine.history.mark_prices(BTC, limit=2)
    await engine.history_store.save_marks({BTC: Mark(Decimal(9), BASE_US + 9)})
    second = await engine.history.mark_prices(BTC, limit=2, cursor=first.next_cursor)
    assert [row["price"] for row in (*first.rows, *second.rows)] == [4, 3, 2, 1]


async def test_cursor_of_another_symbol_or_of_no_moment_is_refused(engine: Engine) -> None:
    for number in range(1, 4):
        marks = {symbol: Mark(Decimal(number), BASE_US + number) for symbol in (BTC, ETH)}
        await engine.history_store.save_marks(marks)
    cursor = (await engine.history.mark_prices(ETH, limit=1)).next_cursor
    assert cursor is not None
    with pytest.raises(CursorInvalidError):
        await engine.history.mark_prices(BTC, cursor=cursor)
    with pytest.raises(CursorInvalidError):
        await engine.history.mark_prices(BTC, cursor=encode_cursor(f"mark-prices:{BTC}", 2**62))


async def test_symbol_without_a_price_has_no_history(engine: Engine) -> None:
    page = await engine.history.mark_prices("NOTHING")
    assert (page.rows, page.next_cursor) == ([], None)


async def test_page_and_what_is_too_old_are_found_by_an_index(settings: Settings, engine: Engine) -> None:
    with connect(settings) as connection:
        connection.execute(_FILL)
        connection.execute("analyze mark_price_samples")
        page = connection.execute(
            "explain select * from mark_price_samples where symbol = 'BTC-PERP' and at < now() order by at desc limit 9"
        ).fetchall()
        old = connection.execute(
            "explain select * from mark_price_samples where at < '2023-11-15' order by at limit 100"
        ).fetchall()
    for plan, index in ((page, "mark_price_samples_pkey"), (old, "mark_price_samples_by_age")):
        text = " ".join(line for (line,) in plan)
        assert index in text
        assert "Seq Scan" not in text


async def test_fake_samples_forgets_and_reads_alike(engine: Engine) -> None:
    exchange = Exchange()
    answers = []
    for history in (engine.history_store, exchange.history_store):
        marks = [
            {BTC: Mark(Decimal(n), BASE_US + n, source="x"), ETH: Mark(Decimal(n), BASE_US + n)} for n in (1, 2, 3)
        ]
        for each in (*marks, marks[0], {}):
            await history.save_marks(each)
        query = MarkSampleQuery(symbol=BTC, since_us=BASE_US + 1, until_us=BASE_US + 4, before_us=BASE_US + 3, limit=5)
        before = await history.mark_samples(query)
        forgotten = [
            await history.forget_mark_samples(BASE_US + 2, 1),
            await history.forget_mark_samples(BASE_US + 3, 9),
        ]
        answers.append((before, forgotten, await history.mark_samples(MarkSampleQuery(symbol=BTC))))
    assert answers[0] == answers[1]
    before, forgotten, after = answers[0]
    assert [row["price"] for row in before] == [2, 1]
    assert (forgotten, [row["price"] for row in after]) == ([1, 3], [3])
