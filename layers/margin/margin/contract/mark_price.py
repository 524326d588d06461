"""POST /mark-price."""

from __future__ import annotations

from pydantic import ConfigDict

from margin.http.wire import Answer, DecimalText, Price, Request, Symbol


class MarkPriceRequest(Request):
    """The new mark price of a symbol."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"symbol": "BTC-PERP", "price": 51000}]})

    symbol: Symbol
    price: Price


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
