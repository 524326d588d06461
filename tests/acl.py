"""The Redis user that the engine is, made from the rules that a deployment has."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

USERNAME = "margin-functions"
PASSWORD = "of-the-engine"
RULES_FILE = Path(__file__).parents[1] / "infra" / "redis.acl"


def rules() -> list[str]:
    """Read what the user may do, rule by rule."""
    lines = RULES_FILE.read_text(encoding="utf-8").splitlines()
    return [rule for line in lines if not line.startswith("#") for rule in line.split()]


def make_user(client: Any, password: str = PASSWORD) -> None:
    """Make the user, or make it anew."""
    client.execute_command("ACL", "SETUSER", USERNAME, "reset", "on", f">{password}", *rules())


@contextlib.contextmanager
def nobody_by_default(client: Any, *rules: str) -> Iterator[None]:
    """Change the default user, who has no password and may do everything, and give it all of that back at the end.

    Parameters
    ----------
    client : redis.Redis
        A client of that user; who is logged in stays so.
    *rules : str
        As `ACL SETUSER` takes them.
    """
    with client.client() as connection:
        # The test's own connection, which could not be made any more afterwards.
        client.ping()
        connection.execute_command("ACL", "SETUSER", "default", *rules)
        try:
            yield
        finally:
            connection.execute_command("ACL", "SETUSER", "default", "on", "nopass")


def server_options(directory: Path) -> tuple[str, str]:
    """Return the arguments of a server in a directory that knows the user from its start on, and after a restart."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "users.acl"
    everything = f"user default on nopass ~* &* +@all\nuser {USERNAME} on >{PASSWORD} {' '.join(rules())}\n"
    path.write_text(everything, encoding="utf-8")
    return "--aclfile", str(path)
