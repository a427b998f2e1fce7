"""Selection of what exceeds a threshold, alone: a program for measurements, without a sample or a sort."""

from __future__ import annotations

import tempfile
from pathlib import Path

PROGRAM = """
[[drops]]
void PickEncode(float* gradient, uint8* compressed, [[range(0, 100)]] float cut = {cut}) {{
    uint32* index = filter(range(gradient.size), [&](int i) -> bool {{ return abs(gradient[i]) > cut; }},
                           ceil({limit} * gradient.size));
    compressed = concat(index, gather(gradient, index));
}}

void PickDecode(uint8* compressed, float* gradient, [[range(0, 100)]] float cut = {cut}) {{
    uint32* index;
    float* value;
    extract(compressed, index, value);
    gradient = scatter(gradient.size, index, value);
}}
"""
CUTS = {  # label -> |g| of a normal gradient that so many exceed, and twice that share as the limit
    "threshold 1 %": (2.5758293, 0.02),
    "threshold 0.1 %": (3.2905267, 0.002),
}


def selection(label: str) -> Path:
    """Return a file with the program for a label of CUTS."""
    cut, limit = CUTS[label]
    path = Path(tempfile.mkdtemp(prefix="compll-bench-")) / "pick.pse"
    path.write_text(PROGRAM.format(cut=cut, limit=limit), "utf-8")
    return path
