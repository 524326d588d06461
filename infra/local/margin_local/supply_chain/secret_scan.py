"""`python -m margin_local.supply_chain.secret_scan`: secrets that got into the repository.

It looks with detect-secrets, and without any network, into every file that git knows or is about to know, or into those
that are named. What is found and is no secret stands in `infra/local/allowed-strings.toml` with the reason; an entry
that nothing needs any more is an error as well. So is a file that it cannot look into, until its content is allowed:
what is no UTF-8 text, and what by its name is none. The exit status is 0 when nothing is found, 1 when something is, 2
when the list cannot be used.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detect_secrets.core.secrets_collection import SecretsCollection
from detect_secrets.filters.heuristic import is_non_text_file
from detect_secrets.settings import transient_settings

from margin_local.supply_chain.entries import ListError, read_entries
from margin_local.supply_chain.locks import ROOT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

CLEAN, FOUND, BAD_LIST = 0, 1, 2
ALLOWED = ROOT / "infra" / "local" / "allowed-strings.toml"
DOCUMENT = ROOT / "functions" / "status" / "openapi.json"
# Those of what this project comes near: each one takes half a second. Other tokens, in quotes, are random enough.
_DETECTORS = (
    *("AWSKeyDetector", "BasicAuthDetector", "GitHubTokenDetector", "JwtTokenDetector", "KeywordDetector"),
    *("PrivateKeyDetector", "PypiTokenDetector"),
)
_ENTROPY_DETECTORS = {"Base64HighEntropyString": 4.5, "HexHighEntropyString": 3.0}
# Without `detect_secrets.filters.common`, which would try what was found against its service.
_FILTERS = (
    *("is_likely_id_string", "is_not_alphanumeric_string", "is_potential_uuid"),
    *("is_prefixed_with_dollar_sign", "is_sequential_string", "is_templated_secret"),
)
UNREADABLE = "Unreadable File"
# May be allowed in whole folders; what the others find looks like nothing but a secret.
_GUESSES = {"Secret Keyword", "Base64 High Entropy String", "Hex High Entropy String"}


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Finding:
    """What looks like a secret."""

    file: str
    line: int
    kind: str
    digest: str
    """SHA-1 of the string, or of the whole file where that cannot be looked into."""


@dataclasses.dataclass(frozen=True, slots=True)
class Allowance:
    """What is found in some files and is no secret."""

    files: str
    """A path, or a pattern of paths ("tests/*" for all that is below)."""
    kind: str
    digests: frozenset[str]
    """SHA-1 of each string as `secret_scan` prints it; none at all: every string of the kind."""

    def covers(self, found: Finding) -> bool:
        """Say whether a finding is allowed."""
        return (
            found.kind == self.kind
            and fnmatch.fnmatchcase(found.file, self.files)
            and (not self.digests or found.digest in self.digests)
        )

    def is_needed(self, found: Collection[Finding]) -> bool:
        """Say whether all of it is still found."""
        covered = [each for each in found if self.covers(each)]
        return bool(covered) and self.digests <= {each.digest for each in covered}


def read_allowances(path: Path) -> list[Allowance]:
    """Read the list.

    Raises
    ------
    ListError
    """
    return [_read(entry, place) for place, entry in read_entries(path, "allowed")]


def _read(entry: Any, place: str) -> Allowance:
    texts = ("files", "kind", "reason")
    if not isinstance(entry, dict) or set(texts) - entry.keys() or entry.keys() - {*texts, "digests"}:
        raise ListError(f"{place} must have files, kind and reason, and may have digests.")
    if not all(isinstance(entry[name], str) and entry[name].strip() for name in texts):
        raise ListError(f"{place}: files, kind and reason must be texts.")
    digests = entry.get("digests", [])
    if not isinstance(digests, list) or not all(isinstance(digest, str) for digest in digests):
        raise ListError(f"{place}: digests must be a list of texts.")
    if not digests and entry["kind"] not in _GUESSES:
        raise ListError(f"{place}: name the digests; {entry['kind']} is no guess that a whole file can be exempt from.")
    return Allowance(entry["files"], entry["kind"], frozenset(digests))


def scan(files: Sequence[str], root: Path) -> list[Finding]:
    """Return what looks like a secret in files, given by their paths below ``root``."""
    plugins: list[dict[str, Any]] = [{"name": name} for name in _DETECTORS]
    plugins += [{"name": name, "limit": limit} for name, limit in _ENTROPY_DETECTORS.items()]
    filters = [{"path": f"detect_secrets.filters.heuristic.{name}"} for name in _FILTERS]
    with transient_settings({"plugins_used": plugins, "filters_used": filters}):
        secrets = SecretsCollection(root=str(root))
        secrets.scan_files(*files, num_processors=min(os.cpu_count() or 1, len(files)) or 1)
    return sorted(
        Finding(os.path.relpath(found.filename, root), found.line_number, found.type, found.secret_hash)
        for _, found in secrets
    )


def unreadable(files: Sequence[str], root: Path) -> list[Finding]:
    """Return the files that the detectors pass over in silence: by the end of the name, or since they are no text."""
    return [
        Finding(
            os.path.relpath(root / name, root), 1, UNREADABLE, hashlib.sha1(content, usedforsecurity=False).hexdigest()
        )
        for name in files
        for content in [(root / name).read_bytes()]
        if is_non_text_file(name) or not _is_text(content)
    ]


def _is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False


def locks_of_the_script(root: Path = ROOT) -> set[str]:
    """List the locks that `locks.sh check` compares with what it makes itself; another one could say anything."""
    script = root / "infra" / "local" / "locks.sh"
    if not script.is_file():
        return set()
    return set(re.findall(r"^\w+=([\w/-]+/requirements[\w-]*\.txt)$", script.read_text(encoding="utf-8"), re.MULTILINE))


def files_of_the_repository(root: Path = ROOT) -> list[str]:
    """List the paths of the files that git knows or is about to know, without what cannot hold a secret.

    Raises
    ------
    ListError
        The folder is no git repository.
    """
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(  # noqa: S603 - no input of anybody
            command, cwd=root, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise ListError(f"git cannot list the files of {root}: name them instead.") from error
    # Digests throughout, which `locks.sh check` compares; digests again; and what is made of code that is scanned.
    left_out = {*locks_of_the_script(root), _relative(ALLOWED), _relative(DOCUMENT)}
    return sorted(name for name in set(listed.stdout.split("\0")) - left_out if name and (root / name).is_file())


def main(arguments: Sequence[str] | None = None) -> int:
    """Scan, print what was found, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m margin_local.supply_chain.secret_scan", description=__doc__)
    parser.add_argument("--allowed", metavar="FILE", type=Path, default=ALLOWED, help="the list of allowed strings")
    parser.add_argument("files", nargs="*", help="files to look into; by default all of the repository")
    options = parser.parse_args(arguments)
    try:
        allowed = read_allowances(options.allowed)
        files = options.files or files_of_the_repository()
    except ListError as error:
        print(f"secret scan: {error}", file=sys.stderr)
        return BAD_LIST
    found = [*scan(files, ROOT), *unreadable(files, ROOT)]
    lines = [
        f"{each.file}:{each.line}: {each.kind} (digest {each.digest})"
        for each in found
        if not any(allowance.covers(each) for allowance in allowed)
    ]
    if not options.files:
        lines += [*_unneeded(allowed, found)]
    for line in lines:
        print(line, file=sys.stderr)
    if lines:
        print(
            f"If it was pushed, it is known: revoke it. If it is none: {_relative(options.allowed)}.", file=sys.stderr
        )
    return FOUND if lines else CLEAN


def _unneeded(allowed: Sequence[Allowance], found: Collection[Finding]) -> Iterator[str]:
    for allowance in allowed:
        if not allowance.is_needed(found):
            yield f"{allowance.files}: {allowance.kind} is allowed and not found any more: remove the entry."


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    sys.exit(main())
