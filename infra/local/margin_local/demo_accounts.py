"""The accounts that an empty engine starts with, so that the first curl has something to trade."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from margin.caller import ENGINE

if TYPE_CHECKING:
    from margin.runtime import Engine

DEPOSITS = {1: Decimal(100_000), 2: Decimal(5_000), 3: Decimal(15_000)}
MARK_PRICES = {"BTC-PERP": Decimal(50_000)}


async def seed(engine: Engine) -> bool:
    """Open the demo's accounts and mark its symbol, unless the engine holds anything else.

    A start that was killed half way is completed by the next: until the mark price is set, which comes last, accounts
    of the demo that hold nothing but their first deposit do not count as something else.

    Returns
    -------
    bool
        Whether it seeded.
    """
    if (await engine.market.market()).marks:
        return False
    held = await engine.history_store.accounts(0, len(DEPOSITS) + 1)
    if any(row.account.account_id not in DEPOSITS or not row.version.startswith("1:") for row in held):
        return False
    present = {row.account.account_id for row in held}
    for account_id, amount in DEPOSITS.items():
        if account_id not in present:
            await engine.funds.deposit(account_id, amount, key=f"demo-{account_id}", caller=ENGINE)
    await engine.marks.set_marks(MARK_PRICES)
    return True
