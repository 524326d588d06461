"""One connection to Redis: over TLS or not, logged in, with the next password where the present one is refused."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis import exceptions
from redis.asyncio import Connection, SSLConnection
from redis.credentials import UsernamePasswordCredentialProvider

from margin.clients.credentials import REFUSALS_MAX

if TYPE_CHECKING:
    import ssl

    from margin.clients.credentials import Login, StoreLogins

_FIRST_LOGIN_S = 2.0
"""How long a first login may take, which loads what it is read with; whoever waits has an answer within 3 s."""
_TOO_LATE = "Redis refused the credentials, and others could not be had in time."


class RotatingConnection(Connection):
    """A connection that asks for its login when it is made.

    Parameters
    ----------
    logins : StoreLogins
        Who knows it.
    **arguments
        Of the driver's connection.
    """

    def __init__(self, *, logins: StoreLogins, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._logins = logins

    async def connect(self) -> None:
        """Connect; where the server refuses the login, with another one, if there is one in time.

        Raises
        ------
        SecretUnavailableError
            The login cannot be read, or not in time.
        """
        if self.is_connected:
            return
        timeout_s = float(self.socket_connect_timeout or 1)
        login = await self._logins.next_login(timeout_s / 2, max(timeout_s, _FIRST_LOGIN_S))
        try:
            await self._connect_as(login)
        except exceptions.AuthenticationError as error:
            try:
                async with asyncio.timeout(self.socket_connect_timeout):
                    await self._connect_instead_of(login, error)
            except TimeoutError:
                raise exceptions.TimeoutError(_TOO_LATE) from error

    async def _connect_instead_of(self, refused: Login, error: exceptions.AuthenticationError) -> None:
        for _ in range(REFUSALS_MAX):
            login = await self._logins.login_instead_of(refused, float(self.socket_connect_timeout or 1))
            if login is None:
                break
            try:
                await self._connect_as(login)
            except exceptions.AuthenticationError as again:
                refused, error = login, again
            else:
                return
        raise error

    async def _connect_as(self, login: Login) -> None:
        self.credential_provider = (
            UsernamePasswordCredentialProvider(login.username or None, login.password) if login.password else None
        )
        await super().connect()  # type: ignore[no-untyped-call]


class RotatingTlsConnection(RotatingConnection, SSLConnection):
    """The same over TLS.

    Parameters
    ----------
    tls : ssl.SSLContext
        Whom to believe; made once, because the driver would read all authorities again for each connection.
    **arguments
        Of the driver's connection.
    """

    def __init__(self, *, tls: ssl.SSLContext, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.ssl_context.context = tls
