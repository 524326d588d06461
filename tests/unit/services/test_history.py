"""History in pages, and the cursors between them."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from margin.contract.history import LiquidationsAnswer
from margin.domain.account import Account
from margin.domain.instrument import Instrument, Tier
from margin.domain.liquidation import LiquidationPolicy, liquidate
from margin.domain.liquidation_record import liquidation_record
from margin.domain.market import Mark, Market
from margin.domain.position import Position
from margin.errors import CursorInvalidError, PostgresUnavailableError, UnknownAccountError
from margin.http.wire import LIMIT_MAX
from margin.ports.queries import LIQUIDATION_BYTES_MAX
from margin.services.cursors import decode_cursor, encode_cursor
from margin.services.history import HistoryPage
from tests.actions import BTC, ETH, buy, deposit, mark

if TYPE_CHECKING:
    from tests.fakes import Exchange

LAMBDA_ANSWER_BYTES_MAX = 6 * 1024 * 1024


@pytest.fixture
async def traded(exchange: Exchange) -> Exchange:
    """Return an exchange in which account 1 has traded seven times, a second apart."""
    await deposit(exchange, 1, "100000")
    await deposit(exchange, 2, "1")
    for symbol in (BTC, ETH):
        await mark(exchange, "100", symbol)
    for number in range(1, 8):
        exchange.clock.advance(1)
        await buy(exchange, 1, str(number), "100", symbol=ETH if number % 2 else BTC)
    return exchange


def _quantities(*pages: HistoryPage) -> list[int]:
    return [int(row["quantity"]) for page in pages for row in page.rows]


async def test_trades_come_newest_first_in_pages(traded: Exchange) -> None:
    first = await traded.history.trades(1, limit=3)
    second = await traded.history.trades(1, limit=3, cursor=first.next_cursor)
    third = await traded.history.trades(1, limit=3, cursor=second.next_cursor)
    assert [_quantities(page) for page in (first, second, third)] == [[7, 6, 5], [4, 3, 2], [1]]
    assert third.next_cursor is None


@pytest.mark.parametrize("limit", [7, 8])
async def test_page_that_holds_all_has_no_cursor(traded: Exchange, limit: int) -> None:
    page = await traded.history.trades(1, limit=limit)
    assert (len(page.rows), page.next_cursor) == (7, None)


async def test_filters_hold_on_every_page(traded: Exchange) -> None:
    start_us = traded.clock.now_us - 7_000_000
    filters = {"symbol": ETH, "since_us": start_us + 3_000_000, "until_us": start_us + 7_000_000}
    first = await traded.history.trades(1, limit=1, **filters)
    second = await traded.history.trades(1, limit=1, cursor=first.next_cursor, **filters)
    assert _quantities(first, second) == [5, 3]
    assert second.next_cursor is None


async def test_account_without_trades_is_empty_and_an_unknown_one_is_not_found(traded: Exchange) -> None:
    assert (await traded.history.trades(2)).rows == []
    assert (await traded.history.trades(1, symbol="SOL-PERP")).rows == []
    with pytest.raises(UnknownAccountError):
        await traded.history.trades(3)


@pytest.mark.parametrize(
    "cursor", ["", "x", "!!", encode_cursor("trades:2", 5), encode_cursor("trades:1", "5"), encode_cursor("trades:1")]
)
async def test_cursor_of_elsewhere_is_refused(traded: Exchange, cursor: str) -> None:
    with pytest.raises(CursorInvalidError):
        await traded.history.trades(1, cursor=cursor)
    with pytest.raises(CursorInvalidError):
        await traded.history.liquidations(cursor=cursor)


async def test_liquidations_are_paged_over_all_accounts(exchange: Exchange) -> None:
    for account_id in range(1, 6):
        await mark(exchange, "50000")
        await deposit(exchange, account_id, "10000")
        await buy(exchange, account_id, "1", "50000")
        exchange.clock.advance(account_id % 2)
        await mark(exchange, "40000")
    first = await exchange.history.liquidations(limit=2)
    second = await exchange.history.liquidations(limit=2, cursor=first.next_cursor)
    third = await exchange.history.liquidations(limit=2, cursor=second.next_cursor)
    assert [row["account_id"] for page in (first, second, third) for row in page.rows] == [5, 4, 3, 2, 1]
    assert third.next_cursor is None
    assert [row["account_id"] for row in (await exchange.history.liquidations(account_id=3)).rows] == [3]
    assert (await exchange.history.liquidations(account_id=9)).rows == []


async def test_history_down_is_an_error(traded: Exchange) -> None:
    traded.faults.take_down("history", PostgresUnavailableError("PostgreSQL is down."))
    with pytest.raises(PostgresUnavailableError):
        await traded.history.trades(1)


def test_cursor_brings_back_what_it_was_made_of() -> None:
    cursor = encode_cursor("kind", "text", 0, 2**63 - 1)
    assert decode_cursor("kind", cursor, str, int, int) == ["text", 0, 2**63 - 1]
    assert cursor.replace("-", "").replace("_", "").isalnum()


@pytest.mark.parametrize(
    "cursor",
    ["ä", "W10", "bnVsbA", "WyJraW5kIix0cnVlXQ", encode_cursor("kind", -1), encode_cursor("kind", 2**63), "[" * 5000],
)
def test_cursor_that_nobody_made_is_refused(cursor: str) -> None:
    with pytest.raises(CursorInvalidError):
        decode_cursor("kind", cursor, int)


@pytest.mark.parametrize(("positions", "tiers"), [(1, 1), (1, 10), (8, 6), (100, 3)])
def test_page_of_the_longest_records_fits_into_the_answer_of_a_function(positions: int, tiers: int) -> None:
    brackets = [
        Tier(
            Decimal(1000 * n) if n < tiers else None,
            Decimal("0.2") + Decimal(n) / 100,
            Decimal("0.1") + Decimal(n) / 100,
        )
        for n in range(1, tiers + 1)
    ]
    symbols = [f"S{number}" for number in range(positions)]
    held = {symbol: Position(symbol, Decimal(1), Decimal(100)) for symbol in symbols}
    account = Account(1, Decimal(30 * positions), held)
    instruments = {symbol: Instrument(symbol, tuple(brackets)) for symbol in symbols}
    market = Market({symbol: Mark(Decimal(78), 1, 1) for symbol in symbols}, instruments, 2)
    policy = LiquidationPolicy()
    record = liquidation_record(account, market, policy, liquidate(account, market, policy))
    amounts = {name: Decimal(record[name]) for name in ("equity", "maintenance_margin", "shortfall")}
    others = {name: record[name] for name in ("reason", "positions")}
    row = {"id": 2**53, "account_id": 2**63, **amounts, **others, "timestamp_us": 1, "record": record}
    rows = min(LIMIT_MAX, LIQUIDATION_BYTES_MAX // len(json.dumps(record)))
    answer = LiquidationsAnswer.of(HistoryPage([row] * rows, "cursor")).model_dump_json()
    # The body of an answer is a JSON string inside another JSON document.
    assert len(json.dumps(answer)) < 0.95 * LAMBDA_ANSWER_BYTES_MAX
