"""What tests steer: the time, and what goes wrong at which step."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter, defaultdict, deque
from typing import TYPE_CHECKING

from margin.errors import MarginError

if TYPE_CHECKING:
    from collections.abc import Callable

NOW_US = 1_700_000_000_000_000


def _nothing() -> None:
    """Go wrong in no way."""


class Clock:
    """Microseconds since the epoch; it stands still until it is told to move."""

    def __init__(self, now_us: int = NOW_US) -> None:
        self.now_us = now_us

    def advance(self, seconds: float) -> None:
        self.now_us += int(seconds * 1_000_000)


class Faults:
    """Faults by the name of a step, such as "accounts.commit" or "history.append".

    A store reaches ``<step>.before`` before it does anything and ``<step>.after`` when all is done and only the reply
    is to come, so that an error there is a lost reply. Every call lets other tasks run, as one to a real store does.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._queued: dict[str, deque[MarginError | Callable[[], object]]] = defaultdict(deque)
        self._down: dict[str, MarginError] = {}

    def fail(self, step: str, error: MarginError, *, times: int = 1) -> None:
        """Raise ``error`` the next ``times`` times that the step is reached."""
        self._queued[step].extend([error] * times)

    def skip(self, step: str, *, times: int = 1) -> None:
        """Let the next ``times`` times pass."""
        self._queued[step].extend([_nothing] * times)

    def call(self, step: str, action: Callable[[], object], *, times: int = 1) -> None:
        """Run ``action`` (plain or async) the next ``times`` times that the step is reached."""
        self._queued[step].extend([action] * times)

    def take_down(self, prefix: str, error: MarginError) -> None:
        """Raise ``error`` before every step whose name begins with ``prefix``, until `bring_up`."""
        self._down[prefix] = error

    def bring_up(self, prefix: str) -> None:
        del self._down[prefix]

    async def before(self, step: str) -> None:
        self.calls[step] += 1
        await asyncio.sleep(0)
        for prefix, error in self._down.items():
            if step.startswith(prefix):
                raise type(error)(error.detail)
        await self._reach(f"{step}.before")

    async def after(self, step: str) -> None:
        await self._reach(f"{step}.after")
        await asyncio.sleep(0)

    async def _reach(self, name: str) -> None:
        if not self._queued[name]:
            return
        fault = self._queued[name].popleft()
        if isinstance(fault, MarginError):
            raise type(fault)(fault.detail)
        outcome = fault()
        if inspect.isawaitable(outcome):
            await outcome
