#!/usr/bin/env bash
# The same set-up as the quickstart, then lint, types and tests.
#   bash launch/test.sh                     everything (minutes)
#   bash launch/test.sh unit                lint, types and the tests that start no worker
#   bash launch/test.sh --acceptance NAME [POINT ...]   one acceptance list: a figure a line
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
usage="usage: bash launch/test.sh [all | unit | --acceptance NAME]"

marks="not acceptance"
case "${1:-all}" in
all) ;;
unit) marks="unit" ;;
--acceptance)
    script="tests/acceptance/${2:-}.py"
    if [[ ! -f $script ]]; then
        echo "launch/test.sh: --acceptance '${2:-}': no such list; there are:" >&2
        find tests/acceptance -maxdepth 1 -name '*.py' -exec basename {} .py \; 2>/dev/null | sort | sed 's/^/  /' >&2
        exit 2
    fi
    ;;
*)
    echo "$usage" >&2
    exit 2
    ;;
esac

bash launch/setup.sh
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
unset PYTHONPATH PYTHONHOME RANK WORLD_SIZE LOCAL_RANK LOCAL_SIZE

if [[ ${1:-all} == --acceptance ]]; then
    exec python "$script" "${@:3}"
fi
ruff format --check .
ruff check .
mypy
exec python -m pytest -q -m "$marks"
