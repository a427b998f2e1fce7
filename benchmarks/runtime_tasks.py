"""Tasks a second and CPU a task of the runtime.

python benchmarks/runtime_tasks.py        writes benchmarks/results/runtime.md
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"

if __name__ == "__main__":
    RESULTS.mkdir(exist_ok=True)
    output = RESULTS / "runtime.md"
    subprocess.run([sys.executable, "-m", "casync", "bench", "--output", str(output)], check=True)
