"""The passes over an engine: with every right, with few, and without a token."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
SWITCHES = "^/controls"
ALL_PHASES = "examples,coverage,fuzzing,stateful"
FEW_PHASES = "examples,fuzzing"
REQUEST_TIMEOUT_S = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Pass:
    """One run of Schemathesis."""

    name: str
    short_phases: str
    """Phases of a short look; a long one has all of them."""
    scopes: str | None
    """Of the token; None: no token is sent."""
    accounts: str = ""
    options: tuple[str, ...] = ()
    share: float = 0.0
    """Part of the time of a long look."""


EVERY_SCOPE = "trade:write positions:read history:read accounts:write marks:write risk:read admin"
PASSES = (
    # The switches come afterwards: they would have everything that follows refused.
    Pass("operator", ALL_PHASES, EVERY_SCOPE, "*", ("--exclude-path-regex", SWITCHES), share=0.7),
    Pass("switches", ALL_PHASES, EVERY_SCOPE, "*", ("--include-path-regex", SWITCHES), share=0.1),
    Pass("trader", FEW_PHASES, "trade:write positions:read history:read", "1 2", share=0.15),
    Pass("stranger", FEW_PHASES, None, share=0.05),
)


def command(
    each: Pass, document: Path, url: str, *, seed: int, examples: int, long: bool, max_s: int | None = None
) -> list[str]:
    """Return the command of a pass."""
    line = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIGURATION)]
    line += ["run", str(document), "--url", url, "--checks", "all"]
    line += ["--phases", ALL_PHASES if long else each.short_phases]
    line += ["--max-examples", str(examples), "--seed", str(seed)]
    line += ["--request-timeout", str(REQUEST_TIMEOUT_S), "--generation-database", "none", "--continue-on-failure"]
    if max_s is not None:
        line += ["--max-time", str(max_s)]
    return [*line, *each.options]
