"""Exact decimal arithmetic and the only places where it is rounded.

Every public function of the domain that calculates runs under :data:`EXACT`, whatever context its caller has. There a
result that does not fit is an error, so rounding happens only in the functions below, whose names say the direction.
"""

from __future__ import annotations

import functools
import math
import sys
from decimal import (
    ROUND_CEILING,
    ROUND_FLOOR,
    Context,
    Decimal,
    DivisionByZero,
    Inexact,
    InvalidOperation,
    Overflow,
    localcontext,
)
from fractions import Fraction
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ABSOLUTE_VALUE_MAX",
    "DECIMALS",
    "EXACT",
    "double_down",
    "double_up",
    "exact",
    "multiple_up",
    "plain",
    "quotient_down",
    "quotient_nearest",
    "quotient_up",
    "require_amount",
    "round_down",
    "round_up",
]

DECIMALS: Final = 8
ABSOLUTE_VALUE_MAX: Final = Decimal("1e12")
"""Exclusive limit of every quantity, price and amount that comes from outside."""

# The widest product is E' * MM of the order test: 51 + 51 digits with inputs at their limits, a thousand positions and
# funding, whose dust has 24 decimals.
_PRECISION: Final = 120
EXACT: Final = Context(prec=_PRECISION, traps=[Inexact, InvalidOperation, DivisionByZero, Overflow])
_ROUNDING: Final = Context(prec=_PRECISION, traps=[InvalidOperation, DivisionByZero, Overflow])
_QUANTUM: Final = Decimal(1).scaleb(-DECIMALS)

P = ParamSpec("P")
R = TypeVar("R")


def exact(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function in a copy of :data:`EXACT`; not for generators, whose bodies run later.

    Raises
    ------
    decimal.Inexact
        By the decorated function, when a result needs more than 120 digits.
    """

    @functools.wraps(function)
    def under_exact_context(*args: P.args, **kwargs: P.kwargs) -> R:
        with localcontext(EXACT):
            return function(*args, **kwargs)

    return under_exact_context


@exact
def round_down(value: Decimal) -> Decimal:
    """Round towards minus infinity to 8 decimals: what is credited to a balance."""
    return value.quantize(_QUANTUM, rounding=ROUND_FLOOR, context=_ROUNDING.copy())


@exact
def round_up(value: Decimal) -> Decimal:
    """Round towards plus infinity to 8 decimals: what is charged to a balance."""
    return value.quantize(_QUANTUM, rounding=ROUND_CEILING, context=_ROUNDING.copy())


@exact
def quotient_down(numerator: Decimal, denominator: Decimal, decimals: int = DECIMALS) -> Decimal:
    """Divide, rounded once towards minus infinity.

    Raises
    ------
    ZeroDivisionError
        When the denominator is 0.
    """
    top, bottom = _scaled_ratio(numerator, denominator, decimals)
    return Decimal(top // bottom).scaleb(-decimals)


@exact
def quotient_up(numerator: Decimal, denominator: Decimal, decimals: int = DECIMALS) -> Decimal:
    """Divide, rounded once towards plus infinity.

    Raises
    ------
    ZeroDivisionError
        When the denominator is 0.
    """
    top, bottom = _scaled_ratio(numerator, denominator, decimals)
    return Decimal(-(-top // bottom)).scaleb(-decimals)


@exact
def multiple_up(numerator: Decimal, denominator: Decimal, step: Decimal) -> Decimal:
    """Smallest whole multiple of a step that is not below the exact quotient.

    Raises
    ------
    ZeroDivisionError
        When the denominator or the step is 0.
    """
    top, bottom = _scaled_ratio(numerator, denominator * step, 0)
    return -(-top // bottom) * step


@exact
def quotient_nearest(numerator: Decimal, denominator: Decimal, decimals: int = DECIMALS) -> Decimal:
    """Divide, rounded once to the nearest, ties to even: for values that are only shown.

    Raises
    ------
    ZeroDivisionError
        When the denominator is 0.
    """
    top, bottom = _scaled_ratio(numerator, denominator, decimals)
    return Decimal(round(Fraction(top, bottom))).scaleb(-decimals)


@exact
def double_up(numerator: Decimal, denominator: Decimal) -> float:
    """Smallest double that is not below the exact quotient (infinity beyond the largest double).

    Raises
    ------
    ZeroDivisionError
        When the denominator is 0.
    """
    quotient = Fraction(numerator) / Fraction(denominator)
    try:
        nearest = float(quotient)
    except OverflowError:
        return math.inf if quotient > 0 else -sys.float_info.max
    return nearest if Fraction(nearest) >= quotient else math.nextafter(nearest, math.inf)


@exact
def double_down(numerator: Decimal, denominator: Decimal) -> float:
    """Largest double that is not above the exact quotient (minus infinity below the smallest double).

    Raises
    ------
    ZeroDivisionError
        When the denominator is 0.
    """
    return -double_up(-numerator, denominator)


def plain(value: Decimal) -> str:
    """Write a number without exponent, trailing zeros or negative zero.

    Raises
    ------
    ValueError
        When the value is infinite or not a number.

    Examples
    --------
    >>> plain(Decimal("1E+4")), plain(Decimal("0.10")), plain(Decimal("-0.00"))
    ('10000', '0.1', '0')
    """
    if not value.is_finite():
        raise ValueError("only a finite number can be written plainly")
    if value.is_zero():
        return "0"
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def require_amount(name: str, value: Decimal) -> None:
    """Assert that a quantity, price or amount is within the limits which the HTTP layer enforces.

    Raises
    ------
    ValueError
        Unless 0 < value < 1e12 with at most 8 decimals.
    """
    if not (value.is_finite() and 0 < value < ABSOLUTE_VALUE_MAX and value == round_down(value)):
        raise ValueError(f"{name} must be above 0, below 1e12 and have at most {DECIMALS} decimals")


def _scaled_ratio(numerator: Decimal, denominator: Decimal, decimals: int) -> tuple[int, int]:
    """Return integers whose ratio is the quotient in units of the last decimal: dividing them rounds only once."""
    a, b = numerator.as_integer_ratio()
    c, d = denominator.as_integer_ratio()
    if c == 0:
        raise ZeroDivisionError("the denominator is 0")
    return a * d * 10**decimals, b * c
