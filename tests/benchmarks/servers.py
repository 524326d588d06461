"""Servers of a benchmark: as many Valkeys as it needs, and a PostgreSQL; all gone afterwards, Ctrl-C or not."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from margin.config import Settings
from margin_local.servers import EmbeddedPostgres, EmbeddedValkey
from migrate_schema import migrate
from tests.database import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

# A rewrite of the append-only file forks the server: that would be measured on some sizes and not on others.
_OPTIONS = ("--auto-aof-rewrite-percentage", "0")

NOBODY_IS_WARNED_PCT = Decimal(100)
"""Triggers are those of liquidation: a warning before it is an event more, which would hide what a crossing costs."""


@contextlib.contextmanager
def exchanges(number: int) -> Iterator[list[Settings]]:
    """Yield the settings of so many engines, each with a Valkey and a database of its own, migrated and not opened."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="margin-bench-")))
        # PostgreSQL runs as another user where this one is root.
        directory.chmod(0o755)
        postgres = EmbeddedPostgres(directory / "postgres")
        stack.callback(postgres.stop)
        postgres.start()
        settings: list[Settings] = []
        for index in range(number):
            valkey = EmbeddedValkey(directory / f"valkey-{index}", options=_OPTIONS)
            stack.callback(valkey.stop)
            valkey.start()
            database = f"exchange_{index}"
            with psycopg.connect(
                host=postgres.host, port=postgres.port, user=postgres.user, dbname="postgres", autocommit=True
            ) as admin:
                admin.execute(f"create database {database}".encode())
            settings.append(
                Settings(
                    redis_port=valkey.port,
                    postgres_port=postgres.port,
                    postgres_database=database,
                    margin_warning_pct=NOBODY_IS_WARNED_PCT,
                )
            )
            migrate(settings[-1])
            settings[-1] = dataclasses.replace(settings[-1], postgres_user=FUNCTIONS)
        yield settings
