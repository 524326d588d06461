"""The API document, and a page that shows it."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

from starlette.responses import HTMLResponse, JSONResponse

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

DOCUMENT_PATH = "/openapi.json"
DOCS_PATH = "/docs"

# Of the package swagger-ui-dist, one release and no other: the digests are those of its files.
_FILES = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5.35.0/"
_STYLE = "sha384-WlYgdmXYOOBWL5apwjDEZwN+U3HmXSSu5R6V5aGxEcf7z+KuRNwBhoxKVN1i3D5I"
_SCRIPT = "sha384-gjRm0bEPMeTmMh5jT2cHccIwCUZSTd8YC+j0d0sXw0MdGEfScduGpSyF3ZSSLkX9"
_START = f'SwaggerUIBundle({{url: "{DOCUMENT_PATH}", dom_id: "#page", deepLinking: true, validatorUrl: null}})'
_PAGE = f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Margin</title>
<link rel="stylesheet" href="{_FILES}swagger-ui.css" integrity="{_STYLE}" crossorigin="anonymous">
</head>
<body>
<div id="page"></div>
<script src="{_FILES}swagger-ui-bundle.js" integrity="{_SCRIPT}" crossorigin="anonymous"></script>
<script>{_START}</script>
</body>
</html>
"""
_POLICY = (
    f"default-src 'none'; connect-src 'self'; script-src '{_SCRIPT}' "
    f"'sha256-{base64.b64encode(hashlib.sha256(_START.encode()).digest()).decode()}'; "
    f"style-src {_FILES} 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
)


async def docs_page(_request: Request) -> Response:
    """Return a page that shows the API document, with a script that is known to the byte."""
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})


async def document(request: Request) -> Response:
    """Return the API document of the application."""
    app: FastAPI = request.app
    return JSONResponse(app.openapi())
