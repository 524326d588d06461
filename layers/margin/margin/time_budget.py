"""How much time the work at hand has left, known to whoever has to stop in time.

``lambda_entry`` starts the budget of each invocation. Code that works in batches or waits for a store asks for what is
left; outside a bounded invocation that is infinite.
"""

from __future__ import annotations

import math
import time
from contextvars import ContextVar

_deadline: ContextVar[float] = ContextVar("margin_deadline", default=math.inf)


class TimeBudgetExceededError(Exception):
    """The work did not end within its time budget and was cancelled."""

    def __init__(self, budget_s: float) -> None:
        super().__init__(f"The work was cancelled: it did not end within its budget of {budget_s:.3f} s.")
        self.budget_s = budget_s


def start(budget_s: float) -> None:
    """Let the present task, and the tasks it starts, have ``budget_s`` seconds from now."""
    _deadline.set(time.monotonic() + budget_s)


def remaining_s() -> float:
    """Seconds that are left: never negative, infinite where no budget was started."""
    return max(0.0, _deadline.get() - time.monotonic())
