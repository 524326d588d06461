"""TLS to the stores: which authorities are believed, and that names are compared."""

from __future__ import annotations

import functools
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from margin.errors import RedisUnavailableError

if TYPE_CHECKING:
    from margin.config import Settings

_BUNDLES = ("/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem")
_VERIFYING = ("verify-ca", "verify-full")


@functools.cache
def public_roots() -> str:
    """Path of the machine's public authorities; "system" where there is no file that is known to hold them.

    The library that the PostgreSQL driver brings was built to look for them in a folder of its own that no machine has.
    What it does with "system" there is to believe nobody.
    """
    own = ssl.get_default_verify_paths().cafile
    return next((path for path in (own, *_BUNDLES) if path and Path(path).is_file()), "system")


def postgres_tls(settings: Settings) -> dict[str, Any]:
    """Return the connection parameters of PostgreSQL's TLS."""
    if settings.postgres_sslmode not in _VERIFYING and not settings.postgres_sslrootcert:
        return {"sslmode": settings.postgres_sslmode}
    roots = settings.postgres_sslrootcert or public_roots()
    return {"sslmode": settings.postgres_sslmode, "sslrootcert": roots}


@functools.cache
def redis_tls(ca: str) -> ssl.SSLContext:
    """Return what every TLS connection to Redis shares.

    Parameters
    ----------
    ca : str
        Path of the only authorities to believe; "" for the public ones.

    Raises
    ------
    RedisUnavailableError
        The file is not there, or holds no certificate.
    """
    try:
        context = ssl.create_default_context(cafile=ca or None)
        if not ca and public_roots() != "system":
            context.load_verify_locations(public_roots())
    except OSError as error:
        message = f"The authorities of Redis cannot be read from {ca}."
        raise RedisUnavailableError(message) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
