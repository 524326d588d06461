from __future__ import annotations

from fractions import Fraction

from hypothesis import given, settings

from margin.domain.ledger import LedgerAccount
from margin.domain.liquidation import liquidate
from margin.domain.risk import assess, liquidation_assessment
from tests.property.strategies import Book, books


@settings(deadline=None, max_examples=200)
@given(books(may_be_stale=True))
def test_liquidation_conserves_money_and_never_leaves_a_debt_behind(book: Book) -> None:
    result = liquidate(book.account, book.market)
    stale = {symbol for symbol in book.account.positions if book.market.is_stale(symbol)}
    nothing_fresh = bool(book.account.positions) and stale == book.account.positions.keys()
    assert (result is None) is (nothing_fresh or not liquidation_assessment(book.account, book.market).liquidatable)
    if result is None:
        return
    lines = {line.ledger_account: Fraction(line.amount) for line in result.ledger_lines}
    assert sum(lines.values()) == 0
    cash = lines.get(LedgerAccount.CASH, Fraction(0))
    assert cash == Fraction(result.account.balance) - Fraction(book.account.balance)
    assert lines.get(LedgerAccount.UNCOVERED, Fraction(0)) == -Fraction(result.shortfall)
    assert result.shortfall >= 0
    assert result.account.positions.keys() == stale
    if stale:
        assert result.shortfall == 0
    else:
        assert result.account.balance >= 0
        assert result.shortfall == 0 or result.account.balance == 0
    # Closing at the marks moves equity only by what is forgiven and by dust below one unit for each position.
    dust = (
        Fraction(assess(book.account, book.market).equity)
        + Fraction(result.shortfall)
        - Fraction(assess(result.account, book.market).equity)
    )
    assert dust == lines.get(LedgerAccount.ROUNDING, Fraction(0))
    assert 0 <= dust <= Fraction(len(result.closed), 10**8)
