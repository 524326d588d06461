"""GET /risk/ladder, POST /risk/shocks."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Query
from pydantic import AfterValidator, ConfigDict, Field, PlainValidator, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

from margin.domain.decimals import DECIMALS, round_down
from margin.domain.stress import MOVE_MAX, MOVE_MIN
from margin.http.wire import (
    MONEY_TEXT_LENGTH_MAX,
    SYMBOL_PATTERN,
    Answer,
    DecimalText,
    Request,
    Symbol,
    TimestampText,
    timestamp,
)
from margin.services.stress import Shock

if TYPE_CHECKING:
    from margin.services.stress import RiskLadder, ShockReport, StressReport

SHOCKS_MAX = 10
MOVES_MAX = 100
"""As many symbols as one call of /mark-prices can set."""

NAME_LENGTH_MAX = 64
NAME_PATTERN = r"^[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$"
MOVE_PATTERN = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$"

_MOVE = re.compile(MOVE_PATTERN[1:-1])


def _move(value: Any) -> Decimal:
    if isinstance(value, str) and len(value) <= MONEY_TEXT_LENGTH_MAX and _MOVE.fullmatch(value):
        value = Decimal(value)
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise PydanticCustomError("move_type", "must be a number, or a string that holds a decimal number")
    move = Decimal(value)
    if not (move.is_finite() and MOVE_MIN <= move <= MOVE_MAX):
        raise PydanticCustomError("move_range", f"must be a share of the mark price from {MOVE_MIN} to {MOVE_MAX}")
    if move != round_down(move):
        raise PydanticCustomError("move_fine", f"must have at most {DECIMALS} decimals")
    return move


def _each_symbol_once(moves: list[SymbolMove]) -> list[SymbolMove]:
    if len({move.symbol for move in moves}) < len(moves):
        raise PydanticCustomError("symbol_twice", "must name each symbol once")
    return moves


def _each_name_once(shocks: list[ShockRequest]) -> list[ShockRequest]:
    if len({shock.name for shock in shocks}) < len(shocks):
        raise PydanticCustomError("name_twice", "must have names of their own")
    return shocks


LadderSymbol = Annotated[
    str,
    Query(pattern=SYMBOL_PATTERN, max_length=32, description="The symbol whose price moves.", examples=["BTC-PERP"]),
]
Move = Annotated[
    Decimal,
    PlainValidator(_move),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": float(MOVE_MIN), "maximum": int(MOVE_MAX)},
                {"type": "string", "pattern": MOVE_PATTERN, "maxLength": MONEY_TEXT_LENGTH_MAX},
            ],
            "description": (
                f"The share of its mark by which the price moves: -0.3 is a fall by 30 %. From {MOVE_MIN} to "
                f"{MOVE_MAX}, at most {DECIMALS} decimals, as a number or as a string."
            ),
            "examples": ["-0.3", "0.15"],
        }
    ),
]


class SymbolMove(Request):
    """How far the price of one symbol moves."""

    symbol: Symbol
    move: Move


class ShockRequest(Request):
    """Prices that move together, from the marks in force; those that it does not name stay."""

    name: Annotated[
        str,
        StringConstraints(pattern=NAME_PATTERN, max_length=NAME_LENGTH_MAX),
        Field(description="Names the shock in the answer.", examples=["crash"]),
    ]
    moves: Annotated[
        list[SymbolMove],
        # The bound first: what is too long is not looked at item by item.
        Field(min_length=1, max_length=MOVES_MAX, description="Each symbol at most once."),
        AfterValidator(_each_symbol_once),
    ]


class ShocksRequest(Request):
    """Shocks, each taken by itself."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "shocks": [
                        {
                            "name": "crash",
                            "moves": [
                                {"symbol": "BTC-PERP", "move": "-0.30"},
                                {"symbol": "ETH-PERP", "move": "-0.40"},
                            ],
                        }
                    ]
                }
            ]
        }
    )

    shocks: Annotated[
        list[ShockRequest],
        # The bound first: what is too long is not looked at item by item.
        Field(min_length=1, max_length=SHOCKS_MAX, description="Each under a name of its own."),
        AfterValidator(_each_name_once),
    ]

    def of_the_service(self) -> list[Shock]:
        """Return the shocks that the service knows."""
        return [Shock(shock.name, {move.symbol: move.move for move in shock.moves}) for shock in self.shocks]


