"""The test's database, past the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    from margin.config import Settings

ALL_TABLES = "select tablename from pg_tables where schemaname = 'public' and tablename <> 'alembic_version'"

EMPTY_ALL_TABLES = """
    do $$ begin
        set local session_replication_role = replica;
        execute (
            select 'truncate ' || string_agg(quote_ident(tablename), ', ')
            from pg_tables
            where schemaname = 'public' and tablename <> 'alembic_version'
        );
    end $$
"""


OWNER = "postgres"
"""Whom the tests' servers know as their superuser."""

FUNCTIONS = "margin_functions"
"""Whom the engine logs in as."""

PAST_THE_GUARD = "-c session_replication_role=replica"
"""Lets a superuser do what the triggers of history refuse to everybody."""


def connect(settings: Settings, *, autocommit: bool = True, user: str = OWNER) -> psycopg.Connection[Any]:
    """Connect to the database of some settings past the engine; use it as a context, which closes it.

    The owner goes past the guard of history too, so that a test can do what nobody should be able to.
    """
    return psycopg.connect(
        host=settings.postgres_host,
        port=settings.postgres_port,
        user=user,
        dbname=settings.postgres_database,
        options=PAST_THE_GUARD if user == OWNER else "",
        autocommit=autocommit,
    )
