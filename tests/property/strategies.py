"""Random instruments, portfolios and orders, within the limits that the HTTP layer enforces.

Numbers are drawn over many orders of magnitude, because what breaks rounding is a tiny position beside a huge one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from margin.domain.account import Account
from margin.domain.decimals import exact, round_down, round_up
from margin.domain.funding import Funding
from margin.domain.instrument import Instrument, Tier
from margin.domain.liquidation import LiquidationPolicy
from margin.domain.market import Mark, Market
from margin.domain.position import Position, Side
from margin.domain.risk import assess

if TYPE_CHECKING:
    from collections.abc import Mapping

SYMBOLS = ("BTC-PERP", "DOGE-PERP", "ETH-PERP", "SOL-PERP")
NOW_US = 1_700_000_000_000_000
MARK_MAX_AGE_S = 30


@dataclass(frozen=True)
class Book:
    account: Account
    market: Market


def units(low: int, high: int) -> st.SearchStrategy[Decimal]:
    """Decimals of 8 decimals, bounds given in units of the last one."""
    return st.integers(low, high).map(lambda count: Decimal(count).scaleb(-8))


def magnitudes(largest_exponent: int) -> st.SearchStrategy[Decimal]:
    """Positive decimals of 8 decimals below 10 ** exponent, all orders of magnitude as likely, many of them round."""
    digits = st.integers(1, largest_exponent + 8).flatmap(
        lambda length: st.integers(10 ** (length - 1), 10**length - 1)
    )
    ragged = digits.map(lambda count: Decimal(count).scaleb(-8))
    rounded = st.builds(
        lambda mantissa, exponent: Decimal(mantissa).scaleb(exponent),
        st.integers(1, 9),
        st.integers(-8, largest_exponent - 1),
    )
    return ragged | rounded


prices = magnitudes(6)
quantities = magnitudes(5)
sides = st.sampled_from(Side)


funding_amounts = st.integers(-(10**18), 10**18).map(lambda count: Decimal(count).scaleb(-16))
"""Of an index or an entry, with all its 16 decimals."""


@st.composite
def tier_tables(draw: st.DrawFn, tiers_max: int = 4) -> tuple[Tier, ...]:
    count = draw(st.integers(1, tiers_max))
    ten_thousandths = st.lists(st.integers(1, 5000), min_size=count, max_size=count).map(sorted)
    maintenance, extra = draw(ten_thousandths), draw(ten_thousandths)
    caps = sorted(draw(st.lists(magnitudes(9), min_size=count - 1, max_size=count - 1, unique=True)))
    return tuple(
        Tier(cap, Decimal(lower + more).scaleb(-4), Decimal(lower).scaleb(-4))
        for cap, lower, more in zip([*caps, None], maintenance, extra, strict=True)
    )


@st.composite
def instruments(draw: st.DrawFn, symbol: str = "BTC-PERP", tiers_max: int = 4) -> Instrument:
    tiers = draw(tier_tables(tiers_max))
    # Below the lowest maintenance rate, which has four decimals.
    fee_caps = st.sampled_from([Decimal(0), tiers[0].maintenance_rate / 2, tiers[0].maintenance_rate - Decimal("1e-8")])
    taker_fee = draw(st.sampled_from([Decimal(0), Decimal("0.0005"), Decimal("0.00000001")]))
    return Instrument(
        symbol,
        tiers,
        taker_fee=taker_fee,
        maker_fee=draw(st.sampled_from([-taker_fee, Decimal("0.0001")])),
        price_band=draw(st.sampled_from([Decimal("0.20"), Decimal("0.05"), Decimal(1)])),
        lot_size=draw(st.sampled_from([Decimal("1e-8"), Decimal("0.001"), Decimal(1)])),
        min_quantity=draw(st.sampled_from([Decimal("1e-8"), Decimal("0.5")])),
        liquidation_fee_cap=draw(fee_caps),
        mark_max_age_s=draw(st.sampled_from([None, MARK_MAX_AGE_S])),
    )


def liquidation_policies() -> st.SearchStrategy[LiquidationPolicy]:
    """How far liquidations go: from just to maintenance margin to far above it."""
    least = st.sampled_from([Decimal(0), Decimal(10), Decimal(10**6)])
    return st.builds(LiquidationPolicy, st.sampled_from([Decimal(0), Decimal("0.1"), Decimal(2)]), least)


def policies_without_least() -> st.SearchStrategy[LiquidationPolicy]:
    """Those under which nothing is too small to be left."""
    return liquidation_policies().map(lambda policy: replace(policy, remaining_notional_min=Decimal(0)))


@st.composite
def markets(draw: st.DrawFn, *, may_be_stale: bool = False, tiers_max: int = 4) -> Market:
    configured = draw(st.sets(st.sampled_from(SYMBOLS)))
    ages_s = st.sampled_from([0, MARK_MAX_AGE_S + 1]) if may_be_stale else st.just(0)
    doubtful = draw(st.sets(st.sampled_from(SYMBOLS), max_size=2)) if may_be_stale else set()
    funded = draw(st.sets(st.sampled_from(SYMBOLS), max_size=2))
    return Market(
        {symbol: Mark(draw(prices), NOW_US - draw(ages_s) * 1_000_000) for symbol in SYMBOLS},
        {symbol: draw(instruments(symbol, tiers_max)) for symbol in sorted(configured)},
        NOW_US,
        {symbol: Funding(n=1, index=draw(funding_amounts)) for symbol in sorted(funded)},
        waiting={symbol: draw(prices) for symbol in sorted(doubtful)},
    )


@st.composite
def positions(draw: st.DrawFn, symbol: str = "BTC-PERP") -> Position:
    """A position with an entry cost of 16 decimals, near a price that it could have been entered at."""
    quantity = draw(sides).sign * draw(quantities)
    dust = Decimal(draw(st.integers(-(10**8), 10**8))).scaleb(-16)
    entry_funding = draw(st.just(Decimal(0)) | funding_amounts)
    return replace(position_at(symbol, quantity, draw(prices), dust), entry_funding=entry_funding)


@exact
def position_at(symbol: str, quantity: Decimal, price: Decimal, dust: Decimal = Decimal(0)) -> Position:
    return Position(symbol, quantity, quantity * price + dust)


@st.composite
def books(draw: st.DrawFn, *, may_be_stale: bool = False, tiers_max: int = 4, positions_min: int = 0) -> Book:
    """Any account, solvent or not."""
    held = draw(st.lists(st.sampled_from(SYMBOLS), unique=True, min_size=positions_min))
    account = Account(1, draw(units(-(10**15), 10**18)), {symbol: draw(positions(symbol)) for symbol in held})
    return Book(account, draw(markets(may_be_stale=may_be_stale, tiers_max=tiers_max)))


@st.composite
def solvent_books(draw: st.DrawFn, *, tiers_max: int = 4, positions_max: int = len(SYMBOLS)) -> Book:
    """An account with positions whose equity covers its maintenance margin, often only just."""
    held = draw(st.lists(st.sampled_from(SYMBOLS), unique=True, min_size=1, max_size=positions_max))
    account = Account(1, Decimal(0), {symbol: draw(positions(symbol)) for symbol in held})
    market = draw(markets(tiers_max=tiers_max))
    return Book(_with_slack(account, market, draw(st.just(Decimal(0)) | magnitudes(10))), market)


@st.composite
def failing_books(draw: st.DrawFn, *, may_be_stale: bool = False) -> Book:
    """An account whose equity is below its maintenance margin, at the marks: from just so to bankrupt."""
    held = draw(st.lists(st.sampled_from(SYMBOLS), unique=True, min_size=1))
    account = Account(1, Decimal(0), {symbol: draw(positions(symbol)) for symbol in held})
    market = draw(markets(may_be_stale=may_be_stale))
    thousandths = draw(st.integers(1, 1500))
    return Book(_failing(account, market, thousandths), market)


@exact
def _failing(account: Account, market: Market, thousandths: int) -> Account:
    """Return the account with so many thousandths of its maintenance margin missing."""
    risk = assess(account, market)
    missing = risk.maintenance_margin * thousandths / 1000
    return account.with_balance_change(round_down(risk.maintenance_margin - missing - risk.equity))


@exact
def _with_slack(account: Account, market: Market, slack: Decimal) -> Account:
    risk = assess(account, market)
    return account.with_balance_change(round_up(risk.maintenance_margin - risk.equity) + slack)


def at_prices(market: Market, moved: Mapping[str, Decimal]) -> Market:
    """The same market with other fresh mark prices."""
    marks = {**market.marks, **{symbol: Mark(price, NOW_US) for symbol, price in moved.items()}}
    waiting = {symbol: price for symbol, price in market.waiting.items() if symbol not in moved}
    return replace(market, marks=marks, waiting=waiting)
