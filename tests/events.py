"""Events as AWS sends them to a handler, and a Lambda context, for tests of every function."""

from __future__ import annotations

import base64 as base64_codec
import dataclasses
import json
import time
from typing import Any
from urllib.parse import urlencode

REQUEST_ID = "JKJaXmPLvHcESHA="
OPERATOR = {
    "sub": "operator",
    "scope": "trade:write positions:read history:read accounts:write marks:write risk:read admin",
    "account_ids": "*",
}
"""Claims of a token that allows everything."""


@dataclasses.dataclass
class LambdaContext:
    """What Lambda passes beside the event; ``timeout_s`` counts from the moment it is made."""

    timeout_s: float = 10.0
    aws_request_id: str = "8f5b1c2e-6b0e-4c0e-9a52-0f2f7c1d3b4a"
    function_name: str = "margin-test"
    function_version: str = "$LATEST"
    memory_limit_in_mb: int = 512
    invoked_function_arn: str = "arn:aws:lambda:eu-central-1:123456789012:function:margin-test"
    log_group_name: str = "/aws/lambda/margin-test"
    log_stream_name: str = "2026/01/31/[$LATEST]0123456789abcdef0123456789abcdef"
    started: float = dataclasses.field(default_factory=time.monotonic)

    def get_remaining_time_in_millis(self) -> int:
        return max(0, round((self.started + self.timeout_s - time.monotonic()) * 1000))


def api_gateway_event(
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    query: dict[str, str] | str | None = None,
    *,
    base64: bool = False,
    claims: dict[str, str] | None = OPERATOR,
    source_ip: str = "203.0.113.7",
) -> dict[str, Any]:
    """Build an API Gateway HTTP API event, payload format 2.0.

    ``body`` may be text or bytes, sent as they are (bytes that are no UTF-8 only in base64, as the gateway does), or
    anything else, sent as JSON with its content type. ``query`` is a dict or a raw query string; ``claims`` are those
    of a JWT authorizer, None without one.
    """
    sent = {
        "accept": "*/*",
        "host": "abcdefghij.execute-api.eu-central-1.amazonaws.com",
        "user-agent": "curl/8.5.0",
        "x-amzn-trace-id": "Root=1-65bb3c2e-0123456789abcdef01234567",
        "x-forwarded-for": source_ip,
        "x-forwarded-port": "443",
        "x-forwarded-proto": "https",
    }
    if body is not None:
        sent["content-type"] = "application/json"
    # The gateway hands header names over in lower case.
    sent |= {name.lower(): value for name, value in (headers or {}).items()}
    text = body if isinstance(body, str | bytes) else json.dumps(body)
    raw = text if isinstance(text, bytes) else text.encode()
    raw_query = query if isinstance(query, str) else urlencode(query or {})
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": raw_query,
        "headers": sent,
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "abcdefghij",
            "domainName": "abcdefghij.execute-api.eu-central-1.amazonaws.com",
            "domainPrefix": "abcdefghij",
            "http": {
                "method": method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": source_ip,
                "userAgent": "curl/8.5.0",
            },
            "requestId": REQUEST_ID,
            "routeKey": "$default",
            "stage": "$default",
            "time": "31/Jan/2026:12:00:00 +0000",
            "timeEpoch": 1769860800000,
        },
        "isBase64Encoded": base64,
    }
    if isinstance(query, dict) and query:
        event["queryStringParameters"] = dict(query)
    if body is not None:
        event["body"] = base64_codec.b64encode(raw).decode() if base64 else raw.decode()
    if claims is not None:
        event["requestContext"]["authorizer"] = {"jwt": {"claims": claims, "scopes": None}}
    return event
