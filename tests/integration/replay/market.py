"""The crash of March 2020 for three perpetuals: Bitcoin as it was, and two that are made of it by a seed.

ETH-PERP makes each return of Bitcoin 1.3 times, with noise of its own of up to 0.4 %. SOL-PERP goes half as far, the
other way and one price later, with noise of up to 1 %.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from margin_local.demo.prices import read_series

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BTC, ETH, SOL = "BTC-PERP", "ETH-PERP", "SOL-PERP"
SYMBOLS = (BTC, ETH, SOL)
PRICES = Path(__file__).parents[2] / "data/btc-usd-2020-03.csv"

_CENTS = {ETH: 20_000, SOL: 5_000}
_BETA = {ETH: Fraction(13, 10), SOL: Fraction(-1, 2)}
_LAG = {ETH: 0, SOL: 1}
_NOISE_BP = {ETH: 40, SOL: 100}
_BP = 10_000


@dataclass(frozen=True, slots=True)
class Moment:
    """Prices that come into force together, and which row and column of the file they are."""

    label: str
    prices: Mapping[str, Decimal]


def moments(seed: int, *, since: str = "", until: str = "9") -> list[Moment]:
    """Make all moments of the rows whose time is in between, four for each row.

    Parameters
    ----------
    seed : int
        Of the noise; the same for the same rows, whichever of them are asked for.
    since, until : str
        Beginnings of times as in the file; the latter is left out.
    """
    return [moment for moment in _all(seed) if since <= moment.label < until]


def _all(seed: int) -> Iterator[Moment]:
    chance = random.Random(seed)  # noqa: S311 - a replayable path, no secret
    cents = dict(_CENTS)
    returns: list[Fraction] = []
    before: Fraction | None = None
    for candle in read_series(f"{BTC}={PRICES}").candles:
        for name, text in candle.legs():
            price = Fraction(text)
            returns.append(price / before - 1 if before else Fraction(0))
            before = price
            for symbol, beta in _BETA.items():
                lagged = returns[-1 - _LAG[symbol]] if len(returns) > _LAG[symbol] else Fraction(0)
                noise = Fraction(chance.randint(-_NOISE_BP[symbol], _NOISE_BP[symbol]), _BP)
                cents[symbol] = max(1, round(cents[symbol] * (1 + beta * lagged + noise)))
            made = {symbol: Decimal(count).scaleb(-2) for symbol, count in cents.items()}
            yield Moment(f"{candle.time} {name}", {BTC: Decimal(text), **made})
