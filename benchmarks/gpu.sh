#!/usr/bin/env bash
# The CUDA kernels on a real GPU, by one command: set up, compare with the interpreter bit for bit, and time
# encode, decode, decode_add and hop against the device's own copy. Writes benchmarks/results/gpu.md.
#
#     benchmarks/gpu.sh [--elements 67108864] [--seconds 1.0]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! gpus=$(nvidia-smi -L 2>/dev/null) || [ -z "$gpus" ]; then
    echo 'gpu.sh: nvidia-smi finds no GPU here, and this benchmark times nothing else.' \
        'Without one, `make test` runs the same kernels on the simulator.' >&2
    exit 1
fi
make --no-print-directory setup
if ! .venv/bin/python -c 'import cupy' 2>/dev/null; then
    cuda=$(nvidia-smi | sed -nE 's/.*CUDA Version: ([0-9]+).*/\1/p')
    .venv/bin/python -m pip install --quiet "cupy-cuda${cuda}x"
fi
exec .venv/bin/python benchmarks/gpu.py "$@"
