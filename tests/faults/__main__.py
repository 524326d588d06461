"""`make faults`: every scenario on real servers, the long looks, then tables; exit code 0 where nothing is wrong."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from typing import TYPE_CHECKING

from margin import observability
from margin_local.servers import EmbeddedServerError
from tests.faults.house import ProcessEndedError
from tests.faults.long_looks import LONG_LOOKS
from tests.faults.run import Outcome, play
from tests.faults.scenarios import SCENARIOS
from tests.faults.table import render, render_looks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.long_looks import LongLook, Seen
    from tests.faults.scenarios import Scenario

_SHOWN_MAX = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Play what was asked for; Ctrl-C and SIGTERM stop everything that was started."""
    options = _parser().parse_args(arguments)
    observability.configure(publish_metrics=False, log_level="CRITICAL", stream=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    names = options.scenario or [*SCENARIOS, *LONG_LOOKS]
    scenarios = [SCENARIOS[name] for name in names if name in SCENARIOS]
    outcomes: list[Outcome] = []
    seen: list[tuple[LongLook, Seen, float]] = []
    try:
        asyncio.run(_play_all(scenarios, options, outcomes))
        _look_long([LONG_LOOKS[name] for name in names if name in LONG_LOOKS], options, seen)
    except KeyboardInterrupt:
        print("faults: stopped", file=sys.stderr)
        return 130
    except (EmbeddedServerError, ProcessEndedError) as error:
        print(f"faults: {error}", file=sys.stderr)
        return 1
    finally:
        if outcomes:
            print(render(outcomes), end="", flush=True)
        if seen:
            print(render_looks(seen), end="", flush=True)
    good = all(outcome.verdict.good for outcome in outcomes) and not any(found.wrong for _, found, _ in seen)
    return 0 if good else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description="Kill, freeze, empty and put back servers under load, and look for what was lost or doubled.",
        epilog="Scenarios: " + ", ".join([*SCENARIOS, *LONG_LOOKS]),
    )
    names = [*SCENARIOS, *LONG_LOOKS]
    parser.add_argument("--scenario", action="append", choices=names, metavar="NAME", help="only this; may be repeated")
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


def _look_long(
    looks: Sequence[LongLook], options: argparse.Namespace, seen: list[tuple[LongLook, Seen, float]]
) -> None:
    for look in looks:
        print(look.title, file=sys.stderr, flush=True)
        began_s = time.monotonic()
        found = look.look(options.seed, lambda line: print(f"  {line}", file=sys.stderr, flush=True))
        seen.append((look, found, time.monotonic() - began_s))
        for sentence in found.wrong[:_SHOWN_MAX]:
            print(f"  {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
