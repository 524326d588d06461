"""Runs all passes over engines of their own, and says what was found."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tests.fuzz.engine import fuzzed_engine
from tests.fuzz.passes import PASSES, ROOT, command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.fuzz.engine import FuzzedEngine
    from tests.fuzz.passes import Pass


LEFT_TO_OWN_CHECKS = """\
No check is left out. Of a request that fits the schema, positive_data_acceptance takes 400 and 422 too: a rule of the
exchange may forbid it, and no schema says how many decimals 1e-9 has. refusals_say_what_the_schema_cannot looks at each
of these instead."""


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What one pass came to."""

    name: str
    seed: int
    passed: bool
    elapsed_s: float
    errors: tuple[str, ...]
    """Lines of the engine's log that tell of a failure."""


def run_passes(
    seed: int,
    *,
    examples: int,
    output: TextIO,
    long: bool = False,
    total_s: float | None = None,
    passes: Sequence[Pass] = PASSES,
) -> list[Result]:
    """Run the passes, one after the other, over one engine.

    Parameters
    ----------
    seed : int
        The same one draws the same requests.
    examples : int
        How many requests are drawn for an operation and a phase, at most.
    output : TextIO
        Where Schemathesis reports: a file with a descriptor.
    long : bool
        Take every phase of every pass.
    total_s : float or None
        Time of all passes together, in seconds; without it each pass takes what its examples need.
    passes : Sequence[Pass]
        Some of them.
    """
    print(LEFT_TO_OWN_CHECKS, file=output)
    results = []
    with fuzzed_engine() as engine, tempfile.TemporaryDirectory(prefix="margin-fuzz-") as directory:
        document = Path(directory, "openapi.json")
        document.write_text(engine.document(), encoding="utf-8")
        for each in passes:
            max_s = None if total_s is None else max(1, round(total_s * each.share))
            line = command(each, document, engine.url, seed=seed, examples=examples, long=long, max_s=max_s)
            results.append(_run(each, line, engine, seed, output))
    return results


def _run(each: Pass, line: list[str], engine: FuzzedEngine, seed: int, output: TextIO) -> Result:
    if each.scopes is not None:
        line = [*line, "--header", f"Authorization: Bearer {engine.token(each.scopes, each.accounts)}"]
    print(f"\n--- {each.name}, seed {seed} ---", file=output, flush=True)
    before = len(engine.errors_in_log())
    started = time.monotonic()
    # No settings of whoever runs this; the hooks are found from the root.
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TERM", "LANG") if name in os.environ}
    environment |= {"SCHEMATHESIS_HOOKS": "tests.fuzz.hooks", "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    ended = subprocess.run(
        line, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
    )
    elapsed_s = time.monotonic() - started
    errors = tuple(engine.errors_in_log()[before:])
    for error in errors:
        print(f"log: {error}", file=output, flush=True)
    return Result(each.name, seed, ended.returncode == 0 and not errors, elapsed_s, errors)
