"""Reading history: pages by keyset, filters, and that the indexes carry them."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from margin.clients import postgres
from margin.errors import CursorInvalidError, UnknownAccountError
from margin.ports.queries import LIQUIDATION_BYTES_MAX, LiquidationQuery, TradeQuery
from tests.actions import BTC, ETH, buy, deposit, mark
from tests.database import connect
from tests.fakes import Exchange

if TYPE_CHECKING:
    from collections.abc import Callable

    from margin.config import Settings
    from margin.runtime import Engine
    from margin.services.history import HistoryPage

    Query = Callable[..., list[tuple[Any, ...]]]

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
BASE_US = 1_700_000_000_000_000
MINUTE_US = 60_000_000
ACCOUNTS = 50
ROWS_EACH = 200
_FILL = """
    insert into trades (account_id, id, symbol, side, quantity, price, notional, realised_pnl, fee, occurred_at)
    select account_id, number * 100 + account_id, case number %% 2 when 0 then 'BTC-PERP' else 'ETH-PERP' end,
        'BUY', 1, 2, 2, 0, 0, timestamptz '2023-11-14 22:13:20Z' + number * interval '1 minute'
    from generate_series(1, %(accounts)s) as account_id, generate_series(1, %(rows)s) as number
"""
_FILL_LIQUIDATIONS = """
    insert into liquidations (account_id, id, equity, maintenance_margin, reason, positions, shortfall, occurred_at)
    select account_id, number * 100 + account_id, -1, 1, 'EQUITY_BELOW_MAINTENANCE', '[]', 1,
        -- Four at the same moment, in different accounts: only the id orders them.
        timestamptz '2023-11-14 22:13:20Z' + (number / 2) * interval '1 minute'
    from generate_series(1, %(accounts)s) as account_id, generate_series(1, %(rows)s) as number
"""
_FILL_EVENTS = """
    with opened as (
        insert into accounts (account_id, n, event_id, chain_hash, balance, positions, opened_at, changed_at)
        select account_id, 1, 1, '-', 0, '{}', now(), now() from generate_series(2, %(accounts)s) as account_id
    )
    insert into events
        (account_id, n, event_id, previous_event_id, hash, type, key, request_hash, occurred_at, body)
    select account_id, 1 + row_number() over (partition by account_id order by id), id, 0, '-', 'LIQUIDATION', id, '-',
        occurred_at, '{"detail": {"fee": "0"}}'
    from liquidations
