"""GET /health."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from margin.http.wire import Answer


class HealthAnswer(Answer):
    """All stores answer and hold the whole state."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "healthy"}]})

    status: Literal["healthy"]
