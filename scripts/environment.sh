# Sourced by the other scripts: creates .venv if no virtual environment is active, and installs the pinned versions into it.
# Usage: . scripts/environment.sh EXTRAS      (such as dev; may be empty)

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras="${1:-}"

if [ -z "${VIRTUAL_ENV:-}" ]; then
    if [ ! -x .venv/bin/python ]; then
        python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "Python 3.11 or newer is needed; python3 is $(python3 --version 2>&1)" >&2
            exit 2
        }
        echo "creating .venv"
        python3 -m venv .venv
    fi
    export VIRTUAL_ENV="$PWD/.venv"
    export PATH="$VIRTUAL_ENV/bin:$PATH"
fi

# A stamp records what was installed, so that later runs start at once without downloads. An installation with `dev` also
# serves scripts that need no extras.
stamp="$VIRTUAL_ENV/.nlp_transfer-installed"
wanted="$PWD $(cat pyproject.toml constraints.txt | python -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')"
if [ "$(cat "$stamp-dev" 2>/dev/null)" != "$wanted" ] && [ "$(cat "$stamp-$extras" 2>/dev/null)" != "$wanted" ]; then
    echo "installing the pinned versions (a few minutes the first time)"
    python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".${extras:+[$extras]}"
    printf '%s' "$wanted" >"$stamp-$extras"
fi
