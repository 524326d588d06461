"""The insurance fund through the handlers, on real servers: what goes in, what it pays, and who sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import settle_handler
from tests.events import LambdaContext
from tests.integration.api.exchange import SCHEDULE, assert_problem

if TYPE_CHECKING:
    from tests.integration.api.exchange import Exchange


def settle() -> Any:
    return settle_handler.handler(SCHEDULE, LambdaContext(timeout_s=55))


def go_bankrupt(exchange: Exchange) -> int:
    """Account 1 is liquidated with a shortfall of 5000; account 2 has won 20000 on the other side."""
    exchange.mark("BTC-PERP", "50000")
    exchange.deposit(1, "15000")
    exchange.deposit(2, "50000")
    exchange.trade(2, "SELL", "1", "50000")
    exchange.trade(1, "BUY", "1", "50000")
    exchange.mark("BTC-PERP", "30000")
    (liquidation,) = exchange.get("/liquidations", account_id=1)["liquidations"]
    assert liquidation["shortfall"] == "5000"
    return int(liquidation["id"])


def test_fund_lists_what_it_has_to_pay_and_pays_it(exchange: Exchange) -> None:
    empty = exchange.get("/insurance-fund")
    assert set(empty) == {"balance", "uncovered", "open_shortfalls", "as_of"}
    assert (empty["balance"], empty["uncovered"], empty["open_shortfalls"]) == ("0", "0", [])
    liquidation_id = go_bankrupt(exchange)
    fund = exchange.get("/insurance-fund")
    assert (fund["balance"], fund["uncovered"]) == ("0", "5000")
    assert fund["open_shortfalls"] == [
        {
            "account_id": 1,
            "liquidation_id": liquidation_id,
            "shortfall": "5000",
            "settled": "0",
            "uncovered": "5000",
        }
    ]
    exchange.deposit(4, "10000")
    given = exchange.post("/accounts/4/insurance-contributions", amount="6000")
    assert (given["balance"], given["withdrawable"]) == ("4000", "4000")
    answer = settle()
    assert (answer["settlements"], answer["deleveragings"], answer["settled"]) == (1, 0, "5000")
    assert (answer["balance"], answer["uncovered"], answer["complete"]) == ("1000", "0", True)
    fund = exchange.get("/insurance-fund")
    assert (fund["balance"], fund["uncovered"], fund["open_shortfalls"]) == ("1000", "0", [])


def test_deleveraged_owner_sees_it_among_the_liquidations(exchange: Exchange) -> None:
    go_bankrupt(exchange)
    assert settle()["deleveragings"] == 1
    (seen,) = exchange.get("/liquidations", account_id=2)["liquidations"]
    assert (seen["reason"], seen["shortfall"], seen["fee"]) == ("AUTO_DELEVERAGING", "0", "0")
    assert (seen["equity"], seen["equity_after"]) == ("70000", "65000")
    (position,) = seen["positions"]
    assert (position["quantity"], position["remaining"], position["price"]) == ("-1", "0", "35000")
    assert position["realised_pnl"] == "15000"
    assert exchange.get("/positions/2")["balance"] == "65000"


def test_without_time_nothing_is_begun(exchange: Exchange) -> None:
    go_bankrupt(exchange)
    answer = settle_handler.handler(SCHEDULE, LambdaContext(timeout_s=settle_handler.RESERVE_S))
    assert (answer["settlements"], answer["complete"], answer["uncovered"]) == (0, False, "5000")


def test_no_more_than_is_withdrawable_can_be_given(exchange: Exchange) -> None:
    exchange.deposit(1, "100")
    reply = exchange.call("POST", "/accounts/1/insurance-contributions", {"amount": "100.01"})
    assert assert_problem(reply, 400, "INSUFFICIENT_WITHDRAWABLE") == "Withdrawable: 100, requested: 100.01"
    reply = exchange.call("POST", "/accounts/9/insurance-contributions", {"amount": "1"})
    assert_problem(reply, 404, "UNKNOWN_ACCOUNT")
