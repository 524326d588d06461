"""Credentials of the stores: given, or read from Secrets Manager by name, or made by IAM.

All of them are asked for when a connection is made. What waits for Secrets Manager runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from margin.clients.rotating_secret import RotatingSecret, making, rotating_secret
from margin.errors import SecretUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from margin.config import Settings

REFUSALS_MAX = 2
"""How many other credentials one connection is tried with: what is current, then what is about to be."""
_TOO_LATE = "Credentials of a store could not be had in time."


@dataclasses.dataclass(frozen=True, slots=True)
class Login:
    """Who connects, and with what."""

    username: str
    password: str = dataclasses.field(repr=False)
    secret: Mapping[str, Any] | None = dataclasses.field(default=None, repr=False)


class StoreLogins:
    """Logins of one store.

    Parameters
    ----------
    given : Login
        That of the settings.
    secret : str
        Name of the secret that holds another; "" for none.
    ttl_s : int
        For how many seconds one from there is kept.
    """

    def __init__(self, given: Login, *, secret: str, ttl_s: int) -> None:
        self._given = given
        self._secret = rotating_secret(secret, ttl_s) if secret else None

    def login(self) -> Login:
        """Return the login for the next connection.

        Raises
        ------
        SecretUnavailableError
        """
        return self._given if self._secret is None else self._login_of(self._secret.value())

    async def next_login(self, timeout_s: float, first_timeout_s: float) -> Login:
        """Return the same without holding up the event loop, in bounded time.

        Parameters
        ----------
        timeout_s : float
            How long to wait, in seconds, where there is a login from before to fall back on.
        first_timeout_s : float
            How long where there is none.

        Raises
        ------
        SecretUnavailableError
        """
        secret = self._secret
        if secret is None:
            return self._given
        try:
            async with asyncio.timeout(first_timeout_s if secret.kept is None else timeout_s):
                return await asyncio.to_thread(self.login)
        except TimeoutError as error:
            if secret.kept is None:
                raise SecretUnavailableError(_TOO_LATE) from error
            return self._login_of(secret.kept)

    async def login_instead_of(self, refused: Login, timeout_s: float) -> Login | None:
        """Return another login than one that the store has refused: None where there is none, or none in time."""
        if self._secret is None or refused.secret is None:
            return None
        try:
            async with asyncio.timeout(timeout_s):
                found = await asyncio.to_thread(self._secret.value_instead_of, refused.secret)
        except (TimeoutError, SecretUnavailableError):
            return None
        return None if found is None else self._login_of(found)

    def _login_of(self, secret: dict[str, Any]) -> Login:
        return Login(str(secret.get("username") or self._given.username), _password_of(secret), secret)


class PostgresLogins(StoreLogins):
    """Logins of PostgreSQL: with an IAM token, with the secret's password, or with the one that was given."""

    def __init__(self, settings: Settings) -> None:
        given = Login(settings.postgres_user, settings.postgres_password)
        secret = "" if settings.postgres_iam else settings.postgres_secret
        super().__init__(given, secret=secret, ttl_s=settings.secret_ttl_s)
        self._settings = settings

    def login(self) -> Login:
        """Return the login for the next connection.

        Raises
        ------
        SecretUnavailableError
        """
        settings = self._settings
        if not settings.postgres_iam:
            return super().login()
        # Signed here, with the function's own role: no call goes out. A token is good for 15 minutes, longer than it
        # takes to connect.
        with making:
            rds = _rds()
        token = rds.generate_db_auth_token(
            DBHostname=settings.postgres_host, Port=settings.postgres_port, DBUsername=settings.postgres_user
        )
        return Login(settings.postgres_user, str(token))

    async def next_login(self, timeout_s: float, first_timeout_s: float) -> Login:
        """Return the same without holding up the event loop: what signs may first have to ask who it is.

        Raises
        ------
        SecretUnavailableError
        """
        if not self._settings.postgres_iam:
            return await super().next_login(timeout_s, first_timeout_s)
        try:
            async with asyncio.timeout(first_timeout_s):
                return await asyncio.to_thread(self.login)
        except TimeoutError as error:
            raise SecretUnavailableError(_TOO_LATE) from error


def secret_password(name: str) -> str:
    """Read the password in a secret, now; "" where no secret is named.

    One that is kept would not do: it is not tried and refused, it is set.

    Raises
    ------
    SecretUnavailableError
    """
    return _password_of(RotatingSecret(name, 0).value()) if name else ""


def _password_of(secret: Mapping[str, Any]) -> str:
    if "password" not in secret:
        message = "A secret of the engine holds no password."
        raise SecretUnavailableError(message)
    return str(secret["password"])


def redis_logins(settings: Settings) -> StoreLogins:
    """Logins of Redis: with the secret's password, with the one that was given, or with none."""
    given = Login(settings.redis_username, settings.redis_password)
    return StoreLogins(given, secret=settings.redis_secret, ttl_s=settings.secret_ttl_s)


@functools.cache
def _rds() -> Any:
    import boto3  # noqa: PLC0415

    return boto3.client("rds")
