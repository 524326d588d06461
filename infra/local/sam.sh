#!/bin/sh
# Runs the AWS SAM CLI from the repository's root, without telemetry: `sam.sh build --config-env local`.
# It takes a recent `sam` on PATH, or installs the locked one into .venv-sam; `sam build` finds a python3.13 on PATH.
set -eu

cd "$(dirname "$0")/../.."
lock=infra/local/requirements-sam.txt
venv=.venv-sam
stamp=$venv/margin-lock
# Older ones cannot read parameters from files, as samconfig.toml has it.
minor_version_min=150

# The lock and the folder: the programs of an environment know where it stands.
state() {
    { pwd -P; cat "$lock"; } | cksum
}

is_recent() {
    minor=$("$1" --version 2>/dev/null | sed -n 's/^SAM CLI, version 1\.\([0-9]*\)\..*/\1/p')
    [ "${minor:-0}" -ge "$minor_version_min" ]
}

install() {
    [ "$(cat "$stamp" 2>/dev/null)" = "$(state)" ] && "$venv/bin/python" -c '' 2>/dev/null && return
    echo "Installing the AWS SAM CLI into $venv" >&2
    "$python" -m venv --clear "$venv"
    # With bytecode: without, each command would take two seconds more.
    PIP_USER=0 "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --no-input --no-deps \
        --only-binary :all: --require-hashes --compile --requirement "$lock" >&2
    state >"$stamp"
}

# Lists what SAM has put into the migrate function; the layer's Makefile does that for the layer.
list_packages() {
    directory=.aws-sam/build
    architecture=$(machine)
    for argument; do
        case $argument in
        Architecture=*) architecture=${argument#*=} ;;
        --build-dir=*) directory=${argument#*=} ;;
        esac
        case ${before:-} in
        --build-dir | -b) directory=$argument ;;
        esac
        before=$argument
    done
    built=$directory/MigrateFunction
    [ -d "$built" ] || return 0
    report=$(mktemp)
    trap 'rm -f "$report"' EXIT
    # The report names the digests, of which nothing is left in what was built; nothing is installed.
    # shellcheck disable=SC2046  # words
    "$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input --no-deps --dry-run --require-hashes \
        --only-binary :all: --implementation cp --python-version 3.13 \
        $(sed 's/^platforms := //; s/[^ ]*/--platform &/g' "layers/margin/$architecture/platforms.mk") \
        --target "$directory/nothing" --report "$report" --requirement functions/migrate/requirements.txt
    "$python" layers/margin/sbom.py margin-migrate "$built" "$report" "$built/margin-migrate.cdx.json"
}

machine() {
    case $(uname -m) in
    arm64 | aarch64) echo arm64 ;;
    *) echo x86_64 ;;
    esac
}

python=$(sh infra/local/python313.sh) || exit $?
PATH=$(dirname "$python"):$PATH
export PATH SAM_CLI_TELEMETRY=0
# SAM reads the one name alone, the AWS CLI the other one too.
[ -z "${AWS_REGION:-}" ] || export AWS_DEFAULT_REGION="$AWS_REGION"
# What a calling make or Python hands down is not for the Makefile of the layer.
unset PYTHON MAKEFLAGS MFLAGS MAKEOVERRIDES MAKELEVEL PYTHONPATH PYTHONHOME

case ${1:-} in
build | local | validate)
    # None of these needs an account: asking who one is takes seconds, and `local` would hand the credentials to the containers.
    unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_SECURITY_TOKEN AWS_PROFILE AWS_DEFAULT_PROFILE
    export AWS_SHARED_CREDENTIALS_FILE=/dev/null AWS_CONFIG_FILE=/dev/null AWS_EC2_METADATA_DISABLED=true
    # Among the parameters of the environment `local` in samconfig.toml.
    mkdir -p .aws-sam
    echo "Architecture: $(machine)" >.aws-sam/machine.yaml
    ;;
esac

sam=sam
is_recent sam || {
    install
    sam=$venv/bin/sam
}
[ "${1:-}" = build ] || exec "$sam" "$@"
"$sam" "$@"
list_packages "$@"
