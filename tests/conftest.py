"""Fixtures for all tests: a real Valkey and a real PostgreSQL, started at first use and stopped at the end; the log."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from margin.observability import logger
from margin_local.servers import EmbeddedPostgres, EmbeddedValkey

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def server_directory() -> Iterator[Path]:
    """Yield a directory for the servers that PostgreSQL's user can enter: pytest's own is private to its user."""
    directory = Path(tempfile.mkdtemp(prefix="margin-test-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def valkey_server(server_directory: Path) -> Iterator[EmbeddedValkey]:
    """Yield a running Valkey. Tests share it: they use keys of their own or flush it."""
    server = EmbeddedValkey(server_directory / "valkey", binary=_path("VALKEY_BIN"), fsync="no")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres_server(server_directory: Path) -> Iterator[EmbeddedPostgres]:
    """Yield a running PostgreSQL, its database empty. Tests share it: they make databases or schemas of their own."""
    server = EmbeddedPostgres(server_directory / "postgres", bin_directory=_path("PG_BIN"), durable=False)
    server.start()
    yield server
    server.stop()


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


def _path(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None
