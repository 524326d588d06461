"""The password of the functions' role, where a secret holds it: a proxy of RDS logs in with it."""

from __future__ import annotations

import psycopg
from psycopg import sql

from margin.config import Settings
from margin.errors import PostgresUnavailableError
from margin.runtime import tls_of_postgres

ROLE = "margin_functions"
_CONNECT_TIMEOUT_S = 5


def set_functions_password(settings: Settings, new: str, *, password: str | None = None) -> None:
    """Have the database take a password for the functions' role.

    What is sent is what the server keeps, from which the password cannot be told: no log of statements has it.

    Parameters
    ----------
    settings : Settings
        Where the database is, and the owner's name.
    new : str
        The functions' password.
    password : str or None
        The owner's, where it is not the one in the settings.

    Raises
    ------
    PostgresUnavailableError
    """
    try:
        with psycopg.connect(
            host=settings.postgres_host,
            port=settings.postgres_port,
            user=settings.postgres_user,
            password=password or settings.postgres_password or None,
            dbname=settings.postgres_database,
            connect_timeout=_CONNECT_TIMEOUT_S,
            autocommit=True,
            **tls_of_postgres(settings),
        ) as connection:
            kept = connection.pgconn.encrypt_password(new.encode(), ROLE.encode(), b"scram-sha-256").decode()
            connection.execute(sql.SQL("alter role {} password {}").format(sql.Identifier(ROLE), sql.Literal(kept)))
    except psycopg.Error as error:
        message = f"The password of {ROLE} cannot be set."
        raise PostgresUnavailableError(message) from error
