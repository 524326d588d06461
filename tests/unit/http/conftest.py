"""Fixtures of this folder."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from margin.observability import logger

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def log() -> Iterator[list[dict[str, Any]]]:
    """Yield the log lines as they are formatted, parsed."""
    lines: list[dict[str, Any]] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(logger.registered_formatter.format(record)))

    collector = Collector()
    logger.addHandler(collector)
    yield lines
    logging.getLogger(logger.name).removeHandler(collector)
