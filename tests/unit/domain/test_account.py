from __future__ import annotations

from decimal import Decimal

import pytest

from margin.domain.account import Account, calculate_equity
from tests.unit.domain.books import BTC, ETH, account, position


def test_equity_is_balance_plus_unrealised_pnl() -> None:
    assert calculate_equity(Decimal(10000), [Decimal(500), Decimal("-200.5")]) == Decimal("10299.5")
    assert calculate_equity(Decimal(10000), iter(())) == 10000


def test_position_is_added_replaced_and_removed_without_changing_the_original() -> None:
    original = account("100", position(BTC, "1", "50000"))
    eth, more = position(ETH, "1", "3000"), position(BTC, "2", "50000")
    assert original.with_position(ETH, eth).positions == {BTC: position(BTC, "1", "50000"), ETH: eth}
    assert original.with_position(BTC, more).positions == {BTC: more}
    assert original.with_position(BTC, None).positions == {}
    assert original == account("100", position(BTC, "1", "50000"))


def test_balance_change_keeps_the_positions() -> None:
    changed = account("100", position(BTC, "1", "50000")).with_balance_change(Decimal("-0.5"))
    assert changed == account("99.5", position(BTC, "1", "50000"))


def test_position_filed_under_another_symbol_is_a_programmers_error() -> None:
    with pytest.raises(ValueError, match="filed under"):
        Account(1, Decimal(0), {ETH: position(BTC, "1", "50000")})
