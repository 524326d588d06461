"""Timing calls that take turns, so that a slow moment of the machine hits all of them."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def elapsed_ms(call: Callable[[], Awaitable[object]]) -> float:
    """How long one call took."""
    started = time.perf_counter()
    await call()
    return (time.perf_counter() - started) * 1000


async def median_ms(times: int, *calls: Callable[[], Awaitable[object]]) -> list[float]:
    """Median time of each call; in each round another one is the first."""
    spent: list[list[float]] = [[] for _ in calls]
    for number in range(times):
        for offset in range(len(calls)):
            turn = (number + offset) % len(calls)
            spent[turn].append(await elapsed_ms(calls[turn]))
    return [statistics.median(samples) for samples in spent]
