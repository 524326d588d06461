"""Brings the PostgreSQL schema to the newest numbered migration.

Migrations only ever go forward and stay compatible with the release before them, so that a roll-back of the code
needs no roll-back of the schema: a schema that is newer than this code is left as it is.
"""

from __future__ import annotations

from pathlib import Path

import psycopg
import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from margin.config import Settings
from margin.errors import PostgresUnavailableError
from margin.runtime import tls_of_postgres

_LOCK = 7_305_461_210
"""Advisory lock of the one that migrates; any constant does."""
_CONNECT_TIMEOUT_S = 5
_LOCK_TIMEOUT = "30s"
_GRANTS = Path(__file__).parent / "migrations" / "grants.sql"
_OWNS_HISTORY = """
    select pg_has_role(relowner, 'usage') from pg_class where oid = 'accounts'::regclass
"""


def migrate(settings: Settings, *, password: str | None = None) -> str:
    """Apply what is missing; one process at a time, each migration in a transaction of its own.

    Parameters
    ----------
    settings : Settings
        Where the database is.
    password : str or None
        Where it is not the one in the settings.

    Returns
    -------
    str
        The schema's revision.

    Raises
    ------
    PostgresUnavailableError
        The database cannot be reached, or the user may not make what is missing.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    url = sqlalchemy.URL.create(
        "postgresql+psycopg",
        username=settings.postgres_user,
        password=password or settings.postgres_password or None,
        host=settings.postgres_host,
        port=settings.postgres_port,
        database=settings.postgres_database,
    )
    database = sqlalchemy.create_engine(
        url,
        poolclass=sqlalchemy.NullPool,
        connect_args={"connect_timeout": _CONNECT_TIMEOUT_S, **tls_of_postgres(settings)},
    )
    try:
        with database.connect() as connection:
            connection.exec_driver_sql(f"set lock_timeout = '{_LOCK_TIMEOUT}'")
            connection.exec_driver_sql(f"select pg_advisory_lock({_LOCK})")
            connection.commit()
            present = MigrationContext.configure(connection).get_current_revision()
            connection.commit()
            known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
            if present is None or present in known:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
                _grant(connection)
            revision = MigrationContext.configure(connection).get_current_revision()
            connection.commit()
    except sqlalchemy.exc.OperationalError as error:
        message = "PostgreSQL cannot be reached to migrate its schema."
        raise PostgresUnavailableError(message) from error
    except sqlalchemy.exc.ProgrammingError as error:
        if not isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
            raise
        message = f"{settings.postgres_user} may not migrate the schema; its owner can."
        raise PostgresUnavailableError(message) from error
    finally:
        database.dispose()
    return revision or ""


def _grant(connection: sqlalchemy.Connection) -> None:
    """Give the functions' role its rights, where this is done by the one whose tables they are."""
    if connection.exec_driver_sql(_OWNS_HISTORY).scalar_one():
        grants = _GRANTS.read_text(encoding="utf-8")
        connection.exec_driver_sql(grants, execution_options={"no_parameters": True})
    connection.commit()
