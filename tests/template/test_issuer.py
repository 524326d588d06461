"""Who issues tokens: the one that is named, or the one that infra/cognito.yaml makes, whose scopes are the engine's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from margin.caller import Scope
from tests.template import documents
from tests.template.documents import Evaluation

if TYPE_CHECKING:
    from tests.template.documents import Document

PREFIX = "margin/"
NAMED = {"JwtIssuer": "https://issuer.example.com/", "JwtAudience": "margin,https://api.example.com/"}
# What API Gateway allows for one authorizer.
AUDIENCES_MAX = 50
# What Cognito waits for a trigger.
TRIGGER_TIMEOUT_S = 5


@pytest.fixture(scope="session")
def cognito(nested: dict[str, Document]) -> Document:
    """Return the template of the issuer as it is written."""
    return nested["cognito.yaml"]


def _configuration(document: Document, **parameters: str) -> Any:
    """Evaluate what the gateway is told about tokens."""
    body = document["Resources"]["Api"]["Properties"]["Body"]
    authorizer = body["components"]["securitySchemes"]["Jwt"]["x-amazon-apigateway-authorizer"]
    return Evaluation(document, **parameters).of(authorizer["jwtConfiguration"])


def _clients(cognito: Document) -> dict[str, Document]:
    return documents.resources(cognito, "AWS::Cognito::UserPoolClient")


# --- the gateway ---


def test_tokens_of_the_named_issuer_for_a_named_audience_are_taken(template: Document, deployed: Document) -> None:
    expected = {"issuer": "https://issuer.example.com/", "audience": ["margin", "https://api.example.com/"]}
    assert _configuration(deployed, **NAMED) == expected
    # In AWS the translator puts the values of parameters in.
    assert _configuration(documents.transform(template, **NAMED), **NAMED) == expected


def test_tokens_of_the_created_issuer_are_taken_of_its_clients_and_of_those_that_were_added(
    template: Document, deployed: Document
) -> None:
    created = {"CreateIssuer": "yes"}
    assert _configuration(deployed, **created) == {
        "issuer": "Issuer.Outputs.Issuer",
        "audience": ["Issuer.Outputs.Clients"],
    }
    added = created | {"JwtAudience": "a-market-maker,a-desk"}
    audience = ["Issuer.Outputs.Clients", "a-market-maker", "a-desk"]
    assert _configuration(deployed, **added)["audience"] == audience
    assert _configuration(documents.transform(template, **added), **added)["audience"] == audience


def test_audiences_fit_into_what_the_gateway_allows(template: Document, cognito: Document) -> None:
    described = template["Parameters"]["JwtAudience"]["Description"]
    assert f"at most {AUDIENCES_MAX - len(_clients(cognito))}." in described
    assert f"{{0,{AUDIENCES_MAX - 1}}}" in template["Parameters"]["JwtAudience"]["AllowedPattern"]


# --- scopes and clients ---


def test_scopes_are_those_of_the_engine(cognito: Document) -> None:
    (server,) = documents.resources(cognito, "AWS::Cognito::UserPoolResourceServer").values()
    assert {scope["ScopeName"] for scope in server["Scopes"]} == set(Scope)
    assert len(server["Scopes"]) == len(Scope)
    assert all(scope["ScopeDescription"] for scope in server["Scopes"])
    assert f"{server['Identifier']}/" == PREFIX


def test_clients_are_given_no_more_scopes_than_their_work_takes(cognito: Document) -> None:
    given = {client["ClientName"]: set(client["AllowedOAuthScopes"]) for client in _clients(cognito).values()}
    assert given == {
        "trader": {PREFIX + s for s in (Scope.TRADE_WRITE, Scope.POSITIONS_READ, Scope.HISTORY_READ)},
        "oracle": {PREFIX + Scope.MARKS_WRITE},
        "operator": {PREFIX + scope for scope in Scope},
    }


def test_clients_are_machines_with_a_secret_and_tokens_that_last_minutes(cognito: Document) -> None:
    for name, client in _clients(cognito).items():
        assert client["GenerateSecret"] is True, name
        assert client["AllowedOAuthFlows"] == ["client_credentials"], name
        assert client["AllowedOAuthFlowsUserPoolClient"] is True, name
        # Left out, Cognito would allow signing in with a password.
        assert client["ExplicitAuthFlows"] == ["ALLOW_REFRESH_TOKEN_AUTH"], name
        assert client["EnableTokenRevocation"] is True, name
        assert client["TokenValidityUnits"] == {"AccessToken": "minutes"}, name
        assert client["AccessTokenValidity"] <= 15, name
        # A scope must be there before a client can be allowed it.
        assert cognito["Resources"][name]["DependsOn"] == "Scopes", name


def test_every_client_is_an_audience_and_an_output(template: Document, cognito: Document) -> None:
    assert Evaluation(cognito).of(cognito["Outputs"]["Clients"]["Value"]).split(",") == list(_clients(cognito))
    shown = {output["Value"].get("Ref") for output in cognito["Outputs"].values()}
    assert set(_clients(cognito)) <= shown
    passed_on = {name: o["Value"] for name, o in template["Outputs"].items() if o.get("Condition") == "CreatesIssuer"}
    assert {value["Fn::GetAtt"][1].removeprefix("Outputs.") for value in passed_on.values()} == set(
        cognito["Outputs"]
    ) - {"Issuer", "Clients"}


def test_secrets_of_clients_are_no_outputs(cognito: Document) -> None:
    assert "ClientSecret" not in json.dumps(cognito)


# --- the user pool and its trigger ---


def test_nobody_signs_up_and_the_pool_can_be_protected(cognito: Document) -> None:
    (pool,) = documents.resources(cognito, "AWS::Cognito::UserPool").values()
    assert pool["AdminCreateUserConfig"] == {"AllowAdminCreateUserOnly": True}
    assert Evaluation(cognito, DeletionProtection="yes").of(pool["DeletionProtection"]) == "ACTIVE"
    assert Evaluation(cognito).of(pool["DeletionProtection"]) == "INACTIVE"


def test_trigger_is_called_for_machines_and_by_this_pool_alone(cognito: Document) -> None:
    ((name, pool),) = documents.resources(cognito, "AWS::Cognito::UserPool").items()
    # The first version, and the lowest tier, that have tokens of machines.
    assert pool["UserPoolTier"] == "ESSENTIALS"
    assert pool["LambdaConfig"] == {
        "PreTokenGenerationConfig": {
            "LambdaArn": {"Fn::GetAtt": ["TokenClaimsFunction", "Arn"]},
            "LambdaVersion": "V3_0",
        }
    }
    (permission,) = documents.resources(cognito, "AWS::Lambda::Permission").values()
    assert permission == {
        "Action": "lambda:InvokeFunction",
        "FunctionName": {"Fn::GetAtt": ["TokenClaimsFunction", "Arn"]},
        "Principal": "cognito-idp.amazonaws.com",
        "SourceArn": {"Fn::GetAtt": [name, "Arn"]},
    }


def test_trigger_may_read_a_row_of_its_table_and_write_its_log(cognito: Document) -> None:
    function = cognito["Resources"]["TokenClaimsFunction"]["Properties"]
    role = cognito["Resources"][function["Role"]["Fn::GetAtt"][0]]["Properties"]
    assert "ManagedPolicyArns" not in role
    statements = [s for policy in role["Policies"] for s in policy["PolicyDocument"]["Statement"]]
    assert [(s["Effect"], s["Action"], s["Resource"]) for s in statements] == [
        ("Allow", ["logs:CreateLogStream", "logs:PutLogEvents"], {"Fn::GetAtt": ["TokenClaimsLog", "Arn"]}),
        ("Allow", ["xray:PutTraceSegments", "xray:PutTelemetryRecords"], "*"),
        ("Allow", "dynamodb:GetItem", {"Fn::GetAtt": ["AccountsOfClients", "Arn"]}),
    ]
    assert function["Environment"]["Variables"] == {"ACCOUNTS_TABLE": {"Ref": "AccountsOfClients"}}
    assert function["LoggingConfig"]["LogGroup"] == {"Ref": "TokenClaimsLog"}


def test_trigger_runs_as_the_other_functions_do_and_no_longer_than_cognito_waits(cognito: Document) -> None:
    function = cognito["Resources"]["TokenClaimsFunction"]["Properties"]
    assert function["Timeout"] <= TRIGGER_TIMEOUT_S
    assert (function["Runtime"], function["Architectures"]) == ("python3.13", [{"Ref": "Architecture"}])
    assert (function["MemorySize"], function["Tracing"]) == (512, "Active")
    assert "Layers" not in function
    assert "VpcConfig" not in function


def test_table_is_encrypted_can_be_put_back_and_can_be_protected(cognito: Document) -> None:
    (table,) = documents.resources(cognito, "AWS::DynamoDB::Table").values()
    assert table["SSESpecification"] == {"SSEEnabled": True}
    assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    assert table["BillingMode"] == "PAY_PER_REQUEST"
    assert table["KeySchema"] == [{"AttributeName": "client_id", "KeyType": "HASH"}]
    assert Evaluation(cognito, DeletionProtection="yes").of(table["DeletionProtectionEnabled"]) is True
    assert Evaluation(cognito).of(table["DeletionProtectionEnabled"]) is False


def test_stack_is_given_every_parameter_of_the_issuer(template: Document, cognito: Document) -> None:
    stack = template["Resources"]["Issuer"]["Properties"]
    assert set(stack["Parameters"]) == set(cognito["Parameters"])
