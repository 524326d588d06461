"""POST /trade/preview."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ConfigDict, Field

from margin.contract.trade import TradeFigures, TradePosition
from margin.domain.position import Side
from margin.http.wire import Answer, DecimalText

if TYPE_CHECKING:
    from collections.abc import Mapping

    from margin.errors import RefusedError
    from margin.services.preview import AccountState, Preview


class Refusal(Answer):
    """What `/trade` would answer instead of executing the trade."""

    status: int
    code: str
    title: str
    detail: str

    @classmethod
    def of(cls, error: RefusedError) -> Refusal:
        """Show an error as the problem that it would be answered as."""
        return cls(status=error.status, code=error.code, title=error.title, detail=error.detail)


class PreviewState(Answer):
    """The account at mark prices, its funding settled as the trade would settle it.

    `position` is that in the traded symbol, and `liquidation_price` its last price at which the account is not
    liquidated, all other symbols at their marks; null without a position, or when no price above 0 liquidates it.
    """

    balance: DecimalText
    equity: DecimalText
    initial_margin_required: DecimalText
    maintenance_margin_required: DecimalText
    margin_utilisation_pct: DecimalText | None
    withdrawable: DecimalText
    liquidation_price: DecimalText | None
    position: TradePosition | None

    @classmethod
    def of(cls, state: AccountState) -> PreviewState:
        """Answer one state."""
        risk, position = state.risk, state.position
        return cls(
            balance=state.balance,
            equity=risk.equity,
            initial_margin_required=risk.initial_margin,
            maintenance_margin_required=risk.maintenance_margin,
            margin_utilisation_pct=risk.utilisation_pct,
            withdrawable=risk.withdrawable(state.balance),
            liquidation_price=state.liquidation_price,
            position=None if position is None else TradePosition.model_validate(position, from_attributes=True),
        )


class LargestQuantity(Answer):
    """The largest quantity that would be executed at this price, by side: one lot more would be refused; 0 for none."""

    buy: DecimalText
    sell: DecimalText


class PreviewAnswer(Answer):
    """What a trade would come to at this moment; nothing was changed.

    `trade` is what `/trade` would answer, null when it would refuse. `before` is null where something has no mark
    price; `after` too, and where anything but margin refuses the trade.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "accepted": False,
                    "refusal": {
                        "status": 400,
                        "code": "INSUFFICIENT_MARGIN",
                        "title": "Insufficient margin",
                        "detail": "Insufficient equity. Required: 10200, Available: 5000",
                    },
                    "trade": None,
                    "before": {
                        "balance": "5000",
                        "equity": "5000",
                        "initial_margin_required": "0",
                        "maintenance_margin_required": "0",
                        "margin_utilisation_pct": "0",
                        "withdrawable": "5000",
                        "liquidation_price": None,
                        "position": None,
                    },
                    "after": {
                        "balance": "5000",
                        "equity": "6000",
                        "initial_margin_required": "10200",
                        "maintenance_margin_required": "5100",
                        "margin_utilisation_pct": "85",
                        "withdrawable": "0",
                        "liquidation_price": "50000",
                        "position": {"symbol": "BTC-PERP", "quantity": "1", "entry_price": "50000"},
                    },
                    "largest": {"buy": "0.49019607", "sell": "0.44642857"},
                }
            ]
        }
    )

    accepted: bool
    refusal: Refusal | None
    trade: TradeFigures | None = Field(description="What `/trade` would answer, without its id.")
    before: PreviewState | None
    after: PreviewState | None
    largest: LargestQuantity

    @classmethod
    def of(cls, preview: Preview) -> PreviewAnswer:
        """Answer a preview."""
        return cls(
            accepted=preview.refusal is None,
            refusal=None if preview.refusal is None else Refusal.of(preview.refusal),
            trade=None if preview.result is None else _figures(preview.result),
            before=None if preview.before is None else PreviewState.of(preview.before),
            after=None if preview.after is None else PreviewState.of(preview.after),
            largest=LargestQuantity(buy=preview.largest[Side.BUY], sell=preview.largest[Side.SELL]),
        )


def _figures(result: Mapping[str, object]) -> TradeFigures:
    return TradeFigures.model_validate({name: result[name] for name in result.keys() & TradeFigures.model_fields})
