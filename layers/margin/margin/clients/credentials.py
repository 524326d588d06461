"""Credentials of the stores: given, or read from Secrets Manager by name, or made by IAM.

Secrets are read when a connection is made and kept for some minutes, so that a rotated one is picked up without a
release. boto3 is Lambda's own and is imported only here, only when a secret or a token is asked for.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import TYPE_CHECKING, Any

from redis.credentials import CredentialProvider

from margin.errors import SecretUnavailableError

if TYPE_CHECKING:
    from margin.config import Settings

_TIMEOUT_S = 1
_ATTEMPTS = 2
_making = threading.Lock()
"""Both stores ask at a cold start, each in its thread: boto3 makes one client at a time, and one is enough."""


@functools.cache
def _secrets() -> Any:
    from aws_lambda_powertools.utilities.parameters import SecretsProvider  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    bounded = Config(connect_timeout=_TIMEOUT_S, read_timeout=_TIMEOUT_S, retries={"total_max_attempts": _ATTEMPTS})
    return SecretsProvider(boto_config=bounded)


def read_secret(name: str, ttl_s: int) -> dict[str, Any]:
    """Read a secret that holds a JSON object; a value younger than ``ttl_s`` seconds is taken from memory.

    Raises
    ------
    SecretUnavailableError
        Secrets Manager does not answer, does not know the secret, or it holds something else.
    """
    from aws_lambda_powertools.utilities.parameters.exceptions import (  # noqa: PLC0415
        GetParameterError,
        TransformParameterError,
    )

    with _making:
        secrets = _secrets()
    try:
        secret = secrets.get(name, max_age=ttl_s, transform="json")
    except (GetParameterError, TransformParameterError) as error:
        message = "A secret of the engine cannot be read."
        raise SecretUnavailableError(message) from error
    if not isinstance(secret, dict):
        message = "A secret of the engine does not hold a JSON object."
        raise SecretUnavailableError(message)
    return secret


def postgres_password(settings: Settings) -> str:
    """Password for the next connection to PostgreSQL: an IAM token, the secret's, or the one that was given.

    Raises
    ------
    SecretUnavailableError
    """
    if settings.postgres_iam:
        import boto3  # noqa: PLC0415

        # Signed here, with the function's own role: no call goes out. A token is good for 15 minutes, longer than it
        # takes to connect.
        return str(
            boto3.client("rds").generate_db_auth_token(
                DBHostname=settings.postgres_host, Port=settings.postgres_port, DBUsername=settings.postgres_user
            )
        )
    if settings.postgres_secret:
        return str(read_secret(settings.postgres_secret, settings.secret_ttl_s)["password"])
    return settings.postgres_password


class RedisCredentials(CredentialProvider):
    """Username and password for each new connection to Redis; none where none are configured."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Return (password,) or (username, password), as the driver wants them."""
        settings = self._settings
        if not settings.redis_secret:
            return (settings.redis_password,)
        secret = read_secret(settings.redis_secret, settings.secret_ttl_s)
        if secret.get("username"):
            return str(secret["username"]), str(secret["password"])
        return (str(secret["password"]),)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """Return the same without holding up the event loop."""
        return await asyncio.to_thread(self.get_credentials)
