"""GET /controls, and PUT /controls/...: pause switches of the engine, of symbols and of accounts."""

from __future__ import annotations

from typing import Any

from margin import __version__
from margin.caller import Caller
from margin.contract.controls import ControlAnswer, ControlRequest, ControlsAnswer
from margin.domain.controls import ENGINE_CONTROL, account_control, symbol_control
from margin.errors import CursorInvalidError, OutcomeUnknownError, PostgresUnavailableError
from margin.http import (
    AccountIdPath,
    CallerOf,
    Cursor,
    Limit,
    Response,
    Router,
    Scope,
    SymbolPath,
    create_app,
    of_account,
    of_all_accounts,
    outcome,
    problems,
)
from margin.lambda_entry import http_handler
from margin.runtime import engine

router = Router(tags=["controls"])
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Set: no commit from now on goes past it."},
    202: {
        "model": ControlAnswer,
        "description": "In history, but not everywhere in force: it will be within two minutes, without a repetition.",
    },
    **problems(PostgresUnavailableError, OutcomeUnknownError),
}


@router.get(
    "/controls",
    summary="Pause switches that are not active",
    responses=problems(CursorInvalidError, PostgresUnavailableError),
)
@of_all_accounts(Scope.ADMIN)
async def get_controls(limit: Limit = 100, cursor: Cursor = None) -> ControlsAnswer:
    """Switches as history has them, by name, each with its latest change."""
    return ControlsAnswer.of(await engine().controls.list(limit=limit, cursor=cursor))


@router.put("/controls/engine", summary="Pause or resume the whole engine", responses=ANSWERS)
@of_all_accounts(Scope.ADMIN)
async def set_engine_control(request: ControlRequest, response: Response, caller: CallerOf) -> ControlAnswer:
    """Paused stops trades, withdrawals and liquidations; reduce-only stops trades that do not purely reduce."""
    return await _set(ENGINE_CONTROL, request, response, caller)


@router.put("/controls/symbols/{symbol}", summary="Pause or resume one symbol", responses=ANSWERS)
@of_all_accounts(Scope.ADMIN)
async def set_symbol_control(
    symbol: SymbolPath, request: ControlRequest, response: Response, caller: CallerOf
) -> ControlAnswer:
    """Paused stops trades of the symbol, and withdrawals and liquidations of accounts that hold it."""
    return await _set(symbol_control(symbol), request, response, caller)


@router.put("/controls/accounts/{account_id}", summary="Pause or resume one account", responses=ANSWERS)
@of_account(Scope.ADMIN)
async def set_account_control(
    account_id: AccountIdPath, request: ControlRequest, response: Response, caller: CallerOf
) -> ControlAnswer:
    """Paused stops trades and withdrawals of the account, never its liquidation."""
    return await _set(account_control(account_id), request, response, caller)


async def _set(name: str, request: ControlRequest, response: Response, caller: Caller) -> ControlAnswer:
    changed = await engine().controls.set(name, request.control_state, request.reason, caller)
    outcome(response, pending=not changed.effective, replayed=False)
    return ControlAnswer.of(changed)


app = create_app(router, title="Margin: controls", version=__version__, description=__doc__ or "")
handler = http_handler(app)
