#!/usr/bin/env bash
# Makes .venv with everything pinned, and builds DeepSpeed's CPU all-reduce where there is no GPU.
# Idempotent: done in a moment when nothing it depends on has changed. Works from any folder.
#   bash launch/setup.sh              PYTHON=python3.12 bash launch/setup.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "launch/setup.sh: $1" >&2
    echo "  remedy: $2" >&2
    exit 2
}

python=${PYTHON:-python3}
command -v "$python" >/dev/null || fail "no '$python' on PATH" "install Python 3.10 or newer, or set PYTHON="
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$("$python" --version 2>&1) is too old" "install Python 3.10 or newer, or set PYTHON="
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "'$python' cannot make virtual environments" "install its venv package (Debian: python3-venv)"

fingerprint=$(
    "$python" --version
    cat launch/constraints.txt setup.py launch/setup.sh | "$python" -c \
        'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
    pwd # a moved checkout needs its scripts written again
)
stamp=.venv/setup.stamp
if [[ -f $stamp && "$(cat "$stamp")" == "$fingerprint" ]]; then
    exit 0
fi

compiler=${CXX:-c++}
command -v "$compiler" >/dev/null || command -v g++ >/dev/null ||
    fail "no C++ compiler ('$compiler' or g++) on PATH" "install one (Debian: build-essential)"
"$python" -c 'import pathlib, sys, sysconfig
sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").is_file())' ||
    fail "'$python' has no Python.h" "install its headers (Debian: python3-dev)"

echo "launch/setup.sh: making .venv with $("$python" --version)"
rm -f "$stamp"
"$python" -m venv .venv
export PATH="$PWD/.venv/bin:$PATH" # one ninja only: another version would build everything again
unset PYTHONPATH PYTHONHOME
# torch first and alone: DeepSpeed looks for it while it is built
torch=$(grep '^torch==' launch/constraints.txt)
.venv/bin/python -m pip install --quiet --progress-bar off -c launch/constraints.txt setuptools wheel "$torch"
.venv/bin/python -m pip install --quiet --progress-bar off -c launch/constraints.txt -e '.[test]'

export TORCH_EXTENSIONS_DIR="$PWD/.venv/torch_extensions"
mkdir -p "$TORCH_EXTENSIONS_DIR"
# a build that was killed leaves its lock, and the next one would wait for ever
find "$TORCH_EXTENSIONS_DIR" -name lock -delete
.venv/bin/python - <<'PYTHON'
from deepspeed.accelerator import get_accelerator

if get_accelerator().device_name() == "cpu":
    from deepspeed.ops.op_builder import ShareMemCommBuilder

    print("launch/setup.sh: building DeepSpeed's CPU all-reduce (about a minute)", flush=True)
    ShareMemCommBuilder().load(verbose=False)
PYTHON
printf '%s\n' "$fingerprint" >"$stamp"
echo "launch/setup.sh: ready; source .venv/bin/activate, then roberta-dist --help"
