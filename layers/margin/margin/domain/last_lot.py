"""The last of many lots that can be paid for, where the charge is rounded up to whole units of account.

With n lots a + b * n is at hand and c * n is charged. Without rounding that is one line, and the last n that it carries
a division away. Rounding the charge up makes a saw of it: near its zero some n fail below others that do not, as many
of them as the line takes to fall by one unit, which is without bound for a flat one. So nothing is tried there lot by
lot, and to bisect by single n would be wrong; what is bisected is whether any of a range passes, which a sum in closed
form answers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fractions import Fraction

__all__ = ["last_lot"]


def last_lot(at_hand: Fraction, gain: Fraction, charge: Fraction, first: int, last: int) -> int | None:
    """Find the largest n from ``first`` to ``last`` with ceil(charge * n) <= at_hand + gain * n.

    Parameters
    ----------
    at_hand : Fraction
        What there is without any lot, in units of the last decimal of account.
    gain : Fraction
        What each lot adds to it, or takes if below 0, exact.
    charge : Fraction
        What each lot is charged, or is paid if below 0, before rounding.
    first, last : int

    Returns
    -------
    int or None
        None when no n of the range passes.
    """
    slope = gain - charge
    # Where the line is below 0 all fail, and where it is at least 1 none does, for rounding takes less than 1.
    if slope < 0:
        last = min(last, math.floor(at_hand / -slope))
        first = max(first, min(last, math.floor((at_hand - 1) / -slope)))
    elif slope > 0:
        first = max(first, math.ceil(at_hand / -slope))
    elif at_hand < 0:
        return None
    if last < first:
        return None
    if math.ceil(charge * last) <= at_hand + gain * last:
        return last
    if not _any_passes(at_hand, gain, charge, first, last):
        return None
    beyond = last
    while beyond - first > 1:
        middle = (first + beyond) // 2
        if _any_passes(at_hand, gain, charge, middle, last):
            first = middle
        else:
            beyond = middle
    return first


def _any_passes(at_hand: Fraction, gain: Fraction, charge: Fraction, first: int, last: int) -> bool:
    """Tell whether any n of a range passes in which the line is never below 0.

    An n passes when a whole number lies from charge * n to at_hand + gain * n. There are
    floor(at_hand + gain * n) + floor(-charge * n) + 1 of them, never less than 0, so it is enough to add them up.
    """
    count = last - first + 1
    at_hand_floors = _sum_of_floors(count, gain, at_hand + gain * first)
    return at_hand_floors + _sum_of_floors(count, -charge, -charge * first) + count > 0


def _sum_of_floors(count: int, rise: Fraction, start: Fraction) -> int:
    """Add up floor(start + rise * i) for i from 0 to count - 1, in as many steps as Euclid's algorithm takes.

    The whole parts of rise and start are taken out; what is left counts the points of the grid under a line, which are
    as many when rows are counted instead of columns, and that is the same sum for fewer rows.
    """
    divisor = math.lcm(rise.denominator, start.denominator)
    slope = rise.numerator * (divisor // rise.denominator)
    offset = start.numerator * (divisor // start.denominator)
    total = 0
    while True:
        whole, slope = divmod(slope, divisor)
        total += whole * (count * (count - 1) // 2)
        whole, offset = divmod(offset, divisor)
        total += whole * count
        height = slope * count + offset
        if height < divisor:
            return total
        count, offset = divmod(height, divisor)
        slope, divisor = divisor, slope
