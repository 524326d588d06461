"""`make bench`: what the engine costs, as ratios taken in one run on real servers.

- `trade`: a trade next to its floor, one that Redis alone acknowledges, and an event in a drain.
- `index`: a mark price with a thousand accounts and with a million, next to a look at everybody; memory.
- `cold-start`: cold starts and warm invocations of every built function, next to their floors.

Absolute times depend on the machine and its neighbours; the ratios are what to compare.
"""

from __future__ import annotations

import argparse
import signal
import sys
from typing import TYPE_CHECKING

from margin import observability
from margin_local.servers import EmbeddedServerError
from tests.benchmarks import cold_start, index, trade

if TYPE_CHECKING:
    from collections.abc import Sequence

ACCOUNTS = "1000,10000,100000,1000000"
ACCOUNTS_MIN = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; Ctrl-C and SIGTERM stop everything that was started."""
    options = _parser().parse_args(arguments)
    observability.configure(publish_metrics=False, log_level="ERROR", stream=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parts = {"trade": trade.main, "index": lambda: index.main(options.accounts), "cold-start": cold_start.main}
    try:
        for number, name in enumerate(options.only or parts):
            if number:
                print()
            parts[name]()
    except KeyboardInterrupt:
        print("bench: stopped", file=sys.stderr)
        return 130
    except EmbeddedServerError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Measure what the engine costs.")
    parser.add_argument(
        "--only", action="append", choices=("trade", "index", "cold-start"), help="only this part; may be repeated"
    )
    parser.add_argument(
        "--accounts",
        type=_sizes,
        default=_sizes(ACCOUNTS),
        metavar="N,N",
        help=f"how many accounts the index is measured with (default {ACCOUNTS})",
    )
    return parser


def _sizes(text: str) -> list[int]:
    """Read how many accounts, fewest first."""
    sizes = sorted({int(size) for size in text.split(",")})
    if sizes[0] < ACCOUNTS_MIN:
        message = f"fewer than {ACCOUNTS_MIN} accounts say nothing"
        raise argparse.ArgumentTypeError(message)
    return sizes


if __name__ == "__main__":
    sys.exit(main())
