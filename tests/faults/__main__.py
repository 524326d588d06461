"""`make faults`: every scenario on real servers, then a table; exit code 0 only where nothing was lost or doubled."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import TYPE_CHECKING

from margin import observability
from margin_local.servers import EmbeddedServerError
from tests.faults.house import ProcessEndedError
from tests.faults.run import Outcome, play
from tests.faults.scenarios import SCENARIOS
from tests.faults.table import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.scenarios import Scenario

_SHOWN_MAX = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Play what was asked for; Ctrl-C and SIGTERM stop everything that was started."""
    options = _parser().parse_args(arguments)
    observability.configure(publish_metrics=False, log_level="CRITICAL", stream=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    scenarios = [SCENARIOS[name] for name in options.scenario or SCENARIOS]
    outcomes: list[Outcome] = []
    try:
        asyncio.run(_play_all(scenarios, options, outcomes))
    except KeyboardInterrupt:
        print("faults: stopped", file=sys.stderr)
        return 130
    except (EmbeddedServerError, ProcessEndedError) as error:
        print(f"faults: {error}", file=sys.stderr)
        return 1
    finally:
        if outcomes:
            print(render(outcomes), end="", flush=True)
    return 0 if all(outcome.verdict.good for outcome in outcomes) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description="Kill, freeze, empty and put back servers under load, and look for what was lost or doubled.",
        epilog="Scenarios: " + ", ".join(SCENARIOS),
    )
    parser.add_argument(
        "--scenario", action="append", choices=list(SCENARIOS), metavar="NAME", help="only this one; may be repeated"
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="how long the faults of each scenario go on (default 10)"
    )
    parser.add_argument("--seed", type=int, default=7, help="decides what is left to chance (default 7)")
    return parser


async def _play_all(scenarios: Sequence[Scenario], options: argparse.Namespace, outcomes: list[Outcome]) -> None:
    for number, scenario in enumerate(scenarios, start=1):
        print(f"{number}/{len(scenarios)} {scenario.title}", file=sys.stderr, flush=True)
        outcome = await play(scenario, seconds=options.seconds, seed=options.seed)
        outcomes.append(outcome)
        for found in (outcome.verdict.lost, outcome.verdict.doubled, outcome.verdict.wrong):
            for sentence in found[:_SHOWN_MAX]:
                print(f"  {sentence}", file=sys.stderr, flush=True)
        if outcome.note:
            print(f"  {outcome.note}", file=sys.stderr, flush=True)
        if outcome.kept is not None:
            print(f"  data and logs are left in {outcome.kept}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
