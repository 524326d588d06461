"""A secret in Secrets Manager that is exchanged while the engine runs.

It is kept for some minutes, so that connections do not cost a call each, and for as long as Secrets Manager does not
answer: it is right until a store refuses it. When a store does, it is read afresh: a rotation first has the store take
the new password, which stands under AWSPENDING until the very end, and then names it AWSCURRENT. boto3 is Lambda's own
and is imported only here and for IAM tokens, only when somebody asks.
"""

from __future__ import annotations

import functools
import json
import threading
import time
from typing import TYPE_CHECKING, Any

from margin.errors import SecretUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

REFUSED_FOR_S = 5.0
"""So long a value that was refused is not tried again, and, where there is no other, nothing is read again.

Nor is it after a call that failed.
"""

_TIMEOUT_S = 1
_ATTEMPTS = 2
_CURRENT, _PENDING = "AWSCURRENT", "AWSPENDING"
_UNREADABLE = "A secret of the engine cannot be read."
making = threading.Lock()
"""Both stores ask at a cold start, each in its thread: boto3 makes one client at a time, and one is enough."""


class RotatingSecret:
    """One secret, a JSON object; safe to use from several threads.

    Parameters
    ----------
    name : str
        Name or ARN.
    ttl_s : float
        For how many seconds a value is kept.
    """

    def __init__(self, name: str, ttl_s: float) -> None:
        self._name = name
        self._ttl_s = ttl_s
        self._reading = threading.Lock()
        self._kept: dict[str, Any] | None = None
        self._kept_until_s = 0.0
        self._failed_until_s = 0.0
        self._refused: list[tuple[Mapping[str, Any], float]] = []
        self._futile_until_s = 0.0

    @property
    def kept(self) -> dict[str, Any] | None:
        """What was read last, however long ago."""
        return self._kept

    def value(self) -> dict[str, Any]:
        """Return what the secret holds; a value younger than the time to live is taken from memory.

        An older one is too where it cannot be read, and while somebody else reads: nobody waits for another's call who
        has something to try.

        Raises
        ------
        SecretUnavailableError
            Nothing is kept, and Secrets Manager does not answer, has just not answered, does not know the secret, or it
            holds something else.
        """
        kept = self._kept
        if kept is None:
            with self._reading:
                return self._current()
        if not self._reading.acquire(blocking=False):
            return kept
        try:
            return self._current()
        finally:
            self._reading.release()

    def _current(self) -> dict[str, Any]:
        now_s = time.monotonic()
        if self._kept is not None and now_s < self._kept_until_s:
            return self._kept
        if now_s >= self._failed_until_s:
            try:
                return self._keep(self._read(_CURRENT))
            except SecretUnavailableError:
                self._failed_until_s = time.monotonic() + REFUSED_FOR_S
                if self._kept is None:
                    raise
        if self._kept is None:
            raise SecretUnavailableError(_UNREADABLE)
        return self._kept

    def value_instead_of(self, refused: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return another value than one that a store has just refused; None where there is none.

        Of many who were refused at once, one reads. Where nothing else is found, nobody reads again for
        `REFUSED_FOR_S`: a password that is simply wrong costs two calls in that time, however many connections fail.

        Raises
        ------
        SecretUnavailableError
            It cannot be read, or what is about to be current is not there to be read.
        """
        with self._reading:
            now_s = time.monotonic()
            self._refused = [(value, until_s) for value, until_s in self._refused if until_s > now_s]
            if not self._is_refused(refused):
                self._refused.append((refused, now_s + REFUSED_FOR_S))
            if self._kept is not None and not self._is_refused(self._kept):
                return self._kept
            if now_s < self._futile_until_s:
                return None
            self._futile_until_s = now_s + REFUSED_FOR_S
            for stage in (_CURRENT, _PENDING):
                found = self._read(stage)
                if not self._is_refused(found):
                    self._futile_until_s = 0.0
                    return self._keep(found)
            return None

    def _is_refused(self, value: Mapping[str, Any]) -> bool:
        return any(value == refused for refused, _ in self._refused)

    def _keep(self, value: dict[str, Any]) -> dict[str, Any]:
        self._kept, self._kept_until_s = value, time.monotonic() + self._ttl_s
        return value

    def _read(self, stage: str) -> dict[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        with making:
            client = _client()
        try:
            answer = client.get_secret_value(SecretId=self._name, VersionStage=stage)
        except (BotoCoreError, ClientError) as error:
            raise SecretUnavailableError(_UNREADABLE) from error
        try:
            secret = json.loads(answer["SecretString"])
        except (KeyError, ValueError):
            secret = None
        if not isinstance(secret, dict):
            message = "A secret of the engine does not hold a JSON object."
            raise SecretUnavailableError(message)
        return secret


@functools.cache
def rotating_secret(name: str, ttl_s: float) -> RotatingSecret:
    """Return the one object of a secret in this process."""
    return RotatingSecret(name, ttl_s)


@functools.cache
def _client() -> Any:
    import boto3  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    bounded = Config(connect_timeout=_TIMEOUT_S, read_timeout=_TIMEOUT_S, retries={"total_max_attempts": _ATTEMPTS})
    return boto3.client("secretsmanager", config=bounded)
