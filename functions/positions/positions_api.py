"""GET /positions/{account_id}: positions, P&L and margin of one account."""

from __future__ import annotations

from margin import __version__
from margin.contract.positions import PositionsAnswer
from margin.errors import NoMarkPriceError, RateLimitedError, UnknownAccountError
from margin.http import STORE_PROBLEMS, AccountIdPath, CallerOf, Router, Scope, create_app, of_account, problems
from margin.lambda_entry import http_handler
from margin.runtime import engine

router = Router(tags=["positions"])


@router.get(
    "/positions/{account_id}",
    summary="Positions, P&L and margin of an account",
    responses=problems(NoMarkPriceError, UnknownAccountError, RateLimitedError, *STORE_PROBLEMS),
)
@of_account(Scope.POSITIONS_READ)
async def get_positions(account_id: AccountIdPath, caller: CallerOf) -> PositionsAnswer:
    """Everything is of one moment and exact: equity is the balance and the unrealised P&L of every position."""
    return PositionsAnswer.of(await engine().margin.account_margin(account_id, caller))


app = create_app(router, title="Margin: positions", version=__version__, description=__doc__ or "")
handler = http_handler(app)
