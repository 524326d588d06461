"""The trigger of the created issuer, as it was built: without the layer, on a table as its template describes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from margin.caller import caller_of_claims
from tests.runtime.artefact import of_the_issuer
from tests.runtime.deployment import Deployment, event
from tests.template import documents

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.runtime.artefact import Artefact
    from tests.runtime.aws import Aws
    from tests.runtime.emulator import Emulator
    from tests.runtime.machine import Machine

pytestmark = pytest.mark.runtime

TABLE = "accounts-of-clients"


@pytest.fixture(scope="module")
def trigger(
    machine: Machine, artefact: Artefact, aws: Aws, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Emulator]:
    issuer = of_the_issuer(artefact)
    (table,) = documents.resources(issuer.deployed, "AWS::DynamoDB::Table").values()
    names = ("BillingMode", "AttributeDefinitions", "KeySchema")
    aws.dynamodb.create_table(TableName=TABLE, **{name: table[name] for name in names})
    parameters = {"AccountsOfClients": TABLE, "Application": "margin-runtime"}
    outside = {"AWS_ENDPOINT_URL": aws.url}
    logs = tmp_path_factory.mktemp("logs")
    functions = Deployment(machine, issuer, parameters=parameters, outside=outside, logs=logs)
    yield functions.warm("TokenClaimsFunction")
    functions.end()


def _allow(aws: Aws, request: dict[str, Any], accounts: str) -> None:
    row = {"client_id": {"S": request["callerContext"]["clientId"]}, "account_ids": {"S": accounts}}
    aws.dynamodb.put_item(TableName=TABLE, Item=row)


def test_token_has_the_accounts_that_stand_in_the_table_when_it_is_issued(trigger: Emulator, aws: Aws) -> None:
    request = event("token_claims")
    assert trigger.invoke(request) == request, "no row, no claim"
    for accounts, expected in {"1 2 3": {1, 2, 3}, "2": {2}, "*": None}.items():
        _allow(aws, request, accounts)
        changes = trigger.invoke(request)["response"]["claimsAndScopeOverrideDetails"]["accessTokenGeneration"]
        assert changes == {"claimsToAddOrOverride": {"account_ids": accounts}}
        caller = caller_of_claims({"sub": "a-client"} | changes["claimsToAddOrOverride"], None)
        assert caller.accounts == expected


def test_row_that_is_written_wrongly_gives_no_token(trigger: Emulator, aws: Aws) -> None:
    request = event("token_claims")
    _allow(aws, request, "1, 2")
    answer = trigger.invoke(request)
    assert answer["errorType"] == "TokenRefusedError"
    assert answer["errorMessage"] == "The accounts of this client are not written as they must be."


def test_user_gets_no_token(trigger: Emulator, aws: Aws) -> None:
    request = event("token_claims_of_a_user")
    _allow(aws, request, "*")
    assert trigger.invoke(request)["errorMessage"] == "Tokens are issued to machine clients alone."
