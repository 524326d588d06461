"""`python -m tests.fuzz`: a long look, in rounds with a seed and an engine of their own.

The seed of each round is printed; `--seed N --minutes 0` repeats one. The exit status is 0 when nothing was found, 1
when something was, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from typing import TYPE_CHECKING

from tests.fuzz.passes import PASSES
from tests.fuzz.run import run_passes

if TYPE_CHECKING:
    from collections.abc import Sequence

CLEAN, FOUND, STOPPED = 0, 1, 130
ROUND_S = 300.0
"""A round is no longer: the next one begins on empty stores with another seed."""
SEED_MAX = 2**32


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default 10); 0: one round, untimed")
    parser.add_argument("--seed", type=int, help="of the first round; the next ones count up from it")
    parser.add_argument("--examples", type=int, default=100, help="requests for each operation (default 100)")
    names = [each.name for each in PASSES]
    parser.add_argument("--pass", dest="passes", action="append", choices=names, help="some of them")
    options = parser.parse_args(arguments)
    passes = [each for each in PASSES if not options.passes or each.name in options.passes]
    seed = options.seed if options.seed is not None else secrets.randbelow(SEED_MAX)
    deadline = time.monotonic() + options.minutes * 60
    results = []
    try:
        while True:
            left_s = deadline - time.monotonic()
            total_s = min(left_s, ROUND_S) if options.minutes else None
            results += run_passes(
                seed, examples=options.examples, output=sys.stdout, long=True, total_s=total_s, passes=passes
            )
            seed = (seed + 1) % SEED_MAX
            if time.monotonic() + 1 >= deadline:
                break
    except KeyboardInterrupt:
        print(f"\nStopped in the round of seed {seed}.", file=sys.stderr)
        return STOPPED
    print()
    for result in results:
        verdict = "nothing found" if result.passed else "FOUND SOMETHING, see above"
        print(f"{result.name:10} seed {result.seed:<10} {result.elapsed_s:7.1f} s  {verdict}")
    failed = [result for result in results if not result.passed]
    for result in failed:
        again = f"--minutes 0 --seed {result.seed} --examples {options.examples} --pass {result.name}"
        print(f'Again: make fuzz ARGS="{again}"')
    return FOUND if failed else CLEAN


if __name__ == "__main__":
    sys.exit(main())
