"""Who owns a server's directory: two lock files that the kernel releases when a process dies, however it dies.

``owner.lock``
    Held by the launcher alone. Locked: a launcher lives, and a second start is refused.
``server.lock``
    Opened by the launcher and inherited by the server and its children. Locked: a server still writes there, perhaps an
    orphan. It holds the server's process id.

A process id in a file proves nothing, since numbers are used again; a lock does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from margin_local.servers.error import DirectoryInUseError, EmbeddedServerError

_POLL_S = 0.01
_KILLED_GRACE_S = 5.0


def lock_owner(directory: Path) -> int:
    """Make this process the one launcher of `directory`.

    Parameters
    ----------
    directory : Path
        The server's directory.

    Returns
    -------
    int
        The descriptor that holds the lock; closing it releases the directory.

    Raises
    ------
    DirectoryInUseError
        If another launcher holds it; the message names its process id.
    """
    descriptor = _open(directory / "owner.lock")
    if _try_lock(descriptor):
        _write_pid(descriptor, os.getpid())
        return descriptor
    owner = _read_pid(descriptor)
    os.close(descriptor)
    raise DirectoryInUseError(
        f"{directory} is in use by process {owner or 'unknown'}: stop that process, or choose another directory"
    )


def lock_server(directory: Path, stop_signal: signal.Signals, timeout_s: float) -> int:
    """Take the lock that the server will inherit, stopping an orphan that still holds it.

    The caller holds the owner's lock, so whatever server lives here has lost its launcher. It is asked to stop, which
    lets it write what it has acknowledged, and killed only at the end of the timeout.

    Parameters
    ----------
    directory : Path
        The server's directory.
    stop_signal : signal.Signals
        What makes this kind of server stop in order.
    timeout_s : float
        How long an orphan may take.

    Returns
    -------
    int
        The descriptor that holds the lock, to be handed on to the server.

    Raises
    ------
    EmbeddedServerError
        If the lock stays held.
    """
    path = directory / "server.lock"
    descriptor = _open(path)
    deadline = time.monotonic() + timeout_s
    asked = killed = False
    while not _try_lock(descriptor):
        orphan = _read_pid(descriptor)
        known = orphan is not None and _is_server(orphan, path)
        if orphan is not None and known and not asked:
            _signal(orphan, stop_signal)
            asked = True
        if time.monotonic() >= deadline:
            if orphan is None or not known or killed:
                os.close(descriptor)
                raise EmbeddedServerError(
                    f"a server without a launcher still uses {directory} and did not stop"
                    f" (last known process {orphan or 'unknown'}): stop it, or choose another directory"
                )
            _signal(orphan, signal.SIGKILL)
            killed = True
            deadline += _KILLED_GRACE_S
        time.sleep(_POLL_S)
    return descriptor


def server_pid(directory: Path) -> int | None:
    """Process id of the last server that was started in the directory; None where there was none."""
    try:
        text = (directory / "server.lock").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EmbeddedServerError(
            f"cannot open {path} ({error.strerror}): run as the user who made it, or choose another directory"
        ) from error


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_pid(descriptor: int, pid: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{pid}\n".encode("ascii"), 0)


def _read_pid(descriptor: int) -> int | None:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else None


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _is_server(pid: int, lock_path: Path) -> bool:
    """Tell whether process `pid` is the server that inherited the lock, and not a later user of its number."""
    if sys.platform == "linux":
        wanted = lock_path.stat()
        # Where it cannot be read the process is gone, or not ours.
        with contextlib.suppress(OSError):
            for open_file in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(open_file.stat(), wanted):
                        return True
        return False
    # Without /proc: both servers keep their directory in their command line.
    listing = subprocess.run(  # noqa: S603 - a fixed command and a number
        ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False, timeout=5
    )
    return str(lock_path.parent) in listing.stdout
