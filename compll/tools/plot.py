"""A picture of what arrives: decoded against original values, and the error against the original."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from compll.codec import Codec
from compll.errors import ParameterError
from compll.tools import samples
from compll.tools.measure import fidelity, passed_through

SHOWN = 4096  # elements


def draw(codec: Codec, path: Path) -> None:
    """Draw a normal and a heavy-tailed gradient to a file, whose ending says the format.

    Raises:
        ParameterError: Matplotlib is not there, or does not write such files.

    """
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
        figures: Any = importlib.import_module("matplotlib.figure")
    except ImportError:
        raise ParameterError("--plot needs Matplotlib: pip install matplotlib") from None
    figure = figures.Figure(figsize=(9, 7), layout="constrained")
    axes = figure.subplots(2, len(samples.TAILS))
    for (above, below), label in zip(axes.T, samples.TAILS, strict=True):
        g = samples.gradient(label, SHOWN)
        out = passed_through(codec, g)[1]
        found = fidelity(codec, label, SHOWN)
        span = [float(g.min()), float(g.max())]
        above.plot(span, span, color="0.8", linewidth=1, zorder=0)
        above.plot(g, out, ".", markersize=2, color="tab:blue")
        above.set(title=f"{label} gradient", xlabel="original", ylabel="decoded")
        below.axhline(0, color="0.8", linewidth=1, zorder=0)
        below.plot(g, out - g, ".", markersize=2, color="tab:red")
        told = f"|error| / |g| = {found.error:.3g}, cosine {found.cosine:.3f}"
        below.set(title=told, xlabel="original", ylabel="decoded - original")
    params = ", ".join(f"{k}={v.value:g}" for k, v in codec.info.params.items())
    title = f"{codec.info.name}({params}): {found.ratio:.1f} times fewer bytes than float32"
    figure.suptitle(f"{title}, {SHOWN:,} elements")
    try:
        figure.savefig(path, dpi=120)
    except ValueError as e:
        raise ParameterError(f"--plot {path}: {e}") from None
    del matplotlib
