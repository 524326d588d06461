#!/bin/sh
# Puts Margin into an AWS account, and takes it away again.
#
#   deploy.sh deploy ENV [OPTIONS OF SAM]   build and deploy the environment; one that samconfig.toml does not know is asked for first
#   deploy.sh destroy ENV                   delete it, after a question
#
# Account and region are those of the AWS configuration: AWS_PROFILE, AWS_REGION.
set -eu

action=${1:?deploy or destroy}
environment=${2:?the name of an environment, such as dev}
shift 2
cd "$(dirname "$0")/../.."

fail() {
    echo "make: $*" >&2
    exit 1
}

# Prints the value of a parameter of the environment, nothing when it is not given.
parameter() {
    awk -v section="[$environment.deploy.parameters]" -v start="\"$1=" '
        /^\[/ { inside = ($0 == section) }
        inside && (at = index($0, start)) { rest = substr($0, at + length(start)); print substr(rest, 1, index(rest, "\"") - 1); exit }
    ' samconfig.toml
}

is_known() {
    grep -qxF "[$environment.deploy.parameters]" samconfig.toml
}

# $1 is the question, $2 the answer of those who only press return.
ask() {
    printf '%s%s: ' "$1" "${2:+ [$2]}" >&2
    read -r answer || fail "No answer."
    echo "${answer:-${2:-}}"
}

# A value goes between quotes into a list.
check_value() {
    case $1 in
    *[!A-Za-z0-9/_+=.,:@-]*) fail "$1 holds a character that no name in AWS has." ;;
    esac
}

ask_for_stores() {
    case $(ask "Create a network and stores (c), or use stores that exist (e)?" c) in
    c) parameters="CreateNetwork=yes CreateData=yes" ;;
    e)
        parameters=
        add RedisHost "Host of Redis or Valkey, with TLS"
        add RedisSecretName "Name of the functions' secret in Secrets Manager, JSON with \"username\" and \"password\"; empty for none"
        add PostgresHost "Host of PostgreSQL"
        add PostgresUser "The functions' user there" margin_functions
        add PostgresDatabase "Its database" margin
        add PostgresSecretName "Name of that user's secret in Secrets Manager, JSON with \"username\" and \"password\"; empty for none"
        add PostgresOwner "The user who owns the schema, whom the migration alone logs in as" margin
        add PostgresOwnerSecretName "Name of the owner's secret; empty for none"
        add SubnetIds "Private subnets of the functions, separated by commas; empty for functions outside of any network"
        add SecurityGroupIds "Their security groups, separated by commas; empty for none"
        ;;
    *) fail "The answer is c or e." ;;
    esac
}

ask_for_issuer() {
    case $(ask "Create an issuer of the tokens that callers need (c), or use one that exists (e)?" c) in
    c) parameters="$parameters CreateIssuer=yes" ;;
    e)
        add JwtIssuer "Its address, as in the claim iss of its tokens, such as https://issuer.example.com/"
        add JwtAudience "Whom its tokens are for, as in their claim aud (or client_id, where they have no aud), separated by commas"
        add ScopePrefix "What it puts in front of scopes, such as margin/ of margin/trade:write; empty for nothing"
        ;;
    *) fail "The answer is c or e." ;;
    esac
}

add() {
    answer=$(ask "$2" "${3:-}")
    check_value "$answer"
    [ -z "$answer" ] || parameters="$parameters $1=$answer"
}

write_settings() {
    {
        cat <<END

# --- $environment: written by \`make deploy\` when it was first deployed; template.yaml describes all parameters ---

[$environment.global.parameters]
stack_name = "margin-$environment"

[$environment.validate.parameters]
lint = true

[$environment.build.parameters]
cached = true
parallel = true

[$environment.deploy.parameters]
capabilities = "CAPABILITY_IAM CAPABILITY_AUTO_EXPAND"
resolve_s3 = true
s3_prefix = "margin-$environment"
confirm_changeset = true
fail_on_empty_changeset = false
tags = ["Application=margin", "Environment=$environment"]
parameter_overrides = [
    "file://.aws-sam/release.yaml",
    "Environment=$environment",
END
        for each in $parameters; do
            echo "    \"$each\","
        done
        echo "]"
    } >>samconfig.toml
    echo "Written to samconfig.toml: the environment $environment. Commit it."
}

deploy() {
    is_known || {
        echo "samconfig.toml does not know the environment $environment: a few questions, once."
        ask_for_stores
        ask_for_issuer
        add AlarmTopicArn "SNS topic that alarms go to, its ARN; empty for none"
        write_settings
    }
    [ "$(parameter CreateData)" = yes ] || [ -n "$(parameter RedisHost)" ] ||
        fail "[$environment.deploy.parameters] in samconfig.toml names no stores: give it CreateData=yes, or RedisHost and PostgresHost."
    [ "$(parameter CreateIssuer)" = yes ] || { [ -n "$(parameter JwtIssuer)" ] && [ -n "$(parameter JwtAudience)" ]; } ||
        fail "[$environment.deploy.parameters] in samconfig.toml names nobody who issues tokens: give it CreateIssuer=yes, or JwtIssuer and JwtAudience."
    architecture=$(parameter Architecture)
    architecture=${architecture:-arm64}
    .venv/bin/python infra/release_digest.py --write .aws-sam/release.yaml
    # samconfig.toml has it among the parameters of the deployment alone.
    sh infra/local/sam.sh build --config-env "$environment" --parameter-overrides "Architecture=$architecture"
    sh infra/local/sam.sh deploy --config-env "$environment" "$@"
    [ "$(parameter CreateIssuer)" != yes ] || explain_tokens
}

# What only an operator knows: which client may use which accounts.
explain_tokens() {
    cat <<END

Callers need a token, and a token is for the accounts that the operator has written down for its client. The outputs above name
table and clients. All accounts for the operator, some for a trader; the oracle needs none:

    aws dynamodb put-item --table-name ACCOUNTS_OF_CLIENTS_TABLE \\
        --item '{"client_id": {"S": "OPERATOR_CLIENT_ID"}, "account_ids": {"S": "*"}}'
    aws dynamodb put-item --table-name ACCOUNTS_OF_CLIENTS_TABLE \\
        --item '{"client_id": {"S": "TRADER_CLIENT_ID"}, "account_ids": {"S": "1 2 3"}}'

How a client gets its secret and its tokens: infra/operations.md, "Calling a deployed API".
END
}

destroy() {
    is_known || fail "samconfig.toml does not know the environment $environment."
    [ "$(parameter DeletionProtection)" != yes ] ||
        fail "Database and issuer of $environment are protected: set DeletionProtection=no in samconfig.toml, deploy, then destroy."
    cat <<END
This deletes the environment $environment: API, functions, queues with what is in them, alarms and logs.
An issuer that it created is deleted too, with its clients and what they may use.
Stores that it created are deleted too, automatic backups included; one last snapshot of each stays, and is paid for.
Also stays: stores that existed before, and versions of the layer.
END
    [ "$(ask "Type $environment to delete it")" = "$environment" ] || fail "Nothing was deleted."
    exec sh infra/local/sam.sh delete --config-env "$environment" --no-prompts
}

case $environment in
[!a-z]* | *[!a-z0-9-]* | default | local) fail "ENV=$environment is no name for an environment: take small letters, such as dev or prod." ;;
esac
case $action in
deploy) deploy "$@" ;;
destroy) destroy ;;
*)
    echo "deploy.sh: deploy or destroy, not $action" >&2
    exit 2
    ;;
esac
