"""GET /health: whether the engine can work."""

from __future__ import annotations

from margin import __version__
from margin.contract.status import HealthAnswer
from margin.http import STORE_PROBLEMS, Router, create_app, problems
from margin.lambda_entry import http_handler
from margin.runtime import engine

router = Router(tags=["status"])


@router.get("/health", summary="Whether the engine can work", responses=problems(*STORE_PROBLEMS))
async def get_health() -> HealthAnswer:
    """Ask both stores; 503 names the one that cannot be used and why."""
    await engine().health.check()
    return HealthAnswer(status="healthy")


app = create_app(router, title="Margin: status", version=__version__, description=__doc__ or "")
handler = http_handler(app)
