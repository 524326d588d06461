"""The demo's accounts through the API itself, for an engine that runs in containers.

``python -m margin_local.api_accounts http://127.0.0.1:3000 --process 4711`` waits until the API is healthy or its
process has ended, opens the accounts unless the engine holds anything else, and calls each function once: containers
are made at the first call, and that takes seconds. MARGIN_TOKEN is the token for an API that wants one.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING

from margin_local.demo.engine_client import TOKEN_VARIABLE, EngineClient
from margin_local.demo.engine_process import EngineError
from margin_local.demo_accounts import DEPOSITS, MARK_PRICES

if TYPE_CHECKING:
    from margin_local.demo.engine_client import Answer

HEALTHY_S_MAX = 90.0
_POLL_S = 0.5


def wait_until_healthy(client: EngineClient, *, process_id: int) -> None:
    """Ask for /health until it is well.

    Raises
    ------
    EngineError
        The process ended, or the API is not healthy in `HEALTHY_S_MAX` seconds.
    """
    end = time.monotonic() + HEALTHY_S_MAX
    while True:
        try:
            client.check_health()
        except EngineError:
            if time.monotonic() > end or not _is_running(process_id):
                raise
        else:
            return
        time.sleep(_POLL_S)


def open_accounts(client: EngineClient) -> bool:
    """Mark the demo's symbol, then open its accounts; a missing one says that this was never done, or cut off.

    Each deposit has a key, so that nothing is deposited twice.

    Returns
    -------
    bool
        Whether it did.

    Raises
    ------
    EngineError
        The engine refused.
    """
    report = client.get("/margin-report?limit=10")
    _require(client, report)
    present = {account["account_id"] for account in report.body["accounts_detail"]}
    if present - DEPOSITS.keys() or present >= DEPOSITS.keys():
        return False
    answers = [client.set_mark_price(symbol, str(price)) for symbol, price in MARK_PRICES.items()]
    answers += [client.deposit(account, str(amount), f"demo-{account}") for account, amount in DEPOSITS.items()]
    for answer in answers:
        _require(client, answer)
    return True


def call_each_function(client: EngineClient) -> None:
    """Call those that opening the accounts did not, and change nothing: an empty trade is refused."""
    client.trade({}, "none")
    client.set_mark_price("", "")
    for path in ("/liquidations", "/controls", "/instruments", "/funding-rates"):
        _require(client, client.get(f"{path}?limit=1"))
    # Unknown where accounts and symbols are others than the demo's.
    for path in (f"/positions/{min(DEPOSITS)}", f"/risk/ladder?symbol={min(MARK_PRICES)}"):
        client.get(path)


def _require(client: EngineClient, answer: Answer) -> None:
    if not answer.accepted:
        raise EngineError(f"{client.url} answers {answer.status} {answer.code}: {answer.body.get('detail', '')}")


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except OSError:
        return False
    return True


def main() -> int:
    """Wait, open the accounts, warm the functions."""
    parser = argparse.ArgumentParser(description="Open the demo's accounts through the API.")
    parser.add_argument("url")
    parser.add_argument("--process", metavar="PID", type=int, required=True, help="who serves the API")
    arguments = parser.parse_args()
    try:
        client = EngineClient(arguments.url, os.environ.get(TOKEN_VARIABLE, ""))
        wait_until_healthy(client, process_id=arguments.process)
        open_accounts(client)
        call_each_function(client)
    except (EngineError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
