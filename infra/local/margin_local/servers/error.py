"""The errors of the embedded servers."""

from __future__ import annotations


class EmbeddedServerError(Exception):
    """An embedded server cannot be found, started or taken over.

    The message is one line that says what is wrong and what would be right: it is shown to the person who runs the
    engine, in place of a traceback.
    """


class DirectoryInUseError(EmbeddedServerError):
    """Another launcher owns the directory; its server may be joined."""
