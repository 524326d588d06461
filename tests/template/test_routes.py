"""The API's routes are those of the API document, one by one."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from tests.template import documents
from tests.template.documents import Evaluation

if TYPE_CHECKING:
    from tests.template.documents import Document, Function

Routes = set[tuple[str, str]]
# Served beside what the document describes: the document itself, and a page that shows it.
OF_THE_DOCUMENT: Routes = {("GET", "/docs"), ("GET", "/openapi.json")}


def _routes(paths: Document) -> Routes:
    return {(method.upper(), path) for path, operations in paths.items() for method in operations}


def test_routes_are_those_of_the_api_document(deployed: Document) -> None:
    text = (documents.ROOT / "functions" / "status" / "openapi.json").read_text(encoding="utf-8")
    described = _routes(json.loads(text)["paths"])
    assert described
    assert _routes(deployed["Resources"]["Api"]["Properties"]["Body"]["paths"]) == described | OF_THE_DOCUMENT


def test_each_route_leads_to_one_function(functions: list[Function], deployed: Document) -> None:
    paths = deployed["Resources"]["Api"]["Properties"]["Body"]["paths"]
    for function in functions:
        for method, path in function.routes:
            integration = paths[path][method.lower()]["x-amazon-apigateway-integration"]
            assert documents.mentions(integration["uri"], f"{function.name}Aliaslive"), path
            assert integration["payloadFormatVersion"] == "2.0", path
    assert sum(len(function.routes) for function in functions) == len(_routes(paths))


def test_browsers_of_named_origins_may_call(deployed: Document) -> None:
    body = deployed["Resources"]["Api"]["Properties"]["Body"]
    assert "x-amazon-apigateway-cors" not in Evaluation(deployed).of(body)
    # The translator puts the parameter's value in, so it is transformed anew with one.
    template = documents.read(documents.TEMPLATE)
    named = documents.transform(template, CorsOrigins="https://a.example.com,https://b.example.com")
    body = named["Resources"]["Api"]["Properties"]["Body"]
    cors = Evaluation(named, CorsOrigins="https://a.example.com,https://b.example.com").of(body)[
        "x-amazon-apigateway-cors"
    ]
    assert cors["allowOrigins"] == ["https://a.example.com", "https://b.example.com"]
    # No headers of requests that are signed with AWS credentials: nobody is asked for a signature.
    assert set(cors["allowHeaders"]) == {"authorization", "content-type", "idempotency-key", "x-request-id"}
    assert "allowCredentials" not in cors, "tokens are sent in a header, never in cookies"


def test_stage_logs_and_throttles(deployed: Document) -> None:
    (stage,) = documents.resources(deployed, "AWS::ApiGatewayV2::Stage").values()
    assert stage["StageName"] == "$default"
    assert stage["AccessLogSettings"]["DestinationArn"] == {"Fn::GetAtt": ["ApiLog", "Arn"]}
    logged = json.loads(stage["AccessLogSettings"]["Format"])
    assert {"request_id", "route", "status", "latency_ms"} <= set(logged)
    assert logged["caller"] == "$context.authorizer.claims.sub"
    assert logged["client_id"] == "$context.authorizer.claims.client_id"
    assert logged["authorizer_error"] == "$context.authorizer.error"
    assert "authorization" not in stage["AccessLogSettings"]["Format"].lower(), "a token in a log is a key in a log"
    assert {
        variable for variable in logged.values() if re.search(r"userAgent|path|domain|header|query", variable)
    } == set()
    assert stage["DefaultRouteSettings"] == {
        "ThrottlingRateLimit": {"Ref": "ThrottleRate"},
        "ThrottlingBurstLimit": {"Ref": "ThrottleBurst"},
    }
    assert stage["RouteSettings"] == {"GET /health": {"ThrottlingRateLimit": 10, "ThrottlingBurstLimit": 20}}, (
        "it is open to all, and asks both stores"
    )