class Losses(Answer):
    """What liquidations at moved prices come to, in quote currency.

    `accounts_liquidated` are liquidated in part or whole, those included that are to be liquidated without any move.
    `notional_closed` is what is closed of them at the moved prices, `shortfall` what they cannot pay, `fees` what the
    insurance fund receives of them. It suffices when its balance and the fees are not below the shortfall;
    `fund_missing` is what it lacks.
    """

    accounts_liquidated: int
    notional_closed: DecimalText
    shortfall: DecimalText
    fees: DecimalText
    fund_suffices: bool
    fund_missing: DecimalText


class _AtPrice(Answer):
    move: DecimalText
    price: DecimalText


class LadderStep(Losses, _AtPrice):
    """The price after a move, and what it comes to."""


class LadderAnswer(Answer):
    """One symbol at each of a fixed set of moves, all others at their marks.

    `as_of` is when the marks were read that prices move from. Accounts are read right after that, page by page: who
    trades meanwhile counts as the page found it. `accounts` is how many there are.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "as_of": "2026-01-31T12:00:00.000000Z",
                    "symbol": "BTC-PERP",
                    "mark_price": "50000",
                    "accounts": 3,
                    "fund_balance": "250",
                    "steps": [
                        {
                            "move": "-0.5",
                            "price": "25000",
                            "accounts_liquidated": 1,
                            "notional_closed": "25000",
                            "shortfall": "10000",
                            "fees": "0",
                            "fund_suffices": False,
                            "fund_missing": "9750",
                        }
                    ],
                }
            ]
        }
    )

    as_of: TimestampText
    symbol: str
    mark_price: DecimalText
    accounts: int
    fund_balance: DecimalText
    steps: list[LadderStep]

    @classmethod
    def of(cls, ladder: RiskLadder) -> LadderAnswer:
        """Answer a ladder."""
        symbol = ladder.symbol
        return cls(
            symbol=symbol,
            mark_price=ladder.mark_price,
            steps=[
                LadderStep(move=step.shock.moves[symbol], price=step.prices[symbol], **_losses(step))
                for step in ladder.report.shocks
            ],
            **_head(ladder.report),
        )


class MovedPrice(Answer):
    """The price of a symbol after its move."""

    symbol: str
    move: DecimalText
    price: DecimalText


class _AtPrices(Answer):
    name: str
    prices: list[MovedPrice]


class ShockAnswer(Losses, _AtPrices):
    """A shock: the prices after it, and what it comes to."""


class ShocksAnswer(Answer):
    """Shocks in the order of the request; `as_of` and `accounts` as in /risk/ladder."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "as_of": "2026-01-31T12:00:00.000000Z",
                    "accounts": 3,
                    "fund_balance": "250",
                    "shocks": [
                        {
                            "name": "crash",
                            "prices": [
                                {"symbol": "BTC-PERP", "move": "-0.3", "price": "35000"},
                                {"symbol": "ETH-PERP", "move": "-0.4", "price": "1500"},
                            ],
                            "accounts_liquidated": 1,
                            "notional_closed": "35000",
                            "shortfall": "0",
                            "fees": "0",
                            "fund_suffices": True,
                            "fund_missing": "0",
                        }
                    ],
                }
            ]
        }
    )

    as_of: TimestampText
    accounts: int
    fund_balance: DecimalText
    shocks: list[ShockAnswer]

    @classmethod
    def of(cls, report: StressReport) -> ShocksAnswer:
        """Answer shocks."""
        shocks = [
            ShockAnswer(
                name=one.shock.name,
                prices=[
                    MovedPrice(symbol=symbol, move=move, price=one.prices[symbol])
                    for symbol, move in one.shock.moves.items()
                ],
                **_losses(one),
            )
            for one in report.shocks
        ]
        return cls(shocks=shocks, **_head(report))


def _head(report: StressReport) -> dict[str, Any]:
    return {
        "as_of": timestamp(report.as_of_us),
        "accounts": report.accounts,
        "fund_balance": report.fund_balance,
    }


def _losses(one: ShockReport) -> dict[str, Any]:
    return {
        "accounts_liquidated": one.outcome.accounts,
        "notional_closed": one.outcome.notional,
        "shortfall": one.outcome.shortfall,
        "fees": one.outcome.fees,
        "fund_suffices": one.fund_suffices,
        "fund_missing": one.fund_missing,
    }
