"""Prices to replay: CSV files of candles, or a path made of a seed."""

from __future__ import annotations

import csv
import io
import random
import re
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Final

from margin.domain.decimals import plain, require_amount

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Candle", "PriceSeries", "PricesError", "made_series", "read_all", "read_series"]

COLUMNS: Final = ("time", "open", "high", "low", "close")
DEFAULT_SYMBOL: Final = "BTC-PERP"
MADE_ROWS: Final = 240

_SYMBOL = re.compile(r"[A-Z0-9][A-Z0-9._-]{0,31}")
_NUMBER = re.compile(r"(0|[1-9][0-9]*)(\.[0-9]+)?")
_FIRST_WORD = re.compile(r"[A-Za-z0-9]{1,16}")

_MADE_FROM = datetime(2024, 1, 1, tzinfo=UTC)
_MADE_OPEN_CENTS = 4_000_000
_CALM_BP = 90
_CRASH_ROWS = 6
_CRASH_BP = (600, 1_400)
_WICK_BP = 60
_BP = 10_000


class PricesError(Exception):
    """Prices that cannot be replayed; the message names the file, and the line where there is one."""


@dataclass(frozen=True, slots=True)
class Candle:
    """One row: its time as the file has it, and four prices, each with the very digits of the file."""

    time: str
    open: str
    high: str
    low: str
    close: str

    def legs(self) -> tuple[tuple[str, str], ...]:
        """Name the four prices in an order that is plausible.

        A candle does not say whether its high or its low came first. A row that ends above its open is taken to have
        fallen first, and any other to have risen first.
        """
        low, high = ("low", self.low), ("high", self.high)
        inner = (low, high) if Decimal(self.close) >= Decimal(self.open) else (high, low)
        return (("open", self.open), *inner, ("close", self.close))


@dataclass(frozen=True, slots=True)
class PriceSeries:
    """Candles of one symbol and where they come from."""

    symbol: str
    candles: tuple[Candle, ...]
    source: str


def read_all(arguments: Sequence[str]) -> list[PriceSeries]:
    """Read several files that go together: one symbol each, the same times row by row.

    Parameters
    ----------
    arguments : sequence of str
        Each a FILE, whose name begins with what becomes the symbol (``btc-usd.csv``: BTC-PERP), or SYMBOL=FILE, or
        several of them with spaces between, as shells quote them.

    Raises
    ------
    PricesError
    """
    every = [read_series(file) for argument in arguments for file in _files(argument)]
    first = every[0]
    for position, series in enumerate(every[1:], start=1):
        if series.symbol in {earlier.symbol for earlier in every[:position]}:
            raise PricesError(
                f"{series.source}: another file has {series.symbol} already; write SYMBOL={series.source}"
            )
        for row, (candle, other) in enumerate(zip(series.candles, first.candles, strict=False), start=2):
            if candle.time != other.time:
                raise PricesError(
                    f"{series.source}, row {row}: time is {candle.time}, but {other.time} in {first.source}"
                )
        if len(series.candles) != len(first.candles):
            raise PricesError(
                f"{series.source}: {len(series.candles)} rows, but {len(first.candles)} in {first.source}; "
                "files that are replayed together have the same times"
            )
    return every


