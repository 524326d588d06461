"""`python -m margin_local`: the whole engine on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dotenv import dotenv_values

from margin.config import SettingError, Settings
from margin.errors import MarginError
from margin_local import server
from margin_local.servers import EmbeddedServerError


def environment() -> dict[str, str]:
    """Return the environment, with what `.env` in the working directory adds to it; an empty value counts as none."""
    given = {**dotenv_values(Path(".env")), **os.environ}
    return {name: value for name, value in given.items() if value}


def main() -> int:
    """Run until stopped; a start that fails says why in one line."""
    try:
        variables = environment()
        server.run(Settings.from_environment(variables), variables)
    except (SettingError, server.PortTakenError, EmbeddedServerError, MarginError) as error:
        print(f"margin: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