"""


@pytest.fixture
async def filled(engine: Engine, settings: Settings) -> Engine:
    """Return an engine with a history of some thousands of trades and liquidations, statistics taken."""
    await deposit(engine, 1, "1")
    with connect(settings) as connection:
        parameters = {"accounts": ACCOUNTS, "rows": ROWS_EACH}
        connection.execute(_FILL, parameters)
        connection.execute(_FILL_LIQUIDATIONS, parameters)
        connection.execute(_FILL_EVENTS, parameters)
        connection.execute("analyze trades, liquidations, events")
    return engine


async def _all_pages(page_after: Callable[[str | None], Any]) -> list[HistoryPage]:
    pages: list[HistoryPage] = [await page_after(None)]
    while (cursor := pages[-1].next_cursor) is not None:
        pages.append(await page_after(cursor))
        assert len(pages) < 1000
    return pages


def _ids(pages: list[HistoryPage]) -> list[int]:
    return [row["id"] for page in pages for row in page.rows]


@pytest.mark.parametrize("limit", [1, 7, 100, 199, 200, 201])
async def test_pages_of_trades_show_every_row_once_newest_first(filled: Engine, limit: int) -> None:
    pages = await _all_pages(lambda cursor: filled.history.trades(3, limit=limit, cursor=cursor))
    assert _ids(pages) == [number * 100 + 3 for number in range(ROWS_EACH, 0, -1)]
    assert len(pages) == -(-ROWS_EACH // limit)


async def test_trades_are_filtered_by_symbol_and_time_on_every_page(filled: Engine) -> None:
    since_us, until_us = BASE_US + 10 * MINUTE_US, BASE_US + 50 * MINUTE_US
    pages = await _all_pages(
        lambda cursor: filled.history.trades(
            3, symbol=BTC, since_us=since_us, until_us=until_us, limit=6, cursor=cursor
        )
    )
    # Since is inclusive, until exclusive; even numbers are those of the symbol.
    assert _ids(pages) == [number * 100 + 3 for number in range(48, 9, -2)]
    assert {row["symbol"] for page in pages for row in page.rows} == {BTC}


@pytest.mark.parametrize(
    ("filters", "numbers"),
    [
        ({"symbol": ETH, "until_us": BASE_US + 6 * MINUTE_US}, [5, 3, 1]),
        ({"since_us": BASE_US + 199 * MINUTE_US}, [200, 199]),
        ({"since_us": BASE_US + 200 * MINUTE_US + 1}, []),
        ({"until_us": BASE_US + MINUTE_US}, []),
        ({"symbol": "SOL-PERP"}, []),
    ],
)
async def test_each_filter_alone_holds_at_its_edges(
    filled: Engine, filters: dict[str, Any], numbers: list[int]
) -> None:
    rows = await filled.history_store.trades(TradeQuery(account_id=1, **filters))
    assert [row["id"] for row in rows] == [number * 100 + 1 for number in numbers]


async def test_trade_row_has_exact_decimals_and_a_time_in_microseconds(filled: Engine) -> None:
    (row,) = await filled.history_store.trades(TradeQuery(account_id=2, limit=1))
    assert row == {
        "id": 20_002,
        "account_id": 2,
        "symbol": BTC,
        "side": "BUY",
        "quantity": Decimal(1),
        "price": Decimal(2),
        "notional": Decimal(2),
        "realised_pnl": Decimal(0),
        "fee": Decimal(0),
        "timestamp_us": BASE_US + 200 * MINUTE_US,
        # The event is from before these.
        "reduce_only": False,
        "liquidity": "TAKER",
        "client_order_id": None,
    }


async def test_trades_page_tells_what_their_events_say_of_the_order(filled: Engine, settings: Settings) -> None:
    detail = {"reduce_only": True, "liquidity": "MAKER", "client_order_id": '"mine"'}
    with connect(settings) as connection:
        connection.execute(
            "update events set body = jsonb_build_object('detail', %s::jsonb)"
            " where account_id = 3 and event_id = 19903",
            [json.dumps(detail)],
        )
    rows = await filled.history_store.trades(TradeQuery(account_id=3, limit=3))
    assert [(row["id"], row["reduce_only"], row["liquidity"], row["client_order_id"]) for row in rows] == [
        (20_003, False, "TAKER", None),
        (19_903, True, "MAKER", '"mine"'),
        (19_803, False, "TAKER", None),
    ]


async def test_row_that_arrives_between_two_pages_shifts_none(filled: Engine, query: Query) -> None:
    first = await filled.history.trades(3, limit=50)
    query(
        "insert into trades select account_id, 999999, symbol, side, quantity, price, notional, realised_pnl, fee,"
        " now() from trades where (account_id, id) = (3, 103) returning id"
    )
    second = await filled.history.trades(3, limit=50, cursor=first.next_cursor)
    assert _ids([first, second]) == [number * 100 + 3 for number in range(200, 100, -1)]


@pytest.mark.parametrize("limit", [77, 1000])
async def test_pages_of_liquidations_show_every_row_once_though_many_are_of_one_moment(
    filled: Engine, limit: int
) -> None:
    pages = await _all_pages(lambda cursor: filled.history.liquidations(limit=limit, cursor=cursor))
    ids = _ids(pages)
    assert len(ids) == len(set(ids)) == ACCOUNTS * ROWS_EACH
    order = [(row["timestamp_us"], row["id"]) for page in pages for row in page.rows]
    assert order == sorted(order, reverse=True)


async def test_liquidations_of_one_account_are_paged_alone(filled: Engine) -> None:
    pages = await _all_pages(lambda cursor: filled.history.liquidations(account_id=7, limit=30, cursor=cursor))
    assert _ids(pages) == [number * 100 + 7 for number in range(200, 0, -1)]


def _lengthen(settings: Settings, length: int, condition: str) -> None:
    with connect(settings) as connection:
        connection.execute(
            "update events set body = jsonb_build_object('detail', jsonb_build_object('filler', repeat('x', %s)))"  # noqa: S608
            f" where event_id in (select id from liquidations) and {condition}",
            [length],
        )


def _record_bytes(row: dict[str, Any]) -> int:
    return len(json.dumps(row["record"]))


async def test_page_of_long_records_ends_before_an_answer_is_too_long_and_the_next_goes_on(
    filled: Engine, settings: Settings
) -> None:
    _lengthen(settings, 150_000, "account_id %% 10 = 0")
    pages = await _all_pages(lambda cursor: filled.history.liquidations(limit=1000, cursor=cursor))
    order = [(row["timestamp_us"], row["id"]) for page in pages for row in page.rows]
    assert len(set(order)) == len(order) == ACCOUNTS * ROWS_EACH
    assert order == sorted(order, reverse=True)
    sizes = [sum(map(_record_bytes, page.rows)) for page in pages]
    assert max(sizes) <= LIQUIDATION_BYTES_MAX
    # Each is as full as it can be: the first record of the next one had no room.
    for page, size, following in zip(pages, sizes, pages[1:], strict=False):
        assert size + _record_bytes(following.rows[0]) > LIQUIDATION_BYTES_MAX or len(page.rows) == 1000
    assert len(pages) >= 1000 * 0.15 / 4


async def test_record_longer_than_a_page_is_a_page(filled: Engine, settings: Settings) -> None:
    _lengthen(settings, LIQUIDATION_BYTES_MAX + 1, "event_id in (20007, 19907, 107)")
    pages = await _all_pages(lambda cursor: filled.history.liquidations(account_id=7, limit=1000, cursor=cursor))
    assert [len(page.rows) for page in pages] == [1, 1, ROWS_EACH - 3, 1]
    assert _ids(pages) == [number * 100 + 7 for number in range(200, 0, -1)]


@pytest.mark.parametrize("limit", [1, 3, 100])
@pytest.mark.parametrize("bytes_max", [0, 1, 700, 5000, LIQUIDATION_BYTES_MAX])
async def test_fakes_and_postgresql_end_a_page_at_the_same_row(engine: Engine, limit: int, bytes_max: int) -> None:
    exchange = await Exchange().open()
    lengths = []
    for services in (engine, exchange):
        for number in range(1, 6):
            await mark(services, "50000")
            await deposit(services, number, "10000")
            await buy(services, number, "1", "50000")
            await mark(services, "40000")
        page = await services.history_store.liquidations(LiquidationQuery(limit=limit, bytes_max=bytes_max))
        lengths.append(([row["account_id"] for row in page.rows], page.more))
    assert lengths[0] == lengths[1]


async def test_cursor_of_another_account_is_refused(filled: Engine) -> None:
    page = await filled.history.trades(3, limit=5)
    with pytest.raises(CursorInvalidError):
        await filled.history.trades(4, limit=5, cursor=page.next_cursor)


async def test_account_without_trades_has_an_empty_page_and_an_unknown_one_is_not_found(
    engine: Engine,
) -> None:
    await deposit(engine, 1, "1")
    page = await engine.history.trades(1)
    assert (page.rows, page.next_cursor) == ([], None)
    with pytest.raises(UnknownAccountError):
        await engine.history.trades(2)


@pytest.mark.parametrize(
    ("statement", "parameters"),
    [
        (postgres._TRADES, {}),
        (postgres._TRADES, {"symbol": BTC}),
        (postgres._TRADES, {"before_id": 10_003}),
        (postgres._TRADES, {"since": EPOCH + dt.timedelta(microseconds=BASE_US + 195 * MINUTE_US)}),
        (postgres._TRADES, {"until": EPOCH + dt.timedelta(microseconds=BASE_US + 5 * MINUTE_US), "symbol": ETH}),
        (postgres._LIQUIDATIONS, {}),
        (postgres._LIQUIDATIONS, {"account_id": 7}),
        (
            postgres._LIQUIDATIONS,
            {"before_at": EPOCH + dt.timedelta(microseconds=BASE_US + 50 * MINUTE_US), "before_id": 5000},
        ),
    ],
    ids=lambda value: ",".join(value) or "all" if isinstance(value, dict) else "",
)
async def test_page_is_read_by_an_index(
    filled: Engine, query: Query, statement: str, parameters: dict[str, Any]
) -> None:
    names = ("symbol", "since", "until", "before_id", "before_at")
    # The account is 3 for trades; all accounts for liquidations, unless named.
    account_id = 3 if statement is postgres._TRADES else None
    limits = {"limit": 101, "bytes_max": LIQUIDATION_BYTES_MAX}
    values = {**dict.fromkeys(names), "account_id": account_id, **limits, **parameters}
    plan = "\n".join(row[0] for row in query(f"explain {statement}", **values))
    assert "Index" in plan
    assert "Seq Scan" not in plan
