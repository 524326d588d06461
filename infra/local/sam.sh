#!/bin/sh
# Runs the AWS SAM CLI: `sam.sh build`, `sam.sh local invoke ...`, from the repository's root, without telemetry.
# It takes a recent `sam` on PATH, or installs the locked one into .venv-sam. A python3.13, which `sam build` needs, is put on
# PATH: that of PYTHON313 (a program or its prefix), of PATH, or of pyenv or uv.
set -eu

cd "$(dirname "$0")/../.."
lock=infra/local/requirements-sam.txt
venv=.venv-sam
stamp=$venv/margin-lock
# Older ones do not read parameters from the files that samconfig.toml names.
minor_version_min=150

fail() {
    echo "sam.sh: $*" >&2
    exit 1
}

# A shim may print an error, and a Python without pip cannot build.
is_python313() {
    "$1" -c 'import sys, pip; sys.exit(sys.version_info[:2] != (3, 13))' >/dev/null 2>&1
}

find_python() {
    if [ -n "${PYTHON313:-}" ]; then
        for python in "$PYTHON313" "$PYTHON313/bin/python3.13"; do
            is_python313 "$python" && return
        done
        fail "PYTHON313=$PYTHON313 is no Python 3.13 with pip."
    fi
    for python in python3.13 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13*/bin/python3.13 \
        "${UV_PYTHON_INSTALL_DIR:-$HOME/.local/share/uv/python}"/cpython-3.13*/bin/python3.13; do
        is_python313 "$python" && return
    done
    fail "Python 3.13 with pip is needed to build for Lambda and none was found: install it, or name one with PYTHON313=/path/to/python3.13."
}

is_recent() {
    minor=$("$1" --version 2>/dev/null | sed -n 's/^SAM CLI, version 1\.\([0-9]*\)\..*/\1/p')
    [ "${minor:-0}" -ge "$minor_version_min" ]
}

# The lock and the folder: the programs of an environment know where it stands.
state() {
    { pwd -P; cat "$lock"; } | cksum
}

install() {
    [ "$(cat "$stamp" 2>/dev/null)" = "$(state)" ] && "$venv/bin/python" -c '' 2>/dev/null && return
    echo "Installing the AWS SAM CLI into $venv" >&2
    "$python" -m venv --clear "$venv" || fail "$python cannot make an environment (Debian, Ubuntu: apt install python3.13-venv)."
    PIP_USER=0 "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --no-input --no-deps \
        --only-binary :all: --require-hashes --requirement "$lock" >&2
    state >"$stamp"
}

find_python
[ "$python" = python3.13 ] || PATH=$(dirname "$python"):$PATH
export PATH SAM_CLI_TELEMETRY=0
# What a calling make or Python hands down is not meant for the layer's own Makefile.
unset PYTHON MAKEFLAGS MFLAGS MAKEOVERRIDES MAKELEVEL PYTHONPATH PYTHONHOME

if is_recent sam; then
    exec sam "$@"
fi
install
exec "$venv/bin/sam" "$@"
