"""An event loop in which a seed decides what runs next, and in which time passes only when nothing else can happen.

Everything that a process asks of a store waits at a gate. When all tasks wait, the loop is idle, and then one of those
at a gate is let through, or the time of the next timer comes. So every interleaving is one sequence of choices, made by
one source of chance: the same seed, the same run.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tests.fakes import Clock

_STEP_US = (40, 400)
_TIMER_FIRST = 0.02
"""How likely a timer goes before those at a gate: backoffs are longer than round trips."""


class ProcessKilledError(BaseException):
    """A process has died. Not an `Exception`, so that no handler of the engine takes it for an error."""


class StuckError(AssertionError):
    """All tasks wait for each other, or the run does not end."""


class Process:
    """One process of the engine, as far as dying goes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False


class Turn:
    """Somebody at a gate; not let through before a step, if it is to take long."""

    def __init__(self, process: Process, label: str, arrival: asyncio.Future[None], not_before: int) -> None:
        self.process = process
        self.label = label
        self.arrival = arrival
        self.not_before = not_before


class Clockwork:
    """Decides what runs next.

    Parameters
    ----------
    chance : random.Random
        The only source of choices.
    clock : Clock
        Moves with the loop's time.
    steps_max : int
        After so many the run is taken for one that never ends.
    """

    def __init__(self, chance: random.Random, clock: Clock, steps_max: int) -> None:
        self._steps_max = steps_max
        self.steps = 0
        self.now_s = 0.0
        self.between_steps: Callable[[], None] = _nothing
        self.trace: Callable[[str], None] = _say_nothing
        self._chance = chance
        self._clock = clock
        self._turns: list[Turn] = []
        self._stopped = False

    def run(self, main: Callable[[], asyncio.coroutines.Coroutine[None, None, None]]) -> None:  # type: ignore[name-defined]
        """Run to the end; whatever ``between_steps`` raises ends the run."""
        with asyncio.Runner(loop_factory=lambda: _Loop(self)) as runner:
            try:
                runner.run(main())
            except BaseException:
                self._stopped = True
                runner.get_loop().set_exception_handler(lambda _loop, _context: None)
                raise

    async def gate(self, process: Process, label: str, *, steps: int = 0) -> None:
        """Wait for one's turn, ``steps`` steps at least.

        Raises
        ------
        ProcessKilledError
            The process died meanwhile, or was dead.
        """
        if process.dead or self._stopped:
            raise ProcessKilledError
        turn = Turn(process, label, asyncio.get_running_loop().create_future(), self.steps + steps)
        self._turns.append(turn)
        try:
            await turn.arrival
        finally:
            if turn in self._turns:
                self._turns.remove(turn)
        if process.dead:
            raise ProcessKilledError

    def kill(self, process: Process) -> None:
        """Let a process do nothing any more."""
        process.dead = True
        for turn in [turn for turn in self._turns if turn.process is process]:
            self._let_through(turn)

    def hurry(self) -> None:
        """Let those who take long take their turn like others."""
        for turn in self._turns:
            turn.not_before = 0

    def pass_time(self, seconds: float) -> None:
        """Move the clocks."""
        self.now_s += seconds
        self._clock.advance(seconds)

    def idle(self, timer_s: float | None) -> None:
        """Choose what happens next; the loop calls it when every task waits."""
        if self._stopped:
            self.now_s += timer_s or 0.0
            for turn in list(self._turns):
                self._let_through(turn)
            return
        self.between_steps()
        ready = [turn for turn in self._turns if turn.not_before <= self.steps]
        if not ready and timer_s is None:
            if not self._turns:
                raise StuckError("nobody is at a gate, and no timer runs")
            ready = [min(self._turns, key=lambda turn: turn.not_before)]
        self.steps += 1
        if self.steps > self._steps_max:
            raise StuckError(f"after {self.steps} steps the run has not ended")
        if timer_s is not None and (not ready or self._chance.random() < _TIMER_FIRST):
            # A little more than is left, or rounding would let the timer run once more for nothing.
            self.pass_time(timer_s + 1e-6)
            return
        turn = ready[self._chance.randrange(len(ready))]
        self.pass_time(self._chance.randint(*_STEP_US) / 1_000_000)
        self.trace(f"{turn.process.name} {turn.label}")
        self._let_through(turn)

    def _let_through(self, turn: Turn) -> None:
        self._turns.remove(turn)
        if not turn.arrival.done():
            turn.arrival.set_result(None)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clockwork: Clockwork) -> None:
        super().__init__(_IdleSelector(clockwork))
        self._clockwork = clockwork

    def time(self) -> float:
        return self._clockwork.now_s


class _IdleSelector(selectors.SelectSelector):
    """Waits for no file: there are none, and what asyncio would wait for is decided here."""

    def __init__(self, clockwork: Clockwork) -> None:
        super().__init__()
        self._clockwork = clockwork

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout > 0:
            self._clockwork.idle(timeout)
        return []


def _nothing() -> None:
    """Do nothing between steps."""


def _say_nothing(_line: str) -> None:
    """Trace nothing."""
