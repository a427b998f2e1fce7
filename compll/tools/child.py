"""Fuzzing in a process of its own: `python -m compll.tools.child`, which a wrong kernel may end.

It reads what to do as JSON from standard input and writes a `Fuzz` as JSON to standard output.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import compll
from compll.tools.damage import Fuzz, fuzz


def fuzz_apart(
    files: Sequence[Path],
    backend: str,
    inputs: int,
    seed: int = 0,
    *,
    params: Mapping[str, float | int | bool],
    error_feedback: bool = False,
) -> Fuzz:
    """Fuzz a codec (`damage.fuzz`) in another process; how that ended, if it did not answer, is `wrong`."""
    task = {
        "files": [str(Path(f).resolve()) for f in files],
        "backend": backend,
        "inputs": inputs,
        "seed": seed,
        "params": dict(params),
        "error_feedback": error_feedback,
    }
    command = [sys.executable, "-m", "compll.tools.child"]
    done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, check=False)
    if done.returncode == 0:
        answer = json.loads(done.stdout)
        counts = {kind: (decoded, refused) for kind, (decoded, refused) in answer["counts"].items()}
        return Fuzz(backend, counts, answer["wrong"])
    if done.returncode < 0:
        told = f"the process was ended by {signal.Signals(-done.returncode).name} (seed {seed})"
    else:
        told = f"the process ended with {done.returncode}: {done.stderr.strip()[-2000:]}"
    return Fuzz(backend, {}, told)


def main() -> None:
    """Do what standard input says."""
    task = json.load(sys.stdin)
    files = task["files"]
    source = files[0] if len(files) == 1 else (files[0], files[1])

    def made(backend: str) -> compll.Codec:
        return compll.compile(source, backend, error_feedback=task["error_feedback"], **task["params"])

    codec, meaning = made(task["backend"]), made("interp")
    encoder = meaning if codec.backend == "cudasim" else codec
    print(json.dumps(asdict(fuzz(codec, encoder, meaning, task["inputs"], task["seed"]))))


if __name__ == "__main__":
    main()
