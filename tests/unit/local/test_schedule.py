"""What runs beside the local server ends when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from margin_local import schedule


async def test_schedule_ends_though_what_it_calls_swallows_the_cancellation() -> None:
    called = asyncio.Event()
    calls = 0

    async def swallow(_event: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        called.set()
        if calls > 1:
            # It did not end: end it, so that this test does.
            raise asyncio.CancelledError
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    task = asyncio.create_task(schedule.run_scheduled("swallow", 0.0, swallow))
    await called.wait()
    task.cancel()
    await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), timeout=5)
    assert calls == 1


async def test_schedule_calls_again_after_an_error() -> None:
    again = asyncio.Event()
    calls = 0

    async def fail(_event: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError
        again.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(schedule.run_scheduled("fail", 0.0, fail))
    await asyncio.wait_for(again.wait(), timeout=5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert calls == 2
