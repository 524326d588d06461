"""The stores of the local engine: those that the environment names, else embedded ones that live in DATA_DIR."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from margin_local.servers import DirectoryInUseError, EmbeddedPostgres, EmbeddedServer, EmbeddedValkey

if TYPE_CHECKING:
    from collections.abc import Mapping

    from margin.config import Settings

FUNCTIONS_ROLE = "margin_functions"
"""Whom the engine logs in as where PostgreSQL is embedded: a role of the migrations, which may not change history."""


class LocalStores:
    """Starts what nobody else runs.

    Parameters
    ----------
    settings : Settings
        From the environment.
    environment : mapping of str to str
        Says which servers are given: REDIS_HOST, POSTGRES_HOST; and where binaries are: VALKEY_BIN, PG_BIN.
    history_alone : bool
        Only PostgreSQL is needed.
    """

    def __init__(self, settings: Settings, environment: Mapping[str, str], *, history_alone: bool = False) -> None:
        directory = Path(settings.data_dir).resolve()
        self._given = settings
        self._servers: list[EmbeddedServer] = []
        self._valkey: EmbeddedValkey | None = None
        self._postgres: EmbeddedPostgres | None = None
        if not environment.get("REDIS_HOST") and not history_alone:
            self._valkey = EmbeddedValkey(directory / "valkey", binary=_path(environment, "VALKEY_BIN"))
            self._servers.append(self._valkey)
        if not environment.get("POSTGRES_HOST"):
            self._postgres = EmbeddedPostgres(
                directory / "postgres",
                bin_directory=_path(environment, "PG_BIN"),
                database=settings.postgres_database,
            )
            self._servers.append(self._postgres)

    def start(self) -> Settings:
        """Start the embedded servers.

        Returns
        -------
        Settings
            Those given, with the addresses of what was started.

        Raises
        ------
        EmbeddedServerError
            A server cannot be started; one line says why.
        """
        for server in self._servers:
            server.start()
        return self._addressed()

    def start_or_join(self) -> Settings:
        """Start the embedded servers that no other process runs, and find those that one does; see `start`."""
        for server in self._servers:
            try:
                server.start()
            except DirectoryInUseError:
                server.join()
        return self._addressed()

    def owner(self, settings: Settings) -> Settings:
        """Return the settings of whoever migrates: of the embedded server's owner, or as they were given."""
        if self._postgres is None:
            return settings
        return dataclasses.replace(settings, postgres_user=self._postgres.user)

    @property
    def started_postgres(self) -> bool:
        """Whether an embedded PostgreSQL was started here."""
        return self._postgres is not None and self._postgres.alive()

    def restart_dead(self) -> list[str]:
        """Start again what has died, on the same port; names what it was."""
        return [type(server).__name__ for server in self._servers if server.restart_if_dead()]

    def stop(self) -> None:
        """Stop what was started, the last first."""
        for server in reversed(self._servers):
            server.stop()

    def _addressed(self) -> Settings:
        settings = self._given
        if self._valkey is not None:
            settings = dataclasses.replace(
                settings, redis_host=self._valkey.host, redis_port=self._valkey.port, redis_password="", redis_db=0
            )
        if self._postgres is not None:
            settings = dataclasses.replace(
                settings,
                postgres_host=self._postgres.host,
                postgres_port=self._postgres.port,
                postgres_user=FUNCTIONS_ROLE,
                postgres_password="",
            )
        return settings


def _path(environment: Mapping[str, str], variable: str) -> Path | None:
    value = environment.get(variable)
    return Path(value) if value else None
