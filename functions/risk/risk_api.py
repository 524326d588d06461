"""GET /risk/ladder and POST /risk/shocks: whom price moves would liquidate, and what the insurance fund lacks then."""

from __future__ import annotations

from margin import __version__
from margin.contract.risk import LadderAnswer, LadderSymbol, ShocksAnswer, ShocksRequest
from margin.errors import LimitExceededError, NoMarkPriceError
from margin.http import STORE_PROBLEMS, Router, Scope, create_app, of_all_accounts, problems
from margin.lambda_entry import http_handler
from margin.runtime import engine
from margin.time_budget import remaining_s

RESERVE_S = 2.0
"""What is left for a page of accounts that a store is slow to give, and for the answer."""

PROBLEMS = problems(NoMarkPriceError, LimitExceededError, *STORE_PROBLEMS)

router = Router(tags=["risk"])


@router.get("/risk/ladder", summary="What moves of one price would liquidate", responses=PROBLEMS)
@of_all_accounts(Scope.RISK_READ)
async def get_risk_ladder(symbol: LadderSymbol) -> LadderAnswer:
    """Move the price of a symbol by 0, 1, 2.5, 5, 7.5, 10, 15, 20, 25, 30, 40 and 50 % down and up.

    At each price every account is liquidated exactly as the engine would do it then, pause switches apart; that closes
    at the moved marks and moves them no further. Nothing is changed.
    """
    return LadderAnswer.of(await engine().stress.ladder(symbol, keep_going=_has_time))


@router.post("/risk/shocks", summary="What joint moves of several prices would liquidate", responses=PROBLEMS)
@of_all_accounts(Scope.RISK_READ)
async def run_risk_shocks(request: ShocksRequest) -> ShocksAnswer:
    """Move prices together, shock by shock, as /risk/ladder moves one.

    It reads only and can be repeated at will; a POST because ten shocks of a hundred symbols do not fit into a URL.
    """
    return ShocksAnswer.of(await engine().stress.shocks(request.of_the_service(), keep_going=_has_time))


def _has_time() -> bool:
    return remaining_s() > RESERVE_S


app = create_app(router, title="Margin: risk", version=__version__, description=__doc__ or "")
handler = http_handler(app)
