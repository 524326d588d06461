"""The user a server runs as, when the launcher is root: PostgreSQL refuses to be."""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from margin_local.servers.error import EmbeddedServerError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Account:
    """An ordinary user, with its first group and no other."""

    name: str
    uid: int
    gid: int

    def can_reach(self, path: Path) -> bool:
        """Tell whether the user may enter every directory above `path`.

        Only mode bits are read. An access list could say otherwise; then a copy is made for nothing, or the server's
        own message says what is wrong.

        Parameters
        ----------
        path : Path
            An absolute path that exists.

        Returns
        -------
        bool
            Whether it can be reached.
        """
        return all(self._has(parent, stat.S_IXOTH) for parent in path.resolve().parents)

    def can_read(self, path: Path) -> bool:
        """Tell whether the user may reach and read `path`, and enter or run it where its owner may."""
        bits = stat.S_IROTH | (stat.S_IXOTH if path.stat().st_mode & stat.S_IXUSR else 0)
        return self.can_reach(path) and self._has(path, bits)

    def give(self, path: Path) -> None:
        """Make the user the owner of `path` and of all in it.

        Parameters
        ----------
        path : Path
            A directory.
        """
        os.chown(path, self.uid, self.gid)
        for folder, folders, files in os.walk(path):
            for name in (*folders, *files):
                os.chown(os.path.join(folder, name), self.uid, self.gid, follow_symlinks=False)  # noqa: PTH118 - as walk

    def _has(self, path: Path, bits: int) -> bool:
        status = path.stat()
        if status.st_uid == self.uid:
            bits <<= 6
        elif status.st_gid == self.gid:
            bits <<= 3
        return status.st_mode & bits == bits


def server_account(data: Path) -> Account | None:
    """Return the user to run a server as, or None for the present one.

    Root runs it as the owner of the data, where that is an ordinary user: so that this user can start it again without
    root. Otherwise as ``nobody``, which every Unix has; to make a user for it would change the machine.

    Parameters
    ----------
    data : Path
        The data directory, which need not exist.

    Returns
    -------
    Account or None
        None when this process is not root.

    Raises
    ------
    EmbeddedServerError
        If the machine has no user ``nobody``.
    """
    if os.geteuid() != 0:
        return None
    if data.exists() and (uid := data.stat().st_uid) != 0:
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            return Account(str(uid), uid, data.stat().st_gid)
    else:
        try:
            entry = pwd.getpwnam("nobody")
        except KeyError as error:
            raise EmbeddedServerError(
                "PostgreSQL does not run as root and there is no user 'nobody': run as an ordinary user"
            ) from error
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
