"""`python -m margin_local`: the whole engine on this machine."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def environment() -> dict[str, str]:
    """Return the environment, with what `.env` in the working directory adds to it; an empty value counts as none."""
    from dotenv import dotenv_values  # noqa: PLC0415 - see main

    written = {name: value for name, value in dotenv_values(Path(".env")).items() if value}
    return written | {name: value for name, value in os.environ.items() if value}


def main() -> int:
    """Run until stopped; a start that fails says why in one line.

    What takes time to import is imported here, where a signal already ends the program quietly.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run()
    except KeyboardInterrupt:
        return 0


def _run() -> int:
    from margin.config import AUTH_OFF, SettingError, Settings  # noqa: PLC0415
    from margin.errors import MarginError  # noqa: PLC0415

    # The engine wants tokens unless it is told otherwise; on a laptop whoever sits at it is told that it does not.
    variables = {"AUTH": AUTH_OFF, **environment()}
    try:
        settings = Settings.from_environment(variables)
    except SettingError as error:
        print(f"margin: {error}", file=sys.stderr)
        return 1

    from margin_local import server  # noqa: PLC0415
    from margin_local.servers import EmbeddedServerError  # noqa: PLC0415

    try:
        server.run(settings, variables)
    except (SettingError, server.PortTakenError, EmbeddedServerError, MarginError) as error:
        print(f"margin: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
