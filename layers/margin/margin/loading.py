"""Loads a function without the garbage collector.

While modules are made the collector finds nothing and takes a tenth of the time. Importing this module stops it;
`loaded` starts it again, and leaves what was loaded out of every later collection.
"""

from __future__ import annotations

import gc

gc.disable()


def loaded() -> None:
    """Say that the function is loaded."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
