from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from margin.domain.decimals import (
    double_down,
    double_up,
    plain,
    quotient_down,
    quotient_nearest,
    quotient_up,
    round_down,
    round_up,
)

UNIT = Fraction(1, 10**8)
numbers = st.decimals(allow_nan=False, allow_infinity=False, min_value=Decimal("-1e24"), max_value=Decimal("1e24"))
divisors = numbers.filter(bool)


@settings(deadline=None)
@given(numbers)
def test_rounding_encloses_the_value_by_less_than_one_unit(value: Decimal) -> None:
    down, up = Fraction(round_down(value)), Fraction(round_up(value))
    assert down <= Fraction(value) <= up
    assert Fraction(value) - down < UNIT
    assert up - Fraction(value) < UNIT
    assert (down / UNIT).denominator == (up / UNIT).denominator == 1


@settings(deadline=None)
@given(numbers, divisors)
def test_quotients_enclose_the_exact_one_by_less_than_one_unit(numerator: Decimal, denominator: Decimal) -> None:
    exact = Fraction(numerator) / Fraction(denominator)
    if abs(exact) >= 10**80:
        return
    down, up = Fraction(quotient_down(numerator, denominator)), Fraction(quotient_up(numerator, denominator))
    assert down <= exact <= up
    assert exact - down < UNIT
    assert up - exact < UNIT
    assert abs(Fraction(quotient_nearest(numerator, denominator)) - exact) <= UNIT / 2


@settings(deadline=None)
@given(numbers, divisors)
def test_doubles_enclose_the_exact_quotient_and_are_its_neighbours(numerator: Decimal, denominator: Decimal) -> None:
    exact = Fraction(numerator) / Fraction(denominator)
    down, up = double_down(numerator, denominator), double_up(numerator, denominator)
    assert down <= exact <= up
    assert up == down if exact == Fraction(down if math.isfinite(down) else 0) else up == math.nextafter(down, math.inf)


@settings(deadline=None)
@given(numbers)
def test_plain_text_reads_back_as_the_same_value_in_its_shortest_form(value: Decimal) -> None:
    text = plain(value)
    assert Decimal(text) == value
    assert "E" not in text
    assert text != "-0"
    assert "." not in text or text[-1] not in ".0"
