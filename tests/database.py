"""The test's database, past the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    from margin.config import Settings

ALL_TABLES = "select tablename from pg_tables where schemaname = 'public' and tablename <> 'alembic_version'"

EMPTY_ALL_TABLES = """
    do $$ begin
        execute (
            select 'truncate ' || string_agg(quote_ident(tablename), ', ')
            from pg_tables
            where schemaname = 'public' and tablename <> 'alembic_version'
        );
    end $$
"""


def connect(settings: Settings, *, autocommit: bool = True) -> psycopg.Connection[Any]:
    """Connect to the database of some settings as its owner; use it as a context, which closes it."""
    return psycopg.connect(
        host=settings.postgres_host,
        port=settings.postgres_port,
        user=settings.postgres_user,
        dbname=settings.postgres_database,
        autocommit=autocommit,
    )
