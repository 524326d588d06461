"""Prices: CSV files are read digit by digit or refused in one line; made paths depend on the seed alone."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest

from margin_local.demo.prices import Candle, PricesError, made_series, read_all, read_series

HEADER = "time,open,high,low,close\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def test_prices_keep_the_digits_of_the_file(here: Path) -> None:
    series = read_series(write("btc.csv", HEADER + "t1,100.10,101,99.00000001,100\n"))
    assert series.candles == (Candle("t1", "100.10", "101", "99.00000001", "100"),)


def test_columns_are_found_by_name_and_others_ignored(here: Path) -> None:
    text = "\ufeffClose, volume ,Low,HIGH,open,Time\n4,9,1,5,2,noon\n\n , \n"
    assert read_series(write("btc.csv", text)).candles == (Candle("noon", "2", "5", "1", "4"),)


def test_a_row_that_rises_is_taken_to_have_fallen_first() -> None:
    assert [name for name, _ in Candle("t", "2", "5", "1", "4").legs()] == ["open", "low", "high", "close"]
    assert [name for name, _ in Candle("t", "2", "5", "1", "2.0").legs()] == ["open", "low", "high", "close"]
    assert [name for name, _ in Candle("t", "4", "5", "1", "2").legs()] == ["open", "high", "low", "close"]


@pytest.mark.parametrize(
    ("argument", "symbol"),
    [
        ("btc-usd-2020-hourly.csv", "BTC-PERP"),
        ("ETH_2020.csv", "ETH-PERP"),
        ("-.csv", "BTC-PERP"),
        ("SOL-PERP=btc.csv", "SOL-PERP"),
    ],
)
def test_the_symbol_is_given_or_comes_from_the_name(here: Path, argument: str, symbol: str) -> None:
    write(argument.rpartition("=")[2], HEADER + "t,1,1,1,1\n")
    assert read_series(argument).symbol == symbol


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: is empty; it needs the columns time, open, high, low, close"),
        (HEADER, "holds no prices"),
        ("time,open,high\nt,1,1\n", "line 1: has no column low, close;"),
        (HEADER + "t,1,1,1,1\nt,1,1,x,1\n", "line 3: low is not a price: 'x'"),
        (HEADER + "t,1,1,-1,1\n", "line 2: low is not a price: '-1'"),
        (HEADER + "t,1,1,1e3,1\n", "line 2: low is not a price: '1e3'"),
        (HEADER + "t,1,1,NaN,1\n", "line 2: low is not a price: 'NaN'"),
        (HEADER + "t,1,1,,1\n", "line 2: low is not a price: ''"),
        (HEADER + "t,1,1,0,1\n", "line 2: low: a price must be above 0"),
        (HEADER + "t,1,1,1,1000000000000\n", "line 2: close: a price must be above 0, below 1e12"),
        (HEADER + "t,1,1,1,0.123456789\n", "line 2: close: a price must be .* at most 8 decimals"),
        (HEADER + "t,1,1,1\n", "line 2: has 4 fields, but the header 5"),
        (HEADER + ",1,1,1,1\n", "line 2: time is empty"),
        (HEADER + 't,1,1,1,"1\n', "line 2: is not CSV"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_line(here: Path, text: str, message: str) -> None:
    with pytest.raises(PricesError, match=f"^bad.csv(, |: ){message}"):
        read_series(write("bad.csv", text))


def test_a_file_that_cannot_be_read_is_named(here: Path) -> None:
    with pytest.raises(PricesError, match=r"^none.csv: cannot be read \(No such file or directory\)$"):
        read_series("none.csv")
    Path("raw.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(PricesError, match=r"^raw.csv: is not UTF-8 text$"):
        read_series("raw.csv")
    with pytest.raises(PricesError, match="btc before = is no symbol"):
        read_series("btc=none.csv")


def test_files_replayed_together_have_the_same_times_and_other_symbols(here: Path) -> None:
    rows = HEADER + "t1,1,1,1,1\nt2,1,1,1,1\n"
    write("btc.csv", rows)
    assert [one.symbol for one in read_all(["btc.csv", write("eth.csv", rows)])] == ["BTC-PERP", "ETH-PERP"]
    with pytest.raises(PricesError, match=r"another file has BTC-PERP already; write SYMBOL=btc-2.csv"):
        read_all(["btc.csv", write("btc-2.csv", rows)])
    with pytest.raises(PricesError, match=r"short.csv: 1 rows, but 2 in btc.csv"):
        read_all(["btc.csv", write("short.csv", HEADER + "t1,1,1,1,1\n")])
    with pytest.raises(PricesError, match=r"late.csv, row 3: time is t3, but t2 in btc.csv"):
        read_all(["btc.csv", write("late.csv", HEADER + "t1,1,1,1,1\nt3,1,1,1,1\n")])


def test_several_files_in_one_argument_are_taken_apart_unless_it_is_the_name_of_one(here: Path) -> None:
    rows = HEADER + "t1,1,1,1,1\n"
    for name in ("btc.csv", "eth.csv", "my sol.csv"):
        write(name, rows)
    assert [one.symbol for one in read_all(["btc.csv eth.csv"])] == ["BTC-PERP", "ETH-PERP"]
    assert [one.symbol for one in read_all(["btc.csv XRP-PERP=eth.csv"])] == ["BTC-PERP", "XRP-PERP"]
    assert [one.source for one in read_all(["my sol.csv"])] == ["my sol.csv"]
    assert [one.symbol for one in read_all(["btc.csv 'SOL-PERP=my sol.csv'"])] == ["BTC-PERP", "SOL-PERP"]
    with pytest.raises(PricesError, match=r"none\.csv: cannot be read"):
        read_all(["btc.csv none.csv"])
    with pytest.raises(PricesError, match="No closing quotation"):
        read_all(["btc.csv 'none.csv"])


def test_a_made_path_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    assert made_series(7, 60) == made_series(7, 60)
    assert made_series(7, 60).candles != made_series(8, 60).candles


@pytest.mark.parametrize("seed", range(5))
def test_a_made_path_is_one_of_candles_and_has_a_crash(seed: int) -> None:
    candles = made_series(seed, 60).candles
    closes = [Decimal(candle.close) for candle in candles]
    assert len(candles) == 60
    assert min(closes[36:]) < closes[35] * Decimal("0.75")
    for earlier, candle in pairwise(candles):
        assert candle.open == earlier.close
        assert Decimal(candle.low) <= min(Decimal(candle.open), Decimal(candle.close))
        assert Decimal(candle.high) >= max(Decimal(candle.open), Decimal(candle.close))
