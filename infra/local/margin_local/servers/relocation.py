"""Places that an ordinary user can reach, for a root whose own directories are private.

Root often works under ``/root``, mode 0700. PostgreSQL, which then runs as ``nobody``, can neither read the wheel's
programs there nor its data. To open root's directories to everyone is not ours to do, and to refuse would mean that
nothing runs on many a container. So the programs are copied, and the data is placed, below `shared_base`: root's own
directory in which others may only look. The data directory's usual path becomes a symbolic link to it, so that the data
belongs to that path: where the link is removed the next start begins anew, and what it pointed to is left to its owner.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

from margin_local.servers.error import EmbeddedServerError

# Not /tmp: these are somebody's trades, and /tmp may be emptied at every start of the machine.
_PARENTS = (Path("/var/lib"), Path("/var/tmp"))  # noqa: S108 - checked in shared_base
_BASE_NAME = "margin-engine"


def shared_base() -> Path:
    """Return a directory of root that every user can enter and only root can change, made where it is missing.

    Returns
    -------
    Path
        ``/var/lib/margin-engine``, or below ``/var/tmp`` where ``/var/lib`` cannot be written.

    Raises
    ------
    EmbeddedServerError
        If there is no such place.
    """
    for parent in _PARENTS:
        base = parent / _BASE_NAME
        try:
            base.mkdir(mode=0o755, exist_ok=True)
            status = base.lstat()
            # In /var/tmp anybody could have made it first.
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
                continue
            base.chmod(0o755)
        except OSError:
            continue
        return base
    places = " nor ".join(str(parent / _BASE_NAME) for parent in _PARENTS)
    raise EmbeddedServerError(f"neither {places} can be used: run as an ordinary user, or outside a private directory")


def place_data(origin: Path) -> Path:
    """Make a new empty directory for the data of `origin`.

    Parameters
    ----------
    origin : Path
        Where the data would be if it could be reached. Only gives the new directory its name.

    Returns
    -------
    Path
        The new directory, mode 0700.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", str(origin).lower()).strip("-")[-60:]
    return Path(tempfile.mkdtemp(prefix=f"{slug}-", dir=shared_base()))


def copy_programs(package: Path, libraries: Path | None, name: str) -> Path:
    """Copy an installed wheel, with the libraries beside it, to where every user can read it.

    Parameters
    ----------
    package : Path
        The package's folder.
    libraries : Path, optional
        The folder of shared libraries beside it, which the programs look for relative to themselves.
    name : str
        Name of the copy, with its version: an existing copy is used again.

    Returns
    -------
    Path
        The package's folder in the copy.
    """
    target = shared_base() / name
    if not target.is_dir():
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
        for source in filter(None, (package, libraries)):
            shutil.copytree(source, temporary / source.name, ignore=shutil.ignore_patterns("__pycache__", "include"))
        _open_to_readers(temporary)
        try:
            temporary.rename(target)
        except OSError:
            # Another start made it meanwhile.
            shutil.rmtree(temporary)
            if not target.is_dir():
                raise
    return target / package.name


def _open_to_readers(top: Path) -> None:
    """Let everybody read and run what its owner may: a umask of 077 at installation must not matter."""
    top.chmod(0o755)
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
