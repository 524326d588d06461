"""Who sent a request, as far as the gateway knows."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated subject (None when the endpoint is open) and the address a request came from."""

    subject: str | None
    source_ip: str | None


NOBODY = Caller(subject=None, source_ip=None)
ENGINE = Caller(subject="engine", source_ip=None)


def caller_of(event: dict[str, Any]) -> Caller:
    """Read the caller from an API Gateway event (HTTP API, payload 2.0).

    The subject is the token's ``sub`` claim under a JWT authorizer and the user's ARN under IAM authorisation.
    """
    context = event.get("requestContext") or {}
    authorizer = context.get("authorizer") or {}
    claims = (authorizer.get("jwt") or {}).get("claims") or {}
    subject = claims.get("sub") or (authorizer.get("iam") or {}).get("userArn")
    return Caller(subject=subject, source_ip=(context.get("http") or {}).get("sourceIp"))
