#!/bin/sh
# Makes .venv-lambda hold what Lambda is made of, without containers: a Python 3.13 with the Runtime Interface Client and boto3, and
# the Runtime Interface Emulator. Ends at once when it does already, and with 3 when there is no Python 3.13.
set -eu

cd "$(dirname "$0")/../.."
venv=.venv-lambda
stamp=$venv/margin-lock
runtime=infra/local/requirements-lambda.txt
# The emulator is a program inside of the SAM CLI's wheel.
emulator=infra/local/requirements-sam.txt

# The locks and the folder: the programs of an environment know where it stands.
state() {
    { pwd -P; cat "$runtime" "$emulator"; } | cksum
}

install() {
    PIP_USER=0 "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --no-input --no-deps \
        --only-binary :all: --require-hashes "$@" >&2
}

[ "$(cat "$stamp" 2>/dev/null)" = "$(state)" ] && "$venv/bin/python" -c '' 2>/dev/null && exit
python=$(sh infra/local/python313.sh) || exit $?
echo "Installing Lambda's runtime client and emulator into $venv" >&2
"$python" -m venv --clear "$venv"
install --requirement "$runtime"
sed -n '/^aws-sam-cli==/,/[^\\]$/p' "$emulator" >"$venv/emulator.txt"
install --no-compile --target "$venv/emulator" --requirement "$venv/emulator.txt"
state >"$stamp"
