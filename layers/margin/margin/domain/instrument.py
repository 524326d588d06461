"""What the exchange fixes for one symbol: margin tiers, fees, price band, sizes, age limit of its mark."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from margin.domain.decimals import exact, require_amount, round_down

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DEFAULT_TIERS", "Instrument", "Tier", "default_instrument"]

_NOTIONAL_CAP_MAX: Final = Decimal("1e24")


@dataclass(frozen=True, slots=True)
class Tier:
    """One bracket of a margin table.

    Parameters
    ----------
    notional_cap : Decimal or None
        Largest notional of the bracket, in quote currency; None for the last one, which has no end.
    initial_rate, maintenance_rate : Decimal
        Margin for each unit of notional inside the bracket: 0.20 is 20 %.
    """

    notional_cap: Decimal | None
    initial_rate: Decimal
    maintenance_rate: Decimal


DEFAULT_TIERS: Final = (Tier(None, Decimal("0.20"), Decimal("0.10")),)


@dataclass(frozen=True, slots=True)
class Instrument:
    """The rules of one symbol, valid as a whole or not constructible.

    Parameters
    ----------
    symbol : str
    tiers : tuple of Tier
        Ascending caps, the last without one; rates never fall from tier to tier.
    taker_fee : Decimal
        Fee for each unit of traded notional, 0 <= fee < 1.
    price_band : Decimal
        How far from the mark a trade's price may be, as a share of the mark, 0 < band <= 1.
    lot_size : Decimal
        A traded quantity is a multiple of it.
    min_quantity : Decimal
        A liquidation closes a position whole rather than leave less than this of it.
    liquidation_fee_cap : Decimal
        The most that a liquidation takes for the insurance fund, for each unit of notional that it closes; below the
        lowest maintenance rate, so that closing always frees more margin than it costs.
    mark_max_age_s : int or None
        Age from which on the mark counts as stale; None for no limit.
    version : int
        Grows with every change of the configuration, 0 for a symbol that was never configured.

    Attributes
    ----------
    initial_amounts, maintenance_amounts : tuple of Decimal
        For each tier what is subtracted from ``rate * notional``, so that margin is continuous at every cap.

    Raises
    ------
    ValueError
        When any of this does not hold.
    """

    symbol: str
    tiers: tuple[Tier, ...] = DEFAULT_TIERS
    taker_fee: Decimal = Decimal(0)
    price_band: Decimal = Decimal("0.20")
    lot_size: Decimal = Decimal("1e-8")
    min_quantity: Decimal = Decimal("1e-8")
    liquidation_fee_cap: Decimal = Decimal(0)
    mark_max_age_s: int | None = None
    version: int = 0
    initial_amounts: tuple[Decimal, ...] = field(init=False, repr=False, compare=False)
    maintenance_amounts: tuple[Decimal, ...] = field(init=False, repr=False, compare=False)
    _caps: tuple[Decimal, ...] = field(init=False, repr=False, compare=False)

    @exact
    def __post_init__(self) -> None:
        caps = _checked_caps(self.tiers)
        _check_rates(self.tiers)
        _check_terms(self)
        object.__setattr__(self, "_caps", caps)
        object.__setattr__(self, "initial_amounts", _amounts(caps, [tier.initial_rate for tier in self.tiers]))
        object.__setattr__(self, "maintenance_amounts", _amounts(caps, [tier.maintenance_rate for tier in self.tiers]))

    @exact
    def initial_margin(self, notional: Decimal) -> Decimal:
        """Margin needed to open or keep adding to a position of this notional: rate * notional - amount of its tier.

        Raises
        ------
        ValueError
            When the notional is negative.
        """
        number = self._tier_number(notional)
        return self.tiers[number].initial_rate * notional - self.initial_amounts[number]

    @exact
    def maintenance_margin(self, notional: Decimal) -> Decimal:
        """Margin below which a position of this notional is liquidated: rate * notional - amount of its tier.

        Raises
        ------
        ValueError
            When the notional is negative.
        """
        number = self._tier_number(notional)
        return self.tiers[number].maintenance_rate * notional - self.maintenance_amounts[number]

    @property
    def maintenance_lines(self) -> tuple[tuple[Decimal, Decimal], ...]:
        """Rate and amount of every tier.

        Because rates rise with the tiers, the maintenance margin of a notional n is the largest ``rate * n - amount``.
        """
        rates = (tier.maintenance_rate for tier in self.tiers)
        return tuple(zip(rates, self.maintenance_amounts, strict=True))

    @property
    def lowest_maintenance_rate(self) -> Decimal:
        """Rate of the first tier, the lowest slope that maintenance margin has over notional."""
        return self.tiers[0].maintenance_rate

    @property
    def steepest_maintenance_rate(self) -> Decimal:
        """Rate of the last tier, the highest slope that maintenance margin has over notional."""
        return self.tiers[-1].maintenance_rate

    def _tier_number(self, notional: Decimal) -> int:
        if notional < 0:
            raise ValueError("a notional is never negative")
        return bisect_left(self._caps, notional)


@lru_cache(maxsize=4096)
def default_instrument(symbol: str) -> Instrument:
    """Rules of a symbol that was never configured: one tier of 20 % initial and 10 % maintenance margin, no fee."""
    return Instrument(symbol)


def _amounts(caps: Sequence[Decimal], rates: Sequence[Decimal]) -> tuple[Decimal, ...]:
    """Solve ``rate[n] * cap - amount[n] == rate[n + 1] * cap - amount[n + 1]`` at every cap, from amount 0 on."""
    amounts = [Decimal(0)]
    for cap, (lower, upper) in zip(caps, pairwise(rates), strict=True):
        amounts.append(amounts[-1] + cap * (upper - lower))
    return tuple(amounts)


def _checked_caps(tiers: tuple[Tier, ...]) -> tuple[Decimal, ...]:
    caps = tuple(tier.notional_cap for tier in tiers[:-1] if tier.notional_cap is not None)
    if not tiers or tiers[-1].notional_cap is not None or len(caps) != len(tiers) - 1:
        raise ValueError("the last tier, and only it, has no notional cap")
    if not all(_has_scale(cap) and 0 < cap < _NOTIONAL_CAP_MAX for cap in caps):
        raise ValueError("notional caps are above 0, below 1e24 and have at most 8 decimals")
    if any(lower >= upper for lower, upper in pairwise(caps)):
        raise ValueError("notional caps must rise from tier to tier")
    return caps


def _check_rates(tiers: tuple[Tier, ...]) -> None:
    for tier in tiers:
        if not (_has_scale(tier.initial_rate) and _has_scale(tier.maintenance_rate)):
            raise ValueError("margin rates have at most 8 decimals")
        if not 0 < tier.maintenance_rate < tier.initial_rate <= 1:
            raise ValueError("margin rates must satisfy 0 < maintenance < initial <= 1")
    for lower, upper in pairwise(tiers):
        if lower.initial_rate > upper.initial_rate or lower.maintenance_rate > upper.maintenance_rate:
            raise ValueError("margin rates must not fall from tier to tier")


def _check_terms(instrument: Instrument) -> None:
    if not instrument.symbol:
        raise ValueError("an instrument has a symbol")
    if not (_has_scale(instrument.taker_fee) and 0 <= instrument.taker_fee < 1):
        raise ValueError("the taker fee must be at least 0, below 1, with at most 8 decimals")
    if not (_has_scale(instrument.price_band) and 0 < instrument.price_band <= 1):
        raise ValueError("the price band must be above 0, at most 1, with at most 8 decimals")
    require_amount("lot_size", instrument.lot_size)
    require_amount("min_quantity", instrument.min_quantity)
    cap = instrument.liquidation_fee_cap
    if not (_has_scale(cap) and 0 <= cap < instrument.lowest_maintenance_rate):
        raise ValueError("the liquidation fee cap must be at least 0, below every maintenance rate, with 8 decimals")
    age = instrument.mark_max_age_s
    if age is not None and not (_is_whole(age) and age > 0):
        raise ValueError("mark_max_age_s is a positive whole number of seconds, or None for no limit")
    if not (_is_whole(instrument.version) and instrument.version >= 0):
        raise ValueError("a version is a whole number, never negative")


def _is_whole(value: object) -> bool:
    """Tell whether the value is an int: 30.0 equals 30, and is another text in a record and its hash."""
    return isinstance(value, int) and not isinstance(value, bool)


def _has_scale(value: Decimal) -> bool:
    """Tell whether the value has at most 8 decimals: more would let products outgrow the exact context."""
    return value.is_finite() and value == round_down(value)