def read_series(argument: str) -> PriceSeries:
    """Read one CSV file; columns that are not asked for are ignored.

    Raises
    ------
    PricesError
        The file cannot be read, lacks a column or rows, or holds something that is not a price.
    """
    symbol, name = _symbol_and_file(argument)
    try:
        text = Path(name).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PricesError(f"{name}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise PricesError(f"{name}: is not UTF-8 text") from error
    candles = tuple(_candles(name, text))
    if not candles:
        raise PricesError(f"{name}: holds no prices; it needs rows of {', '.join(COLUMNS)}")
    return PriceSeries(symbol, candles, name)


def made_series(seed: int, rows: int = MADE_ROWS) -> PriceSeries:
    """Make hourly prices: a random walk with a crash at three fifths of the way, the same for the same seed and length.

    Raises
    ------
    ValueError
        When there are no rows.
    """
    if rows < 1:
        raise ValueError("a path has one row at least")
    # Whole cents and basis points: no float, so the path is the same on every machine.
    chance = random.Random(seed)  # noqa: S311 - a replayable path, no secret
    crash = range(rows * 3 // 5, rows * 3 // 5 + _CRASH_ROWS)
    candles = []
    cents = _MADE_OPEN_CENTS
    for row in range(rows):
        move = -chance.randint(*_CRASH_BP) if row in crash else chance.randint(-_CALM_BP, _CALM_BP)
        close = max(1, cents * (_BP + move) // _BP)
        high = max(cents, close) * (_BP + chance.randint(0, _WICK_BP)) // _BP
        low = max(1, min(cents, close) * (_BP - chance.randint(0, _WICK_BP)) // _BP)
        time = (_MADE_FROM + timedelta(hours=row)).strftime("%Y-%m-%dT%H:%M:%SZ")
        candles.append(Candle(time, *(_from_cents(price) for price in (cents, high, low, close))))
        cents = close
    return PriceSeries(DEFAULT_SYMBOL, tuple(candles), f"made of seed {seed}: a random walk with a crash")


def _files(argument: str) -> list[str]:
    """Take an argument apart, unless it is one file with spaces in its name."""
    symbol, _, file = argument.partition("=")
    if Path(argument).exists() or (_SYMBOL.fullmatch(symbol) and Path(file).exists()):
        return [argument]
    try:
        return shlex.split(argument) or [argument]
    except ValueError as error:
        raise PricesError(f"{argument}: {error}") from error


def _from_cents(cents: int) -> str:
    return plain(Decimal(cents).scaleb(-2))


def _symbol_and_file(argument: str) -> tuple[str, str]:
    before, equals, after = argument.partition("=")
    if equals and not Path(argument).exists():
        if not _SYMBOL.fullmatch(before):
            raise PricesError(
                f"{argument}: {before or 'nothing'} before = is no symbol; write for example ETH-PERP=FILE"
            )
        return before, after
    word = _FIRST_WORD.match(Path(argument).name)
    return (f"{word[0].upper()}-PERP" if word else DEFAULT_SYMBOL), argument


def _candles(name: str, text: str) -> Iterator[Candle]:
    lines = _lines(name, text)
    _, columns = next(lines, ("", []))
    header = [column.strip().lower() for column in columns]
    if not any(header):
        raise PricesError(f"{name}, line 1: is empty; it needs the columns {', '.join(COLUMNS)}")
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise PricesError(f"{name}, line 1: has no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
    places = [header.index(column) for column in COLUMNS]
    for where, fields in lines:
        if not any(field.strip() for field in fields):
            continue
        if len(fields) <= max(places):
            raise PricesError(f"{where}: has {len(fields)} fields, but the header {len(header)}")
        time, *prices = (fields[place].strip() for place in places)
        if not time:
            raise PricesError(f"{where}: time is empty")
        for column, price in zip(COLUMNS[1:], prices, strict=True):
            _require_price(f"{where}: {column}", price)
        yield Candle(time, *prices)


def _lines(name: str, text: str) -> Iterator[tuple[str, list[str]]]:
    """Split CSV into fields, each line with the words that name it in a message."""
    reader = csv.reader(io.StringIO(text), strict=True)
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise PricesError(f"{name}, line {reader.line_num}: is not CSV ({error})") from error
        yield f"{name}, line {reader.line_num}", fields


def _require_price(where: str, price: str) -> None:
    if not _NUMBER.fullmatch(price):
        raise PricesError(f"{where} is not a price: {price[:40]!r}")
    try:
        require_amount("a price", Decimal(price))
    except ValueError as error:
        raise PricesError(f"{where}: {error}, not {price[:40]}") from error
