#!/bin/sh
# Prints the path of a Python 3.13, the functions' runtime: that of PYTHON313 (a program or its prefix), of PATH, of pyenv or of uv.
# Ends with 3 when there is none.
set -eu

# A shim may print an error, and a Python without pip cannot build.
is_python313() {
    "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info[:2] != (3, 13))' >/dev/null 2>&1
}

for python in ${PYTHON313:+"$PYTHON313" "$PYTHON313/bin/python3.13"} python3.13 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13*/bin/python3.13 \
    "${UV_PYTHON_INSTALL_DIR:-$HOME/.local/share/uv/python}"/cpython-3.13*/bin/python3.13; do
    if is_python313 "$python"; then
        "$python" -c 'import sys; print(sys.executable)'
        exit
    fi
done
echo "Python 3.13 with pip and venv is needed to run functions as Lambda does, and none was found: install it, or name one with" \
    "PYTHON313=/path/to/python3.13." >&2
exit 3
