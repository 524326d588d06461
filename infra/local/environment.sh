#!/bin/sh
# Makes .venv hold what a lock says: `environment.sh run` for running, `environment.sh dev` for tests and checks as well.
# Ends at once when it does already. PYTHON names the interpreter; without it the newest usable one is taken.
set -eu

level=${1:?run or dev}
cd "$(dirname "$0")/../.."
stamp=.venv/margin-lock
python=.venv/bin/python

# A lock, the project file and the folder: an editable install knows the folder it stands in.
state_of() {
    echo "$1 $({ pwd -P; cat "infra/local/requirements-$1.txt" pyproject.toml; } | cksum)"
}

runs() {
    "$1" -c '' 2>/dev/null
}

# Runs is not enough: a shim may print an error, the system's Python may be old.
is_recent() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

can_make_environments() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null
}

identity_of() {
    "$1" -c 'import sys; print(sys.base_prefix, sys.version)' 2>/dev/null
}

fail() {
    echo "make: $*" >&2
    exit 1
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        runs "$PYTHON" || fail "PYTHON=$PYTHON does not run."
        is_recent "$PYTHON" || fail "PYTHON=$PYTHON is older than 3.11."
        can_make_environments "$PYTHON" || fail "PYTHON=$PYTHON lacks venv (Debian, Ubuntu: apt install python3-venv)."
        found=$PYTHON
        return
    fi
    incomplete=
    for found in python3.14 python3.13 python3.12 python3.11 python3 python; do
        if is_recent "$found"; then
            can_make_environments "$found" && return
            incomplete=${incomplete:-$found}
        fi
    done
    [ -z "$incomplete" ] || fail "$incomplete lacks venv: install it (Debian, Ubuntu: apt install $incomplete-venv)."
    fail "Python 3.11 or newer is needed and none was found: install it, or name one with PYTHON=/path/to/python."
}

is_current() {
    [ -f "$stamp" ] && runs "$python" || return 1
    if [ -n "${PYTHON:-}" ]; then
        find_python
        [ "$(identity_of "$PYTHON")" = "$(identity_of "$python")" ] || return 1
    fi
    holds=$(cat "$stamp")
    # All of `run` is in `dev`.
    [ "$holds" = "$(state_of "$level")" ] || [ "$holds" = "$(state_of dev)" ]
}

# An environment that was moved, or whose Python went away or is not the one asked for, is made anew.
is_reusable() {
    is_recent "$python" && "$python" -m pip --version >/dev/null 2>&1 || return 1
    grep -qF "$(pwd -P)/.venv" .venv/bin/activate || return 1
    [ -z "${PYTHON:-}" ] || [ "$(identity_of "$PYTHON")" = "$(identity_of "$python")" ]
}

install() {
    # The lock is complete and every file in it is a wheel: nothing is resolved and nothing but this project is built.
    PIP_USER=0 "$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input --no-deps --no-compile "$@"
}

is_current && exit
find_python
is_reusable || {
    echo "Making .venv with $("$found" -V)"
    "$found" -m venv --clear .venv
}
rm -f "$stamp"
echo "Installing what infra/local/requirements-$level.txt names"
install --only-binary :all: --require-hashes --requirement "infra/local/requirements-$level.txt"
install --no-build-isolation --editable .
state_of "$level" >"$stamp"
