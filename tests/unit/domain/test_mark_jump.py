"""How far a price moves, and how its sender is told."""

from __future__ import annotations

from decimal import Decimal

import pytest

from margin.domain.mark_jump import move_pct, set_aside_message


@pytest.mark.parametrize(
    ("price", "mark", "pct"),
    [
        ("110", "100", "10"),
        ("90", "100", "-10"),
        ("100", "100", "0"),
        ("110.000001", "100", "10.01"),
        ("89.999999", "100", "-10.01"),
        ("0.00000001", "999999999999", "-100"),
        ("999999999999", "0.00000001", "9999999999989999999900"),
    ],
)
def test_move_is_in_percent_of_the_mark_and_rounded_away_from_zero(price: str, mark: str, pct: str) -> None:
    assert move_pct(Decimal(price), Decimal(mark)) == Decimal(pct)


def test_sender_is_told_how_far_it_moves_how_far_it_may_and_what_confirms_it() -> None:
    assert set_aside_message(Decimal(5100), Decimal(51000), Decimal("0.125")) == (
        "Set aside: 5100 is 90 % away from the mark price 51000. "
        "More than 12.5 % at once takes a second, later price within 12.5 % of this one."
    )
