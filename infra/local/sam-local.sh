#!/bin/sh
# The functions in containers, next to a Valkey and a PostgreSQL in containers.
#
#   sam-local.sh start-api              build, start everything, open the demo's accounts, serve until Ctrl-C
#   sam-local.sh invoke FUNCTION EVENT  build, start the stores if they are not up, run one function on one event
#   sam-local.sh down [-v]              remove what was left running; -v: the data too
#
# PORT is the API's (3000), REDIS_PORT and POSTGRES_PORT are the stores' on this machine (6379, 5432). COMPOSE_PROJECT_NAME and
# BACKEND_NETWORK let a second set of it all run beside the first.
set -eu

action=${1:?start-api, invoke or down}
shift
cd "$(dirname "$0")/../.."

port=${PORT:-3000}
url=http://127.0.0.1:$port
network=${BACKEND_NETWORK:-backend}
log=.aws-sam/local-$port.log
pid_file=.aws-sam/local-$port.pid
built=.aws-sam/built-for-local
healthy_s_max=60

export COMPOSE_PROJECT_NAME="${COMPOSE_PROJECT_NAME:-margin}" BACKEND_NETWORK="$network"
export REDIS_PORT="${REDIS_PORT:-6379}" POSTGRES_PORT="${POSTGRES_PORT:-5432}"
# As in infra/sam-local.json, which tells them to the functions.
export REDIS_PASSWORD=margin POSTGRES_USER=postgres POSTGRES_PASSWORD=margin POSTGRES_DATABASE=margin

fail() {
    echo "make: $*" >&2
    exit 1
}

find_docker() {
    command -v docker >/dev/null || fail "Docker is needed and was not found: install it, or use 'make run', which needs none."
    # In two steps: with a format it succeeds without an engine.
    docker info >/dev/null 2>&1 || fail "No Docker engine answers: start it, or look at what 'docker info' says."
    if docker compose version >/dev/null 2>&1; then
        compose='docker compose'
    elif command -v docker-compose >/dev/null; then
        compose=docker-compose
    else
        fail "Docker Compose is needed and was not found: install the plug-in (Debian, Ubuntu: apt install docker-compose)."
    fi
}

compose() {
    $compose --file infra/docker-compose.yaml "$@"
}

free() {
    .venv/bin/python -c 'import socket, sys
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
try:
    server.bind(("127.0.0.1", int(sys.argv[1])))
except OSError:
    sys.exit(1)' "$1"
}

# Its containers: SAM gives them no names, but they alone are in the network beside the stores.
function_containers() {
    docker ps --all --quiet --filter "network=$network" --filter label=sam.cli.container.type=lambda
}

remove_functions() {
    left=$(function_containers)
    # shellcheck disable=SC2086  # ids, one to a word
    [ -z "$left" ] || docker rm --force $left >/dev/null 2>&1 || true
}

stores_are_healthy() {
    count=0
    for container in $(compose ps -q 2>/dev/null); do
        [ "$(docker inspect --format '{{.State.Health.Status}}' "$container" 2>/dev/null)" = healthy ] || return 1
        count=$((count + 1))
    done
    [ "$count" = 2 ]
}

start_stores() {
    [ -n "$(compose ps -q 2>/dev/null)" ] || {
        free "$REDIS_PORT" || fail "Port $REDIS_PORT is taken: give Valkey another one with REDIS_PORT=16379."
        free "$POSTGRES_PORT" || fail "Port $POSTGRES_PORT is taken: give PostgreSQL another one with POSTGRES_PORT=15432."
    }
    echo "Starting Valkey and PostgreSQL"
    compose up --detach >"$log" 2>&1 || explain "The stores do not start."
    waited_s=0
    until stores_are_healthy; do
        [ "$waited_s" -lt "$healthy_s_max" ] || explain "The stores are not healthy after $healthy_s_max s."
        sleep 1
        waited_s=$((waited_s + 1))
    done
}

explain() {
    tail -n 20 "$log" >&2
    fail "$* The whole log: $log"
}

# A build ends the containers of an API that runs, which watches what was built.
is_built() {
    [ -e "$built" ] && [ -z "$(find template.yaml samconfig.toml functions layers infra/*.yaml .aws-sam/build/template.yaml \
        -newer "$built" ! -name __pycache__ ! -name '*.pyc' 2>&1)" ]
}

build() {
    is_built || {
        echo "Building the functions"
        sh infra/local/sam.sh build --config-env local >"$log" 2>&1 || explain "The build failed."
        touch "$built"
    }
    # Where the image is there, nothing is asked of the registry, which may be out of reach.
    architecture=$(sed 's/.*: *//' .aws-sam/machine.yaml)
    ! docker image inspect "public.ecr.aws/lambda/python:3.13-$architecture" >/dev/null 2>&1 || export SAM_SKIP_PULL_IMAGE=true
}

run_function() {
    sh infra/local/sam.sh local invoke "$1" --config-env local --docker-network "$network" --event "$2"
}

# What the release does in AWS: the schema, and the state of an exchange that this Valkey may never have held.
open_state() {
    echo "Migrating the schema and opening the state"
    answer=$(echo '{"command": "open"}' | run_function MigrateFunction - 2>"$log") || explain "The migration failed."
    case $answer in
    *'"opened"'*) ;;
    *)
        echo "$answer" >&2
        explain "The migration failed."
        ;;
    esac
}

stop() {
    trap '' INT TERM HUP
    trap - EXIT
    if [ -n "${sam:-}" ]; then
        kill -TERM "$sam" 2>/dev/null || true
        wait "$sam" 2>/dev/null || true
    fi
    rm -f "$pid_file"
    remove_functions
    compose down >/dev/null 2>&1 || true
}

start_api() {
    free "$port" || fail "Port $port is taken: give the API another one with PORT=3001."
    trap stop EXIT
    trap 'exit 0' INT TERM
    trap 'exit 129' HUP
    start_stores
    build
    open_state
    echo "Starting the functions"
    sh infra/local/sam.sh local start-api --config-env local --docker-network "$network" --host 127.0.0.1 --port "$port" >"$log" 2>&1 &
    sam=$!
    echo "$sam" >"$pid_file"
    .venv/bin/python -m margin_local.api_accounts "$url" --process "$sam" || explain "The API does not work."
    echo "ready $url (log: $log)"
    wait "$sam" || explain "SAM ended."
}

invoke() {
    function=${1:-}
    event=${2:-}
    { [ -n "$function" ] && [ -n "$event" ]; } || fail "Name both: make sam-invoke FUNCTION=TradeFunction EVENT=events/trade_accepted.json"
    [ "$event" = - ] || [ -r "$event" ] || fail "EVENT=$event cannot be read."
    running=yes
    stores_are_healthy || running=
    [ -n "$running" ] || start_stores >&2
    build >&2
    [ -n "$running" ] || open_state >&2
    run_function "$function" "$event"
}

down() {
    if [ -r "$pid_file" ]; then
        left=$(cat "$pid_file")
        # The number may be another program's by now.
        case $(ps -p "$left" -o args= 2>/dev/null) in
        *'local start-api'*) kill -TERM "$left" 2>/dev/null || true ;;
        esac
        rm -f "$pid_file"
    fi
    remove_functions
    compose down --remove-orphans "$@"
}

find_docker
mkdir -p .aws-sam
case $action in
start-api) start_api ;;
invoke) invoke "$@" ;;
down) down "$@" ;;
*)
    echo "sam-local.sh: start-api, invoke or down, not $action" >&2
    exit 2
    ;;
esac
