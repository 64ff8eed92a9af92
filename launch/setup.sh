#!/usr/bin/env bash
# Makes .venv with everything pinned; without a GPU, DeepSpeed is built with its CPU operators.
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
export PATH="$PWD/.venv/bin:$PATH"
unset PYTHONPATH PYTHONHOME
install() { .venv/bin/python -m pip install --quiet --progress-bar off -c launch/constraints.txt "$@"; }
pinned() { grep -E "^$1==" launch/constraints.txt; }
install setuptools wheel numpy "$(pinned torch)"
built=.venv/deepspeed.stamp # for which torch and DeepSpeed the operator was built
wanted=$(pinned torch && pinned deepspeed && echo "shm_comm cpu_adam")
if .venv/bin/python -c 'import sys, torch; sys.exit(torch.cuda.is_available())' &&
    [[ ! -f $built || "$(cat "$built")" != "$wanted" ]]; then
    # Without a GPU ranks meet in shared memory, and optim.backend=deepspeed is CPUAdam. Built now, because
    # DeepSpeed would otherwise build them in the first run, behind a lock that stays for ever if that run is
    # killed, and not in a path with blanks. Never from pip's cache, which does not know with which of its
    # operators a wheel was built.
    echo "launch/setup.sh: building DeepSpeed with its CPU operators (two to four minutes)"
    install einops hjson msgpack ninja packaging psutil py-cpuinfo pydantic tqdm
    DS_BUILD_SHM_COMM=1 DS_BUILD_CPU_ADAM=1 DS_ACCELERATOR=cpu install --no-build-isolation --no-deps \
        --no-cache-dir --force-reinstall --no-binary deepspeed "$(pinned deepspeed)"
    printf '%s\n' "$wanted" >"$built"
fi
install -e '.[test]'
printf '%s\n' "$fingerprint" >"$stamp"
echo "launch/setup.sh: ready; source .venv/bin/activate, then roberta-dist --help"
