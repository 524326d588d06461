"""The path of marks: what was in force when, and the first mark at which an account is liquidatable."""

from __future__ import annotations

import random
from decimal import Decimal

import pytest

from margin.domain.account import Account
from margin.domain.market import Mark
from margin.domain.position import Position
from margin.domain.risk import assess
from margin.errors import NoMarkPriceError
from margin_local.demo.mark_path import MarkPath, PostedMarks

BTC, ETH = "BTC-PERP", "ETH-PERP"


def path_of(*marks: tuple[str, str]) -> MarkPath:
    return MarkPath([posted(10 * (n + 1), {symbol: price}) for n, (symbol, price) in enumerate(marks)], {})


def posted(stamp_us: int, prices: dict[str, str]) -> PostedMarks:
    return PostedMarks({symbol: Mark(Decimal(price), stamp_us) for symbol, price in prices.items()}, "")


def account(balance: int, **quantities: int) -> Account:
    positions = {
        f"{name}-PERP": Position(f"{name}-PERP", Decimal(quantity), Decimal(quantity * 100))
        for name, quantity in quantities.items()
    }
    return Account(1, Decimal(balance), positions)


def test_a_mark_is_in_force_from_its_stamp_to_the_next() -> None:
    path = path_of((BTC, "100"), (ETH, "7"), (BTC, "101"))
    assert [path.number_at(at_us) for at_us in (9, 10, 19, 20, 30, 99)] == [-1, 0, 0, 1, 2, 2]
    assert [path.price(BTC, number) for number in (-1, 0, 1, 2)] == [None, *map(Decimal, ("100", "100", "101"))]
    assert path.price(ETH, 0) is None
    assert path.price("SOL-PERP", 0) is None
    assert path.market(1).mark_price(ETH) == 7


def test_stamps_that_do_not_rise_are_refused() -> None:
    with pytest.raises(ValueError, match="rise"):
        MarkPath([posted(5, {BTC: "1"}), posted(5, {BTC: "2"})], {})


def test_marks_of_one_step_are_in_force_together_and_nobody_is_judged_between_them() -> None:
    start = posted(10, {BTC: "100", ETH: "100"})
    together = MarkPath([start, posted(20, {BTC: "40", ETH: "40"})], {})
    assert len(together) == 2
    assert [together.number_at(at_us) for at_us in (9, 19, 20)] == [-1, 0, 1]
    assert (together.price(BTC, 1), together.price(ETH, 1)) == (40, 40)
    assert together.mark(BTC, 0) == Mark(Decimal(100), 10)
    assert together.first_liquidatable(account(50, BTC=1, ETH=-1), 0, 2) is None
    apart = MarkPath([start, posted(20, {BTC: "40"}), posted(21, {ETH: "40"})], {})
    assert apart.first_liquidatable(account(50, BTC=1, ETH=-1), 0, 3) == 1


def test_the_first_of_several_bad_marks_is_found() -> None:
    path = path_of(*((BTC, price) for price in ("100", "95", "80", "95", "70")))
    assert path.first_liquidatable(account(30, BTC=1), 0, 5) == 4
    assert path.first_liquidatable(account(30, BTC=1), 0, 4) is None
    assert path.first_liquidatable(account(20, BTC=1), 0, 5) == 2
    assert path.first_liquidatable(account(20, BTC=-1), 0, 5) is None


def test_an_account_without_positions_and_an_empty_stretch_are_healthy() -> None:
    path = path_of((BTC, "1"))
    assert path.first_liquidatable(account(1), 0, 1) is None
    assert path.first_liquidatable(account(1, BTC=1), 1, 1) is None


def test_a_hedge_is_judged_along_the_joint_path_not_at_the_corner() -> None:
    # Both fall together: the long loses what the short gains, though the worst prices of the two would be fatal.
    path = path_of((BTC, "100"), (ETH, "100"), (ETH, "60"), (BTC, "60"), (ETH, "20"), (BTC, "20"))
    assert path.first_liquidatable(account(50, BTC=1, ETH=-1), 1, 6) is None
    # In the other order the long has lost before the short has gained.
    other = path_of((BTC, "100"), (ETH, "100"), (BTC, "40"), (ETH, "40"))
    assert other.first_liquidatable(account(50, BTC=1, ETH=-1), 1, 4) == 2


def test_a_position_without_a_mark_is_not_passed_over() -> None:
    with pytest.raises(NoMarkPriceError):
        path_of((BTC, "100"), (ETH, "5")).first_liquidatable(account(1, ETH=1), 0, 2)


@pytest.mark.parametrize("seed", range(30))
def test_halving_finds_what_looking_at_every_mark_finds(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    marks = [(BTC, "100"), (ETH, "100")]
    marks += [(chance.choice((BTC, ETH)), str(chance.randint(60, 140))) for _ in range(40)]
    path = path_of(*marks)
    held = account(chance.randint(20, 120), BTC=chance.choice((-2, -1, 1, 2)), ETH=chance.choice((-2, -1, 1, 2)))
    bad = [number for number in range(1, len(path)) if assess(held, path.market(number)).liquidatable]
    assert path.first_liquidatable(held, 1, len(path)) == (bad[0] if bad else None)
