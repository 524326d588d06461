"""GET /positions/{account_id}."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ConfigDict

from margin.http.wire import Answer, DecimalText

if TYPE_CHECKING:
    from margin.services.margin import AccountMargin


class PositionAnswer(Answer):
    """One open position at its mark price.

    `pending_funding` is what it is still to receive (above 0) or to pay: it counts in equity already.
    `liquidation_price` is the last price at which the account is not liquidated, all other symbols at their marks; null
    when no price above 0 liquidates it.
    """

    symbol: str
    quantity: DecimalText
    entry_price: DecimalText
    mark_price: DecimalText
    notional: DecimalText
    unrealised_pnl: DecimalText
    pending_funding: DecimalText
    maintenance_margin: DecimalText
    liquidation_price: DecimalText | None


class PositionsAnswer(Answer):
    """One account at mark prices.

    `liquidation_risk` says that it is to be liquidated now. A stale mark alone makes nobody so: such a position counts
    at its mark moved by the price band in the account's favour, and only positions whose mark is fresh can be closed.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "account_id": 3,
                    "balance": "15000",
                    "equity": "16000",
                    "initial_margin_required": "10200",
                    "maintenance_margin_required": "5100",
                    "margin_utilisation_pct": "31.88",
                    "withdrawable": "5800",
                    "liquidation_risk": False,
                    "positions": [
                        {
                            "symbol": "BTC-PERP",
                            "quantity": "1",
                            "entry_price": "50000",
                            "mark_price": "51000",
                            "notional": "51000",
                            "unrealised_pnl": "1000",
                            "pending_funding": "0",
                            "maintenance_margin": "5100",
                            "liquidation_price": "38888.88888889",
                        }
                    ],
                }
            ]
        }
    )

    account_id: int
    balance: DecimalText
    equity: DecimalText
    initial_margin_required: DecimalText
    maintenance_margin_required: DecimalText
    margin_utilisation_pct: DecimalText | None
    withdrawable: DecimalText
    liquidation_risk: bool
    positions: list[PositionAnswer]

    @classmethod
    def of(cls, margin: AccountMargin) -> PositionsAnswer:
        """Answer one account."""
        account, risk = margin.account, margin.risk
        return cls(
            account_id=account.account_id,
            balance=account.balance,
            equity=risk.equity,
            initial_margin_required=risk.initial_margin,
            maintenance_margin_required=risk.maintenance_margin,
            margin_utilisation_pct=risk.utilisation_pct,
            withdrawable=margin.withdrawable,
            liquidation_risk=margin.liquidation_risk,
            positions=[PositionAnswer.model_validate(position, from_attributes=True) for position in margin.positions],
        )
