"""`python -m tests.faults.serve [FAULT...]`: the local engine on given stores, with fault points around them.

It serves as `python -m margin_local` does, and is told the stores by the same variables. Over standard input, line by
line: ``arm FAULT``, ``open`` (the gate, and nothing armed any more) and ``report``. Over standard output, beside the
line that says where it listens: ``arrived POINT`` at a gate, and reports as JSON. The end of its input ends it.

With ``--drain`` it drains once instead, as the scheduled function does, and ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from margin import observability
from margin.config import AUTH_OFF, Settings
from margin.runtime import Engine
from margin_local import server
from tests.faults.points import Fault, FaultPlan, FaultyAccounts, FaultyHistory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.points import FaultPoint

READY = "ready "
ARRIVED = "arrived "
REPORT = "report "
_LINES_BYTES = 65536


class FaultyEngine(Engine):
    """An engine whose stores have fault points, but for those with which it opens its state.

    Parameters
    ----------
    settings : Settings
        Where the stores are.
    plan : FaultPlan
        What happens at the points.
    """

    def __init__(self, settings: Settings, plan: FaultPlan) -> None:
        super().__init__(settings)
        self.plan = plan

    @cached_property
    def accounts(self) -> Any:
        """Accounts in Redis."""
        return FaultyAccounts(super().accounts, self.plan)

    @cached_property
    def history_store(self) -> Any:
        """PostgreSQL."""
        return FaultyHistory(super().history_store, self.plan)


class Control:
    """Does what the lines on standard input say."""

    def __init__(self, plan: FaultPlan) -> None:
        self._plan = plan
        self._begun = b""

    def hear(self) -> None:
        """Read what is there; at its end, end the process in order."""
        heard = os.read(sys.stdin.fileno(), _LINES_BYTES)
        if not heard:
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            os.kill(os.getpid(), signal.SIGTERM)
        *lines, self._begun = (self._begun + heard).split(b"\n")
        for line in lines:
            self._obey(line.decode())

    def _obey(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        match command:
            case "arm":
                self._plan.arm(Fault.parse(argument))
            case "open":
                self._plan.disarm()
            case "report":
                _say(REPORT + json.dumps(_report(self._plan)))
            case _:
                raise ValueError(f"{line!r} is no command")


def _report(plan: FaultPlan) -> dict[str, Any]:
    return {
        "reached": plan.reached,
        "happened": {str(fault): times for fault, times in plan.happened.items()},
        "commits_max": plan.commits_max,
    }


def _say(line: str) -> None:
    print(line, flush=True)


def _at_gate(point: FaultPoint) -> None:
    _say(f"{ARRIVED}{point}")


def _make_engine(settings: Settings, faults: Sequence[Fault]) -> Engine:
    plan = FaultPlan(faults, on_gate=_at_gate)
    control = Control(plan)
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), control.hear)
    return FaultyEngine(settings, plan)


async def _drain(settings: Settings, faults: Sequence[Fault]) -> None:
    engine = FaultyEngine(settings, FaultPlan(faults))
    try:
        await engine.drain.drain()
    finally:
        await engine.close()


def main(arguments: Sequence[str]) -> int:
    """Serve or drain until done or told to stop."""
    faults = [Fault.parse(argument) for argument in arguments if not argument.startswith("--")]
    environment = {"AUTH": AUTH_OFF, **os.environ}
    settings = Settings.from_environment(environment)
    if "--drain" in arguments:
        observability.configure(publish_metrics=False, log_level="WARNING", stream=sys.stderr)
        asyncio.run(_drain(settings, faults))
    else:
        server.run(settings, environment, partial(_make_engine, faults=faults))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
