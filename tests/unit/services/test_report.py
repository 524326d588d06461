"""The margin report: every account, worst first, in pages of one snapshot."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from margin.errors import (
    CursorInvalidError,
    LimitExceededError,
    NoMarkPriceError,
    RedisUnavailableError,
    SnapshotExpiredError,
)
from margin.services.cursors import encode_cursor
from margin.services.report import ROWS_PER_CHUNK, ReportService
from tests.actions import BTC, buy, deposit, mark
from tests.fakes import Exchange
from tests.fakes.exchange import REPORT_TTL_S

if TYPE_CHECKING:
    from margin.services.report import MarginReport

WORST_FIRST = [2, 4, 5, 1, 3]


@pytest.fixture
async def filled(exchange: Exchange) -> Exchange:
    """Return an exchange at 44000: accounts 2 and 4 below maintenance, 5 and 1 above, 3 without a position."""
    await mark(exchange, "50000")
    for account_id, balance in ((1, "20000"), (2, "10000"), (3, "10"), (4, "10000"), (5, "15000")):
        await deposit(exchange, account_id, balance)
        if account_id != 3:
            await buy(exchange, account_id, "1", "50000")
    await exchange.market.set_marks({BTC: Decimal(44000)}, crossed_max=0)
    return exchange


async def _all_pages(exchange: Exchange, limit: int) -> list[MarginReport]:
    pages = [await exchange.report.page(limit=limit, cursor=None)]
    while pages[-1].next_cursor is not None:
        assert len(pages) < 100
        pages.append(await exchange.report.page(limit=limit, cursor=pages[-1].next_cursor))
    return pages


def _ids(pages: list[MarginReport]) -> list[int]:
    return [row["account_id"] for page in pages for row in page.rows]


async def test_report_names_every_account_worst_first(filled: Exchange) -> None:
    report = await filled.report.page(limit=5, cursor=None)
    assert _ids([report]) == WORST_FIRST
    assert report.liquidation_candidates == [2, 4]
    assert (report.total_accounts, report.next_cursor, report.as_of_us) == (5, None, filled.clock.now_us)
    assert report.rows[0] == {
        "account_id": 2,
        "balance": "10000",
        "equity": "4000",
        "initial_margin_required": "8800",
        "maintenance_margin_required": "4400",
        "margin_utilisation_pct": "110",
        "liquidation_risk": True,
    }
    assert report.rows[-1]["margin_utilisation_pct"] == "0"


async def test_account_without_equity_stands_before_all_others(filled: Exchange) -> None:
    await filled.market.set_marks({BTC: Decimal(39000)}, crossed_max=0)
    report = await filled.report.page(limit=5, cursor=None)
    assert [row["margin_utilisation_pct"] for row in report.rows[:3]] == [None, None, "97.5"]
    assert report.liquidation_candidates == [2, 4]


async def test_report_that_fits_one_page_keeps_no_snapshot(filled: Exchange) -> None:
    await filled.report.page(limit=5, cursor=None)
    assert filled.redis.reports == {}


async def test_report_reads_only_whatever_it_finds(filled: Exchange) -> None:
    before = filled.redis.save()
    await filled.report.page(limit=5, cursor=None)
    assert filled.redis.save() == before
    assert sorted((await filled.scans.scan()).liquidated) == [2, 4]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6])
async def test_pages_show_every_account_once(filled: Exchange, limit: int) -> None:
    pages = await _all_pages(filled, limit)
    assert _ids(pages) == WORST_FIRST
    assert len(pages) == -(-5 // limit)
    assert {page.total_accounts for page in pages} == {5}


async def test_pages_are_of_one_snapshot_although_marks_and_accounts_move_between_them(filled: Exchange) -> None:
    as_of_us = filled.clock.now_us
    whole = (await filled.report.page(limit=5, cursor=None)).rows
    first = await filled.report.page(limit=2, cursor=None)
    filled.clock.advance(1)
    await mark(filled, "60000")
    await deposit(filled, 6, "1")
    await deposit(filled, 5, "100000")
    second = await filled.report.page(limit=2, cursor=first.next_cursor)
    third = await filled.report.page(limit=2, cursor=second.next_cursor)
    assert [*first.rows, *second.rows, *third.rows] == whole
    assert {page.as_of_us for page in (first, second, third)} == {as_of_us}
    assert {tuple(page.liquidation_candidates) for page in (first, second, third)} == {(2, 4)}
    assert third.next_cursor is None


async def test_pages_may_change_their_size_and_be_read_again(filled: Exchange) -> None:
    first = await filled.report.page(limit=1, cursor=None)
    again = [await filled.report.page(limit=3, cursor=first.next_cursor) for _ in range(2)]
    assert [_ids([page]) for page in again] == [WORST_FIRST[1:4]] * 2


async def test_pages_cross_the_chunks_in_which_a_snapshot_is_kept() -> None:
    exchange = await Exchange(page_size=500, report_accounts_max=10_000).open()
    everyone = list(range(1, 2 * ROWS_PER_CHUNK + 50))
    for account_id in everyone:
        await deposit(exchange, account_id, "1")
    for limit in (700, ROWS_PER_CHUNK, 2 * ROWS_PER_CHUNK):
        assert _ids(await _all_pages(exchange, limit)) == everyone


async def test_snapshot_expires(filled: Exchange) -> None:
    first = await filled.report.page(limit=2, cursor=None)
    filled.clock.advance(REPORT_TTL_S - 1)
    await filled.report.page(limit=2, cursor=first.next_cursor)
    filled.clock.advance(1)
    with pytest.raises(SnapshotExpiredError):
        await filled.report.page(limit=2, cursor=first.next_cursor)


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "!",
        "e30",
        encode_cursor("trades:1", 5),
        encode_cursor("report", "snapshot"),
        encode_cursor("report", "snapshot", "5"),
        encode_cursor("report", "snapshot", -1),
        encode_cursor("report", "a:b", 1),
        encode_cursor("report", "snapshot", 2**63),
    ],
)
async def test_cursor_that_is_not_the_reports_own_is_refused(filled: Exchange, cursor: str) -> None:
    with pytest.raises(CursorInvalidError):
        await filled.report.page(limit=2, cursor=cursor)


async def test_cursor_past_the_end_is_an_empty_last_page(filled: Exchange) -> None:
    first = await filled.report.page(limit=2, cursor=None)
    (snapshot_id,) = filled.redis.reports
    beyond = await filled.report.page(limit=2, cursor=encode_cursor("report", snapshot_id, 99))
    assert (beyond.rows, beyond.next_cursor, beyond.as_of_us) == ([], None, first.as_of_us)


async def test_report_with_a_position_that_has_no_mark_is_refused(filled: Exchange) -> None:
    filled.redis.marks.clear()
    with pytest.raises(NoMarkPriceError):
        await filled.report.page(limit=5, cursor=None)


async def test_report_of_more_accounts_than_it_covers_is_refused() -> None:
    exchange = await Exchange(report_accounts_max=3).open()
    for account_id in range(1, 4):
        await deposit(exchange, account_id, "1")
    assert (await exchange.report.page(limit=1, cursor=None)).total_accounts == 3
    await deposit(exchange, 4, "1")
    with pytest.raises(LimitExceededError):
        await exchange.report.page(limit=1, cursor=None)


async def test_report_of_an_empty_exchange_is_empty(exchange: Exchange) -> None:
    report = await exchange.report.page(limit=5, cursor=None)
    assert (report.rows, report.total_accounts, report.liquidation_candidates, report.next_cursor) == ([], 0, [], None)


async def test_report_covers_all_partitions() -> None:
    exchange = await Exchange(partitions=3, page_size=1).open()
    for account_id in range(1, 8):
        await deposit(exchange, account_id, "1")
    assert _ids(await _all_pages(exchange, 2)) == list(range(1, 8))


@pytest.mark.parametrize("step", ["market", "accounts.page", "accounts.save_report"])
async def test_report_with_redis_down_fails(filled: Exchange, step: str) -> None:
    filled.faults.take_down(step, RedisUnavailableError("Redis is down."))
    with pytest.raises(RedisUnavailableError):
        await filled.report.page(limit=2, cursor=None)


async def test_account_that_a_scan_page_names_twice_is_reported_once(filled: Exchange) -> None:
    class Twice(type(filled.accounts)):  # type: ignore[misc]
        async def page(self, partition: int, cursor: str) -> Any:
            page = await super().page(partition, cursor)
            return type(page)(page.cursor, page.rows * 2)

    service = ReportService(Twice(filled.redis), filled.market, ttl_s=60, accounts_max=100)
    assert _ids([await service.page(limit=10, cursor=None)]) == WORST_FIRST
