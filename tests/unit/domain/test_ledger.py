from __future__ import annotations

from decimal import Decimal

import pytest

from margin.domain.ledger import LedgerAccount, LedgerImbalanceError, LedgerLine, balanced, fill_lines
from margin.domain.position import Fill


def line(ledger_account: LedgerAccount, amount: str) -> LedgerLine:
    return LedgerLine(ledger_account, Decimal(amount))


def test_lines_of_one_account_are_merged_and_zeros_dropped() -> None:
    lines = [
        line(LedgerAccount.CASH, "5"),
        line(LedgerAccount.FEES, "0"),
        line(LedgerAccount.HOUSE_PNL, "-7.5"),
        line(LedgerAccount.CASH, "2.5"),
    ]
    assert balanced(lines) == (line(LedgerAccount.CASH, "7.5"), line(LedgerAccount.HOUSE_PNL, "-7.5"))


def test_lines_that_cancel_out_leave_nothing() -> None:
    assert balanced([line(LedgerAccount.CASH, "1"), line(LedgerAccount.CASH, "-1")]) == ()


def test_lines_that_do_not_add_up_are_an_assertion_however_small_the_difference() -> None:
    with pytest.raises(LedgerImbalanceError, match=r"0\.0000000000000000000001"):
        balanced(
            [
                line(LedgerAccount.CASH, "1e24"),
                line(LedgerAccount.EXTERNAL, "-999999999999999999999999.9999999999999999999999"),
            ]
        )
    assert issubclass(LedgerImbalanceError, AssertionError)


def test_fill_with_dust_and_fee_has_four_lines_that_balance() -> None:
    lines = balanced(fill_lines(Fill(None, Decimal("4.99999999"), Decimal("4.999999995")), Decimal("0.5")))
    assert lines == (
        line(LedgerAccount.CASH, "4.49999999"),
        line(LedgerAccount.HOUSE_PNL, "-4.999999995"),
        line(LedgerAccount.FEES, "0.5"),
        line(LedgerAccount.ROUNDING, "0.000000005"),
    )
