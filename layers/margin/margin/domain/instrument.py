"""What the exchange fixes for one symbol: margin tiers, fees, sizes, guards of its prices, and whether it trades."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from margin.domain.decimals import ABSOLUTE_VALUE_MAX, exact, multiple_up, plain, require_amount, round_down

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DEFAULT_TIERS", "Instrument", "InstrumentStatus", "Tier", "default_instrument"]

_NOTIONAL_CAP_MAX: Final = Decimal("1e24")


class InstrumentStatus(StrEnum):
    """What users may trade in a symbol. Mark prices, funding, liquidations and deleveragings go on in every one."""

    ACTIVE = "active"
    REDUCE_ONLY = "reduce-only"
    """Only trades that purely reduce a position."""
    SETTLING = "settling"
    """Only trades that purely reduce a position, at exactly the mark price: the way out at one price for everybody."""
    CLOSED = "closed"
    """Nobody holds the symbol any more. Should a lost event bring a holder back, the way out is that of settling."""


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
        Fee for each unit of traded notional, 0 <= fee < 1, of who took liquidity.
    maker_fee : Decimal
        Of who gave it: -taker_fee <= fee < 1; below 0 it is a rebate, never more than the other side pays.
    price_band : Decimal
        How far from the mark a trade's price may be, as a share of the mark, 0 < band <= 1.
    tick_size : Decimal
        A trade's price is a multiple of it.
    lot_size : Decimal
        A traded quantity is a multiple of it.
    min_quantity : Decimal
        The least that a trade may be of, unless it closes a position whole; a liquidation closes a position whole
        rather than leave less than this of it.
    max_quantity : Decimal or None
        The most that one trade may be of; None for no limit.
    position_limit : Decimal or None
        The most units, long or short, that a trade may leave an account with, unless it purely reduces; None for no
        limit.
    liquidation_fee_cap : Decimal
        The most that a liquidation takes for the insurance fund, for each unit of notional that it closes; below the
        lowest maintenance rate, so that closing always frees more margin than it costs.
    mark_max_age_s : int or None
        Age from which on the mark counts as stale; None for no limit.
    mark_jump_max : Decimal or None
        How far a new price may be from the mark, as a share of the mark, before a second one has to confirm it; above
        0, None for no guard.
    funding_rate_cap : Decimal
        The highest funding rate of one interval, either way, 0 < cap <= 1.
    status : InstrumentStatus
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
    maker_fee: Decimal = Decimal(0)
    price_band: Decimal = Decimal("0.20")
    tick_size: Decimal = Decimal("1e-8")
    lot_size: Decimal = Decimal("1e-8")
    min_quantity: Decimal = Decimal("1e-8")
    max_quantity: Decimal | None = None
    position_limit: Decimal | None = None
    liquidation_fee_cap: Decimal = Decimal(0)
    mark_max_age_s: int | None = None
    mark_jump_max: Decimal | None = None
    funding_rate_cap: Decimal = Decimal(1)
    status: InstrumentStatus = InstrumentStatus.ACTIVE
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
    def initial_lines(self) -> tuple[tuple[Decimal, Decimal], ...]:
        """Rate and amount of every tier, of initial margin; see `maintenance_lines`."""
        rates = (tier.initial_rate for tier in self.tiers)
        return tuple(zip(rates, self.initial_amounts, strict=True))

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
    if not (_is_whole(instrument.version) and instrument.version >= 0):
        raise ValueError("a version is a whole number, never negative")
    if not isinstance(instrument.status, InstrumentStatus):
        raise ValueError("status is one of active, reduce-only, settling and closed")  # noqa: TRY004
    _check_fees(instrument)
    _check_sizes(instrument)
    _check_price_guards(instrument)


def _check_fees(instrument: Instrument) -> None:
    taker_fee, maker_fee, cap = instrument.taker_fee, instrument.maker_fee, instrument.liquidation_fee_cap
    if not (_has_scale(taker_fee) and 0 <= taker_fee < 1):
        raise ValueError("taker_fee must be at least 0, below 1, with at most 8 decimals")
    if not (_has_scale(maker_fee) and -taker_fee <= maker_fee < 1):
        raise ValueError("maker_fee must be at least -taker_fee, below 1, with at most 8 decimals")
    if not (_has_scale(cap) and 0 <= cap < instrument.lowest_maintenance_rate):
        raise ValueError("liquidation_fee_cap must be at least 0, below every maintenance rate, with 8 decimals")


def _check_sizes(instrument: Instrument) -> None:
    for name in ("tick_size", "lot_size", "min_quantity", "max_quantity", "position_limit"):
        size = getattr(instrument, name)
        if size is not None:
            require_amount(name, size)
    least = multiple_up(instrument.min_quantity, Decimal(1), instrument.lot_size)
    for name in ("max_quantity", "position_limit"):
        limit = getattr(instrument, name)
        if limit is not None and limit < least:
            raise ValueError(f"{name} must be at least {plain(least)}, the least that min_quantity and lot_size allow")


def _check_price_guards(instrument: Instrument) -> None:
    if not (_has_scale(instrument.price_band) and 0 < instrument.price_band <= 1):
        raise ValueError("price_band must be above 0, at most 1, with at most 8 decimals")
    jump = instrument.mark_jump_max
    if jump is not None and not (_has_scale(jump) and 0 < jump < ABSOLUTE_VALUE_MAX):
        raise ValueError("mark_jump_max must be above 0, with at most 8 decimals, or null for no guard")
    if not (_has_scale(instrument.funding_rate_cap) and 0 < instrument.funding_rate_cap <= 1):
        raise ValueError("funding_rate_cap must be above 0, at most 1, with at most 8 decimals")
    age = instrument.mark_max_age_s
    if age is not None and not (_is_whole(age) and age > 0):
        raise ValueError("mark_max_age_s is a positive whole number of seconds, or null for no limit")


def _is_whole(value: object) -> bool:
    """Tell whether the value is an int: 30.0 equals 30, and is another text in a record and its hash."""
    return isinstance(value, int) and not isinstance(value, bool)


def _has_scale(value: Decimal) -> bool:
    """Tell whether the value has at most 8 decimals: more would let products outgrow the exact context."""
    return value.is_finite() and value == round_down(value)
