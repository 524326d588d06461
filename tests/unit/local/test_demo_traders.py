"""Traders: the same seed and the same answers lead to the same actions."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from margin_local.demo.traders import Deposit, Order, Traders

BTC = "BTC-PERP"
MARKS = {BTC: "8873.310"}


def opened(seed: int, accounts: int = 40) -> tuple[Traders, list[Order]]:
    traders = Traders(range(1, accounts + 1), [BTC], seed)
    for deposit in traders.first_deposits():
        traders.learn(deposit, {"balance": str(deposit.amount)})
    (orders,) = traders.first_orders(MARKS)
    for order in orders:
        traders.learn(order, answer(traders, order))
    return traders, orders


def answer(traders: Traders, order: Order) -> dict[str, Any]:
    position = {"symbol": order.symbol, "quantity": str(order.side.sign * order.quantity)}
    return {"balance": str(traders.by_id[order.account_id].balance), "position": position}


def test_the_same_seed_leads_to_the_same_actions() -> None:
    (first, first_orders), (second, second_orders) = opened(7), opened(7)
    assert first_orders == second_orders
    assert [first.next_actions(MARKS) for _ in range(50)] == [second.next_actions(MARKS) for _ in range(50)]
    assert opened(8)[1] != first_orders


def test_everybody_opens_long_or_short_at_one_to_almost_five_times_the_balance() -> None:
    traders, orders = opened(7)
    assert {order.side.value for order in orders} == {"BUY", "SELL"}
    for order in orders:
        balance = traders.by_id[order.account_id].balance
        assert balance is not None
        leverage = order.quantity * Decimal(MARKS[BTC]) / balance
        assert Decimal("0.99") < leverage <= Decimal("4.8")


def test_a_price_at_the_mark_has_the_very_digits_of_the_mark() -> None:
    _, orders = opened(7)
    assert "8873.310" in {order.price for order in orders}
    assert all(abs(Decimal(order.price) / Decimal(MARKS[BTC]) - 1) <= Decimal("0.005") for order in orders)


def test_a_liquidated_account_funds_itself_before_it_trades_again() -> None:
    traders, _ = opened(7, accounts=1)
    traders.learn_liquidation(1, {"balance": "0", "positions": []})
    actions = [action for _ in range(1000) for action in traders.next_actions(MARKS)]
    assert actions
    assert all(isinstance(action, Deposit) for action in actions)


def test_a_partly_liquidated_account_trades_on_with_what_it_still_holds() -> None:
    traders, _ = opened(7, accounts=1)
    traders.learn_liquidation(1, {"balance": "12.5", "positions": [{"symbol": BTC, "quantity": "-0.25"}]})
    assert (traders.by_id[1].balance, traders.by_id[1].positions) == (Decimal("12.5"), {BTC: Decimal("-0.25")})
    actions = [action for _ in range(1000) for action in traders.next_actions(MARKS)]
    reduced = [action for action in actions if isinstance(action, Order) and action.side.value == "BUY"]
    assert reduced
    assert all(action.quantity <= Decimal("0.5") for action in reduced)


def test_of_two_symbols_most_accounts_hold_both_some_on_the_same_side_and_some_hedged() -> None:
    marks = {BTC: "8873.310", "ETH-PERP": "200"}
    traders = Traders(range(1, 41), list(marks), 7)
    for deposit in traders.first_deposits():
        traders.learn(deposit, {"balance": str(deposit.amount)})
    rounds = traders.first_orders(marks)
    assert [{order.symbol for order in orders} for orders in rounds] == [{symbol} for symbol in marks]
    assert all(len({order.account_id for order in orders}) == len(orders) for orders in rounds)
    for order in (order for orders in rounds for order in orders):
        traders.learn(order, answer(traders, order))
    held = [
        tuple(quantity > 0 for quantity in trader.positions.values())
        for trader in traders.by_id.values()
        if len(trader.positions) == 2
    ]
    assert len(held) > 20
    assert {*held} == {(True, True), (True, False), (False, True), (False, False)}
    assert all(trader.positions for trader in traders.by_id.values())


def test_traders_add_reduce_flip_overreach_and_misprice() -> None:
    traders, _ = opened(7)
    kinds = set()
    for action in (action for _ in range(300) for action in traders.next_actions(MARKS)):
        assert isinstance(action, Order)
        held = traders.by_id[action.account_id].positions[BTC]
        adds, away = held * action.side.sign > 0, abs(Decimal(action.price) / Decimal(MARKS[BTC]) - 1)
        if away > Decimal("0.2"):
            kinds.add("misprice")
        elif adds:
            kinds.add("add")
        else:
            kinds.add("flip" if action.quantity > abs(held) else "close" if action.quantity == abs(held) else "reduce")
    assert kinds == {"misprice", "add", "flip", "close", "reduce"}
