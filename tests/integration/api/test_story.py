"""A whole story through the handlers, and the form of every answer in it."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import journal_drain_handler
import liquidation_scan_handler
from margin.domain.account import Account
from margin.domain.liquidation_record import verify_liquidation
from margin.domain.position import Position
from tests.events import LambdaContext
from tests.integration.api.exchange import SCHEDULE, Exchange, assert_problem

if TYPE_CHECKING:
    from tests.integration.api.exchange import Reply

TRADE_FIELDS = {
    *("success", "message", "trade_id", "account_id", "symbol", "side", "quantity", "price", "notional"),
    *("realised_pnl", "fee", "balance", "equity", "initial_margin_required", "maintenance_margin_required"),
    *("margin_utilisation_pct", "position", "reduce_only", "liquidity", "client_order_id"),
}
ACCOUNT_FIELDS = {
    *("account_id", "balance", "equity", "initial_margin_required", "maintenance_margin_required"),
    *("margin_utilisation_pct", "liquidation_risk"),
}
POSITIONS_FIELDS = ACCOUNT_FIELDS | {"withdrawable", "positions"}
POSITION_FIELDS = {
    *("symbol", "quantity", "entry_price", "mark_price", "notional", "unrealised_pnl"),
    *("pending_funding", "maintenance_margin"),
    "liquidation_price",
}
MARK_FIELDS = {"success", "message", "symbol", "price", "at_risk"}
REPORT_FIELDS = {"as_of", "total_accounts", "liquidation_candidates", "accounts_detail", "next_cursor"}
HISTORY_TRADE_FIELDS = {
    *("id", "account_id", "symbol", "side", "quantity", "price", "notional", "realised_pnl", "fee", "timestamp"),
    *("reduce_only", "liquidity", "client_order_id"),
}
LIQUIDATION_FIELDS = {
    *("id", "account_id", "equity", "maintenance_margin", "equity_after", "maintenance_margin_after"),
    *("reason", "positions", "fee", "shortfall", "timestamp", "rules", "inputs"),
}
LIQUIDATED_FIELDS = {
    *("symbol", "quantity", "remaining", "entry_price", "price", "mark_age_s", "bankruptcy_price"),
    *("realised_pnl", "fee"),
}
MONEY_FIELDS = {"account_id", "balance", "equity", "withdrawable", "entry_id"}


def without(answer: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in names}


def moment(text: str) -> datetime:
    assert text.endswith("Z")
    return datetime.fromisoformat(text)


def buy(exchange: Exchange, account_id: int, quantity: str) -> Reply:
    order = {"account_id": account_id, "symbol": "BTC-PERP", "side": "BUY", "quantity": quantity, "price": "50000"}
    return exchange.call("POST", "/trade", order)


def test_the_whole_story_from_the_first_deposit_to_the_last_withdrawal(exchange: Exchange) -> None:
    assert exchange.get("/health") == {"status": "healthy"}
    deposits_open_accounts(exchange)
    nothing_is_traded_without_a_mark_price(exchange)
    trade_id = a_trade_answers_the_account_after_it(exchange)
    an_account_with_too_little_equity_is_refused(exchange)
    a_higher_mark_makes_profit(exchange)
    a_lower_mark_liquidates_while_a_report_is_read(exchange)
    both_histories_tell_what_happened(exchange, trade_id)
    what_a_liquidation_leaves_can_be_closed_and_withdrawn(exchange)
    nothing_is_left_to_do_and_the_books_balance(exchange)
    assert exchange.get("/health") == {"status": "healthy"}


def deposits_open_accounts(exchange: Exchange) -> None:
    deposited = exchange.deposit(1, "100000")
    assert set(deposited) == MONEY_FIELDS
    assert without(deposited, "entry_id") == {
        "account_id": 1,
        "balance": "100000",
        "equity": "100000",
        "withdrawable": "100000",
    }
    exchange.deposit(2, "5000")
    exchange.deposit(3, "15000")


def nothing_is_traded_without_a_mark_price(exchange: Exchange) -> None:
    assert_problem(buy(exchange, 1, "0.1"), 400, "NO_MARK_PRICE")
    marked = exchange.mark("BTC-PERP", "50000")
    assert set(marked) == MARK_FIELDS
    assert without(marked, "message") == {"success": True, "symbol": "BTC-PERP", "price": "50000", "at_risk": 0}


def a_trade_answers_the_account_after_it(exchange: Exchange) -> int:
    traded = exchange.trade(1, "BUY", "0.1", "50000")
    assert set(traded) == TRADE_FIELDS
    assert without(traded, "message", "trade_id") == {
        "success": True,
        "account_id": 1,
        "symbol": "BTC-PERP",
        "side": "BUY",
        "quantity": "0.1",
        "price": "50000",
        "notional": "5000",
        "realised_pnl": "0",
        "fee": "0",
        "balance": "100000",
        "equity": "100000",
        "initial_margin_required": "1000",
        "maintenance_margin_required": "500",
        "margin_utilisation_pct": "0.5",
        "position": {"symbol": "BTC-PERP", "quantity": "0.1", "entry_price": "50000"},
        "reduce_only": False,
        "liquidity": "TAKER",
        "client_order_id": None,
    }
    return int(traded["trade_id"])


def an_account_with_too_little_equity_is_refused(exchange: Exchange) -> None:
    refused = buy(exchange, 2, "1")
    assert assert_problem(refused, 400, "INSUFFICIENT_MARGIN") == (
        "Insufficient equity. Required: 10000, Available: 5000"
    )
    assert exchange.get("/trades/2") == {"trades": [], "next_cursor": None}
    assert exchange.trade(3, "BUY", "1", "50000")["margin_utilisation_pct"] == "33.33"


def a_higher_mark_makes_profit(exchange: Exchange) -> None:
    assert exchange.mark("BTC-PERP", "51000")["at_risk"] == 0
    positions = exchange.get("/positions/1")
    assert set(positions) == POSITIONS_FIELDS
    assert positions == {
        "account_id": 1,
        "balance": "100000",
        "equity": "100100",
        "initial_margin_required": "1020",
        "maintenance_margin_required": "510",
        "margin_utilisation_pct": "0.51",
        "withdrawable": "99080",
        "liquidation_risk": False,
        "positions": [
            {
                "symbol": "BTC-PERP",
                "quantity": "0.1",
                "entry_price": "50000",
                "mark_price": "51000",
                "notional": "5100",
                "unrealised_pnl": "100",
                "pending_funding": "0",
                "maintenance_margin": "510",
                "liquidation_price": None,
            }
        ],
    }
    (held,) = exchange.get("/positions/3")["positions"]
    assert set(held) == POSITION_FIELDS
    assert held["liquidation_price"] == "38888.88888889"


def a_lower_mark_liquidates_while_a_report_is_read(exchange: Exchange) -> None:
    # Worst first, in two pages of one snapshot that a later price does not change.
    first = exchange.get("/margin-report", limit=2)
    assert set(first) == REPORT_FIELDS
    assert [set(row) for row in first["accounts_detail"]] == [ACCOUNT_FIELDS] * 2
    assert [row["account_id"] for row in first["accounts_detail"]] == [3, 1]
    assert (first["total_accounts"], first["liquidation_candidates"]) == (3, [])
    moment(first["as_of"])

    # A mark at the liquidation price liquidates nobody, one below it does, at once.
    exchange.mark("BTC-PERP", "38888.88888889")
    assert exchange.get("/liquidations") == {"liquidations": [], "next_cursor": None}
    assert exchange.mark("BTC-PERP", "38000")["at_risk"] == 1
    second = exchange.get("/margin-report", limit=2, cursor=first["next_cursor"])
    assert [row["account_id"] for row in second["accounts_detail"]] == [2]
    assert second["next_cursor"] is None
    assert without(second, "accounts_detail", "next_cursor") == without(first, "accounts_detail", "next_cursor")


def both_histories_tell_what_happened(exchange: Exchange, trade_id: int) -> None:
    (liquidation,) = exchange.get("/liquidations")["liquidations"]
    assert set(liquidation) == LIQUIDATION_FIELDS
    assert [set(closed) for closed in liquidation["positions"]] == [LIQUIDATED_FIELDS]
    assert without(liquidation, "id", "timestamp", "positions", "reason", "rules", "inputs") == {
        "account_id": 3,
        "equity": "3000",
        "maintenance_margin": "3800",
        "equity_after": "3000",
        "maintenance_margin_after": "2727.272692",
        "fee": "0",
        "shortfall": "0",
    }
    (closed,) = liquidation["positions"]
    assert Decimal(closed.pop("mark_age_s")) < 60
    assert closed == {
        "symbol": "BTC-PERP",
        "quantity": "0.28229666",
        "remaining": "0.71770334",
        "entry_price": "50000",
        "price": "38000",
        "bankruptcy_price": "35000",
        "realised_pnl": "-3387.55992",
        "fee": "0",
    }
    # What is answered is enough to recompute it.
    recorded = exchange.get("/liquidations")["liquidations"][0]
    held = Account(3, Decimal(15000), {"BTC-PERP": Position("BTC-PERP", Decimal(1), Decimal(50000))})
    assert verify_liquidation(recorded, held) == []
    assert verify_liquidation({**recorded, "fee": "1"}, held) != []
    assert exchange.get("/liquidations", account_id=1) == {"liquidations": [], "next_cursor": None}
    after = exchange.get("/positions/3")
    assert (after["balance"], after["equity"], after["liquidation_risk"]) == ("11612.44008", "3000", False)
    assert [held["quantity"] for held in after["positions"]] == ["0.71770334"]
    history = exchange.get("/trades/3")
    assert set(history) == {"trades", "next_cursor"}
    (trade,) = history["trades"]
    assert set(trade) == HISTORY_TRADE_FIELDS
    assert moment(trade["timestamp"]) < moment(liquidation["timestamp"])
    assert without(exchange.get("/trades/1")["trades"][0], "timestamp") == {
        "id": trade_id,
        "account_id": 1,
        "symbol": "BTC-PERP",
        "side": "BUY",
        "quantity": "0.1",
        "price": "50000",
        "notional": "5000",
        "realised_pnl": "0",
        "fee": "0",
        "reduce_only": False,
        "liquidity": "TAKER",
        "client_order_id": None,
    }


def what_a_liquidation_leaves_can_be_closed_and_withdrawn(exchange: Exchange) -> None:
    exchange.trade(3, "SELL", "0.71770334", "38000")
    refused = exchange.call("POST", "/accounts/3/withdrawals", {"amount": "3000.00000001"})
    assert_problem(refused, 400, "INSUFFICIENT_WITHDRAWABLE")
    withdrawn = exchange.post("/accounts/3/withdrawals", amount="3000")
    assert set(withdrawn) == MONEY_FIELDS
    assert without(withdrawn, "entry_id") == {"account_id": 3, "balance": "0", "equity": "0", "withdrawable": "0"}


def nothing_is_left_to_do_and_the_books_balance(exchange: Exchange) -> None:
    scanned = liquidation_scan_handler.handler(SCHEDULE, LambdaContext())
    assert scanned.pop("oldest_mark_age_s") < 60
    assert scanned == {
        "crossed": 0,
        "swept": 3,
        "missed": [],
        "liquidated": [],
        "warned": 0,
        "put_off": 0,
        "unvalued": 0,
        "failed": 0,
        "complete": True,
    }
    assert journal_drain_handler.handler(SCHEDULE, LambdaContext()) == {
        "stored": 0,
        "accounts": 0,
        "waiting_accounts": 0,
        "oldest_s": 0.0,
        "set_aside": 0,
        "healed": 0,
    }
    assert exchange.stores.postgres.execute("select sum(amount) from ledger_lines").fetchone() == (0,)


def test_the_scan_liquidates_whom_no_mark_price_brought_to_evaluation(exchange: Exchange) -> None:
    exchange.restart(crossed_inline_max=0, crossed_queued_max=0)
    exchange.mark("BTC-PERP", "50000")
    exchange.deposit(3, "15000")
    exchange.trade(3, "BUY", "1", "50000")
    assert exchange.mark("BTC-PERP", "38000")["at_risk"] == 1
    assert exchange.get("/liquidations")["liquidations"] == []
    report = exchange.get("/margin-report")
    assert (report["liquidation_candidates"], report["accounts_detail"][0]["liquidation_risk"]) == ([3], True)

    scanned = liquidation_scan_handler.handler(SCHEDULE, LambdaContext())

    assert (scanned["crossed"], scanned["swept"], scanned["liquidated"]) == (1, 1, [3])
    assert [row["account_id"] for row in exchange.get("/liquidations")["liquidations"]] == [3]


def test_closing_a_position_answers_no_position(exchange: Exchange) -> None:
    exchange.mark("BTC-PERP", "50000")
    exchange.deposit(1, "100000")
    exchange.trade(1, "SELL", "0.1", "50000")
    closed = exchange.trade(1, "BUY", "0.1", "49000")
    assert set(closed) == TRADE_FIELDS
    assert (closed["position"], closed["realised_pnl"], closed["balance"]) == (None, "100", "100100")
    assert closed["margin_utilisation_pct"] == "0"


def test_utilisation_without_equity_is_null_and_the_account_comes_first(exchange: Exchange) -> None:
    exchange.restart(crossed_inline_max=0, crossed_queued_max=0)
    exchange.mark("BTC-PERP", "50000")
    exchange.deposit(1, "15000")
    exchange.deposit(2, "100000")
    exchange.trade(1, "BUY", "1", "50000")
    exchange.trade(2, "BUY", "1", "50000")
    exchange.mark("BTC-PERP", "30000")
    assert exchange.get("/positions/1")["margin_utilisation_pct"] is None
    rows = exchange.get("/margin-report")["accounts_detail"]
    assert [(row["account_id"], row["margin_utilisation_pct"]) for row in rows] == [(1, None), (2, "3.75")]
    order = {"account_id": 1, "symbol": "BTC-PERP", "side": "SELL", "quantity": "1", "price": "30000"}
    assert_problem(exchange.call("POST", "/trade", order), 400, "IN_LIQUIDATION")


def test_trades_are_paged_and_filtered_newest_first(exchange: Exchange) -> None:
    exchange.mark("BTC-PERP", "50000")
    exchange.mark("ETH-PERP", "3000")
    exchange.deposit(1, "100000")
    symbols = ["BTC-PERP", "ETH-PERP", "BTC-PERP"]
    prices = {"BTC-PERP": "50000", "ETH-PERP": "3000"}
    ids = [exchange.trade(1, "BUY", "0.1", prices[symbol], symbol)["trade_id"] for symbol in symbols]

    first = exchange.get("/trades/1", limit=2)
    second = exchange.get("/trades/1", limit=2, cursor=first["next_cursor"])

    assert [trade["id"] for trade in first["trades"] + second["trades"]] == ids[::-1]
    assert second["next_cursor"] is None
    assert [trade["id"] for trade in exchange.get("/trades/1", symbol="ETH-PERP")["trades"]] == [ids[1]]
    middle = exchange.get("/trades/1", symbol="ETH-PERP")["trades"][0]["timestamp"]
    assert [trade["id"] for trade in exchange.get("/trades/1", since=middle)["trades"]] == [ids[2], ids[1]]
    assert [trade["id"] for trade in exchange.get("/trades/1", until=middle)["trades"]] == [ids[0]]


def test_liquidations_are_paged_newest_first(exchange: Exchange) -> None:
    exchange.mark("BTC-PERP", "50000")
    for account_id in (1, 2, 3):
        exchange.deposit(account_id, "15000")
        exchange.trade(account_id, "BUY", "1", "50000")
    assert exchange.mark("BTC-PERP", "38000")["at_risk"] == 3

    first = exchange.get("/liquidations", limit=2)
    second = exchange.get("/liquidations", limit=2, cursor=first["next_cursor"])

    rows = first["liquidations"] + second["liquidations"]
    assert sorted(row["account_id"] for row in rows) == [1, 2, 3]
    assert [row["timestamp"] for row in rows] == sorted((row["timestamp"] for row in rows), reverse=True)
    assert second["next_cursor"] is None
    assert len(exchange.get("/liquidations", account_id=2)["liquidations"]) == 1


def test_an_expired_report_is_404_and_says_so(exchange: Exchange) -> None:
    exchange.deposit(1, "1")
    exchange.deposit(2, "1")
    cursor = exchange.get("/margin-report", limit=1)["next_cursor"]
    kept = [name for name in exchange.stores.keys() if name.startswith("report")]  # noqa: SIM118 - not a dict
    assert kept
    exchange.stores.redis.delete(*kept)
    reply = exchange.call("GET", "/margin-report", query={"cursor": cursor})
    assert_problem(reply, 404, "SNAPSHOT_EXPIRED")
