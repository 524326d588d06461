"""GET /health: whether the engine can work. GET /openapi.json and /docs: how to talk to it."""

from __future__ import annotations

import functools
from pathlib import Path

from fastapi import Request, Response

from margin import __version__
from margin.contract.status import HealthAnswer
from margin.http import (
    DOCS_PATH,
    DOCUMENT_PATH,
    STORE_PROBLEMS,
    Router,
    authenticated,
    create_app,
    docs_page,
    open_to_all,
    problems,
)
from margin.lambda_entry import http_handler
from margin.runtime import engine

DOCUMENT = Path(__file__).parent / "openapi.json"

router = Router(tags=["status"])


@router.get("/health", summary="Whether the engine can work", responses=problems(*STORE_PROBLEMS))
@open_to_all
async def get_health() -> HealthAnswer:
    """Ask both stores; 503 names the one that cannot be used and why."""
    await engine().health.check()
    return HealthAnswer(status="healthy")


async def get_document(_request: Request) -> Response:
    """Return the API document as it is in the repository: this function knows its own routes alone."""
    return Response(_document(), media_type="application/json")


@functools.cache
def _document() -> bytes:
    return DOCUMENT.read_bytes()


app = create_app(router, title="Margin: status", version=__version__, description=__doc__ or "")
# Not on the router: the local server has such pages of its own, and the document is not about itself.
app.add_route(DOCUMENT_PATH, authenticated(get_document), methods=["GET"], include_in_schema=False)
app.add_route(DOCS_PATH, authenticated(docs_page), methods=["GET"], include_in_schema=False)
handler = http_handler(app)
