"""POST /mark-price, POST /mark-prices, GET /mark-prices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from margin.domain.mark_jump import move_pct, set_aside_message
from margin.domain.market import RESTORED_STAMP_US
from margin.http.wire import Answer, DecimalText, ObservedAt, Price, Request, Source, Symbol, TimestampText, timestamp

if TYPE_CHECKING:
    from margin.services.mark_list import ListedMark, MarkList
    from margin.services.marks import MarkOutcome

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
                {"symbol": "BTC-PERP", "price": 51000, "timestamp": "2026-01-31T12:00:00Z", "source": "index-1"},
            ]
        }
    )

    symbol: Symbol
    price: Price
    # What is given must be a time; null is none, and a sender that has lost its clock should hear of it.
    timestamp: ObservedAt = None
    source: Source = None


def _each_symbol_once(prices: list[MarkPriceRequest]) -> list[MarkPriceRequest]:
    if len({price.symbol for price in prices}) < len(prices):
        raise PydanticCustomError("symbol_twice", "must name each symbol once")
    return prices


class MarkPricesRequest(Request):
    """New mark prices, of one moment: they are stored together, or not at all where one is refused."""

    prices: Annotated[
        list[MarkPriceRequest],
        # The bound first: what is too long is not looked at item by item.
        Field(min_length=1, max_length=SYMBOLS_PER_CALL_MAX, description="Each symbol at most once."),
        AfterValidator(_each_symbol_once),
    ]


class MarkPriceAnswer(Answer):
    """The price in force; `at_risk` is how many accounts it brought to evaluation.

    `set_aside` is there with 202 alone: the price that was sent, which is not in force because it moves too far.
    """

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
    set_aside: DecimalText | None = None
    at_risk: int

    @classmethod
    def of(cls, request: MarkPriceRequest, marked: MarkOutcome) -> MarkPriceAnswer:
        """Answer what became of the one price of a request."""
        aside = marked.set_aside.get(request.symbol)
        if aside is None:
            message, in_force = "Mark price updated", {"price": request.price}
        else:
            message = set_aside_message(request.price, aside.mark_price, aside.jump_max)
            in_force = {"price": aside.mark_price, "set_aside": request.price}
        return cls(success=True, message=message, symbol=request.symbol, **in_force, at_risk=marked.at_risk)


class SymbolAtRisk(Answer):
    """A price in force, and how many accounts it crossed.

    `set_aside` and `message` are there only of a price that was sent and is not in force because it moves too far.
    """

    symbol: str
    price: DecimalText
    set_aside: DecimalText | None = None
    message: str | None = None
    at_risk: int

    @classmethod
    def of(cls, price: MarkPriceRequest, marked: MarkOutcome) -> SymbolAtRisk:
        """Answer what became of one price of several."""
        aside = marked.set_aside.get(price.symbol)
        at_risk = marked.at_risk_by_symbol[price.symbol]
        if aside is None:
            return cls(symbol=price.symbol, price=price.price, at_risk=at_risk)
        message = set_aside_message(price.price, aside.mark_price, aside.jump_max)
        in_force = aside.mark_price
        return cls(symbol=price.symbol, price=in_force, set_aside=price.price, message=message, at_risk=at_risk)


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

    @classmethod
    def of(cls, request: MarkPricesRequest, marked: MarkOutcome) -> MarkPricesAnswer:
        """Answer what became of the prices of a request."""
        message = "Mark prices updated"
        if marked.set_aside:
            message += f", but those set aside: {len(marked.set_aside)}"
        prices = [SymbolAtRisk.of(price, marked) for price in request.prices]
        return cls(success=True, message=message, prices=prices, at_risk=marked.at_risk)


class PriceSetAside(Answer):
    """A price that waits to be confirmed; `move_pct` is how far it is from the mark, in percent of it."""

    price: DecimalText
    timestamp: TimestampText
    source: str | None
    move_pct: DecimalText


class MarkPrice(Answer):
    """The mark price of a symbol.

    `timestamp` is when it was observed, `stored_at` when it came, `age_s` counts from the earlier of both: that of a
    price which was lost and put back from history is null, and it is stale whatever `max_age_s` allows. So is one while
    another price, `set_aside`, waits to be confirmed.
    """

    symbol: str
    price: DecimalText
    timestamp: TimestampText | None
    stored_at: TimestampText | None
    age_s: DecimalText | None
    source: str | None
    stale: bool
    max_age_s: int | None
    set_aside: PriceSetAside | None


class MarkPriceListAnswer(Answer):
    """Mark prices by symbol, all of one moment."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "as_of": "2026-01-31T12:00:01.000000Z",
                    "mark_prices": [
                        {
                            "symbol": "BTC-PERP",
                            "price": "51000",
                            "timestamp": "2026-01-31T12:00:00.000000Z",
                            "stored_at": "2026-01-31T12:00:00.250000Z",
                            "age_s": "1",
                            "source": "index-1",
                            "stale": False,
                            "max_age_s": 60,
                            "set_aside": {
                                "price": "5100",
                                "timestamp": "2026-01-31T12:00:00.500000Z",
                                "source": "index-1",
                                "move_pct": "-90",
                            },
                        }
                    ],
                }
            ]
        }
    )

    as_of: TimestampText
    mark_prices: list[MarkPrice]

    @classmethod
    def of(cls, listed: MarkList) -> MarkPriceListAnswer:
        """Answer a list."""
        return cls(as_of=timestamp(listed.as_of_us), mark_prices=[_mark_price(quote) for quote in listed.marks])


def _mark_price(listed: ListedMark) -> MarkPrice:
    mark, waiting = listed.mark, listed.waiting
    is_restored = mark.stamp_us == RESTORED_STAMP_US
    return MarkPrice(
        symbol=listed.symbol,
        price=mark.price,
        timestamp=None if mark.observed_us is None else timestamp(mark.observed_us),
        stored_at=None if is_restored else timestamp(mark.stamp_us),
        age_s=listed.age_s,
        source=mark.source,
        stale=listed.is_stale,
        max_age_s=listed.age_max_s,
        set_aside=None
        if waiting is None
        else PriceSetAside(
            price=waiting.price,
            timestamp=timestamp(waiting.observed_us),
            source=waiting.source,
            move_pct=move_pct(waiting.price, mark.price),
        ),
    )
