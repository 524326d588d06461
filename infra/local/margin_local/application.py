"""One application made of the routers of all HTTP functions: the local server, and the API document."""

from __future__ import annotations

from typing import TYPE_CHECKING

import accounts_api
import controls_api
import funding_api
import history_api
import instruments_api
import margin_report_api
import mark_price_api
import positions_api
import risk_api
import status_api
import trade_api
from margin import __version__
from margin.http import create_app

if TYPE_CHECKING:
    from fastapi import FastAPI

    from margin.http import Authenticator

DESCRIPTION = """\
A margin engine for perpetual futures: trades under a pre-trade margin check, positions and P&L,
mark prices, margin reports, liquidation, and history.

Money, prices and quantities are exact decimals: requests take JSON numbers or strings, all their digits, and answers
carry strings. Errors are `application/problem+json` with a `code` to branch on."""


def make_application(
    *, title: str = "Margin", version: str = __version__, authenticate: Authenticator | None = None
) -> FastAPI:
    """All routes in one application, with the API document at /openapi.json and /docs.

    Without an authenticator it answers those alone whom a gateway has let through.
    """
    return create_app(
        trade_api.router,
        positions_api.router,
        mark_price_api.router,
        funding_api.router,
        margin_report_api.router,
        risk_api.router,
        history_api.router,
        accounts_api.router,
        controls_api.router,
        instruments_api.router,
        status_api.router,
        title=title,
        version=version,
        description=DESCRIPTION,
        docs=True,
        authenticate=authenticate,
    )
