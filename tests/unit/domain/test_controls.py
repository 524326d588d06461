"""Pause switches: which of them stops what."""

from __future__ import annotations

from decimal import Decimal

import pytest

from margin.domain.account import Account
from margin.domain.controls import (
    ENGINE_CONTROL,
    account_control,
    allow_trade,
    allow_withdrawal,
    controlled_account,
    liquidation_put_off_by,
    symbol_control,
)
from margin.errors import NotActiveError
from tests.unit.domain.books import BTC, ETH, account, buy, position, sell

OWN = account_control(1)
HOLDER = account("10000", position(BTC, "1", "50000"), position(ETH, "-2", "3000"))
EVERYTHING = (ENGINE_CONTROL, OWN, symbol_control(BTC), symbol_control(ETH))


def _controls(**states: str) -> dict[str, str]:
    names = {"engine": ENGINE_CONTROL, "own": OWN, "btc": symbol_control(BTC), "eth": symbol_control(ETH)}
    return dict.fromkeys(EVERYTHING, "") | {names[short]: state for short, state in states.items()}


def test_names_are_those_that_are_documented() -> None:
    assert EVERYTHING == ("engine", "account:1", "symbol:BTC-PERP", "symbol:ETH-PERP")


@pytest.mark.parametrize(
    ("name", "account_id"), [("account:1", 1), (f"account:{2**63 - 1}", 2**63 - 1), ("engine", None)]
)
def test_account_of_a_switch_is_read_from_its_name(name: str, account_id: int | None) -> None:
    assert controlled_account(name) == account_id


def test_switch_of_a_symbol_that_looks_like_an_account_is_none() -> None:
    assert controlled_account(symbol_control("ACCOUNT1")) is None


@pytest.mark.parametrize("state", ["", "active"])
def test_active_and_never_set_are_the_same(state: str) -> None:
    controls = dict.fromkeys(EVERYTHING, state)
    allow_trade(controls, HOLDER, buy("1", "50000"))
    allow_withdrawal(controls, HOLDER)
    assert liquidation_put_off_by(controls, HOLDER) is None


def test_switches_that_were_not_read_are_active() -> None:
    allow_trade({}, HOLDER, buy("1", "50000"))
    allow_withdrawal({}, HOLDER)
    assert liquidation_put_off_by({}, HOLDER) is None


@pytest.mark.parametrize("state", ["paused", "PAUSED", "pasued", "reduce_only"])
def test_state_that_is_none_stops_as_paused_does(state: str) -> None:
    with pytest.raises(NotActiveError):
        allow_trade(_controls(btc=state), HOLDER, sell("1", "50000"))
    with pytest.raises(NotActiveError):
        allow_withdrawal(_controls(btc=state), HOLDER)
    assert liquidation_put_off_by(_controls(btc=state), HOLDER) == symbol_control(BTC)


# --- trades


@pytest.mark.parametrize("short", ["engine", "own", "btc"])
def test_paused_stops_trades_reductions_too_and_names_the_switch(short: str) -> None:
    controls = _controls(**{short: "paused"})
    (name,) = (name for name, state in controls.items() if state)
    for order in (buy("1", "50000"), sell("0.5", "50000"), sell("1", "50000")):
        with pytest.raises(NotActiveError, match=rf"^Trading is paused \({name}\)\.$"):
            allow_trade(controls, HOLDER, order)


@pytest.mark.parametrize("short", ["engine", "own", "btc"])
def test_reduce_only_lets_through_what_purely_reduces(short: str) -> None:
    controls = _controls(**{short: "reduce-only"})
    allow_trade(controls, HOLDER, sell("0.5", "50000"))
    allow_trade(controls, HOLDER, sell("1", "50000"))
    for order in (buy("0.1", "50000"), sell("1.00000001", "50000")):
        with pytest.raises(NotActiveError, match="reduce-only"):
            allow_trade(controls, HOLDER, order)


@pytest.mark.parametrize("state", ["paused", "reduce-only"])
def test_switch_of_another_symbol_that_is_held_stops_no_trade(state: str) -> None:
    allow_trade(_controls(eth=state), HOLDER, buy("1", "50000"))


def test_paused_wins_over_reduce_only() -> None:
    with pytest.raises(NotActiveError, match=r"^Trading is paused \(symbol:BTC-PERP\)\.$"):
        allow_trade(_controls(engine="reduce-only", btc="paused"), HOLDER, sell("1", "50000"))


# --- withdrawals


@pytest.mark.parametrize("short", ["engine", "own", "btc", "eth"])
def test_withdrawal_is_stopped_by_whatever_its_amount_depends_on(short: str) -> None:
    with pytest.raises(NotActiveError, match=r"^Withdrawals are paused"):
        allow_withdrawal(_controls(**{short: "paused"}), HOLDER)


def test_withdrawal_of_who_does_not_hold_the_paused_symbol_goes_on() -> None:
    allow_withdrawal(_controls(btc="paused"), account("10000", position(ETH, "1", "3000")))
    allow_withdrawal(_controls(btc="paused", eth="paused"), account("10000"))


@pytest.mark.parametrize("short", ["engine", "own", "btc", "eth"])
def test_reduce_only_stops_no_withdrawal(short: str) -> None:
    allow_withdrawal(_controls(**{short: "reduce-only"}), HOLDER)


# --- liquidations


@pytest.mark.parametrize("short", ["engine", "btc", "eth"])
def test_liquidation_is_put_off_by_the_engine_and_by_any_symbol_held(short: str) -> None:
    controls = _controls(**{short: "paused"})
    (name,) = (name for name, state in controls.items() if state)
    assert liquidation_put_off_by(controls, HOLDER) == name


def test_paused_account_is_liquidated() -> None:
    assert liquidation_put_off_by(_controls(own="paused"), HOLDER) is None


def test_paused_symbol_that_is_not_held_puts_nothing_off() -> None:
    assert liquidation_put_off_by(_controls(btc="paused"), account("1", position(ETH, "1", "3000"))) is None
    assert liquidation_put_off_by(_controls(btc="paused"), Account(1, Decimal(1), {})) is None


@pytest.mark.parametrize("short", ["engine", "own", "btc", "eth"])
def test_reduce_only_puts_no_liquidation_off(short: str) -> None:
    assert liquidation_put_off_by(_controls(**{short: "reduce-only"}), HOLDER) is None
