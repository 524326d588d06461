from __future__ import annotations

import math
import sys
from decimal import Decimal, Inexact, getcontext

import pytest

from margin.domain.decimals import (
    double_down,
    double_up,
    exact,
    plain,
    quotient_down,
    quotient_nearest,
    quotient_up,
    require_amount,
    round_down,
    round_up,
)


@pytest.mark.parametrize(
    ("value", "down", "up"),
    [
        ("1.000000001", "1", "1.00000001"),
        ("-1.000000001", "-1.00000001", "-1"),
        ("0.00000001", "0.00000001", "0.00000001"),
        ("-1e-30", "-0.00000001", "0"),
        ("999999999999999999999999.999999999", "999999999999999999999999.99999999", "1e24"),
    ],
)
def test_rounding_is_directed_to_8_decimals_also_below_zero(value: str, down: str, up: str) -> None:
    assert round_down(Decimal(value)) == Decimal(down)
    assert round_up(Decimal(value)) == Decimal(up)


@pytest.mark.parametrize(
    ("numerator", "denominator", "down", "up"),
    [
        ("1", "3", "0.33333333", "0.33333334"),
        ("-1", "3", "-0.33333334", "-0.33333333"),
        ("1", "-3", "-0.33333334", "-0.33333333"),
        ("6", "-3", "-2", "-2"),
        ("1e-30", "1e12", "0", "0.00000001"),
    ],
)
def test_quotients_are_directed_for_every_combination_of_signs(
    numerator: str, denominator: str, down: str, up: str
) -> None:
    assert quotient_down(Decimal(numerator), Decimal(denominator)) == Decimal(down)
    assert quotient_up(Decimal(numerator), Decimal(denominator)) == Decimal(up)


@pytest.mark.parametrize(
    ("numerator", "denominator", "nearest"),
    [("1", "8", "0.12"), ("3", "8", "0.38"), ("-1", "8", "-0.12"), ("1", "-8", "-0.12"), ("2", "3", "0.67")],
)
def test_nearest_quotient_takes_ties_to_even(numerator: str, denominator: str, nearest: str) -> None:
    assert quotient_nearest(Decimal(numerator), Decimal(denominator), decimals=2) == Decimal(nearest)


def test_nearest_quotient_just_above_a_tie_is_not_rounded_twice() -> None:
    assert quotient_nearest(Decimal("0.125" + "0" * 150 + "1"), Decimal(1), decimals=2) == Decimal("0.13")


def test_division_by_zero_is_an_error() -> None:
    for quotient in (quotient_down, quotient_up, quotient_nearest, double_up, double_down):
        with pytest.raises(ZeroDivisionError):
            quotient(Decimal(1), Decimal(0))


def test_doubles_enclose_a_third() -> None:
    assert double_down(Decimal(1), Decimal(3)) == 1 / 3
    assert double_up(Decimal(1), Decimal(3)) == math.nextafter(1 / 3, 1)
    assert double_up(Decimal(-1), Decimal(3)) == -1 / 3


def test_double_of_an_exact_value_is_that_value() -> None:
    assert double_down(Decimal(5), Decimal(2)) == double_up(Decimal(5), Decimal(2)) == 2.5


def test_doubles_of_values_beyond_the_largest_double_stay_on_their_side() -> None:
    assert double_up(Decimal("1e400"), Decimal(1)) == math.inf
    assert double_down(Decimal("1e400"), Decimal(1)) == sys.float_info.max
    assert double_up(Decimal("-1e400"), Decimal(1)) == -sys.float_info.max
    assert double_down(Decimal("-1e400"), Decimal(1)) == -math.inf


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1E+4", "10000"),
        ("10000", "10000"),
        ("0.10", "0.1"),
        ("1E-8", "0.00000001"),
        ("-0.00", "0"),
        ("0E-8", "0"),
        ("-12.500", "-12.5"),
        ("100.000", "100"),
    ],
)
def test_plain_has_no_exponent_no_trailing_zeros_and_no_negative_zero(value: str, text: str) -> None:
    assert plain(Decimal(value)) == text


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_plain_refuses_what_is_not_a_finite_number(value: str) -> None:
    with pytest.raises(ValueError, match="finite"):
        plain(Decimal(value))


@pytest.mark.parametrize("value", ["0", "-1", "1e12", "0.000000001", "NaN", "Infinity"])
def test_amount_outside_the_limits_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="price must be above 0"):
        require_amount("price", Decimal(value))


@pytest.mark.parametrize("value", ["0.00000001", "999999999999.99999999", "0.1000000000", "1E+3"])
def test_amount_at_the_limits_is_accepted(value: str) -> None:
    require_amount("price", Decimal(value))


def test_exact_function_raises_instead_of_rounding_and_leaves_the_context_alone() -> None:
    @exact
    def third() -> Decimal:
        return Decimal(1) / 3

    before = getcontext().prec
    with pytest.raises(Inexact):
        third()
    assert getcontext().prec == before
