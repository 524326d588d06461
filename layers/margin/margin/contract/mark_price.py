"""POST /mark-price, POST /mark-prices."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from margin.http.wire import Answer, DecimalText, ObservedAt, Price, Request, Symbol

SYMBOLS_PER_CALL_MAX = 100
"""A call is one step in Redis, which does nothing else meanwhile: a hundred prices take it a millisecond.

Ten calls are enough for all the symbols that there can be.
"""


class MarkPriceRequest(Request):
    """The new mark price of a symbol."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"symbol": "BTC-PERP", "price": 51000},
                {"symbol": "BTC-PERP", "price": 51000, "timestamp": "2026-01-31T12:00:00Z"},
            ]
        }
    )

    symbol: Symbol
    price: Price
    # What is given must be a time; null is none, and a sender that has lost its clock should hear of it.
    timestamp: ObservedAt = None


def _each_symbol_once(prices: list[MarkPriceRequest]) -> list[MarkPriceRequest]:
    if len({price.symbol for price in prices}) < len(prices):
        raise PydanticCustomError("symbol_twice", "must name each symbol once")
    return prices


class MarkPricesRequest(Request):
    """New mark prices, of one moment: they are stored together or not at all."""

    prices: Annotated[
        list[MarkPriceRequest],
        AfterValidator(_each_symbol_once),
        Field(min_length=1, max_length=SYMBOLS_PER_CALL_MAX, description="Each symbol at most once."),
    ]


class MarkPriceAnswer(Answer):
    """The price in force; `at_risk` is how many accounts it brought to evaluation."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "success": True,
                    "message": "Mark price updated",
                    "symbol": "BTC-PERP",
                    "price": "51000",
                    "at_risk": 0,
                }
            ]
        }
    )

    success: bool
    message: str
    symbol: str
    price: DecimalText
    at_risk: int


class SymbolAtRisk(Answer):
    """A price in force, and how many accounts it crossed."""

    symbol: str
    price: DecimalText
    at_risk: int


class MarkPricesAnswer(Answer):
    """The prices in force, and how many accounts they brought to evaluation.

    The count of a symbol is exact. The total counts an account that several prices cross once, as long as no more than
    `CROSSED_QUEUED_MAX` of a partition are crossed; those beyond that are counted for each price that crosses them, so
    that the total says how many accounts there are at most.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "success": True,
                    "message": "Mark prices updated",
                    "prices": [
                        {"symbol": "BTC-PERP", "price": "51000", "at_risk": 0},
                        {"symbol": "ETH-PERP", "price": "2500.5", "at_risk": 0},
                    ],
                    "at_risk": 0,
                }
            ]
        }
    )

    success: bool
    message: str
    prices: list[SymbolAtRisk]
    at_risk: int
