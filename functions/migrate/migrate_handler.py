"""At every release: bring the schema to this release, and open the state of an exchange that has no history yet.

Called by CloudFormation as a custom resource, which is answered at the address that the event names, or by an operator
with {"command": "migrate"} or {"command": "open"}.
"""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from functions_password import set_functions_password
from margin.caller import Caller, deployment, operator
from margin.errors import StateNotLoadedError
from margin.lambda_entry import event_handler
from margin.observability import logger
from margin.runtime import engine
from migrate_schema import migrate

PHYSICAL_ID = "margin-schema"
REASON_LENGTH_MAX = 1000
ANSWER_TIMEOUT_S = 10
NOT_LOADED = (
    "History is not empty and Redis does not hold its state. When no trade is under way, open it: "
    "aws lambda invoke --function-name {function} --cli-binary-format raw-in-base64-out "
    """--payload '{{"command": "open"}}' /dev/stdout"""
)


async def run(event: dict[str, Any]) -> dict[str, Any]:
    """Do what a custom resource's event or an operator's command says.

    Raises
    ------
    MarginError
        The command failed; of a custom resource the deployment fails, with the reason.
    """
    if "RequestType" not in event:
        return await execute(str(event.get("command", "migrate")), operator(f"request {logger.get_correlation_id()}"))
    try:
        # Nothing is taken back when the stack goes: history outlives it.
        caller = deployment(f"request {event['RequestId']}")
        data = {} if event["RequestType"] == "Delete" else await execute("migrate", caller)
    except Exception as error:
        answer(event, "FAILED", reason=f"{type(error).__name__}: {error}")
        raise
    answer(event, "SUCCESS", data=data)
    return data


async def execute(command: str, caller: Caller) -> dict[str, Any]:
    """Migrate; then open the state if that was asked for, or if there is no history that it could differ from."""
    settings = engine().settings
    password = engine().postgres_password()
    data: dict[str, Any] = {"revision": migrate(settings, password=password)}
    if functions_password := engine().functions_password():
        set_functions_password(settings, functions_password, password=password)
    if command == "open" or not await engine().history_store.accounts(0, 1):
        report = await engine().opening.open(caller=caller)
        return {**data, "opened": len(report.opened), "accounts": report.accounts, "loaded": report.loaded}
    try:
        await engine().partitions.check()
    except StateNotLoadedError:
        data["state"] = NOT_LOADED.format(function=settings.aws_lambda_function_name or "FUNCTION")
        logger.warning("state_not_loaded", hint=data["state"])
    return data


def answer(event: dict[str, Any], status: str, *, reason: str = "", data: dict[str, Any] | None = None) -> None:
    """Tell CloudFormation how it went; without an answer it would wait until the resource's timeout."""
    body = {
        "Status": status,
        "Reason": reason[:REASON_LENGTH_MAX] or "See the function's log.",
        "PhysicalResourceId": event.get("PhysicalResourceId", PHYSICAL_ID),
        "StackId": event["StackId"],
        "RequestId": event["RequestId"],
        "LogicalResourceId": event["LogicalResourceId"],
        "Data": data or {},
    }
    request = urllib.request.Request(  # noqa: S310 - the address is CloudFormation's, signed for this one answer
        event["ResponseURL"], data=json.dumps(body).encode(), method="PUT", headers={"Content-Type": ""}
    )
    with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S):  # noqa: S310
        logger.info("custom_resource_answered", status=status)


handler = event_handler(run)
