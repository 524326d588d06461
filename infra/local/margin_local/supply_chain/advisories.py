"""Asks for known vulnerabilities of packages, with pip-audit: the package index first, then the OSV database.

An index that keeps no advisories answers that it knows none of the packages, and pip-audit calls that a success without
vulnerabilities. Here such a package counts as unknown, and an index that knows none of them as not reachable.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from margin_local.supply_chain.locks import Pin

REQUEST_TIMEOUT_S = 15
TOTAL_TIMEOUT_S = 300


@dataclasses.dataclass(frozen=True, slots=True)
class Vulnerability:
    """A known vulnerability of one version of a package."""

    package: str
    version: str
    names: tuple[str, ...]
    """Its id and the ids that other databases give it."""
    fixed_in: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What a source of advisories says."""

    source: str
    vulnerabilities: tuple[Vulnerability, ...]
    unknown: frozenset[Pin]
    """Packages that the source knows nothing about."""


class UnreachableError(Exception):
    """No source of advisories answers; the text says why, source by source."""


def ask(pins: Collection[Pin], *, osv_url: str | None = None) -> Answer:
    """Return what is known about packages.

    Parameters
    ----------
    pins : Collection[Pin]
        The packages, in any number of versions each.
    osv_url : str or None
        Ask this address alone, which speaks the protocol of the OSV database, such as a mirror inside of a company.

    Raises
    ------
    UnreachableError
    """
    sources = {"the package index": ["pypi"], "the OSV database": ["osv"]}
    if osv_url is not None:
        sources = {f"the mirror {osv_url}": ["osv", "--osv-url", osv_url]}
    reasons = []
    for source, options in sources.items():
        try:
            answers = [_ask(batch, source, options) for batch in _batches(pins)]
        except UnreachableError as error:
            reasons.append(f"{source}: {error}")
            continue
        unknown = frozenset(pin for answer in answers for pin in answer.unknown)
        if not unknown.issuperset(pins):
            return Answer(source, tuple(found for answer in answers for found in answer.vulnerabilities), unknown)
        reasons.append(f"{source}: it keeps no advisories, or has none of the {len(unknown)} packages")
    raise UnreachableError("; ".join(reasons))


def _batches(pins: Iterable[Pin]) -> Iterator[list[Pin]]:
    """Share the packages out, so that none is in one batch in two versions."""
    left = sorted(pins)
    while left:
        batch = dict(reversed(left))
        yield sorted(batch.items())
        left = [pin for pin in left if pin not in batch.items()]


def _ask(pins: Collection[Pin], source: str, options: list[str]) -> Answer:
    with tempfile.TemporaryDirectory(prefix="margin-audit-") as directory:
        listed = Path(directory, "requirements.txt")
        listed.write_text("".join(f"{name}=={version}\n" for name, version in pins), encoding="utf-8")
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(listed), "--no-deps", "--disable-pip"]
        command += ["--format", "json", "--progress-spinner", "off", "--timeout", str(REQUEST_TIMEOUT_S)]
        command += ["--cache-dir", str(Path(directory, "cache")), "--vulnerability-service", *options]
        try:
            asked = subprocess.run(  # noqa: S603 - no input of anybody
                command, capture_output=True, text=True, check=False, timeout=TOTAL_TIMEOUT_S, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            message = f"no answer in {TOTAL_TIMEOUT_S} s"
            raise UnreachableError(message) from None
    # It ends with 1 when it found something as well as when it failed; only a result is JSON.
    try:
        dependencies = json.loads(asked.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (asked.stderr.strip() or "it said nothing").splitlines()[-1]
        raise UnreachableError(last[:300]) from None
    return answer(source, dependencies, pins)


def answer(source: str, dependencies: list[dict[str, Any]], pins: Collection[Pin]) -> Answer:
    """Make an answer of the dependencies in a result of pip-audit; one that it skipped is unknown."""
    answered = {(entry["name"], entry["version"]): entry["vulns"] for entry in dependencies if "version" in entry}
    vulnerabilities = tuple(
        Vulnerability(name, version, (found["id"], *found["aliases"]), tuple(found["fix_versions"]))
        for (name, version), all_found in answered.items()
        for found in all_found
    )
    return Answer(source, vulnerabilities, frozenset(pins) - answered.keys())
