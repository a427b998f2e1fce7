"""Lengths past 2^31, one codec a family; each in a process of its own, since each takes many gigabytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("large_lengths.py")
MOST = 20  # GiB


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["onebit", "int8", "terngrad"])
def test_more_than_2_to_the_31_elements_are_encoded_and_decoded(name: str) -> None:
    done = subprocess.run([sys.executable, str(WORKER), name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < MOST
