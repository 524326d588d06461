#!/bin/sh
# The locks: `locks.sh write` brings them in line with pyproject.toml and keeps every version that still fits,
# `locks.sh upgrade` takes the newest, `locks.sh check` fails when they differ from what `write` would make.
set -eu

action=${1:?write, upgrade or check}
cd "$(dirname "$0")/../.."

# Each lock holds all of the one before, in the same versions.
layer=layers/margin/requirements.txt
run=infra/local/requirements-run.txt
dev=infra/local/requirements-dev.txt
migrate=functions/migrate/requirements.txt
# In an environment of its own: it pins what the others have newer.
sam=infra/local/requirements-sam.txt
lambda=infra/local/requirements-lambda.txt

compile() {
    output=$1
    input=$2
    shift 2
    .venv/bin/python -m uv pip compile "$input" --output-file "$output" --quiet \
        --universal --python-version 3.11 --generate-hashes --only-binary :all: --no-python-downloads \
        --no-annotate --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' "$@" >/dev/null
}

# Arguments: the folder to write into, then more for the compiler.
compile_all() {
    folder=$1
    shift
    compile "$folder/$layer" pyproject.toml "$@"
    compile "$folder/$run" pyproject.toml --extra local --constraint "$folder/$layer" "$@"
    compile "$folder/$dev" pyproject.toml --all-extras --constraint "$folder/$run" "$@"
    compile "$folder/$migrate" functions/migrate/requirements.in --constraint "$folder/$run" "$@"
    compile "$folder/$sam" infra/local/requirements-sam.in "$@"
    compile "$folder/$lambda" infra/local/requirements-lambda.in "$@"
}

case $action in
write) compile_all . ;;
upgrade) compile_all . --upgrade ;;
check)
    # The compiler prefers the versions and hashes of the file it overwrites, so a new release upstream changes nothing.
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    mkdir -p "$copy/layers/margin" "$copy/infra/local" "$copy/functions/migrate"
    for lock in "$layer" "$run" "$dev" "$migrate" "$sam" "$lambda"; do
        cp "$lock" "$copy/$lock"
    done
    # What the compiler knows from last time is enough and needs no network; the first time it asks.
    compile_all "$copy" --offline 2>/dev/null || compile_all "$copy"
    for lock in "$layer" "$run" "$dev" "$migrate" "$sam" "$lambda"; do
        diff -u "$lock" "$copy/$lock" || {
            echo "$lock does not match pyproject.toml: run 'make lock' and commit the result." >&2
            exit 1
        }
    done
    ;;
*)
    echo "locks.sh: write, upgrade or check, not $action" >&2
    exit 2
    ;;
esac
