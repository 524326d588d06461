"""On a queue: evaluate the accounts that a mark price crossed beyond what its own call evaluates, and liquidate."""

from __future__ import annotations

from typing import Any

from margin.errors import ContentionError, InvalidRequestError
from margin.exact_json import loads
from margin.lambda_entry import queue_handler
from margin.runtime import engine

ACCOUNTS_MAX = 1000
ACCOUNT_ID_MAX = 2**63 - 1


async def evaluate(body: str) -> None:
    """Evaluate the accounts of one message; an error makes the queue deliver it again."""
    evaluations = await engine().liquidations.evaluate_quietly(account_ids_of(body))
    if evaluations.failed or evaluations.left:
        count_left = len(evaluations.failed) + len(evaluations.left)
        raise ContentionError(f"{count_left} accounts could not be evaluated; the message comes again.")


def account_ids_of(body: str) -> list[int]:
    """Read a message: {"account_ids": [1, 2, 3]}.

    Raises
    ------
    InvalidRequestError
        It is none; after some deliveries it ends in the dead-letter queue.
    """
    message = loads(body.encode())
    account_ids: Any = message.get("account_ids") if isinstance(message, dict) else None
    if not isinstance(account_ids, list) or not 1 <= len(account_ids) <= ACCOUNTS_MAX:
        raise InvalidRequestError("account_ids must be a list of 1 to 1000 accounts", "account_ids")
    if any(type(account_id) is not int or not 1 <= account_id <= ACCOUNT_ID_MAX for account_id in account_ids):
        raise InvalidRequestError("account_ids must be whole numbers above 0", "account_ids")
    return account_ids


handler = queue_handler(evaluate)
