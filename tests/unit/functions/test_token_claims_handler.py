"""The claim that says which accounts a client may use: what the table has is in the token, and nothing else is."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from moto import mock_aws

from margin.caller import ACCOUNTS_MAX, caller_of_claims
from margin.errors import UnauthenticatedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

ROOT = Path(__file__).parents[3]
TABLE = "accounts-of-clients"
FOR_A_MACHINE = json.loads((ROOT / "events" / "token_claims.json").read_text(encoding="utf-8"))
FOR_A_USER = json.loads((ROOT / "events" / "token_claims_of_a_user.json").read_text(encoding="utf-8"))
CLIENT = FOR_A_MACHINE["callerContext"]["clientId"]
LONGEST = " ".join(str(10**18 * 9 + n) for n in range(ACCOUNTS_MAX))
WRITTEN_WRONGLY = [
    *("", " ", "0", "-1", "01", "1.0", "1,2", "one", "* 1", "**", "1 *", "\u0661", "1\x002"),
    "10000000000000000000",
    f"{LONGEST} 1",
]
# The gateway takes no more of all headers and the request line.
HEADERS_BYTES_MAX = 10_240


class Issuer:
    """The trigger, loaded anew, and its table."""

    def __init__(self) -> None:
        self.table = boto3.client("dynamodb")
        self.module = load()

    def make_table(self) -> None:
        """Make it as infra/cognito.yaml does."""
        self.table.create_table(
            TableName=TABLE,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": "client_id", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "client_id", "KeyType": "HASH"}],
        )

    def allow(self, accounts: dict[str, Any] | None, client: str = CLIENT) -> None:
        """Write what the table has for the client, as DynamoDB types it."""
        row = {"client_id": {"S": client}} | ({} if accounts is None else {"account_ids": accounts})
        self.table.put_item(TableName=TABLE, Item=row)

    def answer(self, event: dict[str, Any] = FOR_A_MACHINE) -> dict[str, Any]:
        """Ask as Cognito does; what it sends is JSON, and so is what it gets."""
        return json.loads(json.dumps(self.module.handler(copy.deepcopy(event), None)))

    def claims(self) -> dict[str, Any]:
        """Return the claims of an answer that changes nothing else of the token."""
        answer = self.answer()
        ((part, changes),) = answer["response"]["claimsAndScopeOverrideDetails"].items()
        assert part == "accessTokenGeneration"
        assert set(changes) == {"claimsToAddOrOverride"}
        assert answer | {"response": None} == FOR_A_MACHINE | {"response": None}
        return changes["claimsToAddOrOverride"]

    def refusal(self, event: dict[str, Any] = FOR_A_MACHINE) -> str:
        """Return what the client is told."""
        with pytest.raises(self.module.TokenRefusedError) as refusal:
            self.answer(event)
        return str(refusal.value)


def load() -> ModuleType:
    """Load the handler as Lambda does when an execution environment starts: its clients are made then."""
    spec = importlib.util.find_spec("token_claims_handler")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def started() -> Iterator[Issuer]:
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        lend_environment(patch)
        yield Issuer()


@pytest.fixture
def issuer(started: Issuer) -> Iterator[Issuer]:
    started.make_table()
    yield started
    if TABLE in started.table.list_tables()["TableNames"]:
        started.table.delete_table(TableName=TABLE)


def lend_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"AWS_DEFAULT_REGION": "eu-central-1", "AWS_ACCESS_KEY_ID": "testing", "ACCOUNTS_TABLE": TABLE}
    for name, value in (variables | {"AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("accounts", ["1", "1 2 3", "9223372036854775807", "*", LONGEST])
def test_client_gets_the_accounts_of_the_table_and_the_engine_reads_the_same(issuer: Issuer, accounts: str) -> None:
    issuer.allow({"S": accounts})
    claims = issuer.claims()
    assert claims == {"account_ids": accounts}
    expected = None if accounts == "*" else frozenset(map(int, accounts.split()))
    assert caller_of_claims({"sub": CLIENT} | claims, None).accounts == expected


def test_blanks_between_accounts_are_evened_out(issuer: Issuer) -> None:
    issuer.allow({"S": " 1\t2\n3 "})
    assert issuer.claims() == {"account_ids": "1 2 3"}


def test_client_without_a_row_gets_a_token_for_no_account(issuer: Issuer) -> None:
    issuer.allow({"S": "*"}, client="another-client")
    assert issuer.answer() == FOR_A_MACHINE
    assert caller_of_claims({"sub": CLIENT}, None).accounts == frozenset()


@pytest.mark.parametrize("accounts", WRITTEN_WRONGLY)
def test_row_that_is_written_wrongly_gives_no_token(issuer: Issuer, accounts: str) -> None:
    issuer.allow({"S": accounts})
    assert issuer.refusal() == "The accounts of this client are not written as they must be."


@pytest.mark.parametrize("accounts", [accounts for accounts in WRITTEN_WRONGLY if accounts.strip()])
def test_engine_refuses_what_the_trigger_refuses(accounts: str) -> None:
    with pytest.raises(UnauthenticatedError):
        caller_of_claims({"sub": CLIENT, "account_ids": accounts}, None)


@pytest.mark.parametrize("accounts", [None, {"N": "1"}, {"SS": ["1", "2"]}, {"L": [{"S": "1"}]}, {"NULL": True}])
def test_row_of_another_type_gives_no_token(issuer: Issuer, accounts: dict[str, Any] | None) -> None:
    issuer.allow(accounts)
    assert issuer.refusal() == "The accounts of this client are not written as they must be."


@pytest.mark.parametrize(
    "source",
    [
        *("TokenGeneration_HostedAuth", "TokenGeneration_Authentication", "TokenGeneration_RefreshTokens"),
        *("TokenGeneration_NewPasswordChallenge", "TokenGeneration_AuthenticateDevice", "TokenGeneration_New"),
    ],
)
def test_users_get_no_token_even_of_a_client_that_may_use_accounts(issuer: Issuer, source: str) -> None:
    issuer.allow({"S": "*"})
    assert issuer.refusal(FOR_A_USER | {"triggerSource": source}) == "Tokens are issued to machine clients alone."


def test_what_the_caller_sends_along_gives_no_account(issuer: Issuer) -> None:
    event = copy.deepcopy(FOR_A_MACHINE)
    event["request"]["clientMetadata"] = {"account_ids": "*", "client_id": "another-client"}
    event["userName"] = "another-client"
    issuer.allow({"S": "*"}, client="another-client")
    assert issuer.answer(event) == event


def test_refusal_because_of_the_table_names_neither_it_nor_the_role(issuer: Issuer) -> None:
    issuer.table.delete_table(TableName=TABLE)
    assert issuer.refusal() == "The accounts of this client cannot be read at the moment."


def test_table_that_does_not_answer_gives_no_token_before_cognito_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    lend_environment(monkeypatch)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", f"http://127.0.0.1:{silent.getsockname()[1]}")
        module = load()
        with pytest.raises(module.TokenRefusedError, match=r"cannot be read at the moment\.$"):
            module.handler(copy.deepcopy(FOR_A_MACHINE), None)
    config = module._DYNAMODB.meta.config
    # Between two attempts lies a second at most.
    assert config.retries == {"mode": "standard", "total_max_attempts": 2}
    assert 2 * (config.connect_timeout + config.read_timeout) + 1 < 5


def test_longest_claim_fits_into_the_headers_that_the_gateway_takes() -> None:
    # A token is its claims in base64; the rest is for its other claims, its signature and the other headers.
    assert len(LONGEST) * 4 / 3 < HEADERS_BYTES_MAX * 0.6
