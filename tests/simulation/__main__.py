"""The long run: many seeds, each another mixture of weather, partitions and mode, until one of them finds something."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from typing import TYPE_CHECKING

from margin.domain.event import AcknowledgedBy
from tests.simulation.mishaps import WEATHERS
from tests.simulation.run import Plan, SimulationError, simulate

if TYPE_CHECKING:
    from collections.abc import Sequence

_MODES = {"inline": AcknowledgedBy.HISTORY, "drain": AcknowledgedBy.REDIS}
_MIXTURES = tuple(itertools.product(WEATHERS, (1, 3), _MODES))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 1 when something was found, with the seed that shows it."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, metavar="COUNT")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--operations", type=int, default=5000, metavar="COUNT")
    parser.add_argument("--weather", choices=WEATHERS)
    parser.add_argument("--partitions", type=int, choices=(1, 3))
    parser.add_argument("--history", choices=_MODES)
    given = parser.parse_args(arguments)
    for seed in range(1, given.seeds + 1) if given.seed is None else [given.seed]:
        weather, partitions, mode = _MIXTURES[seed % len(_MIXTURES)]
        plan = Plan(
            seed=seed,
            operations=given.operations,
            weather=given.weather or weather,
            partitions=given.partitions or partitions,
            acknowledged_by=_MODES[given.history or mode],
        )
        began_s = time.monotonic()
        try:
            finished = simulate(plan)
        except SimulationError as error:
            print(f"{plan}: FAILED\n{error}", flush=True)
            return 1
        took_s = time.monotonic() - began_s
        print(
            f"{plan}: {finished.events} events, {finished.steps} steps, {sum(finished.mishaps.values())} mishaps,"
            f" {took_s:.1f} s, trace {finished.trace_hash[:12]}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
