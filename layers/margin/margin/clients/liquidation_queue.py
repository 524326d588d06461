"""The SQS queue of accounts that a mark price crossed beyond what one invocation evaluates."""

from __future__ import annotations

import asyncio
import itertools
import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

from margin.errors import QueueUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

ACCOUNTS_PER_MESSAGE = 50
_MESSAGES_PER_CALL = 10
_TIMEOUT_S = 1
_ATTEMPTS = 1


class LiquidationQueue:
    """Sends accounts to the function that evaluates them.

    Parameters
    ----------
    url : str
        Of the queue.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    async def send(self, account_ids: Sequence[int]) -> None:
        """Queue accounts for evaluation, some in each message.

        Raises
        ------
        QueueUnavailableError
            Some or all were not queued; the scan on the schedule comes to them.
        """
        await asyncio.to_thread(self._send, account_ids)

    @cached_property
    def _sqs(self) -> Any:
        import boto3  # noqa: PLC0415 - Lambda's own, and most invocations queue nothing
        from botocore.config import Config  # noqa: PLC0415

        bounded = Config(connect_timeout=_TIMEOUT_S, read_timeout=_TIMEOUT_S, retries={"total_max_attempts": _ATTEMPTS})
        return boto3.client("sqs", config=bounded)

    def _send(self, account_ids: Sequence[int]) -> None:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        messages = (json.dumps({"account_ids": batch}) for batch in _batches(account_ids, ACCOUNTS_PER_MESSAGE))
        message = "Accounts at risk could not be queued for evaluation."
        for bodies in _batches(list(messages), _MESSAGES_PER_CALL):
            entries = [{"Id": str(number), "MessageBody": body} for number, body in enumerate(bodies)]
            try:
                answer = self._sqs.send_message_batch(QueueUrl=self._url, Entries=entries)
            except (BotoCoreError, ClientError) as error:
                raise QueueUnavailableError(message) from error
            if answer.get("Failed"):
                raise QueueUnavailableError(message)


def _batches(items: Sequence[Any], size: int) -> list[list[Any]]:
    iterator = iter(items)
    return list(iter(lambda: list(itertools.islice(iterator, size)), []))
