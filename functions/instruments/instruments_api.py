"""PUT and GET /instruments/{symbol}, and GET /instruments: the rules of symbols."""

from __future__ import annotations

from typing import Any

from margin import __version__
from margin.contract.instruments import (
    InstrumentAnswer,
    InstrumentChangeAnswer,
    InstrumentRequest,
    InstrumentsAnswer,
)
from margin.errors import (
    CursorInvalidError,
    InstrumentChangeUnderWayError,
    InstrumentNotClosableError,
    InvalidInstrumentError,
    LimitExceededError,
    OutcomeUnknownError,
    PostgresUnavailableError,
)
from margin.http import (
    STORE_PROBLEMS,
    CallerOf,
    Cursor,
    Limit,
    Response,
    Router,
    Scope,
    SymbolPath,
    create_app,
    of_all_accounts,
    of_market,
    outcome,
    problems,
)
from margin.lambda_entry import http_handler
from margin.runtime import engine

router = Router(tags=["instruments"])
CHANGED: dict[int | str, dict[str, Any]] = {
    200: {"description": "In force: from now on everything is decided by these rules."},
    202: {
        "model": InstrumentChangeAnswer,
        "description": "In history, but not in force yet: it will be within minutes, without a repetition.",
    },
    **problems(
        *(InvalidInstrumentError, InstrumentNotClosableError, LimitExceededError, InstrumentChangeUnderWayError),
        *(*STORE_PROBLEMS, OutcomeUnknownError),
    ),
}


@router.get(
    "/instruments",
    summary="Configured symbols and their rules",
    responses=problems(CursorInvalidError, PostgresUnavailableError),
)
@of_market(Scope.POSITIONS_READ, Scope.TRADE_WRITE, Scope.ADMIN)
async def get_instruments(limit: Limit = 100, cursor: Cursor = None) -> InstrumentsAnswer:
    """Rules as history has them, by symbol, each with the change that made it so."""
    return InstrumentsAnswer.of(await engine().instruments.list(limit=limit, cursor=cursor))


@router.get("/instruments/{symbol}", summary="The rules of one symbol", responses=problems(PostgresUnavailableError))
@of_market(Scope.POSITIONS_READ, Scope.TRADE_WRITE, Scope.ADMIN)
async def get_instrument(symbol: SymbolPath) -> InstrumentAnswer:
    """Rules as history has them; a symbol that was never configured has the default ones, version 0."""
    return InstrumentAnswer.of(await engine().instruments.get(symbol))


@router.put("/instruments/{symbol}", summary="Give a symbol its rules", responses=CHANGED)
@of_all_accounts(Scope.ADMIN)
async def put_instrument(
    symbol: SymbolPath, request: InstrumentRequest, response: Response, caller: CallerOf
) -> InstrumentChangeAnswer:
    """Anchor everyone who holds the symbol to the stricter of old and new rules, then put the new ones in force.

    What is left out takes its default. The same rules again change nothing.
    """
    changed = await engine().instruments.put(request.instrument(symbol), caller)
    outcome(response, pending=not changed.effective, replayed=False)
    return InstrumentChangeAnswer.of(changed)


app = create_app(router, title="Margin: instruments", version=__version__, description=__doc__ or "")
handler = http_handler(app)
