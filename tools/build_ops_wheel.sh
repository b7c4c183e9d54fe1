#!/usr/bin/env bash
# Compile mmcv with its ops (CPU, and CUDA where a GPU is visible) into a wheel folder keyed by Python, torch and device,
# and print the wheel's path. A wheel that is already there is taken as it is.
#
#   PYTHON=.venv/bin/python WHEELS=~/.cache/mmsb/wheels tools/build_ops_wheel.sh
#
# PYTHON needs torch, ninja, wheel and setuptools >= 80. pip's own wheel cache is not used: it is keyed by source alone,
# so a wheel without ops, or for another torch, would be taken silently.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
wheels=${WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/mmsb/wheels}
spec=$(grep '^onedl-mmcv==' "$root/requirements/mminstall.txt")
key=$("$python" -c 'import sys, torch
device = f"cu{torch.version.cuda}" if torch.cuda.is_available() else "cpu"
print("cp{}{}-torch{}-{}".format(*sys.version_info[:2], torch.__version__.split("+")[0], device))')
folder=$wheels/$key
mkdir -p "$folder"

find_wheel() { find "$folder" -maxdepth 1 -name "${spec/onedl-mmcv==/onedl_mmcv-}-*.whl" -print -quit; }

wheel=$(find_wheel)
if [ -z "$wheel" ]; then
    build=$(mktemp -d "$folder/building.XXXXXX")
    trap 'rm -rf "$build"' EXIT
    jobs=${MAX_JOBS:-$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)}
    echo "compiling the ops of $spec, once for $key: about $((30 / jobs)) minutes on $jobs cores" >&2
    mkdir "$build/tmp"
    TMPDIR=$build/tmp MAX_JOBS=$jobs MMCV_WITH_OPS=1 "$python" -m pip wheel --no-cache-dir --no-deps \
        --no-build-isolation --no-binary onedl-mmcv "$spec" -w "$build/out" -v >"$build/log" 2>&1 &
    pid=$!
    start=$SECONDS
    while kill -0 "$pid" 2>/dev/null; do
        sleep 2
        if [ $(((SECONDS - start) % 20)) -lt 2 ]; then
            objects=$(find "$build/tmp" -name '*.o' 2>/dev/null | wc -l)
            sources=$(find "$build/tmp" -path '*ops/csrc/pytorch*' -name '*.cpp' 2>/dev/null | wc -l)
            echo "  $((SECONDS - start)) s: $objects of about $sources files compiled" >&2
        fi
    done
    if ! wait "$pid"; then
        tail -n 40 "$build/log" >&2
        echo "error: compiling the ops of $spec failed: a C++ compiler and the Python headers are needed" >&2
        exit 1
    fi
    mv "$build"/out/*.whl "$folder/"
    wheel=$(find_wheel)
fi
echo "$wheel"
