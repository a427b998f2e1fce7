#!/usr/bin/env bash
# The CUDA kernels on a real GPU, by one command: set up, compare with another backend bit for bit, and time
# encode, decode, decode_add and hop against the device's own copy. Writes benchmarks/results/gpu.md and .json.
# Then gradients on the GPU through the whole runtime, compared with host memory (gpu_runtime.py).
#
#     benchmarks/gpu.sh [--elements 1048576 16777216] [--seconds 0.3] [--limit 540] [--results FOLDER]
#
# Where there is no network, PYTHON names an interpreter that has NumPy and CuPy, and WHEELS a folder with
# wheels of what else it lacks (lark, pyzmq, crc32c, say). Nothing is installed then: a copy is put together in a
# temporary folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! gpus=$(nvidia-smi -L 2>/dev/null) || [ -z "$gpus" ]; then
    echo 'gpu.sh: nvidia-smi finds no GPU here, and this benchmark times nothing else.' \
        'Without one, `make test` runs the same kernels on the simulator.' >&2
    exit 1
fi
if [ -n "${PYTHON:-}" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    if [ -n "${WHEELS:-}" ]; then
        "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
    fi
    cp -r compll casync "$site/"
    mkdir "$site/compll-0.dist-info" # what a rank says of its version
    printf 'Metadata-Version: 2.1\nName: compll\nVersion: 0\n' >"$site/compll-0.dist-info/METADATA"
    cp -r grammar "$site/compll/_grammar"
    cp -r templates "$site/compll/_templates"
    PYTHONPATH="$site" "$PYTHON" -u benchmarks/gpu.py "$@"
    PYTHONPATH="$site" "$PYTHON" -u benchmarks/gpu_runtime.py
    exit
fi
make --no-print-directory setup
if ! .venv/bin/python -c 'import cupy' 2>/dev/null; then
    cuda=$(nvidia-smi | sed -nE 's/.*CUDA Version: ([0-9]+).*/\1/p')
    .venv/bin/python -m pip install --quiet "cupy-cuda${cuda}x"
fi
.venv/bin/python -u benchmarks/gpu.py "$@"
.venv/bin/python -u benchmarks/gpu_runtime.py
