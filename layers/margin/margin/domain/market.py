"""The market that a decision is taken on: mark prices with their times, instruments, funding, and now."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from margin.domain.funding import NO_FUNDING, Funding
from margin.domain.instrument import Instrument, default_instrument
from margin.errors import NoMarkPriceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from decimal import Decimal

__all__ = ["RESTORED_STAMP_US", "Mark", "Market"]

RESTORED_STAMP_US: Final = 0
"""Stamp of a mark price that was lost and put back from history: nobody knows any more how old it is."""

_US_PER_S: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Mark:
    """One mark price.

    Parameters
    ----------
    price : Decimal
        Quote currency for one unit, above 0.
    stamp_us : int
        When it was set, microseconds since the epoch.
    observed_us : int or None
        When it was observed, as its sender says; None when that is not known.
    source : str or None
        Where it is from, as its sender says; None when that is not known. Nothing is decided by it.
    subject, source_ip : str or None
        Who sent it, and from which address; None when that is not known. Nothing is decided by it.

    Raises
    ------
    ValueError
        When the price is not a number above 0.
    """

    price: Decimal
    stamp_us: int
    observed_us: int | None = None
    source: str | None = None
    subject: str | None = None
    source_ip: str | None = None

    def __post_init__(self) -> None:
        if not (self.price.is_finite() and self.price > 0):
            raise ValueError("a mark price is a number above 0")

    @property
    def as_of_us(self) -> int:
        """The moment that its age counts from: a price that was observed long ago is not young because it came now.

        A sender whose clock is ahead cannot make it younger than it is in the store.
        """
        return self.stamp_us if self.observed_us is None else min(self.stamp_us, self.observed_us)


@dataclass(frozen=True, slots=True)
class Market:
    """Marks and instruments as read together, and the time at which they are judged.

    Parameters
    ----------
    marks : mapping of symbol to Mark
    instruments : mapping of symbol to Instrument
        Only configured ones; others have the default rules.
    now_us : int
        Microseconds since the epoch, of the clock that stamps the marks.
    funding : mapping of str to Funding
        Only of symbols that ever had some.
    staged : mapping of str to Instrument
        The rules that a symbol will have as soon as every account that holds it is anchored to them; until then nobody
        is judged by them.
    waiting : mapping of str to Decimal
        Prices that were set aside as too far from the mark, by symbol: until one of them is confirmed or dropped,
        nobody knows whether the mark still holds.
    """

    marks: Mapping[str, Mark]
    instruments: Mapping[str, Instrument]
    now_us: int
    funding: Mapping[str, Funding] = field(default_factory=dict)
    staged: Mapping[str, Instrument] = field(default_factory=dict)
    waiting: Mapping[str, Decimal] = field(default_factory=dict)

    def instrument(self, symbol: str) -> Instrument:
        """Rules of a symbol, the default ones when it was never configured."""
        configured = self.instruments.get(symbol)
        return default_instrument(symbol) if configured is None else configured

    def instrument_version(self, symbol: str) -> str:
        """Name the rules of a symbol and those that are staged: what is decided and anchored under them."""
        version, staged = str(self.instrument(symbol).version), self.staged.get(symbol)
        return version if staged is None else f"{version}>{staged.version}"

    def without_staged(self) -> Market:
        """Return the market as it is judged by now, whatever is to come into force."""
        return replace(self, staged={}) if self.staged else self

    def guarded_lines(self, symbol: str) -> tuple[tuple[Decimal, Decimal], ...]:
        """Rate and amount of each line that an anchor has to guard: those in force, and those that are staged.

        The largest of ``rate * n - amount`` is the stricter of both maintenance margins.
        """
        lines, staged = self.instrument(symbol).maintenance_lines, self.staged.get(symbol)
        return lines if staged is None else (*lines, *staged.maintenance_lines)

    def funding_of(self, symbol: str) -> Funding:
        """Funding of a symbol as it stands."""
        return self.funding.get(symbol, NO_FUNDING)

    def funding_index(self, symbol: str) -> Decimal:
        """Funding that one unit has paid so far, in quote currency, exact."""
        return self.funding_of(symbol).index

    def mark_price(self, symbol: str) -> Decimal:
        """Last mark price of a symbol, however old.

        Raises
        ------
        NoMarkPriceError
            When none was ever set.
        """
        return self._mark(symbol).price

    def is_stale(self, symbol: str) -> bool:
        """Tell whether the mark is older than its instrument allows; exactly the allowed age is still fresh.

        One that was put back from history is stale until it is set again, whatever the instrument allows. So is one
        beside which another price waits to be confirmed, however young it is: it may be the wrong one.

        Raises
        ------
        NoMarkPriceError
            When none was ever set.
        """
        mark = self._mark(symbol)
        if symbol in self.waiting or mark.stamp_us == RESTORED_STAMP_US:
            return True
        age_max_s = self.instrument(symbol).mark_max_age_s
        return age_max_s is not None and self.now_us - mark.as_of_us > age_max_s * _US_PER_S

    def are_fresh(self, symbols: Iterable[str]) -> bool:
        """Tell whether all symbols have a mark price, and none is stale: only then can anything be promised of them."""
        return all(symbol in self.marks and not self.is_stale(symbol) for symbol in symbols)

    def why_stale(self, symbol: str) -> str:
        """Say why a mark that is stale is so: the beginning of a sentence about what that rules out."""
        if symbol in self.waiting:
            return f"The mark price of {symbol} is in doubt: a price far from it waits to be confirmed"
        return f"The mark price of {symbol} is stale"

    def _mark(self, symbol: str) -> Mark:
        mark = self.marks.get(symbol)
        if mark is None:
            raise NoMarkPriceError(f"No mark price for {symbol}; post one to /mark-price first.")
        return mark
