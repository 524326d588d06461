"""`python -m margin_local.supply_chain.audit`: known vulnerabilities of every package in every lock.

The exit status is 0 when there are none that were not accepted, 1 when there are, 2 when the list of accepted ones
cannot be used. Where no source of advisories can be reached it says so in capitals and ends with 0; with
REQUIRE_AUDIT=1 that is a failure too, and so is a package that the source does not know. AUDIT_OSV_URL names a mirror
to ask instead.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from margin_local.supply_chain import advisories
from margin_local.supply_chain.acceptances import read_acceptances
from margin_local.supply_chain.entries import ListError
from margin_local.supply_chain.locks import ROOT, locks, pinned

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin_local.supply_chain.acceptances import Acceptance
    from margin_local.supply_chain.advisories import Answer, Vulnerability
    from margin_local.supply_chain.locks import Pin

PASSED, FAILED, BAD_LIST = 0, 1, 2
ACCEPTED = ROOT / "infra" / "local" / "accepted-vulnerabilities.toml"
_UNKNOWN_SHOWN_MAX = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit, print what was found, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m margin_local.supply_chain.audit", description=__doc__)
    parser.add_argument("--accepted", metavar="FILE", type=Path, default=ACCEPTED, help="the accepted ones")
    parser.add_argument("locks", nargs="*", type=Path, help="locks; by default all of the repository")
    options = parser.parse_args(arguments)
    is_required = os.environ.get("REQUIRE_AUDIT", "0") not in ("", "0")
    today = dt.datetime.now(tz=dt.UTC).date()
    holders = pinned(options.locks or locks())
    try:
        accepted = read_acceptances(options.accepted, today)
    except ListError as error:
        print(f"audit: {error}", file=sys.stderr)
        return BAD_LIST
    try:
        answer = advisories.ask(holders, osv_url=os.environ.get("AUDIT_OSV_URL") or None)
    except advisories.UnreachableError as error:
        print(f"skipped: the audit of {len(holders)} packages, no source of advisories can be reached. {error}.")
        print(f"AUDIT SKIPPED: NOBODY KNOWS WHETHER THE {len(holders)} LOCKED PACKAGES ARE VULNERABLE")
        return FAILED if is_required else PASSED
    return _report(answer, accepted, holders, today, is_required=is_required)


def _report(
    answer: Answer,
    accepted: Sequence[Acceptance],
    holders: Mapping[Pin, Sequence[Path]],
    today: dt.date,
    *,
    is_required: bool,
) -> int:
    refused = 0
    for found in answer.vulnerabilities:
        about = [entry for entry in accepted if entry.is_about(found)]
        covering = next((entry for entry in about if entry.covers(found, today)), None)
        refused += covering is None
        if covering is not None:
            verdict = f"accepted until {covering.expires}: {covering.reason}"
        elif about:
            verdict = f"accepted until {about[0].expires}, which is over"
        else:
            verdict = "not accepted"
        print(f"{_described(found)}, in {', '.join(_shown(path) for path in holders[found.package, found.version])}")
        print(f"  {verdict}")
    for entry in accepted:
        if not any(entry.is_about(found) for found in answer.vulnerabilities):
            print(f"{entry.id} of {entry.package} is accepted and not found any more: remove the entry.")
    if answer.unknown:
        names = [f"{name} {version}" for name, version in sorted(answer.unknown)]
        more = f" and {len(names) - _UNKNOWN_SHOWN_MAX} more" if len(names) > _UNKNOWN_SHOWN_MAX else ""
        print(f"skipped: {answer.source} does not know {', '.join(names[:_UNKNOWN_SHOWN_MAX])}{more}.")
    asked = f"{len(holders) - len(answer.unknown)} packages asked of {answer.source}"
    print(f"{asked}: {len(answer.vulnerabilities)} known vulnerabilities, {refused} not accepted.")
    return FAILED if refused or (is_required and answer.unknown) else PASSED


def _described(found: Vulnerability) -> str:
    fix = f"fixed in {', '.join(found.fixed_in)}" if found.fixed_in else "without a fix"
    return f"{found.package} {found.version}: {', '.join(found.names)}, {fix}"


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    sys.exit(main())
