"""Before the issuer signs a token: write into it which accounts its client may use.

Cognito calls this for every token of the user pool that infra/cognito.yaml makes. It needs nothing of the engine and
has no layer: boto3 is Lambda's own.
"""

from __future__ import annotations

import logging
import os
import re
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

# Tokens are sent with every request, and the gateway takes 10 kB of headers: so many ids fit, the longest too.
ACCOUNTS_MAX = 200
ALL_ACCOUNTS = "*"
FOR_MACHINES = "TokenGeneration_ClientCredentials"

_ACCOUNT_ID = re.compile(r"[1-9][0-9]{0,18}")

Event = dict[str, Any]

logger = logging.getLogger(__name__)
# Cognito gives up after five seconds: two attempts, and what lies between them, take less.
_DYNAMODB = boto3.client(
    "dynamodb",
    config=Config(connect_timeout=0.8, read_timeout=0.8, retries={"mode": "standard", "total_max_attempts": 2}),
)
_TABLE = os.environ["ACCOUNTS_TABLE"]


class TokenRefusedError(Exception):
    """Cognito issues no token; the client is told the message, so that it names nothing of the operator's."""


def handler(event: Event, _context: object) -> Event:
    """Answer Cognito's trigger before a token is generated, of version 3.

    A client without a row in the table gets a token without the claim, which is for no account.

    Raises
    ------
    TokenRefusedError
        The token is for a user, what the table has for the client cannot be read, or the table does not answer.
    """
    client_id = event["callerContext"]["clientId"]
    if event["triggerSource"] != FOR_MACHINES:
        logger.error("token_refused", extra={"client_id": client_id, "reason": event["triggerSource"]})
        raise TokenRefusedError("Tokens are issued to machine clients alone.")
    row = _row_of(client_id)
    if row is not None:
        claims = {"account_ids": _accounts_of(row, client_id)}
        event["response"] = {
            "claimsAndScopeOverrideDetails": {"accessTokenGeneration": {"claimsToAddOrOverride": claims}}
        }
    return event


def _row_of(client_id: str) -> dict[str, Any] | None:
    try:
        # Consistent: who has lost an account gets no token for it from a replica that lags.
        answer = _DYNAMODB.get_item(TableName=_TABLE, Key={"client_id": {"S": client_id}}, ConsistentRead=True)
    except (BotoCoreError, ClientError):
        logger.exception("accounts_unavailable", extra={"client_id": client_id})
        # Not from the error, which names the role and the table.
        raise TokenRefusedError("The accounts of this client cannot be read at the moment.") from None
    row: dict[str, Any] | None = answer.get("Item")
    return row


def _accounts_of(row: dict[str, Any], client_id: str) -> str:
    """Return the claim: ids between single spaces, or the sign for all."""
    text = row.get("account_ids", {}).get("S", "")
    if text == ALL_ACCOUNTS:
        return ALL_ACCOUNTS
    account_ids = text.split()
    if not 1 <= len(account_ids) <= ACCOUNTS_MAX or not all(map(_ACCOUNT_ID.fullmatch, account_ids)):
        logger.error("token_refused", extra={"client_id": client_id, "reason": "account_ids", "ids": len(account_ids)})
        raise TokenRefusedError("The accounts of this client are not written as they must be.")
    return " ".join(account_ids)
