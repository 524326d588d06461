"""`python -m margin_local.openapi`: write the API document, or with --check say whether the present one is true."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from margin_local.application import make_application

DOCUMENT = Path(__file__).parents[3] / "functions" / "status" / "openapi.json"


def render() -> str:
    """Return the document as text."""
    return json.dumps(make_application().openapi(), indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(prog="python -m margin_local.openapi", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when the document is not true")
    if parser.parse_args(arguments).check:
        if not DOCUMENT.exists() or DOCUMENT.read_text(encoding="utf-8") != render():
            print(f"{DOCUMENT.name} does not say what the routes say; run: make openapi", file=sys.stderr)
            return 1
        return 0
    DOCUMENT.write_text(render(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
