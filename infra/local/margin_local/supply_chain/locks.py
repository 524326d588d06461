"""The locks, and which packages in which versions they hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).resolve().parents[4]

Pin = tuple[str, str]
"""Normalised name and version of a package."""


def locks(root: Path = ROOT) -> list[Path]:
    """List the locks of the repository: every ``requirements*.txt`` beside a part that is installed."""
    patterns = ("infra/local/requirements*.txt", "layers/*/requirements*.txt", "functions/*/requirements*.txt")
    return sorted(path for pattern in patterns for path in root.glob(pattern))


def requirements(lock: Path) -> dict[Requirement, frozenset[str]]:
    """Return what a lock demands, each with its digests ("sha256:...").

    Raises
    ------
    ValueError
        A line is no requirement.
    """
    text = lock.read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[Requirement, frozenset[str]] = {}
    for line in text.splitlines():
        demand, *digests = line.partition("#")[0].split("--hash=")
        if demand.strip():
            found[Requirement(demand.strip())] = frozenset(digest.strip() for digest in digests)
    return found


def pin_of(requirement: Requirement) -> Pin:
    """Return the package and the one version that a requirement allows.

    Raises
    ------
    ValueError
        It allows others.
    """
    (*_, version) = [specifier.version for specifier in requirement.specifier] or [""]
    if str(requirement.specifier) != f"=={version}":
        message = f"{requirement} does not name one version"
        raise ValueError(message)
    return canonicalize_name(requirement.name), str(Version(version))


def pinned(paths: Iterable[Path]) -> dict[Pin, list[Path]]:
    """Return every package of every platform that the locks hold, and the locks that hold it."""
    holders: dict[Pin, list[Path]] = {}
    for path in paths:
        for requirement in requirements(path):
            holders.setdefault(pin_of(requirement), []).append(path)
    return dict(sorted(holders.items()))
