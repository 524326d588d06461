"""Prints the digest of what a deployment is made of: the template's parameter Release.

`python infra/release_digest.py` prints it; with `--write FILE` it goes into a file that samconfig.toml names among its
parameters. Needs the standard library alone and reads only this repository.

The code is in it because a change of the layer alone publishes no new version of a function. The templates and
samconfig.toml are in it because a changed parameter does not either: an alias would stay at a version that has the
old environment.
"""  # noqa: INP001 - a script, no package

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    "functions",
    "infra/cognito.yaml",
    "infra/data.yaml",
    "infra/network.yaml",
    "infra/observability.yaml",
    "layers",
    "samconfig.toml",
    "template.yaml",
)


def release_digest(root: Path) -> str:
    """Return the digest of the sources under ``root``: 64 hexadecimal digits.

    Every file counts with its path and its bytes. What tools leave behind does not: byte code and hidden files.
    """
    digest = hashlib.sha256()
    for path in sorted(_files(root), key=Path.as_posix):
        digest.update(path.as_posix().encode() + b"\0" + hashlib.sha256((root / path).read_bytes()).digest())
    return digest.hexdigest()


def _files(root: Path) -> list[Path]:
    """List the files that count, relative to ``root``; a source that is missing is an error."""
    found = []
    for source in SOURCES:
        start = root / source
        if not start.exists():
            message = f"{source} is missing"
            raise FileNotFoundError(message)
        found += [start] if start.is_file() else [path for path in start.rglob("*") if path.is_file()]
    return [path for path in (file.relative_to(root) for file in found) if not _is_left_behind(path)]


def _is_left_behind(path: Path) -> bool:
    return path.suffix == ".pyc" or any(part == "__pycache__" or part.startswith(".") for part in path.parts)


def main() -> None:
    """Print the digest, or write it."""
    parser = argparse.ArgumentParser(description="Print the digest of what a deployment is made of.")
    parser.add_argument("--write", metavar="FILE", type=Path, help="write it as a SAM parameter file instead")
    target = parser.parse_args().write
    digest = release_digest(ROOT)
    if target is None:
        sys.stdout.write(f"{digest}\n")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # In quotes: without, some digests are numbers.
    target.write_text(f'Release: "{digest}"\n', encoding="utf-8")


if __name__ == "__main__":
    main()
