"""GET /health: whether the engine can work."""

from __future__ import annotations

from typing import Literal

from margin import __version__
from margin.errors import UnavailableError
from margin.http import Answer, Router, create_app, problems
from margin.lambda_entry import http_handler
from margin.runtime import engine

router = Router(tags=["status"])


class HealthAnswer(Answer):
    """All stores answer and hold the whole state."""

    status: Literal["healthy"]


@router.get("/health", summary="Whether the engine can work", responses=problems(UnavailableError))
async def get_health() -> HealthAnswer:
    """Ask both stores; 503 names the one that cannot be used and why."""
    await engine().health.check()
    return HealthAnswer(status="healthy")


app = create_app(router, title="Margin: status", version=__version__, description=__doc__ or "")
handler = http_handler(app)
