"""GET /positions/{account_id}: positions, P&L and margin of one account."""

from __future__ import annotations

from margin import __version__
from margin.errors import NoMarkPriceError, UnavailableError, UnknownAccountError
from margin.http import AccountIdPath, Answer, DecimalText, Router, create_app, problems
from margin.lambda_entry import http_handler
from margin.runtime import engine

router = Router(tags=["positions"])


class PositionAnswer(Answer):
    """One open position at its mark price."""

    symbol: str
    quantity: DecimalText
    entry_price: DecimalText
    mark_price: DecimalText
    notional: DecimalText
    unrealised_pnl: DecimalText
    maintenance_margin: DecimalText
    liquidation_price: DecimalText | None


class PositionsAnswer(Answer):
    """One account at mark prices."""

    account_id: int
    balance: DecimalText
    equity: DecimalText
    initial_margin_required: DecimalText
    maintenance_margin_required: DecimalText
    margin_utilisation_pct: DecimalText | None
    withdrawable: DecimalText
    liquidation_risk: bool
    positions: list[PositionAnswer]


@router.get(
    "/positions/{account_id}",
    summary="Positions, P&L and margin of an account",
    responses=problems(NoMarkPriceError, UnknownAccountError, UnavailableError),
)
async def get_positions(account_id: AccountIdPath) -> PositionsAnswer:
    """Everything is of one moment and exact: equity is the balance and the unrealised P&L of every position."""
    margin = await engine().margin.account_margin(account_id)
    account, risk = margin.account, margin.risk
    return PositionsAnswer(
        account_id=account.account_id,
        balance=account.balance,
        equity=risk.equity,
        initial_margin_required=risk.initial_margin,
        maintenance_margin_required=risk.maintenance_margin,
        margin_utilisation_pct=risk.utilisation_pct,
        withdrawable=risk.withdrawable(account.balance),
        liquidation_risk=risk.liquidatable,
        positions=[PositionAnswer.model_validate(position, from_attributes=True) for position in margin.positions],
    )


app = create_app(router, title="Margin: positions", version=__version__, description=__doc__ or "")
handler = http_handler(app)
