"""The Redis user that the engine is, made from the rules that a deployment has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def server_options(directory: Path) -> tuple[str, str]:
    """Return the arguments of a server in a directory that knows the user from its start on, and after a restart."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "users.acl"
    everything = f"user default on nopass ~* &* +@all\nuser {USERNAME} on >{PASSWORD} {' '.join(rules())}\n"
    path.write_text(everything, encoding="utf-8")
    return "--aclfile", str(path)
