"""No role may do more than its function does: no wildcard that is not in the list here, with its reason."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.template import documents

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.template.documents import Document, Function

# Resource "*" or a pattern; every action that is allowed on it.
WILDCARDS = {
    "TracingPolicy": ({"xray:PutTraceSegments", "xray:PutTelemetryRecords"}, "X-Ray knows no resources"),
    "NetworkPolicy": (
        {
            "ec2:AssignPrivateIpAddresses",
            "ec2:CreateNetworkInterface",
            "ec2:DeleteNetworkInterface",
            "ec2:DescribeNetworkInterfaces",
            "ec2:DescribeSubnets",
            "ec2:UnassignPrivateIpAddresses",
        },
        "Lambda asks for them on all interfaces; denied to the code of the functions",
    ),
    "SecretsEndpoint": ({"secretsmanager:GetSecretValue"}, "bounds whom the endpoint serves; the roles grant"),
    "QueuesEndpoint": ({"sqs:SendMessage"}, "bounds whom the endpoint serves; the roles grant"),
    "TokenClaimsRole": ({"xray:PutTraceSegments", "xray:PutTelemetryRecords"}, "X-Ray knows no resources"),
    "AnswersEndpoint": ({"s3:PutObject"}, "CloudFormation's bucket for answers; its name differs by region"),
}
TRUSTED = {"lambda.amazonaws.com", "scheduler.amazonaws.com", "rds.amazonaws.com"}

# What a function uses beside its own log, by policy.
STATE, HISTORY = "StatePolicy", "HistoryPolicy"
USES = {
    "TradeFunction": {STATE, HISTORY},
    "MarkPriceFunction": {STATE, HISTORY, "sqs:SendMessage"},
    "FundingFunction": {STATE, HISTORY, "sqs:SendMessage"},
    "PositionsFunction": {STATE},
    "MarginReportFunction": {STATE},
    "RiskFunction": {STATE, HISTORY},
    "HistoryFunction": {HISTORY},
    "AccountsFunction": {STATE, HISTORY},
    "ControlsFunction": {STATE, HISTORY},
    "InstrumentsFunction": {STATE, HISTORY},
    "StatusFunction": {STATE, HISTORY},
    "LiquidationScanFunction": {STATE, HISTORY, "sqs:SendMessage"},
    "JournalDrainFunction": {STATE, HISTORY, "sqs:SendMessage"},
    "ReconcileFunction": {STATE, HISTORY, "sqs:SendMessage"},
    "SettleFunction": {STATE, HISTORY, "sqs:SendMessage"},
    "LiquidateFunction": {
        STATE,
        HISTORY,
        "sqs:ReceiveMessage",
        "sqs:DeleteMessage",
        "sqs:GetQueueAttributes",
    },
    "RebuildFunction": {STATE, HISTORY, "sqs:SendMessage"},
    "MigrateFunction": {
        STATE,
        "sqs:SendMessage",
        # As the owner of the schema, which no other function is.
        "rds-db:connect",
        "secretsmanager:GetSecretValue",
        "kms:Decrypt",
    },
}
EVERY_FUNCTION = {"TracingPolicy", "NetworkPolicy", "logs:CreateLogStream", "logs:PutLogEvents"}


def _statements(value: Any) -> Iterator[Document]:
    """Yield each statement of each policy document, also those behind !If."""
    if isinstance(value, dict):
        if "Effect" in value:
            yield value
        else:
            for inner in value.values():
                yield from _statements(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _statements(inner)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _policies(document: Document) -> Iterator[tuple[str, Document]]:
    """Yield each statement that gives or denies rights, with the resource that holds it."""
    for name, resource in document["Resources"].items():
        properties = dict(resource.get("Properties", {}))
        properties.pop("AssumeRolePolicyDocument", None)
        for statement in _statements(properties):
            yield name, statement


def _texts(value: Any) -> list[str]:
    """List the texts in a value, those inside of functions too."""
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner)]
    return [str(value)]


@pytest.fixture
def allowed(deployed: Document, nested: dict[str, Document]) -> list[tuple[str, Document]]:
    pairs = [pair for document in (deployed, *nested.values()) for pair in _policies(document)]
    return [(name, statement) for name, statement in pairs if statement["Effect"] == "Allow"]


def test_no_statement_allows_actions_by_pattern(allowed: list[tuple[str, Document]]) -> None:
    assert allowed
    actions = [(name, action) for name, statement in allowed for action in _list(statement["Action"])]
    assert [(name, action) for name, action in actions if "*" in action or "?" in action] == []
    assert [name for name, statement in allowed if {"NotAction", "NotResource", "NotPrincipal"} & set(statement)] == []


def test_only_named_statements_reach_resources_by_pattern(allowed: list[tuple[str, Document]]) -> None:
    found: dict[str, set[str]] = {}
    for name, statement in allowed:
        if any("*" in text for text in _texts(statement["Resource"])):
            found.setdefault(name, set()).update(_list(statement["Action"]))
    assert found == {name: actions for name, (actions, _reason) in WILDCARDS.items()}


def test_code_of_functions_may_not_manage_network_interfaces(template: Document) -> None:
    properties = template["Resources"]["NetworkPolicy"]["Properties"]
    allow, deny = properties["PolicyDocument"]["Statement"]
    assert (allow["Effect"], deny["Effect"]) == ("Allow", "Deny")
    assert allow["Action"] == deny["Action"]
    assert "lambda:SourceFunctionArn" in deny["Condition"]["ArnLike"]


def test_no_role_has_policies_of_aws(deployed: Document, nested: dict[str, Document]) -> None:
    roles = [role for d in (deployed, *nested.values()) for role in documents.resources(d, "AWS::IAM::Role").values()]
    assert roles
    assert [
        arn for role in roles for arn in role.get("ManagedPolicyArns", []) if "aws:policy/" in json.dumps(arn)
    ] == []


def test_roles_trust_only_the_services_that_use_them(deployed: Document, nested: dict[str, Document]) -> None:
    for document in (deployed, *nested.values()):
        for name, role in documents.resources(document, "AWS::IAM::Role").items():
            for statement in role["AssumeRolePolicyDocument"]["Statement"]:
                assert set(statement["Principal"]) == {"Service"}, name
                assert set(_list(statement["Principal"]["Service"])) <= TRUSTED, name


def test_each_function_has_a_role_of_its_own(functions: list[Function]) -> None:
    roles = [json.dumps(function.properties["Role"]) for function in functions]
    assert sorted(roles) == sorted(set(roles))


def test_each_function_may_do_what_it_uses_and_nothing_else(functions: list[Function], template: Document) -> None:
    shared = documents.resources(template, "AWS::IAM::ManagedPolicy")
    held = {}
    for function in functions:
        role = template["Resources"][function.properties["Role"]["Fn::GetAtt"][0]]["Properties"]
        attached = {name for name in shared if documents.mentions(role["ManagedPolicyArns"], name)}
        own = {action for statement in _statements(role["Policies"]) for action in _list(statement["Action"])}
        held[function.name] = attached | own
    assert held == {name: uses | EVERY_FUNCTION for name, uses in USES.items()}


def test_each_function_writes_to_its_own_log_alone(functions: list[Function], template: Document) -> None:
    for function in functions:
        log = function.properties["LoggingConfig"]["LogGroup"]["Ref"]
        role = template["Resources"][function.properties["Role"]["Fn::GetAtt"][0]]["Properties"]
        written = [s for s in _statements(role["Policies"]) if "logs:PutLogEvents" in s["Action"]]
        assert [statement["Resource"] for statement in written] == [{"Fn::GetAtt": [log, "Arn"]}], function.name


def test_every_route_but_health_asks_for_a_token(template: Document, deployed: Document) -> None:
    api = deployed["Resources"]["Api"]["Properties"]["Body"]
    security = {
        (method, path): operation["security"]
        for path, operations in api["paths"].items()
        for method, operation in operations.items()
    }
    # Without scopes: the functions check them, and tests/unit/http does.
    assert {route for route, schemes in security.items() if schemes != [{"Jwt": []}]} == {("get", "/health")}
    assert security["get", "/health"] == [{"NONE": []}]
    assert template["Resources"]["Api"]["Properties"]["Auth"]["DefaultAuthorizer"] == "Jwt"


def test_nothing_takes_the_authorizer_away(deployed: Document) -> None:
    api = deployed["Resources"]["Api"]["Properties"]["Body"]
    ((name, scheme),) = api["components"]["securitySchemes"].items()
    authorizer = scheme["x-amazon-apigateway-authorizer"]
    assert (name, scheme["type"], authorizer["type"]) == ("Jwt", "oauth2", "jwt")
    assert authorizer["identitySource"] == "$request.header.Authorization"
    # Parameters choose the issuer and the audience, and nothing else of it.
    unchosen = {**api, "components": {**authorizer, "jwtConfiguration": None}, "x-amazon-apigateway-cors": None}
    assert "Fn::If" not in json.dumps(unchosen)
    assert "Condition" not in deployed["Resources"]["Api"]


@pytest.mark.parametrize("parameters", [{"CreateData": "yes"}, {"PostgresIamResourceId": "prx-1"}])
def test_migration_alone_may_log_in_as_the_owner(deployed: Document, parameters: dict[str, str]) -> None:
    evaluation = documents.Evaluation(deployed, **parameters)
    users = {
        name: evaluation.of(statement["Resource"]).rsplit("/", 1)[1]
        for name, statement in _policies(deployed)
        if statement.get("Action") == "rds-db:connect"
    }
    assert users == {"HistoryPolicy": "margin_functions", "MigrateRole": "margin"}
